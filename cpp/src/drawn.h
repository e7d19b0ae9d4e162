// Random numbers that stages take, the same to the bit as in Python's runtime/drawn.py, which says
// how they are made.
#pragma once

#include "bundle.h"

#include <cstddef>
#include <cstdint>
#include <vector>

namespace libris {

// The numbers of one expression, of as many as `drawn` has.
// seed: what they are drawn from; number: of the draw; place: of the value among the drawn ones in
// the order of their names.
std::vector<float> draw(const Drawn &drawn, uint64_t seed, uint64_t number, uint64_t place);

}  // namespace libris
