// The structs of ris.h as they cross the boundary between programs and libraries of different ages.
// A struct grows at its end alone, and a caller says how much of it there is in its time.
#pragma once

#include "error.h"

#include <algorithm>
#include <cstring>
#include <string>

namespace libris {

// Of any later version's structs, so that garbage is not read as a size.
constexpr size_t kLargestStruct = 4096;

// first: the struct's size in the first version of libris that had it.
inline void require_size(size_t size, size_t first, const char *name) {
    if (size >= first && size <= kLargestStruct) return;
    throw Error(RIS_ERROR_ARGUMENT, std::string(name) + ".struct_size is " + std::to_string(size) +
                                        "; start from the INIT macro of ris.h");
}

// A caller's struct over `ours`, which has the defaults: an older caller's is shorter, and leaves
// them in what it does not know. What a newer caller's has beyond ours must be zero.
template <class Struct>
Struct read_struct(const Struct *theirs, Struct ours, size_t first, const char *name) {
    if (theirs == nullptr) return ours;
    const size_t size = theirs->struct_size;
    require_size(size, first, name);
    const auto *bytes = reinterpret_cast<const unsigned char *>(theirs);
    for (size_t i = sizeof(Struct); i < size; ++i) {
        if (bytes[i] != 0) {
            const std::string what = std::string(name) + " sets what libris " + ris_version();
            throw Error(RIS_ERROR_ARGUMENT, what + " does not know; use a newer libris");
        }
    }
    std::memcpy(static_cast<void *>(&ours), theirs, std::min(size, sizeof(Struct)));
    return ours;
}

// Fills a caller's struct, as far as it goes in the caller's time.
template <class Struct>
void write_struct(Struct *theirs, Struct ours) {
    ours.struct_size = theirs->struct_size;
    std::memcpy(static_cast<void *>(theirs), &ours, std::min(ours.struct_size, sizeof ours));
}

}  // namespace libris
