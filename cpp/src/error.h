// Errors inside libris: a status for the caller's program and a sentence for its user.
#pragma once

#include "ris.h"

#include <stdexcept>
#include <string>

namespace libris {

class Error : public std::runtime_error {
public:
    Error(ris_status status, const std::string &message)
        : std::runtime_error(message), status(status) {}
    ris_status status;
};

// `text` in quotes, cut where it is long.
inline std::string quoted(const std::string &text, size_t most = 80) {
    if (text.size() <= most) return "'" + text + "'";
    size_t end = most;
    // whole UTF-8 characters
    while (end > 0 && (static_cast<unsigned char>(text[end]) & 0xC0) == 0x80) --end;
    return "'" + text.substr(0, end) + "...'";
}

}  // namespace libris
