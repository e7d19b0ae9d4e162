// Texts without added tokens to ids, as the three kinds of vocabularies do it.
#pragma once

#include "characters.h"
#include "tokenizer_file.h"

#include <memory>

namespace libris {

class Subwords {
public:
    virtual ~Subwords() = default;

    // Adds the tokens of a text.
    virtual void add(const Characters &text, std::vector<Token> &tokens) const = 0;

    // The id of what is no known piece.
    virtual int32_t unknown() const = 0;
};

// They throw Error where the vocabulary lacks what the model needs; `path` is for messages.
std::unique_ptr<Subwords> word_pieces(const WordPieceFile &file, const std::string &path);
std::unique_ptr<Subwords> unigram(const UnigramFile &file, const std::string &path);
std::unique_ptr<Subwords> byte_pairs(const BpeFile &file, const std::string &path);

}  // namespace libris
