// EPContext models: ONNX files in which a provider has put its compiled engine, so the next start
// compiles nothing. Engines run as code: one is read only where it is byte for byte what this
// library wrote.
#pragma once

#include "bundle.h"

#include <string>

namespace libris {

class ContextModel {
public:
    // In `folder`, for a graph. The name tells apart what `built_for` tells apart: versions,
    // profiles, devices.
    ContextModel(const std::string &folder, const char *stage, const Graph &graph,
                 const std::string &built_for);

    const std::string &path() const { return path_; }

    // Whether it is there and its SHA-256 is the one written beside it.
    bool is_whole() const;

    // Writes the SHA-256 of what the provider wrote. Writes nothing where it wrote nothing, or the
    // disk refuses.
    void seal() const noexcept;

    // Removes it, so that it is written afresh.
    void discard() const noexcept;

private:
    std::string path_, seal_;
};

}  // namespace libris
