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

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    using namespace libris;
    static const Tokenizer fixed(parse_tokenizer(kTokenizer, "fixed"), "fixed", 35, 0);
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
                                     0);
                made("left man \u00e9[MASK]");
                break;
            }
            default: {
                const Tokens tokens = fixed(text);
                if (tokens.ids.size() > 35) __builtin_trap();
            }
        }
    } catch (const Error &) {
        // the documented outcome
    }
    return 0;
}
