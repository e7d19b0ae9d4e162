// Errors inside libris: a status for the caller's program and a sentence for its user.
#pragma once

#include "ris.h"

#include <algorithm>
#include <stdexcept>
#include <string>
#include <vector>

namespace libris {

class Error : public std::runtime_error {
public:
    Error(ris_status status, const std::string &message)
        : std::runtime_error(message), status(status) {}
    ris_status status;
};

// `text`, cut where it is long.
inline std::string cut(const std::string &text, size_t most = 200) {
    if (text.size() <= most) return text;
    size_t end = most;
    // whole UTF-8 characters
    while (end > 0 && (static_cast<unsigned char>(text[end]) & 0xC0) == 0x80) --end;
    return text.substr(0, end) + "...";
}

// The same in quotes. (Called `quoted`, a std::string that is not const would get <iomanip>'s.)
inline std::string in_quotes(const std::string &text, size_t most = 80) {
    return "'" + cut(text, most) + "'";
}

// What is wrong with something, in one sentence, and no longer than one reads.
inline std::string joined(const std::vector<std::string> &problems) {
    constexpr size_t most = 12, longest = 700;  // problems, and bytes of them together
    std::string all;
    size_t said = 0;
    for (; said < std::min(problems.size(), most); ++said) {
        const std::string next = (said > 0 ? "; " : "") + cut(problems[said]);
        if (said > 0 && all.size() + next.size() > longest) break;
        all += next;
    }
    if (problems.size() > said) all += "; and " + std::to_string(problems.size() - said) + " more";
    return all;
}

}  // namespace libris
