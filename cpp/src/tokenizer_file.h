// What a tokenizer.json says, as far as libris reads it.
#pragma once

#include <cstdint>
#include <string>
#include <utility>
#include <variant>
#include <vector>

namespace libris {

using Vocabulary = std::vector<std::pair<std::string, int32_t>>;  // tokens with their ids

// BERT's: words between blanks and punctuation, the longest pieces first.
struct WordPieceFile {
    bool clean_text, handle_chinese_chars, strip_accents, lowercase;
    std::string unknown, prefix;
    size_t longest_word;  // in characters; longer ones are unknown
    Vocabulary vocabulary;
};

// How SentencePiece's vocabularies change a text before it is cut. At the end a blank is put in
// front, and each blank becomes U+2581.
struct NormalizerFile {
    bool composes = false;      // NFC
    std::string charsmap;       // SentencePiece's compiled rules; may be empty
    bool trims_blanks = false;  // none at the ends, and one where there are several
};

// SentencePiece's unigram: the pieces whose scores have the greatest sum.
struct UnigramFile {
    NormalizerFile normalizer;
    std::vector<std::pair<std::string, double>> pieces;  // with their scores, by id
    int32_t unknown;
};

// SentencePiece's BPE with byte fallback: the best pair of neighbours becomes one piece.
struct BpeFile {
    NormalizerFile normalizer;
    std::string unknown;
    Vocabulary vocabulary;
    std::vector<std::pair<std::string, std::string>> merges;  // the best first
};

// A token that is found in the text as it is.
struct AddedToken {
    std::string content;
    int32_t id;
    bool is_special;                 // it stands for no word
    bool strips_left, strips_right;  // white space beside it goes with it
};

struct TokenizerFile {
    std::variant<WordPieceFile, UnigramFile, BpeFile> model;
    std::vector<AddedToken> added;
    std::vector<int32_t> before, after;  // ids around an expression: [CLS] and [SEP]
};

// `text` is the file's, `path` is for messages. Throws Error.
TokenizerFile parse_tokenizer(const std::string &text, const std::string &path);

}  // namespace libris
