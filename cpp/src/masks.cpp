#include "masks.h"

#include "error.h"

#include <algorithm>
#include <cmath>
#include <string>

namespace libris {
namespace {

constexpr int kMostSides = 100;  // of a picture whose middle is cut out, as in Python

double sigmoid(float logit) { return 1 / (1 + std::exp(-static_cast<double>(logit))); }

// What is compared with the threshold.
float value_of(float logit, const MaskRule &rule) {
    return rule.of_probabilities ? static_cast<float>(sigmoid(logit)) : logit;
}

// Rows of values that are weighed; bilinear has two, bicubic four.
struct Weighed {
    const float *row[4];
    float weight[4];
};

// A row of the mask: 1 where the weighed sum is above the threshold. In a function of its own,
// whose variables no byte that is written may be.
void compare(const Weighed &from, size_t taps, float threshold, size_t width, uint8_t *to) {
    const auto [first, second, third, fourth] = from.row;
    const auto [a, b, c, d] = from.weight;
    if (taps == 2) {
        for (size_t x = 0; x < width; ++x) to[x] = first[x] * a + second[x] * b > threshold;
        return;
    }
    for (size_t x = 0; x < width; ++x) {
        to[x] = first[x] * a + second[x] * b + third[x] * c + fourth[x] * d > threshold;
    }
}

// A row of values, resized to `width`.
void widen(const float *from, const Taps &columns, size_t width, float *to) {
    const int *index = columns.index.data();
    const float *weight = columns.weight.data();
    if (columns.count == 2) {
        for (size_t x = 0; x < width; ++x) {
            to[x] = from[index[2 * x]] * weight[2 * x] + from[index[2 * x + 1]] * weight[2 * x + 1];
        }
        return;
    }
    for (size_t x = 0; x < width; ++x, index += 4, weight += 4) {
        to[x] = from[index[0]] * weight[0] + from[index[1]] * weight[1] +
                from[index[2]] * weight[2] + from[index[3]] * weight[3];
    }
}

// Values [h, w] -> bytes, 1 above the rule's threshold.
std::vector<uint8_t> above(const float *values, int h, int w, Size size, const MaskRule &rule) {
    const Taps rows(h, size.height, rule.interpolation, rule.align_corners);
    const Taps columns(w, size.width, rule.interpolation, rule.align_corners);
    const size_t width = static_cast<size_t>(size.width), taps = static_cast<size_t>(rows.count);

    // the rows of values that a row of the mask lies between, resized to `width`: they take turns
    std::vector<float> wide(taps * width);
    std::vector<int> held(taps, -1);
    std::vector<uint8_t> mask(static_cast<size_t>(size.height) * width);
    for (size_t y = 0; y < static_cast<size_t>(size.height); ++y) {
        Weighed from{};
        for (size_t tap = 0; tap < taps; ++tap) {
            const int row = rows.index[y * taps + tap];
            const size_t slot = static_cast<size_t>(row) % taps;
            float *const to = &wide[slot * width];
            if (held[slot] != row) {
                widen(values + static_cast<std::ptrdiff_t>(row) * w, columns, width, to);
                held[slot] = row;
            }
            from.row[tap] = to;
            from.weight[tap] = rows.weight[y * taps + tap];
        }
        compare(from, taps, rule.threshold, width, &mask[y * width]);
    }
    return mask;
}

// Logits of a letterbox at its side, cut to the picture's part, [part.height, part.width].
std::vector<float> cut(const float *logits, int h, int w, Size part, const MaskRule &rule) {
    const int side = rule.letterbox;
    const std::vector<float> whole =
        resize_maps(logits, 1, h, w, side, side, rule.interpolation, rule.align_corners);
    std::vector<float> kept;
    kept.reserve(static_cast<size_t>(part.height) * static_cast<size_t>(part.width));
    for (int y = 0; y < part.height; ++y) {
        const auto row = whole.begin() + static_cast<std::ptrdiff_t>(y) * side;
        kept.insert(kept.end(), row, row + part.width);
    }
    return kept;
}

}  // namespace

Size letterbox_size(Size picture, int side) {
    const double scale = static_cast<double>(side) / std::max(picture.height, picture.width);
    return {std::max(static_cast<int>(picture.height * scale + 0.5), 1),
            std::max(static_cast<int>(picture.width * scale + 0.5), 1)};
}

Size covering_size(Size picture, int side) {
    const auto [height, width] = picture;
    if (int64_t{std::max(height, width)} > int64_t{kMostSides} * std::min(height, width)) {
        throw Error(RIS_ERROR_IMAGE,
                    "the picture has " + std::to_string(width) + "x" + std::to_string(height) +
                        " pixels; this model takes none that is more than " +
                        std::to_string(kMostSides) + " times as long as it is wide");
    }
    const double all = static_cast<double>(side);
    if (width <= height) return {static_cast<int>(all * height / width), side};
    return {side, static_cast<int>(all * width / height)};
}

std::vector<uint8_t> mask_from_logits(const float *logits, int h, int w, Size picture,
                                      const MaskRule &rule) {
    std::vector<float> own;  // what is not compared as it is
    if (rule.letterbox != 0) {
        const Size part = letterbox_size(picture, rule.letterbox);
        own = cut(logits, h, w, part, rule);
        h = part.height;
        w = part.width;
    }
    const size_t count = static_cast<size_t>(h) * static_cast<size_t>(w);
    if (rule.of_probabilities) {
        if (own.empty()) own.assign(logits, logits + count);
        for (float &value : own) value = value_of(value, rule);
    }
    return above(own.empty() ? logits : own.data(), h, w, picture, rule);
}

double mask_score(const float *logits, int h, int w, Size picture, const MaskRule &rule) {
    Size seen{h, w};
    if (rule.letterbox != 0) {  // those that see some of the picture
        const Size part = letterbox_size(picture, rule.letterbox);
        const auto share = [&](int all, int of) {
            const int64_t side = rule.letterbox;
            return static_cast<int>((static_cast<int64_t>(all) * of + side - 1) / side);
        };
        seen = {share(h, part.height), share(w, part.width)};
    }
    double sum = 0;
    size_t inside = 0;
    for (int y = 0; y < seen.height; ++y) {
        const float *row = logits + static_cast<size_t>(y) * static_cast<size_t>(w);
        for (int x = 0; x < seen.width; ++x) {
            if (!(value_of(row[x], rule) > rule.threshold)) continue;
            sum += sigmoid(row[x]);
            ++inside;
        }
    }
    return inside == 0 ? 0 : sum / static_cast<double>(inside);
}

}  // namespace libris
