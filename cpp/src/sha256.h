// SHA-256 and what is built on it, by OpenSSL's libcrypto.
#pragma once

#include <string>
#include <string_view>

namespace libris {

// In lower-case hexadecimal. Throws std::runtime_error where a file cannot be read.
std::string sha256_of_file(const std::string &path);
std::string sha256_of_text(const std::string &text);

// HMAC-SHA-256 of `text` under `key`, in lower-case hexadecimal.
std::string hmac_sha256(const std::string &key, const std::string &text);

// Whether two secrets are the same, in a time that does not tell where they differ.
bool are_equal(const std::string &a, const std::string &b);

std::string random_bytes(size_t count);

// In lower case.
std::string hex_of(std::string_view bytes);

}  // namespace libris
