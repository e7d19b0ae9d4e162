// Everything that libris and its examples read and do not make: manifest, tokenizer, categories,
// feature table, expressions, EXIF blocks, XMP packets, graphs to widen or to move. Whatever the
// bytes, the outcome is a value or an Error. The first byte says which reader gets the rest.
#include "error.h"
#include "external.h"
#include "json.h"
#include "pictures.hpp"
#include "tokenizer.h"
#include "widen.h"

#ifdef RIS_FUZZ_ALONE
const char *ris_version(void) { return "fuzz"; }  // src/ris.cpp has it, and needs ONNX Runtime
#endif

namespace {

const char *const kTokenizer = R"({
    "added_tokens": [
        {"id": 0, "content": "[PAD]", "normalized": false, "single_word": false,
            "lstrip": false, "rstrip": false},
        {"id": 1, "content": "[UNK]", "normalized": false, "single_word": false,
            "lstrip": false, "rstrip": false}],
    "normalizer": {"type": "BertNormalizer", "clean_text": true, "handle_chinese_chars": true,
        "strip_accents": null, "lowercase": true},
    "pre_tokenizer": {"type": "BertPreTokenizer"},
    "post_processor": {"type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": "[CLS]"}}, {"Sequence": {"id": "A"}},
            {"SpecialToken": {"id": "[SEP]"}}],
        "special_tokens": {"[CLS]": {"ids": [2]}, "[SEP]": {"ids": [3]}}},
    "model": {"type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": "##",
        "max_input_chars_per_word": 100,
        "vocab": {"[PAD]": 0, "[UNK]": 1, "[CLS]": 2, "[SEP]": 3, "left": 4, "##t": 5,
            "man": 6, "a": 7, "##a": 8, "##b": 9, "!": 10}}})";

const char *const kUnigram = R"json({
    "added_tokens": [{"id": 3, "content": "[semantic]", "normalized": false, "single_word": false,
        "lstrip": true, "rstrip": true, "special": false}],
    "normalizer": {"type": "Sequence", "normalizers": [
        {"type": "NFC"},
        {"type": "Replace", "pattern": {"Regex": "\\A +| +\\z| +(?= )"}, "content": ""},
        {"type": "Prepend", "prepend": "\u2581"},
        {"type": "Replace", "pattern": {"String": " "}, "content": "\u2581"}]},
    "pre_tokenizer": null, "post_processor": null,
    "model": {"type": "Unigram", "unk_id": 0,
        "vocab": [["<unk>", 0], ["\u2581a", -1], ["ab", -2]]}})json";

// with all bytes as pieces
std::string byte_pairs_file() {
    std::string vocabulary = R"("<unk>": 256, "a": 257, "b": 258, "ab": 259, "\u2581": 260)";
    const char *const digits = "0123456789ABCDEF";
    for (int i = 0; i < 256; ++i) {
        vocabulary += std::string(", \"<0x") + digits[i / 16] + digits[i % 16] + ">\": ";
        vocabulary += std::to_string(i);
    }
    return R"({"added_tokens": [],
        "normalizer": {"type": "Sequence", "normalizers": [
            {"type": "Prepend", "prepend": "\u2581"},
            {"type": "Replace", "pattern": {"String": " "}, "content": "\u2581"}]},
        "pre_tokenizer": null, "post_processor": null,
        "model": {"type": "BPE", "unk_token": "<unk>", "byte_fallback": true,
            "merges": [["a", "b"]], "vocab": {)" +
           vocabulary + "}}}";
}

// An expression by a tokenizer that is whole.
void cut(const libris::Tokenizer &tokenizer, const std::string &text) {
    if (tokenizer(text).ids.size() > 35) __builtin_trap();
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    using namespace libris;
    static const Tokenizer fixed(parse_tokenizer(kTokenizer, "fixed"), "fixed", 35, 0, -1);
    static const Tokenizer pieces(parse_tokenizer(kUnigram, "fixed"), "fixed", 35, 1, 2);
    static const Tokenizer pairs(parse_tokenizer(byte_pairs_file(), "fixed"), "fixed", 35, 0, -1);
    if (size == 0) return 0;
    const std::string text(reinterpret_cast<const char *>(data + 1), size - 1);
    try {
        switch (data[0]) {
            case 'm': parse_manifest(text, "manifest.json"); break;
            case 'c': parse_category_names(text, "categories.json"); break;
            case 'f': parse_features(text, "categories.npy"); break;
            case 'w': widened(text, "fusion.onnx"); break;
            case 'd': {
                const auto same = [](const std::string &name) { return name; };
                const auto names = data_files(text, "fusion.onnx");
                const std::string moved = with_data_files(text, "fusion.onnx", same);
                if (data_files(moved, "fusion.onnx") != names) __builtin_trap();
                break;
            }
            case 'p': {
                const int orientation = pictures::xmp_orientation(text);
                if (orientation < 0 || orientation > 8) __builtin_trap();
                break;
            }
            case 'x': {
                const int orientation = pictures::exif_orientation(data + 1, size - 1);
                if (orientation < 0 || orientation > 8) __builtin_trap();
                break;
            }
            case 't': {
                const Tokenizer made(parse_tokenizer(text, "tokenizer.json"), "tokenizer.json", 35,
                                     0, -1);
                made("left A\u0301man \u00e9[MASK]\u00bd\r\n[semantic]  \U0001f436");
                break;
            }
            case 'u': cut(pieces, text); break;
            case 'b': cut(pairs, text); break;
            default: cut(fixed, text);
        }
    } catch (const Error &) {
        // the documented outcome
    }
    return 0;
}
