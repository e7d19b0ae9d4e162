// What a compiled engine depends on of the GPU that it was compiled on.
#pragma once

#include <string>

namespace libris {

// Such as "sm_90, NVIDIA H200, 132 SMs, 140 GiB", the words of Python's keys: engines differ
// between GPUs of one compute capability. By the driver's library, which is opened for it; "" where
// that is not here, or has no such GPU.
std::string gpu_key(int device);

}  // namespace libris
