// Everything that is read from and written as JSON.
#pragma once

#include "bundle.h"

#include <string>
#include <vector>

namespace libris {

// The texts are a file's; `path` is for messages. All throw Error.
Manifest parse_manifest(const std::string &text, const std::string &path);
std::vector<std::string> parse_category_names(const std::string &text, const std::string &path);

// What ris_info returns. providers: what was asked to run each stage; contexts: what became of its
// EPContext model.
struct Info {
    std::string onnxruntime;
    std::vector<std::string> providers, contexts;
    int threads, mask_size;
    std::vector<std::string> categories;
};
std::string info_json(const Bundle &bundle, const Info &info);

}  // namespace libris
