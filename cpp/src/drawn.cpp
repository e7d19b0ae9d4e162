#include "drawn.h"

#include <array>
#include <cmath>

namespace libris {
namespace {

using Words = std::array<uint64_t, 4>;

// The upper and the lower half of a product.
void multiply(uint64_t a, uint64_t b, uint64_t &high, uint64_t &low) {
    const uint64_t a0 = a & 0xffffffff, a1 = a >> 32, b0 = b & 0xffffffff, b1 = b >> 32;
    const uint64_t middle = a1 * b0 + (a0 * b0 >> 32), other = a0 * b1 + (middle & 0xffffffff);
    high = a1 * b1 + (middle >> 32) + (other >> 32);
    low = a * b;
}

// Philox4x64-10 (Salmon et al., 2011).
Words philox(Words counter, uint64_t key0, uint64_t key1) {
    for (int round = 0; round < 10; ++round) {
        uint64_t high0, low0, high1, low1;
        multiply(0xd2e7470ee14c6c93, counter[0], high0, low0);
        multiply(0xca5a826395121157, counter[2], high1, low1);
        counter = {high1 ^ counter[1] ^ key0, low1, high0 ^ counter[3] ^ key1, low0};
        key0 += 0x9e3779b97f4a7c15;
        key1 += 0xbb67ae8584caa73b;
    }
    return counter;
}

// log(u / (1 - u)) of a word as a share u, by sums, products and quotients alone.
float logistic(uint64_t word) {
    constexpr int kTerms = 10;
    constexpr double kLog2 = 0.6931471805599453, kSqrtHalf = 0.7071067811865476;
    const double share = (static_cast<double>(word >> 12) + 0.5) * 0x1p-52;
    int exponent = 0;
    double fraction = std::frexp(share / (1.0 - share), &exponent);
    if (fraction < kSqrtHalf) {
        fraction = 2.0 * fraction;
        --exponent;
    }
    const double s = (fraction - 1.0) / (fraction + 1.0), square = s * s;
    double series = 1.0 / (2 * kTerms - 1);
    for (int term = kTerms - 2; term >= 0; --term) series = series * square + 1.0 / (2 * term + 1);
    return static_cast<float>(2.0 * s * series + exponent * kLog2);
}

}  // namespace

std::vector<float> draw(const Drawn &drawn, uint64_t seed, uint64_t number, uint64_t place) {
    size_t count = 1;
    for (const int size : drawn.shape) count *= static_cast<size_t>(size);
    std::vector<float> numbers(count);
    Words words{};
    for (size_t i = 0; i < count; ++i) {
        if (i % 4 == 0) words = philox({i / 4 + 1, place, 0, 0}, seed, number);
        numbers[i] = logistic(words[i % 4]);
    }
    return numbers;
}

}  // namespace libris
