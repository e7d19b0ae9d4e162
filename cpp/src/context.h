// EPContext models: ONNX files in which a provider has put its compiled engine, so the next start
// compiles nothing. Engines run as code: one is read only where this user's key vouches that it is
// byte for byte what libris wrote for this user.
#pragma once

#include "bundle.h"

#include <string>

namespace libris {

class ContextModel {
public:
    // In `folder`, for a stage's graph. The name tells apart what `built_for` tells apart:
    // versions, profiles, devices. Throws Error where the user names a key that is none.
    ContextModel(const std::string &folder, const Stage &stage, const std::string &built_for);

    const std::string &path() const { return path_; }

    // Whether it is there, no other user may change it, and its seal is of this user's key.
    bool is_whole() const;

    // Writes the seal of what the provider wrote. Writes nothing where it wrote nothing, or the
    // disk refuses.
    void seal() const noexcept;

    // Removes it, so that it is written afresh.
    void discard() const noexcept;

private:
    // The HMAC of its name and its SHA-256. Throws std::runtime_error where it cannot be read.
    std::string tag() const;

    std::string key_, name_, path_, seal_;
};

}  // namespace libris
