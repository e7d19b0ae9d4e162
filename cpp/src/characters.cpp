#include "characters.h"

#include "error.h"

#include <utf8proc.h>

#include <algorithm>
#include <iterator>

namespace libris {
namespace {

int canonical_class(char32_t c) {
    return utf8proc_get_property(static_cast<utf8proc_int32_t>(c))->combining_class;
}

// The character that two are composed to; 0 where there is none.
char32_t composition(char32_t first, char32_t second) {
    utf8proc_int32_t pair[] = {static_cast<utf8proc_int32_t>(first),
                               static_cast<utf8proc_int32_t>(second)};
    const auto options = static_cast<utf8proc_option_t>(UTF8PROC_COMPOSE | UTF8PROC_STABLE);
    return utf8proc_normalize_utf32(pair, 2, options) == 1 ? static_cast<char32_t>(pair[0]) : 0;
}

constexpr char32_t kCapitalDottedI = 0x130, kDotAbove = 0x307;
constexpr char32_t kCapitalSigma = 0x3a3, kSmallSigma = 0x3c3, kFinalSigma = 0x3c2;

utf8proc_category_t category_of(const Character &c) {
    return utf8proc_category(static_cast<utf8proc_int32_t>(c.code));
}

// Whether a character has a case, and whether one leaves a word whole: Unicode's Cased and
// Case_Ignorable, which Python tells a final sigma by.
bool is_cased(const Character &c) {
    const utf8proc_category_t kind = category_of(c);
    return kind == UTF8PROC_CATEGORY_LU || kind == UTF8PROC_CATEGORY_LL ||
           kind == UTF8PROC_CATEGORY_LT;
}

bool joins(const Character &c) {
    const utf8proc_category_t kind = category_of(c);
    return kind == UTF8PROC_CATEGORY_MN || kind == UTF8PROC_CATEGORY_ME ||
           kind == UTF8PROC_CATEGORY_CF || kind == UTF8PROC_CATEGORY_LM ||
           kind == UTF8PROC_CATEGORY_SK || c.code == U'\'' || c.code == U'.' || c.code == U':' ||
           c.code == 0xb7 || c.code == 0x2018 || c.code == 0x2019 || c.code == 0x2024 ||
           c.code == 0x2027;
}

}  // namespace

Characters characters_of(std::string_view text) {
    Characters characters;
    for (size_t at = 0; at < text.size();) {
        utf8proc_int32_t code = -1;
        const utf8proc_ssize_t length =
            utf8proc_iterate(reinterpret_cast<const utf8proc_uint8_t *>(text.data() + at),
                             static_cast<utf8proc_ssize_t>(text.size() - at), &code);
        if (length <= 0 || code < 0) {
            throw Error(RIS_ERROR_EXPRESSION, "the expression is not valid UTF-8");
        }
        characters.push_back({static_cast<char32_t>(code), at, at + static_cast<size_t>(length)});
        at = characters.back().end;
    }
    return characters;
}

void append_utf8(std::string &text, char32_t c) {
    utf8proc_uint8_t bytes[4];
    const utf8proc_ssize_t length = utf8proc_encode_char(static_cast<utf8proc_int32_t>(c), bytes);
    text.append(reinterpret_cast<const char *>(bytes), static_cast<size_t>(length));
}

bool is_whitespace(char32_t c) {
    return (c >= 0x09 && c <= 0x0d) || c == 0x20 || c == 0x85 || c == 0xa0 || c == 0x1680 ||
           (c >= 0x2000 && c <= 0x200a) || c == 0x2028 || c == 0x2029 || c == 0x202f ||
           c == 0x205f || c == 0x3000;
}

bool is_blank(char32_t c) { return is_whitespace(c) || (c >= 0x1c && c <= 0x1f); }

std::string stripped(std::string_view text) {
    const Characters all = characters_of(text);
    const auto is_word = [](const Character &c) { return !is_blank(c.code); };
    const auto first = std::find_if(all.begin(), all.end(), is_word);
    if (first == all.end()) return "";
    const auto last = std::find_if(all.rbegin(), all.rend(), is_word);
    return std::string(text.substr(first->begin, last->end - first->begin));
}

std::string lower_cased(std::string_view text) {
    const Characters all = characters_of(text);
    std::string out;
    for (auto at = all.begin(); at != all.end(); ++at) {
        const char32_t c = at->code;
        if (c == kCapitalDottedI) {
            append_utf8(out, U'i');
            append_utf8(out, kDotAbove);
        } else if (c == kCapitalSigma) {
            // final where a letter stands before and none behind
            const auto before = std::find_if_not(std::make_reverse_iterator(at), all.rend(), joins);
            const auto behind = std::find_if_not(at + 1, all.end(), joins);
            const bool is_final = before != all.rend() && is_cased(*before) &&
                                  (behind == all.end() || !is_cased(*behind));
            append_utf8(out, is_final ? kFinalSigma : kSmallSigma);
        } else {
            append_utf8(out, static_cast<char32_t>(utf8proc_tolower(static_cast<int32_t>(c))));
        }
    }
    return out;
}

Characters decomposed(const Characters &text) {
    Characters out;
    for (const Character &c : text) {
        utf8proc_int32_t parts[32];
        int boundary = 0;
        const utf8proc_ssize_t count = utf8proc_decompose_char(
            static_cast<utf8proc_int32_t>(c.code), parts, 32, UTF8PROC_DECOMPOSE, &boundary);
        for (utf8proc_ssize_t i = 0; i < std::min<utf8proc_ssize_t>(count, 32); ++i) {
            out.push_back({static_cast<char32_t>(parts[i]), c.begin, c.end});
        }
    }

    const auto starts = [](const Character &c) { return canonical_class(c.code) == 0; };
    const auto before = [](const Character &a, const Character &b) {
        return canonical_class(a.code) < canonical_class(b.code);
    };
    for (auto first = out.begin(); first != out.end();) {
        const auto last = std::find_if(first, out.end(), starts);
        std::stable_sort(first, last, before);
        first = last == out.end() ? last : last + 1;
    }
    return out;
}

Characters composed(const Characters &text) {
    constexpr int nothing = -1;
    Characters out;
    size_t starter = 0;  // in `out`
    bool has_starter = false;
    int between = nothing;  // the class of the last character behind the starter
    for (const Character &c : decomposed(text)) {
        const int rank = canonical_class(c.code);
        if (has_starter && between < rank) {
            if (const char32_t both = composition(out[starter].code, c.code)) {
                out[starter].code = both;
                out[starter].end = c.end;
                continue;
            }
        }
        if (rank == 0) {
            has_starter = true;
            starter = out.size();
            between = nothing;
        } else {
            between = rank;
        }
        out.push_back(c);
    }
    return out;
}

}  // namespace libris
