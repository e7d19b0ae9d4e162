// One mask from a PPM picture, and when its steps were done: seconds of the clock that Python's
// time.monotonic() reads.
//
//     ris-first-mask BUNDLE PICTURE.ppm EXPRESSION THREADS
#include "../examples/pictures.hpp"
#include "ris.hpp"

#include <chrono>
#include <iostream>

int main(int argc, char **argv) try {
    if (argc != 5) {
        std::cerr << "usage: ris-first-mask BUNDLE PICTURE.ppm EXPRESSION THREADS\n";
        return 2;
    }
    const auto now = [] {
        return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch())
            .count();
    };
    ris::Options options;
    options.threads = std::stoi(argv[4]);
    const ris::Model model(argv[1], options);
    const double opened = now();
    const pictures::Picture picture = pictures::read_ppm(argv[2]);
    const double read = now();
    const ris::Result result =
        model.encode_image(picture.rgb.data(), picture.width, picture.height).ask(argv[3]);
    const ris::Answer answer = result[0];
    const double asked = now();
    std::size_t inside = 0;
    for (std::size_t i = 0; i < picture.pixels(); ++i) inside += answer.mask[i];
    std::cout.precision(9);
    std::cout << std::fixed << "{\"opened\": " << opened << ", \"read\": " << read
              << ", \"asked\": " << asked << ", \"inside\": " << inside << "}\n";
    return 0;
} catch (const std::exception &error) {
    std::cerr << "ris-first-mask: " << error.what() << "\n";
    return 2;
}
