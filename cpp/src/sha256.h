// SHA-256, by OpenSSL's libcrypto.
#pragma once

#include <string>

namespace libris {

// In lower-case hexadecimal. Throws std::runtime_error where a file cannot be read.
std::string sha256_of_file(const std::string &path);
std::string sha256_of_text(const std::string &text);

}  // namespace libris
