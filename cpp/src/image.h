// RGB to the two squares that the image encoders take.
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

// Pillow 13's bilinear resize of 8-bit RGB: antialiased, in 22-bit fixed point, columns before rows
// but for tall images. Tightly packed.
std::vector<uint8_t> resize_pillow(const Image &image, int width, int height);

struct EncoderInputs {
    std::vector<float> sam;   // [1, 3, S, S]
    std::vector<float> clip;  // [1, 3, c, c]
};

// SAM's square is resized from the image, and the aspect ratio is not kept; CLIP's is made from
// SAM's, bicubic.
EncoderInputs prepare_image(const Image &image, const Preprocess &preprocess);

}  // namespace libris
