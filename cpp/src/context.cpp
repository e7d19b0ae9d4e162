#include "context.h"

#include "sha256.h"

#include <filesystem>
#include <fstream>
#include <stdexcept>
#include <system_error>

namespace libris {
namespace fs = std::filesystem;

namespace {

constexpr size_t kNameDigits = 16;
constexpr size_t kSealDigits = 64;

}  // namespace

ContextModel::ContextModel(const std::string &folder, const char *stage, const Graph &graph,
                           const std::string &built_for) {
    std::string all = built_for;
    for (const auto &[name, hash] : graph.sha256) all += "\n" + name + " " + hash;
    path_ = folder + "/" + stage + "-" + sha256_of_text(all).substr(0, kNameDigits) + "_ctx.onnx";
    seal_ = path_ + ".sha256";
}

bool ContextModel::is_whole() const {
    std::string seal(kSealDigits, '\0');
    if (!std::ifstream(seal_, std::ios::binary).read(seal.data(), kSealDigits)) return false;
    try {
        return sha256_of_file(path_) == seal;
    } catch (const std::runtime_error &) {
        return false;
    }
}

void ContextModel::seal() const noexcept {
    try {
        const std::string hash = sha256_of_file(path_);
        const std::string partial = seal_ + ".partial";
        std::ofstream file(partial, std::ios::binary);
        if (file << hash && file.flush()) fs::rename(partial, seal_);
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
