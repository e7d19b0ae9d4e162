// RGB to the squares that stages take.
#pragma once

#include "bundle.h"

#include <cstdint>
#include <vector>

namespace libris {

// A view of 8-bit RGB pixels; stride: bytes from row to row.
struct Image {
    const uint8_t *rgb;
    int width, height;
    size_t stride;
};

// Pillow 13's resize of 8-bit RGB: antialiased, in 22-bit fixed point, columns before rows but for
// tall images. Tightly packed.
std::vector<uint8_t> resize_pillow(const Image &image, int width, int height, Interpolation filter);

// The host's images in their order, float32 [1, 3, size, size] each. Those of the picture keep its
// aspect ratio where they are letterboxes or crops. What is not antialiased is a square of the
// picture, or of another square's 8-bit levels. Throws Error for a picture too narrow to crop.
std::vector<std::vector<float>> prepare_images(const Image &image,
                                               const std::vector<HostImage> &wanted);

}  // namespace libris
