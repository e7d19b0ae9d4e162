#include "processor.h"

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <thread>
#include <utility>

#if defined(__linux__)
#include <sched.h>
#endif
#if defined(__x86_64__)
#include <cpuid.h>
#endif

namespace libris {
namespace {

// A word of a control file as a number; 0 for "max", -1 and a file that is not there.
double limit(const std::string &word) {
    const bool digits = word.find_first_not_of("0123456789") == std::string::npos;
    return digits && !word.empty() ? std::strtod(word.c_str(), nullptr) : 0;
}

// The first two words of a file, empty where it has none.
std::pair<std::string, std::string> words(const std::string &path) {
    std::ifstream file(path);
    std::pair<std::string, std::string> found;
    file >> found.first >> found.second;
    return found;
}

// Cores' worth of time, in hundredths and rounded up; 0 without a limit.
double ratio(const std::string &quota, const std::string &period) {
    const double a = limit(quota), b = limit(period);
    return a > 0 && b > 0 ? std::ceil(a / b * 100) / 100 : 0;
}

// The least quota of a group and of all that it is in. root: where the groups' folders are.
double least_quota(const std::string &root, std::string group, bool version_2) {
    double least = 0;
    for (;;) {
        const std::string folder = root + group;
        std::pair<std::string, std::string> found;
        if (version_2) {
            found = words(folder + "/cpu.max");  // "quota period" or "max period"
        } else {
            found = {words(folder + "/cpu.cfs_quota_us").first,
                     words(folder + "/cpu.cfs_period_us").first};
        }
        const double quota = ratio(found.first, found.second);
        if (quota > 0 && (least == 0 || quota < least)) least = quota;

        const size_t slash = group.rfind('/');
        if (slash == std::string::npos) return least;
        group.erase(slash);
    }
}

int allowed_cores() {
#if defined(__linux__)
    cpu_set_t set;
    if (sched_getaffinity(0, sizeof set, &set) == 0) return std::max(CPU_COUNT(&set), 1);
#endif
    return std::max(static_cast<int>(std::thread::hardware_concurrency()), 1);
}

}  // namespace

double cpu_quota(const std::string &root) {
    const std::string groups = root + "/sys/fs/cgroup";
    double least = 0;
    std::ifstream file(root + "/proc/self/cgroup");
    for (std::string line; std::getline(file, line);) {
        // number:controllers:/group
        const size_t first = line.find(':'), second = line.find(':', first + 1);
        if (first == std::string::npos || second == std::string::npos) continue;
        const std::string controllers = line.substr(first + 1, second - first - 1);
        const std::string group = line.substr(second + 1);

        double quota = 0;
        if (line.compare(0, first, "0") == 0) {
            quota = least_quota(groups, group, true);
        } else if (("," + controllers + ",").find(",cpu,") != std::string::npos) {
            const std::string all = groups + "/" + controllers;
            std::error_code ignored;
            const bool together = std::filesystem::is_directory(all, ignored);
            quota = least_quota(together ? all : groups + "/cpu", group, false);
        }
        if (quota > 0 && (least == 0 || quota < least)) least = quota;
    }
    return least;
}

int usable_cores(const std::string &root) {
    const int cores = allowed_cores();
    const double quota = cpu_quota(root);
    if (quota <= 0 || quota >= cores) return cores;
    return std::max(1, static_cast<int>(std::ceil(quota)));
}

bool has_vnni() {
#if defined(__x86_64__)
    unsigned a = 0, b = 0, c = 0, d = 0;
    // AVX512_VNNI, then AVX-VNNI
    if (__get_cpuid_count(7, 0, &a, &b, &c, &d) != 0 && (c >> 11 & 1) != 0) return true;
    return __get_cpuid_count(7, 1, &a, &b, &c, &d) != 0 && (a >> 4 & 1) != 0;
#else
    return false;
#endif
}

}  // namespace libris
