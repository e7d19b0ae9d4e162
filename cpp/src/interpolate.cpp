#include "interpolate.h"

#include <algorithm>
#include <cmath>

namespace libris {
namespace {

// Keys' cubic kernel for |x| <= 1 and for 1 < |x| < 2.
float inner(float x) { return ((1.25f * x - 2.25f) * x) * x + 1.0f; }

float outer(float x) {
    const float a = -0.75f;
    return ((a * x - 5 * a) * x + 8 * a) * x - 4 * a;
}

}  // namespace

Taps::Taps(int source, int target, Interpolation interpolation, bool align_corners)
    : count(interpolation == Interpolation::bilinear ? 2 : 4) {
    index.reserve(static_cast<size_t>(target) * static_cast<size_t>(count));
    weight.reserve(index.capacity());
    const float scale = !align_corners ? static_cast<float>(source) / static_cast<float>(target)
                        : target > 1
                            ? static_cast<float>(source - 1) / static_cast<float>(target - 1)
                            : 0.0f;
    for (int i = 0; i < target; ++i) {
        const float place = static_cast<float>(i);
        float position = align_corners ? scale * place : scale * (place + 0.5f) - 0.5f;
        if (interpolation == Interpolation::bilinear) position = std::max(position, 0.0f);
        const float floor = std::floor(position);
        const float t = position - floor;
        if (interpolation == Interpolation::bilinear) {
            weight.insert(weight.end(), {1 - t, t});
        } else {
            weight.insert(weight.end(), {outer(t + 1), inner(t), inner(1 - t), outer(2 - t)});
        }
        const int first = static_cast<int>(floor) - (count == 4 ? 1 : 0);
        for (int tap = 0; tap < count; ++tap) {
            index.push_back(std::clamp(first + tap, 0, source - 1));
        }
    }
}

std::vector<float> resize_maps(const float *in, size_t maps, int h, int w, int height, int width,
                               Interpolation interpolation, bool align_corners) {
    const size_t in_size = static_cast<size_t>(h) * static_cast<size_t>(w);
    const size_t out_width = static_cast<size_t>(width);
    const size_t out_size = static_cast<size_t>(height) * out_width;
    if (h == height && w == width) return std::vector<float>(in, in + maps * in_size);

    const Taps rows(h, height, interpolation, align_corners);
    const Taps columns(w, width, interpolation, align_corners);
    const size_t taps = static_cast<size_t>(rows.count);
    std::vector<float> across(static_cast<size_t>(h) * out_width);  // one map, resized to `width`
    std::vector<float> out(maps * out_size);
    for (size_t map = 0; map < maps; ++map) {
        for (size_t y = 0; y < static_cast<size_t>(h); ++y) {
            const float *from = in + map * in_size + y * static_cast<size_t>(w);
            for (size_t x = 0; x < out_width; ++x) {
                float sum = 0;
                for (size_t tap = x * taps; tap < (x + 1) * taps; ++tap) {
                    sum += columns.weight[tap] * from[columns.index[tap]];
                }
                across[y * out_width + x] = sum;
            }
        }
        for (size_t y = 0; y < static_cast<size_t>(height); ++y) {
            float *to = out.data() + map * out_size + y * out_width;
            for (size_t tap = y * taps; tap < (y + 1) * taps; ++tap) {
                const float *from =
                    across.data() + static_cast<size_t>(rows.index[tap]) * out_width;
                const float weight = rows.weight[tap];
                for (size_t x = 0; x < out_width; ++x) to[x] += weight * from[x];
            }
        }
    }
    return out;
}

}  // namespace libris
