// Bilinear and bicubic resizing as a separable linear map, equal to torch.nn.functional.interpolate
// with or without align_corners and without antialiasing; bicubic with a = -0.75. Coordinates are
// float32, as torch computes them.
#pragma once

#include <cstddef>
#include <vector>

namespace libris {

enum class Interpolation { bilinear, bicubic };

// For each output `count` source indices, clamped to the border, and their weights.
struct Taps {
    Taps(int source, int target, Interpolation interpolation, bool align_corners = false);

    int count;
    std::vector<int> index;
    std::vector<float> weight;
};

// Maps [maps, h, w] -> [maps, height, width].
std::vector<float> resize_maps(const float *in, size_t maps, int h, int w, int height, int width,
                               Interpolation interpolation, bool align_corners = false);

}  // namespace libris
