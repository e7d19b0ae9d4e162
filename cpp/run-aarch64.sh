#!/usr/bin/env bash
# Runs a program of an aarch64 build under qemu-user (apt-get install qemu-user):
#
#   ./run-aarch64.sh BUILD ONNXRUNTIME_ROOT SYSROOT PROGRAM [ARGUMENTS...]
set -eu

if [ $# -lt 4 ]; then
    echo "usage: $0 BUILD ONNXRUNTIME_ROOT SYSROOT PROGRAM [ARGUMENTS...]" >&2
    exit 2
fi
build=$1 onnxruntime=$2 sysroot=$3
shift 3
tools=/usr/aarch64-linux-gnu  # where Debian's cross toolchain has the C and C++ libraries

# qemu-user shows the host's /proc/cpuinfo, in which ONNX Runtime looks for an Arm processor and
# crashes
prefix=$(mktemp -d)
trap 'rm -rf "$prefix"' EXIT
mkdir "$prefix/proc"
ln -s "$tools/lib" "$prefix/lib"
for core in $(seq 0 $(($(nproc) - 1))); do
    printf 'processor\t: %d\nFeatures\t: fp asimd evtstrm aes pmull sha1 sha2 crc32 cpuid\n' "$core"
    printf 'CPU implementer\t: 0x41\nCPU architecture: 8\nCPU variant\t: 0x0\n'
    printf 'CPU part\t: 0xd08\nCPU revision\t: 3\n\n'
done > "$prefix/proc/cpuinfo"
libraries=$build:$onnxruntime/lib:$sysroot/usr/lib/aarch64-linux-gnu:$tools/lib
qemu-aarch64 -L "$prefix" -cpu cortex-a72 -E "LD_LIBRARY_PATH=$libraries" "$@"
