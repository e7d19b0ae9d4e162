// Mask logits to a mask of the image's own size.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace libris {

// Logits [h, w] -> bytes [height, width]: bilinear, then 1 above `threshold`.
std::vector<uint8_t> mask_from_logits(const float *logits, int h, int w, int height, int width,
                                      float threshold);

// Mean foreground probability over the mask, from the low-resolution logits; 0 for an empty mask.
double mask_score(const float *logits, size_t count, float threshold);

}  // namespace libris
