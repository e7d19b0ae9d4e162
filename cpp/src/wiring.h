// Which stage takes which value from where, and which files have hashes, as in Python's
// runtime/wiring.py and runtime/bundle_checks.py.
#pragma once

#include "bundle.h"

#include <string>
#include <vector>

namespace libris {

// What in a manifest contradicts itself, a sentence for each; Python says the same.
std::vector<std::string> contradictions(const Manifest &manifest);

}  // namespace libris
