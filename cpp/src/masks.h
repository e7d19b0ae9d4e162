// Mask logits to a mask of the image's own size, as in Python's runtime/masks.py.
#pragma once

#include "interpolate.h"

#include <cstddef>
#include <cstdint>
#include <vector>

namespace libris {

// Logits of a letterbox are resized to its side and cut to the picture's part. Then logits, or
// their probabilities, are resized to the mask's size and compared with a threshold.
struct MaskRule {
    bool of_probabilities = false;
    Interpolation interpolation = Interpolation::bilinear;
    bool align_corners = false;
    float threshold = 0;  // what a pixel of the mask is above: a logit, or a probability
    int letterbox = 0;    // the side of the letterbox that the logits are of; 0: of the picture
};

// The height and width of a picture in a letterbox, whose longest side becomes `side`.
struct Size {
    int height, width;
};
Size letterbox_size(Size picture, int side);

// Those of a picture around a square, whose shortest side becomes `side`; the other one is rounded
// down. Throws Error where one side is more than a hundred times the other.
Size covering_size(Size picture, int side);

// Logits [h, w] -> bytes [picture.height, picture.width], 1 in the mask.
std::vector<uint8_t> mask_from_logits(const float *logits, int h, int w, Size picture,
                                      const MaskRule &rule);

// Mean foreground probability over the mask, from the low-resolution logits; 0 for an empty mask.
double mask_score(const float *logits, int h, int w, Size picture, const MaskRule &rule);

}  // namespace libris
