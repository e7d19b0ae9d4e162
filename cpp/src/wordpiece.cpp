// BERT's tokenizers: normalisation, words, WordPiece.
#include "error.h"
#include "subwords.h"

#include <utf8proc.h>

#include <algorithm>
#include <iterator>
#include <string_view>
#include <unordered_map>

namespace libris {
namespace {

struct Range {
    char32_t first, last;
};

#include "character_classes.inc"

template <size_t n>
bool in(const Range (&ranges)[n], char32_t c) {
    const auto below = [](char32_t code, const Range &range) { return code < range.first; };
    const auto after = std::upper_bound(std::begin(ranges), std::end(ranges), c, below);
    return after != std::begin(ranges) && c <= after[-1].last;
}

bool is_chinese(char32_t c) {
    return (c >= 0x4e00 && c <= 0x9fff) || (c >= 0x3400 && c <= 0x4dbf) ||
           (c >= 0x20000 && c <= 0x2a6df) || (c >= 0x2a700 && c <= 0x2b73f) ||
           (c >= 0x2b740 && c <= 0x2b81f) || (c >= 0x2b920 && c <= 0x2ceaf) ||
           (c >= 0xf900 && c <= 0xfaff) || (c >= 0x2f800 && c <= 0x2fa1f);
}

class WordPieces : public Subwords {
public:
    WordPieces(const WordPieceFile &file, const std::string &path)
        : clean_text_(file.clean_text),
          handle_chinese_chars_(file.handle_chinese_chars),
          strip_accents_(file.strip_accents),
          lowercase_(file.lowercase),
          longest_word_(file.longest_word),
          prefix_(file.prefix) {
        size_t total = 0;
        for (const auto &[token, id] : file.vocabulary) total += token.size();
        storage_.reserve(total);  // never moves from here on
        vocabulary_.reserve(file.vocabulary.size());
        for (const auto &[token, id] : file.vocabulary) {
            const size_t start = storage_.size();
            storage_ += token;
            vocabulary_[std::string_view(storage_).substr(start)] = id;
            longest_token_ = std::max(longest_token_, token.size());
            if (token == file.unknown) unknown_ = id;
        }
        if (unknown_ < 0) {
            throw Error(RIS_ERROR_BUNDLE, path + " has no token " + in_quotes(file.unknown) +
                                              "; export the bundle again");
        }
    }

    void add(const Characters &text, std::vector<Token> &tokens) const override {
        add_words(normalised(text), tokens);
    }

    int32_t unknown() const override { return unknown_; }

private:
    Characters normalised(const Characters &text) const;
    void add_words(const Characters &text, std::vector<Token> &tokens) const;
    void add_word(const Character *first, const Character *last, std::vector<Token> &tokens) const;

    bool clean_text_, handle_chinese_chars_, strip_accents_, lowercase_;
    size_t longest_word_, longest_token_ = 0;
    int32_t unknown_ = -1;
    std::string prefix_;
    std::string storage_;  // all tokens, one after the other, which the keys look into
    std::unordered_map<std::string_view, int32_t> vocabulary_;
};

Characters WordPieces::normalised(const Characters &text) const {
    Characters out;
    for (Character c : text) {
        if (clean_text_) {
            if (c.code == 0 || in(kControl, c.code)) continue;
            if (is_whitespace(c.code)) c.code = ' ';
        }
        if (handle_chinese_chars_ && is_chinese(c.code)) {
            out.insert(out.end(), {{' ', c.begin, c.end}, c, {' ', c.begin, c.end}});
        } else {
            out.push_back(c);
        }
    }

    if (strip_accents_) {
        const Characters parts = decomposed(out);
        out.clear();
        for (const Character &c : parts) {
            if (!in(kMark, c.code)) out.push_back(c);
        }
    }

    if (lowercase_) {
        for (Character &c : out) {
            c.code = static_cast<char32_t>(utf8proc_tolower(static_cast<utf8proc_int32_t>(c.code)));
        }
    }
    return out;
}

void WordPieces::add_words(const Characters &text, std::vector<Token> &tokens) const {
    const Character *const end = text.data() + text.size();
    for (const Character *first = text.data(); first != end;) {
        const Character *last = first;
        if (in(kPunctuation, first->code)) {
            last = first + 1;
        } else {
            while (last != end && !is_whitespace(last->code) && !in(kPunctuation, last->code)) {
                ++last;
            }
        }
        if (last == first) {
            ++first;  // whitespace
            continue;
        }
        add_word(first, last, tokens);
        first = last;
    }
}

void WordPieces::add_word(const Character *first, const Character *last,
                          std::vector<Token> &tokens) const {
    const size_t length = static_cast<size_t>(last - first);
    std::vector<Token> pieces;
    size_t start = 0;
    while (length <= longest_word_ && start < length) {
        // all prefixes of the rest, of which the longest known one is taken
        std::string piece = start > 0 ? prefix_ : "";
        size_t end = start;
        Token best{-1, 0, 0};
        for (size_t i = start; i < length && piece.size() < longest_token_; ++i) {
            append_utf8(piece, first[i].code);
            const auto known = vocabulary_.find(piece);
            if (known == vocabulary_.end()) continue;
            best = {known->second, first[start].begin, first[i].end};
            end = i + 1;
        }
        if (best.id < 0) break;
        pieces.push_back(best);
        start = end;
    }
    if (start < length) pieces = {{unknown_, first->begin, last[-1].end}};
    tokens.insert(tokens.end(), pieces.begin(), pieces.end());
}

}  // namespace

std::unique_ptr<Subwords> word_pieces(const WordPieceFile &file, const std::string &path) {
    return std::make_unique<WordPieces>(file, path);
}

}  // namespace libris
