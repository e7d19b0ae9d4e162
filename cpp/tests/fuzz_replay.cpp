// The fuzz target without libFuzzer: files, and mutations of them that are the same on every run.
//
//     ris-fuzz-replay MUTATIONS FILE...
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <fstream>
#include <iostream>
#include <iterator>
#include <random>
#include <string>
#include <vector>

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t *data, std::size_t size);

namespace {

using Bytes = std::vector<std::uint8_t>;

void run(const Bytes &bytes) { LLVMFuzzerTestOneInput(bytes.data(), bytes.size()); }

// One to four changes behind the first byte, which says which reader it is.
Bytes mutated(Bytes bytes, std::mt19937 &random) {
    static const std::string words[] = {
        "null", "-1", "1e999", "[", "{}", "\"\"", "18446744073709551615", "\xff", "\xcc\x81"};
    const auto below = [&](std::size_t n) { return static_cast<std::size_t>(random()) % n; };
    for (std::size_t changes = 1 + below(4); changes > 0 && bytes.size() > 2; --changes) {
        const std::size_t at = 1 + below(bytes.size() - 1);
        const auto here = bytes.begin() + static_cast<std::ptrdiff_t>(at);
        const std::size_t length = 1 + below(std::min<std::size_t>(bytes.size() - at, 32));
        switch (below(5)) {
            case 0: *here = static_cast<std::uint8_t>(random()); break;
            case 1: *here = static_cast<std::uint8_t>(*here ^ 1u << below(8)); break;
            case 2: bytes.erase(here, here + static_cast<std::ptrdiff_t>(length)); break;
            case 3: {
                const Bytes copy(here, here + static_cast<std::ptrdiff_t>(length));
                const auto to = static_cast<std::ptrdiff_t>(1 + below(bytes.size() - 1));
                bytes.insert(bytes.begin() + to, copy.begin(), copy.end());
                break;
            }
            default: {
                const std::string &word = words[below(std::size(words))];
                bytes.insert(here, word.begin(), word.end());
            }
        }
    }
    return bytes;
}

}  // namespace

int main(int argc, char **argv) {
    if (argc < 3) {
        std::cerr << "usage: ris-fuzz-replay MUTATIONS FILE...\n";
        return 2;
    }
    std::mt19937 random(1);
    const int count = std::stoi(argv[1]);
    for (int i = 2; i < argc; ++i) {
        std::ifstream file(argv[i], std::ios::binary);
        const Bytes bytes{std::istreambuf_iterator<char>(file), {}};
        if (!file || bytes.empty()) {
            std::cerr << "ris-fuzz-replay: " << argv[i] << " cannot be read or is empty\n";
            return 2;
        }
        run(bytes);
        for (int mutation = 0; mutation < count; ++mutation) run(mutated(bytes, random));
    }
    const std::string deep(1 << 20, '[');  // what no stack holds
    for (const char reader : {'m', 'c', 't'}) {
        Bytes bytes(deep.begin(), deep.end());
        bytes.front() = static_cast<std::uint8_t>(reader);
        run(bytes);
    }
    std::cout << count << " mutations of " << argc - 2 << " files: none got past its reader\n";
    return 0;
}
