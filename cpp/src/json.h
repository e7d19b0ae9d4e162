// Everything that is read from and written as JSON.
#pragma once

#include "bundle.h"

#include <string>
#include <vector>

namespace libris {

// The texts are a file's; `path` is for messages. All throw Error.
Manifest parse_manifest(const std::string &text, const std::string &path);
std::vector<std::string> parse_category_names(const std::string &text, const std::string &path);

// What a tokenizer.json says, as far as BERT's tokenizers use it.
struct TokenizerFile {
    bool clean_text, handle_chinese_chars, strip_accents, lowercase;
    std::string unknown, prefix;
    size_t longest_word;  // in characters; longer ones are unknown
    std::vector<std::pair<std::string, int>> vocabulary;
    std::vector<std::pair<std::string, int>> special;  // found in the text as it is
    std::vector<int> before, after;                    // ids around an expression: [CLS] and [SEP]
};
TokenizerFile parse_tokenizer(const std::string &text, const std::string &path);

// What ris_info returns. providers: what was asked to run each stage; contexts: what became of its
// EPContext model.
struct Info {
    std::string onnxruntime;
    std::vector<std::string> providers, contexts;
    int threads, mask_size;
    std::vector<std::string> categories;
};
std::string info_json(const Bundle &bundle, const Info &info);

}  // namespace libris
