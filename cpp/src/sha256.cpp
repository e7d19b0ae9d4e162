#include "sha256.h"

#include <openssl/crypto.h>
#include <openssl/evp.h>
#include <openssl/hmac.h>
#include <openssl/rand.h>

#include <cstdio>
#include <memory>
#include <new>
#include <stdexcept>
#include <vector>

namespace libris {
namespace {

constexpr size_t kChunk = size_t{1} << 18;

class Digest {
public:
    Digest() : context_(EVP_MD_CTX_new(), EVP_MD_CTX_free) {
        if (!context_) throw std::bad_alloc();
        require(EVP_DigestInit_ex(context_.get(), EVP_sha256(), nullptr));
    }

    void add(const void *data, size_t size) {
        require(EVP_DigestUpdate(context_.get(), data, size));
    }

    std::string hex() {
        char bytes[EVP_MAX_MD_SIZE];
        unsigned size = 0;
        auto *const out = reinterpret_cast<unsigned char *>(bytes);
        require(EVP_DigestFinal_ex(context_.get(), out, &size));
        return hex_of({bytes, size});
    }

private:
    static void require(int done) {
        if (done != 1) throw std::runtime_error("cannot be hashed: this libcrypto has no SHA-256");
    }

    std::unique_ptr<EVP_MD_CTX, decltype(&EVP_MD_CTX_free)> context_;
};

struct Close {
    void operator()(FILE *file) const { std::fclose(file); }
};

}  // namespace

std::string hex_of(std::string_view bytes) {
    std::string text;
    for (const char c : bytes) {
        const auto byte = static_cast<unsigned char>(c);
        text += "0123456789abcdef"[byte >> 4];
        text += "0123456789abcdef"[byte & 15];
    }
    return text;
}

std::string sha256_of_file(const std::string &path) {
    const std::unique_ptr<FILE, Close> file(std::fopen(path.c_str(), "rb"));
    if (!file) throw std::runtime_error("cannot be opened");
    Digest digest;
    std::vector<unsigned char> buffer(kChunk);
    while (const size_t got = std::fread(buffer.data(), 1, buffer.size(), file.get())) {
        digest.add(buffer.data(), got);
    }
    if (std::ferror(file.get()) != 0) throw std::runtime_error("cannot be read");
    return digest.hex();
}

std::string sha256_of_text(const std::string &text) {
    Digest digest;
    digest.add(text.data(), text.size());
    return digest.hex();
}

std::string hmac_sha256(const std::string &key, const std::string &text) {
    unsigned char bytes[EVP_MAX_MD_SIZE];
    unsigned size = 0;
    const auto *const data = reinterpret_cast<const unsigned char *>(text.data());
    if (HMAC(EVP_sha256(), key.data(), static_cast<int>(key.size()), data, text.size(), bytes,
             &size) == nullptr) {
        throw std::runtime_error("this libcrypto has no HMAC-SHA-256");
    }
    return hex_of({reinterpret_cast<const char *>(bytes), size});
}

bool are_equal(const std::string &a, const std::string &b) {
    return a.size() == b.size() && CRYPTO_memcmp(a.data(), b.data(), a.size()) == 0;
}

std::string random_bytes(size_t count) {
    std::vector<unsigned char> bytes(count);
    if (RAND_bytes(bytes.data(), static_cast<int>(count)) != 1) {
        throw std::runtime_error("this libcrypto has no random numbers");
    }
    return {bytes.begin(), bytes.end()};
}

}  // namespace libris
