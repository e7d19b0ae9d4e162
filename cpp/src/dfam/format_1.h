// Manifests of format 1 in the form of format 2, as Python's runtime/dfam/format_1.py has them.
// Format 1 knew one family: its five graphs, and what the host did between them, are said here.
#pragma once

#include <nlohmann/json_fwd.hpp>

namespace libris::dfam {

// What is missing or of another kind is handed on as it is, for the reader of format 2 to tell.
nlohmann::json as_format_2(const nlohmann::json &data);

}  // namespace libris::dfam
