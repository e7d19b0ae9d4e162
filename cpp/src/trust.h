// What vouches for compiled engines, which run as code: this user's key, that Python's
// engines/trust.py makes and reads too. It is 32 bytes in a file that nobody else can read:
// $RIS_PLAN_KEY, or "key" in the first of the user's own folders that will have it.
#pragma once

#include <string>
#include <vector>

namespace libris {

constexpr size_t kKeyBytes = 32;

// The key, made where there is none. Throws Error where $RIS_PLAN_KEY names a file that is no key,
// or that others may change.
std::string user_key();

// The folders for what is not to be lost, in the order in which they are tried: below
// $XDG_STATE_HOME or ~/.local/state, $XDG_RUNTIME_DIR, the system's temporary folder.
std::vector<std::string> state_folders();

// Whether a file belongs to this user or to root, and no other user may write it.
bool is_safe(const std::string &path);

}  // namespace libris
