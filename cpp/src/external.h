// The data files that an ONNX file names: where its weights lie. A graph may open those alone that
// the manifest has the hash of, and ONNX Runtime opens none through a link that leaves the graph's
// folder, as Hugging Face's cache has them.
#pragma once

#include <functional>
#include <set>
#include <string>

namespace libris {

// The names of its data files, as the ONNX file `onnx` has them: relative to its folder. Throws
// Error, naming `path`, where it is no ONNX.
std::set<std::string> data_files(const std::string &onnx, const std::string &path);

// The ONNX file with another name for each data file. Throws Error as data_files does.
std::string with_data_files(const std::string &onnx, const std::string &path,
                            const std::function<std::string(const std::string &)> &renamed);

}  // namespace libris
