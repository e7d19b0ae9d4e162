#include "tokenizer_file.h"

#include "fields.h"

#include <openssl/evp.h>

#include <algorithm>
#include <unordered_map>

namespace libris {
namespace {

constexpr const char *kBlank = "\u2581";
constexpr size_t kMostAround = 64;  // special tokens around a text
constexpr const char *kTrims = R"(\A +| +\z| +(?= ))";

// What is in the file is read by this version in one way alone.
[[noreturn]] void other_form(const std::string &path, const std::string &found,
                             const std::string &expected) {
    throw Error(RIS_ERROR_BUNDLE, path + " has " + found + " where libris reads " + expected +
                                      " alone; export the bundle again with this version");
}

std::string type_of(const json &part) { return part.at("type").get<std::string>(); }

void check_type(const json &part, const char *expected, const std::string &path) {
    const std::string found = type_of(part);
    if (found != expected) other_form(path, in_quotes(found), expected);
}

int token_id(const json &value) {
    if (!is_whole(value, 0, std::numeric_limits<int>::max())) {
        throw json::other_error::create(501, "a token id is not a whole number", &value);
    }
    return value.get<int>();
}

Vocabulary vocabulary(const json &ids) {
    Vocabulary all;
    for (const auto &[token, id] : ids.items()) all.emplace_back(token, token_id(id));
    return all;
}

// The ids of a template's special tokens before and after the expression.
void read_template(const json &processor, const std::string &path, TokenizerFile &file) {
    bool seen = false;
    for (const json &piece : processor.at("single")) {
        if (piece.contains("Sequence")) {
            seen = true;
            continue;
        }
        const std::string name = piece.at("SpecialToken").at("id").get<std::string>();
        for (const json &id : processor.at("special_tokens").at(name).at("ids")) {
            if (file.before.size() + file.after.size() == kMostAround) {
                other_form(path, "more special tokens around a text", "a few");
            }
            (seen ? file.after : file.before).push_back(token_id(id));
        }
    }
}

std::vector<AddedToken> added_tokens(const json &data, const std::string &path) {
    std::vector<AddedToken> all;
    for (const json &token : data.at("added_tokens")) {
        const auto is = [&](const char *option) { return token.at(option).get<bool>(); };
        const json &content = token.at("content");
        AddedToken one{content.get<std::string>(), token_id(token.at("id")),
                       token.value("special", false), is("lstrip"), is("rstrip")};
        if (is("normalized") || is("single_word") || one.content.empty()) {
            throw Error(RIS_ERROR_BUNDLE, path + " has the added token " + cut(content.dump()) +
                                              " with options that libris does not know; "
                                              "export the bundle again with this version");
        }
        all.push_back(std::move(one));
    }
    return all;
}

WordPieceFile word_piece_file(const json &data, const std::string &path) {
    const json &normalizer = data.at("normalizer"), &model = data.at("model");
    check_type(normalizer, "BertNormalizer", path);
    check_type(data.at("pre_tokenizer"), "BertPreTokenizer", path);
    check_type(data.at("post_processor"), "TemplateProcessing", path);

    WordPieceFile file;
    file.clean_text = normalizer.at("clean_text").get<bool>();
    file.handle_chinese_chars = normalizer.at("handle_chinese_chars").get<bool>();
    file.lowercase = normalizer.at("lowercase").get<bool>();
    const json &strip = normalizer.at("strip_accents");
    file.strip_accents = strip.is_null() ? file.lowercase : strip.get<bool>();
    file.unknown = model.at("unk_token").get<std::string>();
    file.prefix = model.at("continuing_subword_prefix").get<std::string>();
    file.longest_word = static_cast<size_t>(token_id(model.at("max_input_chars_per_word")));
    file.vocabulary = vocabulary(model.at("vocab"));
    return file;
}

std::string decoded(const std::string &base64, const std::string &path) {
    constexpr size_t quad = 4;
    if (base64.empty() || base64.size() % quad != 0)
        other_form(path, "a charsmap that is cut short", "base64");
    std::string bytes(base64.size() / quad * 3, '\0');
    const int size = EVP_DecodeBlock(reinterpret_cast<unsigned char *>(bytes.data()),
                                     reinterpret_cast<const unsigned char *>(base64.data()),
                                     static_cast<int>(base64.size()));
    const size_t padding = base64.size() - (base64.find_last_not_of('=') + 1);
    if (size < 0 || padding > 2) other_form(path, "a charsmap that is damaged", "base64");
    bytes.resize(static_cast<size_t>(size) - std::min(padding, static_cast<size_t>(size)));
    return bytes;
}

// Steps that ris-export writes, in their order: NFC, Precompiled, the Replace that trims blanks,
// all of which may be missing; then Prepend, and the Replace of blanks.
NormalizerFile normalizer_file(const json &data, const std::string &path) {
    const json &normalizer = data.at("normalizer");
    check_type(normalizer, "Sequence", path);
    const json &steps = normalizer.at("normalizers");
    const auto replaces = [](const json &step, const char *kind, const char *what,
                             const char *content) {
        return type_of(step) == "Replace" && step.at("pattern") == json{{kind, what}} &&
               step.at("content") == content;
    };

    NormalizerFile file;
    size_t next = 0;
    const auto is = [&](const char *type) {
        return next < steps.size() && type_of(steps[next]) == type;
    };
    if (is("NFC")) {
        file.composes = true;
        ++next;
    }
    if (is("Precompiled")) {
        file.charsmap = decoded(steps[next++].at("precompiled_charsmap").get<std::string>(), path);
    }
    if (is("Replace") && replaces(steps[next], "Regex", kTrims, "")) {
        file.trims_blanks = true;
        ++next;
    }
    const bool ends = next + 2 == steps.size() && is("Prepend") &&
                      steps[next].at("prepend") == kBlank &&
                      replaces(steps[next + 1], "String", " ", kBlank);
    if (!ends) other_form(path, "another normaliser", "the steps that ris-export writes");
    return file;
}

UnigramFile unigram_file(const json &data, const std::string &path) {
    const json &model = data.at("model");
    UnigramFile file;
    file.normalizer = normalizer_file(data, path);
    for (const json &entry : model.at("vocab")) {
        const json &score = entry.at(1);
        if (!is_number(score) || entry.size() != 2) {
            throw json::other_error::create(501, "a piece has no score", &entry);
        }
        file.pieces.emplace_back(entry.at(0).get<std::string>(), score.get<double>());
    }
    file.unknown = token_id(model.at("unk_id"));
    if (static_cast<size_t>(file.unknown) >= file.pieces.size()) {
        throw json::other_error::create(501, "unk_id is no piece", &model);
    }
    if (model.value("byte_fallback", false)) other_form(path, "bytes", "Unigram without them");
    return file;
}

std::pair<std::string, std::string> merge(const json &entry) {
    if (entry.is_array()) {
        return {entry.at(0).get<std::string>(), entry.at(1).get<std::string>()};
    }
    const std::string both = entry.get<std::string>();
    const size_t blank = both.find(' ');
    if (blank == std::string::npos || both.find(' ', blank + 1) != std::string::npos) {
        throw json::other_error::create(501, "a merge is no two pieces", &entry);
    }
    return {both.substr(0, blank), both.substr(blank + 1)};
}

BpeFile bpe_file(const json &data, const std::string &path) {
    const json &model = data.at("model");
    BpeFile file;
    file.normalizer = normalizer_file(data, path);
    const auto is_unused = [&](const char *name) {
        return !model.contains(name) || model.at(name).is_null() || model.at(name) == "";
    };
    const bool is_known = model.value("byte_fallback", false) &&
                          !model.value("ignore_merges", false) && is_unused("dropout") &&
                          is_unused("continuing_subword_prefix") && is_unused("end_of_word_suffix");
    if (!is_known) other_form(path, "another BPE", "BPE with byte_fallback");
    file.unknown = model.at("unk_token").get<std::string>();
    file.vocabulary = vocabulary(model.at("vocab"));
    for (const json &entry : model.at("merges")) file.merges.push_back(merge(entry));
    return file;
}

// `tokenizers` counts the ids of added tokens itself: those of the vocabulary, and on from there.
void check_added_ids(const std::unordered_map<std::string, int32_t> &ids, size_t size,
                     const TokenizerFile &file, const std::string &path) {
    auto next = static_cast<int64_t>(size);
    for (const AddedToken &token : file.added) {
        const auto known = ids.find(token.content);
        const int64_t id = known != ids.end() ? known->second : next++;
        if (id == token.id) continue;
        throw Error(RIS_ERROR_BUNDLE, path + " gives " + in_quotes(token.content) + " the id " +
                                          std::to_string(token.id) + ", it should be " +
                                          std::to_string(id) + "; export the bundle again");
    }
}

// A tokenizer.json of SentencePiece's kind.
void read_sentence_pieces(const json &data, const std::string &path, TokenizerFile &file) {
    const json &splits = data.at("pre_tokenizer"), &processor = data.at("post_processor");
    if (!splits.is_null()) other_form(path, in_quotes(type_of(splits)), "no pre_tokenizer");
    if (!processor.is_null()) check_type(processor, "TemplateProcessing", path);

    std::unordered_map<std::string, int32_t> ids;
    if (type_of(data.at("model")) == "Unigram") {
        UnigramFile model = unigram_file(data, path);
        for (size_t id = 0; id < model.pieces.size(); ++id) {
            ids[model.pieces[id].first] = static_cast<int32_t>(id);
        }
        check_added_ids(ids, model.pieces.size(), file, path);
        file.model = std::move(model);
    } else {
        BpeFile model = bpe_file(data, path);
        ids.insert(model.vocabulary.begin(), model.vocabulary.end());
        check_added_ids(ids, model.vocabulary.size(), file, path);
        file.model = std::move(model);
    }
    if (!processor.is_null()) read_template(processor, path, file);
}

}  // namespace

TokenizerFile parse_tokenizer(const std::string &text, const std::string &path) {
    const json data = parse_json(text, path);
    TokenizerFile file;
    try {
        const std::string kind = type_of(data.at("model"));
        if (kind == "WordPiece") {
            file.model = word_piece_file(data, path);
            file.added = added_tokens(data, path);
            read_template(data.at("post_processor"), path, file);
        } else if (kind == "Unigram" || kind == "BPE") {
            file.added = added_tokens(data, path);
            read_sentence_pieces(data, path, file);
        } else {
            other_form(path, in_quotes(kind), "WordPiece, Unigram and BPE");
        }
    } catch (const json::exception &error) {
        throw Error(RIS_ERROR_BUNDLE, path + " is not a tokenizer that can be read (" +
                                          cut(error.what()) + "); export the bundle again");
    }
    return file;
}

}  // namespace libris
