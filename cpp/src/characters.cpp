#include "characters.h"

#include "error.h"

#include <utf8proc.h>

#include <algorithm>

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
