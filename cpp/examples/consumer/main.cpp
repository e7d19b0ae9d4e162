#include <ris.hpp>

#include <iostream>
#include <vector>

int main(int argc, char **argv) try {
    if (argc < 2) {
        std::cerr << "usage: " << argv[0] << " BUNDLE\n";
        return 2;
    }
    const ris::Model model(argv[1]);
    const std::vector<std::uint8_t> grey(3 * 64 * 48, 128);
    const ris::Result result = model.encode_image(grey.data(), 64, 48).ask("left man");
    const ris::Answer answer = result[0];
    std::cout << "libris " << ris_version() << ": a mask of ";
    std::cout << answer.width << "x" << answer.height << "\n";
} catch (const ris::Error &error) {
    std::cerr << error.what() << "\n";
    return 2;
}
