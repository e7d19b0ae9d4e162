#include "masks.h"

#include "interpolate.h"

#include <cmath>

namespace libris {

std::vector<uint8_t> mask_from_logits(const float *logits, int h, int w, int height, int width,
                                      float threshold) {
    const Taps rows(h, height, Interpolation::bilinear), columns(w, width, Interpolation::bilinear);
    const size_t out_width = static_cast<size_t>(width);

    // the two rows of logits that a row of the mask lies between, resized to `width`: odd and even
    // rows take turns
    std::vector<float> wide(2 * out_width);
    int held[2] = {-1, -1};
    const auto widened = [&](int row) {
        float *const to = &wide[row % 2 == 0 ? 0 : out_width];
        if (held[row % 2] == row) return to;
        held[row % 2] = row;
        const float *from = logits + static_cast<size_t>(row) * static_cast<size_t>(w);
        for (size_t x = 0; x < out_width; ++x) {
            to[x] = from[columns.index[2 * x]] * columns.weight[2 * x] +
                    from[columns.index[2 * x + 1]] * columns.weight[2 * x + 1];
        }
        return to;
    };

    std::vector<uint8_t> mask(static_cast<size_t>(height) * out_width);
    for (size_t y = 0; y < static_cast<size_t>(height); ++y) {
        const float *above = widened(rows.index[2 * y]), *below = widened(rows.index[2 * y + 1]);
        const float a = rows.weight[2 * y], b = rows.weight[2 * y + 1];
        uint8_t *to = &mask[y * out_width];
        for (size_t x = 0; x < out_width; ++x) to[x] = above[x] * a + below[x] * b > threshold;
    }
    return mask;
}

double mask_score(const float *logits, size_t count, float threshold) {
    double sum = 0;
    size_t inside = 0;
    for (size_t i = 0; i < count; ++i) {
        if (!(logits[i] > threshold)) continue;
        sum += 1 / (1 + std::exp(-static_cast<double>(logits[i])));
        ++inside;
    }
    return inside == 0 ? 0 : sum / static_cast<double>(inside);
}

}  // namespace libris
