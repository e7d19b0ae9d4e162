// What this process may use of the processor, as Python's engines/processor.py has it.
#pragma once

#include <string>

namespace libris {

// Cores' worth of time that the control groups of this process leave it; 0 without a limit. root: a
// folder with proc/ and sys/fs/cgroup/, "" for the system's own.
double cpu_quota(const std::string &root);

// How many threads keep busy what this process may use: the cores that it may run on, or a
// container's share of their time. A share of 1.5 cores is two threads.
int usable_cores(const std::string &root = "");

// Whether an x86 CPU is known to sum products of INT8 in 32 bits; without these instructions they
// are summed in pairs of 16 bits, which overflow (docs/reference/int8.md, Without VNNI).
bool has_vnni();

}  // namespace libris
