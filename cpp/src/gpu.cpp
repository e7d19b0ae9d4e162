#include "gpu.h"

#if defined(__unix__)
#include <dlfcn.h>
#endif

#include <array>
#include <cmath>
#include <cstddef>
#include <string>

namespace libris {
namespace {

#if defined(__unix__)

// of CUDA's driver API: CUdevice_attribute
constexpr int PROCESSORS = 16, MAJOR = 75, MINOR = 76;

// A function of the driver; each returns 0 where it succeeds.
template <class... Arguments>
bool call(void *driver, const char *name, Arguments... arguments) {
    const auto function = reinterpret_cast<int (*)(Arguments...)>(dlsym(driver, name));
    return function != nullptr && function(arguments...) == 0;
}

#endif

}  // namespace

std::string gpu_key(int device) {
#if defined(__unix__)
    // never closed: a driver that has begun has threads of its own
    static void *const cuda = dlopen("libcuda.so.1", RTLD_NOW | RTLD_LOCAL);
    if (cuda == nullptr) return "";
    int handle = 0, processors = 0, major = 0, minor = 0;
    std::array<char, 256> name{};
    size_t memory = 0;
    const bool known =
        call(cuda, "cuInit", 0U) && call(cuda, "cuDeviceGet", &handle, device) &&
        call(cuda, "cuDeviceGetName", name.data(), static_cast<int>(name.size() - 1), handle) &&
        call(cuda, "cuDeviceTotalMem_v2", &memory, handle) &&
        call(cuda, "cuDeviceGetAttribute", &processors, PROCESSORS, handle) &&
        call(cuda, "cuDeviceGetAttribute", &major, MAJOR, handle) &&
        call(cuda, "cuDeviceGetAttribute", &minor, MINOR, handle);
    if (!known) return "";
    // rounded, as drivers keep more or less of it to themselves
    const long gigabytes = std::lrint(static_cast<double>(memory) / (1 << 30));
    return "sm_" + std::to_string(major) + std::to_string(minor) + ", " + name.data() + ", " +
           std::to_string(processors) + " SMs, " + std::to_string(gigabytes) + " GiB";
#else
    static_cast<void>(device);
    return "";
#endif
}

}  // namespace libris
