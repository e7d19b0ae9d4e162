#include "context.h"

#include "sha256.h"
#include "trust.h"

#include <filesystem>
#include <fstream>
#include <stdexcept>
#include <system_error>

namespace libris {
namespace fs = std::filesystem;

namespace {

constexpr size_t kNameDigits = 16;
constexpr size_t kTagDigits = 64;

}  // namespace

ContextModel::ContextModel(const std::string &folder, const Stage &stage,
                           const std::string &built_for)
    : key_(user_key()) {
    std::string all = built_for;
    for (const auto &[name, hash] : stage.sha256) all += "\n" + name + " " + hash;
    name_ = stage.name + "-" + sha256_of_text(all).substr(0, kNameDigits) + "_ctx.onnx";
    path_ = folder + "/" + name_;
    seal_ = path_ + ".seal";
}

std::string ContextModel::tag() const {
    return hmac_sha256(key_, "ris-runtime EPContext\n" + name_ + "\n" + sha256_of_file(path_));
}

bool ContextModel::is_whole() const {
    std::string seal(kTagDigits, '\0');
    if (!std::ifstream(seal_, std::ios::binary).read(seal.data(), kTagDigits)) return false;
    try {
        return is_safe(path_) && are_equal(tag(), seal);
    } catch (const std::runtime_error &) {
        return false;
    }
}

void ContextModel::seal() const noexcept {
    try {
        // whatever the user's umask says
        fs::permissions(path_, fs::perms::group_write | fs::perms::others_write,
                        fs::perm_options::remove);
        const std::string partial = seal_ + ".partial-" + hex_of(random_bytes(8));
        std::ofstream file(partial, std::ios::binary);
        if (file << tag() && file.flush()) {
            fs::rename(partial, seal_);
        } else {
            fs::remove(partial);
        }
    } catch (const std::exception &) {
        // without a seal it is compiled again next time
    }
}

void ContextModel::discard() const noexcept {
    std::error_code ignored;
    try {
        fs::remove(seal_, ignored);
        fs::remove(path_, ignored);
    } catch (const std::exception &) {
        // it stays unsealed at worst
    }
}

}  // namespace libris
