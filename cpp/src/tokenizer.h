// Expressions to token ids, as a bundle's tokenizer.json says.
#pragma once

#include "bundle.h"
#include "subwords.h"

#include <map>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

namespace libris {

// An expression's ids, at most max_tokens of them. notes: what its author should know, if anything.
struct Tokens {
    std::vector<int32_t> ids;
    std::vector<std::string> notes;
};

class Tokenizer {
public:
    // end_id: what the ids of a text that was cut end with, -1 for what stands there. Throws Error
    // where the vocabulary lacks what the model needs.
    Tokenizer(const TokenizerFile &file, const std::string &path, int max_tokens, int32_t pad_id,
              int32_t end_id);
    Tokenizer(const Tokenizer &) = delete;
    Tokenizer &operator=(const Tokenizer &) = delete;

    // form: what the expression stands in, null where it is asked as it is. Throws Error for an
    // expression that is empty, too long, not UTF-8, or has a token in it that only the model's own
    // texts have.
    Tokens operator()(std::string_view expression, const Form *form = nullptr) const;

    int32_t largest_id() const { return largest_id_; }

private:
    // An added token and the place it takes, with the white space that goes with it.
    struct Place {
        const AddedToken *token;
        size_t begin, end;  // of characters
    };

    const AddedToken *added_at(std::string_view rest) const;
    std::vector<Place> places_of_added(std::string_view expression, const Characters &text) const;
    std::vector<Token> tokens_of(std::string_view expression, const Characters &text) const;
    Tokens cut(std::string_view expression, std::vector<Token> tokens) const;
    void refuse_own_tokens(std::string_view expression, const std::vector<Token> &tokens) const;

    std::unique_ptr<Subwords> subwords_;
    std::vector<AddedToken> added_;
    std::map<int32_t, std::string> own_tokens_;  // which no expression may have, by id
    int32_t largest_id_, pad_id_, end_id_;
    int max_tokens_;
    std::string padding_;  // the token of pad_id_
    std::vector<int32_t> before_, after_;
};

}  // namespace libris
