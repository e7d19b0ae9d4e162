#include "tokenizer.h"

#include "error.h"

#include <utf8proc.h>

#include <algorithm>
#include <iterator>

namespace libris {
namespace {

constexpr size_t kMaxCharacters = 1000;  // the model itself reads about 25 words

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

bool is_whitespace(char32_t c) {
    return (c >= 0x09 && c <= 0x0d) || c == 0x20 || c == 0x85 || c == 0xa0 || c == 0x1680 ||
           (c >= 0x2000 && c <= 0x200a) || c == 0x2028 || c == 0x2029 || c == 0x202f ||
           c == 0x205f || c == 0x3000;
}

// Python's str.strip() takes the separators too.
bool is_blank(char32_t c) { return is_whitespace(c) || (c >= 0x1c && c <= 0x1f); }

bool is_chinese(char32_t c) {
    return (c >= 0x4e00 && c <= 0x9fff) || (c >= 0x3400 && c <= 0x4dbf) ||
           (c >= 0x20000 && c <= 0x2a6df) || (c >= 0x2a700 && c <= 0x2b73f) ||
           (c >= 0x2b740 && c <= 0x2b81f) || (c >= 0x2b920 && c <= 0x2ceaf) ||
           (c >= 0xf900 && c <= 0xfaff) || (c >= 0x2f800 && c <= 0x2fa1f);
}

void append_utf8(std::string &text, char32_t c) {
    utf8proc_uint8_t bytes[4];
    const utf8proc_ssize_t length = utf8proc_encode_char(static_cast<utf8proc_int32_t>(c), bytes);
    text.append(reinterpret_cast<const char *>(bytes), static_cast<size_t>(length));
}

}  // namespace

Tokenizer::Tokenizer(const TokenizerFile &file, const std::string &path, int max_tokens,
                     int32_t pad_id)
    : clean_text_(file.clean_text),
      handle_chinese_chars_(file.handle_chinese_chars),
      strip_accents_(file.strip_accents),
      lowercase_(file.lowercase),
      longest_word_(file.longest_word),
      longest_token_(0),
      unknown_(-1),
      largest_id_(0),
      pad_id_(pad_id),
      max_tokens_(max_tokens),
      prefix_(file.prefix),
      special_(file.special),
      before_(file.before),
      after_(file.after) {
    size_t total = 0;
    for (const auto &[token, id] : file.vocabulary) total += token.size();
    storage_.reserve(total);  // never moves from here on
    vocabulary_.reserve(file.vocabulary.size());
    for (const auto &[token, id] : file.vocabulary) {
        const size_t start = storage_.size();
        storage_ += token;
        vocabulary_[std::string_view(storage_).substr(start)] = id;
        longest_token_ = std::max(longest_token_, token.size());
        largest_id_ = std::max<int32_t>(largest_id_, id);
        if (token == file.unknown) unknown_ = id;
        if (id == pad_id) padding_ = token;
    }

    bool negative = unknown_ < 0;
    for (const auto &[token, id] : file.vocabulary) negative = negative || id < 0;
    for (const auto &[token, id] : special_) {
        negative = negative || id < 0 || token.empty();
        if (id == pad_id) padding_ = token;
    }
    for (const int id : before_) negative = negative || id < 0;
    for (const int id : after_) negative = negative || id < 0;
    if (negative) {
        throw Error(RIS_ERROR_BUNDLE, path + " has no token " + quoted(file.unknown) +
                                          ", or ids below 0; export the bundle again");
    }
}

Tokens Tokenizer::operator()(std::string_view expression) const {
    Characters text;
    bool blank = true;
    for (size_t at = 0; at < expression.size();) {
        utf8proc_int32_t code = -1;
        const utf8proc_ssize_t length =
            utf8proc_iterate(reinterpret_cast<const utf8proc_uint8_t *>(expression.data() + at),
                             static_cast<utf8proc_ssize_t>(expression.size() - at), &code);
        if (length <= 0 || code < 0) {
            throw Error(RIS_ERROR_EXPRESSION, "the expression is not valid UTF-8");
        }
        text.push_back({static_cast<char32_t>(code), at, at + static_cast<size_t>(length)});
        blank = blank && is_blank(text.back().code);
        at = text.back().end;
    }
    if (blank) {
        throw Error(RIS_ERROR_EXPRESSION,
                    "the expression is empty; say what to find, such as \"left man\"");
    }
    if (text.size() > kMaxCharacters) {
        const std::string size = std::to_string(text.size()), most = std::to_string(kMaxCharacters);
        throw Error(RIS_ERROR_EXPRESSION, "the expression has " + size + " characters, at most " +
                                              most + " are accepted (the model reads the first " +
                                              std::to_string(max_tokens_) + " tokens)");
    }

    std::vector<Token> tokens;
    for (const int id : before_) tokens.push_back({id, 0, 0});
    // what stands between special tokens, which are found in the text as it is, the longest first
    Characters segment;
    for (size_t i = 0; i < text.size();) {
        const std::pair<std::string, int> *found = nullptr;
        for (const auto &special : special_) {
            const bool here =
                expression.compare(text[i].begin, special.first.size(), special.first) == 0;
            if (here && (found == nullptr || special.first.size() > found->first.size())) {
                found = &special;
            }
        }
        if (found == nullptr) {
            segment.push_back(text[i++]);
            continue;
        }

        add_words(normalised(segment), tokens);
        segment.clear();
        const size_t begin = text[i].begin, end = begin + found->first.size();
        tokens.push_back({found->second, begin, end});
        while (i < text.size() && text[i].begin < end) ++i;
    }
    add_words(normalised(segment), tokens);
    if (tokens.size() == before_.size()) {
        throw Error(RIS_ERROR_EXPRESSION,
                    "the expression " + quoted(std::string(expression)) + " has no words in it");
    }
    for (const int id : after_) tokens.push_back({id, 0, 0});

    Tokens result;
    const size_t most = static_cast<size_t>(max_tokens_);
    if (tokens.size() > most) {
        std::string_view rest = expression.substr(tokens[most - 1].end);
        while (!rest.empty() && is_blank(static_cast<unsigned char>(rest.front()))) {
            rest.remove_prefix(1);
        }
        while (!rest.empty() && is_blank(static_cast<unsigned char>(rest.back()))) {
            rest.remove_suffix(1);
        }
        result.notes.push_back("the model reads " + std::to_string(max_tokens_) +
                               " tokens: it did not see " +
                               quoted(std::string(rest), 4 * kMaxCharacters));
    }

    std::string unknown;
    for (const Token &token : tokens) {
        if (token.id != unknown_) continue;
        unknown += (unknown.empty() ? "" : ", ") +
                   std::string(expression.substr(token.begin, token.end - token.begin));
    }
    if (!unknown.empty()) result.notes.push_back("words the model does not know: " + unknown);

    tokens.resize(std::min(tokens.size(), most), Token{0, 0, 0});
    bool padding = false;
    for (const Token &token : tokens) {
        result.ids.push_back(token.id);
        padding = padding || token.id == pad_id_;
    }
    if (padding) result.notes.push_back(padding_ + " is padding to the model: it does not read it");
    return result;
}

Tokenizer::Characters Tokenizer::normalised(const Characters &text) const {
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
        Characters decomposed;  // NFD: every character decomposed, then marks in canonical order
        for (const Character &c : out) {
            utf8proc_int32_t parts[32];
            int boundary = 0;
            const utf8proc_ssize_t count = utf8proc_decompose_char(
                static_cast<utf8proc_int32_t>(c.code), parts, 32, UTF8PROC_DECOMPOSE, &boundary);
            for (utf8proc_ssize_t i = 0; i < std::min<utf8proc_ssize_t>(count, 32); ++i) {
                decomposed.push_back({static_cast<char32_t>(parts[i]), c.begin, c.end});
            }
        }
        const auto rank = [](const Character &c) {
            return utf8proc_get_property(static_cast<utf8proc_int32_t>(c.code))->combining_class;
        };
        const auto starts = [&](const Character &c) { return rank(c) == 0; };
        const auto before = [&](const Character &a, const Character &b) {
            return rank(a) < rank(b);
        };
        for (auto first = decomposed.begin(); first != decomposed.end();) {
            const auto last = std::find_if(first, decomposed.end(), starts);
            std::stable_sort(first, last, before);
            first = last == decomposed.end() ? last : last + 1;
        }
        out.clear();
        for (const Character &c : decomposed) {
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

void Tokenizer::add_words(const Characters &text, std::vector<Token> &tokens) const {
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

void Tokenizer::add_word(const Character *first, const Character *last,
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

}  // namespace libris
