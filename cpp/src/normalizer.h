// How SentencePiece's vocabularies change a text before it is cut, by a tokenizer.json.
#pragma once

#include "characters.h"
#include "tokenizer_file.h"

#include <string_view>

namespace libris {

// SentencePiece's compiled rules: texts by a trie (a Darts double array) of what they replace.
class Charsmap {
public:
    // Throws Error where the rules are damaged; without any every text stays as it is.
    Charsmap(std::string_view rules, const std::string &path);

    // As `tokenizers` does it: clusters of up to five bytes by the shortest rule that they begin
    // with, which drops the rest of them; else each character for itself.
    Characters replaced(const Characters &text) const;

private:
    // What the shortest rule at the start of `text` makes of it; null where there is none.
    const char *found(std::string_view text) const;
    uint32_t unit(size_t at) const;

    std::string path_;
    std::vector<uint32_t> units_;
    std::string texts_;  // each ends with a 0
};

class Normalizer {
public:
    Normalizer(const NormalizerFile &file, const std::string &path);
    Characters operator()(const Characters &text) const;

private:
    bool composes_, trims_blanks_;
    Charsmap charsmap_;
};

}  // namespace libris
