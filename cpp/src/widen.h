// An FP16 graph computing in FP32, for ONNX Runtime's CPU provider: that has few FP16 kernels and
// casts around the rest. Python's engines/onnx_widen.py does the same, so both give the same masks.
#pragma once

#include <string>

namespace libris {

// The ONNX file `onnx` with every FP16 weight behind a cast to FP32, and every cast to FP16 one to
// FP32, but for the last ones in front of an FP16 output. Weights in a data file stay there. Throws
// Error, naming `path`, where it is no ONNX.
std::string widened(const std::string &onnx, const std::string &path);

}  // namespace libris
