// Expressions to token ids, as BERT's tokenizers do it: normalisation, words, WordPiece.
#pragma once

#include "json.h"

#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

namespace libris {

// An expression's ids, at most max_tokens of them. notes: what its author should know, if anything.
struct Tokens {
    std::vector<int32_t> ids;
    std::vector<std::string> notes;
};

class Tokenizer {
public:
    // Throws Error where the vocabulary lacks what the model needs.
    Tokenizer(const TokenizerFile &file, const std::string &path, int max_tokens, int32_t pad_id);
    Tokenizer(const Tokenizer &) = delete;
    Tokenizer &operator=(const Tokenizer &) = delete;

    // Throws Error for an expression that is empty, too long or not UTF-8.
    Tokens operator()(std::string_view expression) const;

    int32_t largest_id() const { return largest_id_; }

private:
    struct Character {
        char32_t code;
        size_t begin, end;  // where it came from, in bytes of the expression
    };
    struct Token {
        int32_t id;
        size_t begin, end;
    };
    using Characters = std::vector<Character>;

    Characters normalised(const Characters &text) const;
    void add_words(const Characters &text, std::vector<Token> &tokens) const;
    void add_word(const Character *first, const Character *last, std::vector<Token> &tokens) const;

    bool clean_text_, handle_chinese_chars_, strip_accents_, lowercase_;
    size_t longest_word_, longest_token_;
    int32_t unknown_, largest_id_, pad_id_;
    int max_tokens_;
    std::string prefix_, padding_;  // padding_: the token of pad_id_
    std::string storage_;           // all tokens, one after the other, which the keys look into
    std::unordered_map<std::string_view, int32_t> vocabulary_;
    std::vector<std::pair<std::string, int>> special_;
    std::vector<int> before_, after_;
};

}  // namespace libris
