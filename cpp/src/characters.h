// A text as its characters, each with the place that it came from.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace libris {

struct Character {
    char32_t code;
    size_t begin, end;  // where it came from, in bytes of the expression
};
using Characters = std::vector<Character>;

// A token of a text, and where it came from.
struct Token {
    int32_t id;
    size_t begin, end;
};

// Throws Error where the text is not UTF-8.
Characters characters_of(std::string_view text);

void append_utf8(std::string &text, char32_t c);

// Unicode's White_Space, as Rust's char::is_whitespace() says.
bool is_whitespace(char32_t c);

// What Python's str.strip() takes: the separators too.
bool is_blank(char32_t c);

// A text without the blanks around it, as Python's str.strip(), and lower-cased as its str.lower().
std::string stripped(std::string_view text);
std::string lower_cased(std::string_view text);

// Canonical decomposition, with marks in canonical order (NFD); and its composition (NFC).
Characters decomposed(const Characters &text);
Characters composed(const Characters &text);

}  // namespace libris
