#include "sha256.h"

#include <openssl/evp.h>

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
        unsigned char bytes[EVP_MAX_MD_SIZE];
        unsigned size = 0;
        require(EVP_DigestFinal_ex(context_.get(), bytes, &size));
        std::string text;
        for (unsigned i = 0; i < size; ++i) {
            text += "0123456789abcdef"[bytes[i] >> 4];
            text += "0123456789abcdef"[bytes[i] & 15];
        }
        return text;
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

}  // namespace libris
