// What a bundle must have beyond the kinds of its manifest's values, before anything is opened, as
// in Python's runtime/bundle_checks.py.
#pragma once

#include "bundle.h"

#include <string>
#include <vector>

namespace libris {

// What is wrong with a manifest, in sentences: names without hashes, and graphs without the inputs
// and outputs that libris gives and takes.
std::vector<std::string> problems_of(const Manifest &manifest);

// A sentence for each file that a graph would open and the manifest has no hash of. Throws Error
// where the graph is no ONNX file.
std::vector<std::string> unhashed_data(const Bundle &bundle, const Graph &graph);

}  // namespace libris
