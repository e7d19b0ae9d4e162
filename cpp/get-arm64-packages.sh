#!/usr/bin/env bash
# Unpacks the arm64 libraries of Debian 12 that a cross build of libris needs:
#
#   ./get-arm64-packages.sh SYSROOT
#
# Needs apt; changes nothing outside SYSROOT. Versions are those of bookworm, checked by apt's
# signatures.
set -eu

if [ $# -ne 1 ]; then
    echo "usage: $0 SYSROOT" >&2
    exit 2
fi
root=$1
fail() {
    echo "$0: $1" >&2
    exit 1
}
[ ! -e "$root" ] || fail "$root is there already; remove it first"
work=$(mktemp -d)
trap 'rm -rf "$work" "$root.partial"' EXIT

. "$(dirname "$0")/debian.sh"
debian_apt "$work" bookworm arm64
quiet "$work/log" "${apt[@]}" update ||
    fail "Debian's package list cannot be fetched from $mirror: $(tail -1 "$work/log")"
packages=(libutf8proc-dev libutf8proc2 nlohmann-json3-dev libssl-dev libssl3)
(cd "$work/deb" && quiet "$work/log" "${apt[@]}" download "${packages[@]}") ||
    fail "packages cannot be fetched from $mirror: $(tail -1 "$work/log")"
mkdir -p "$root.partial"
for package in "$work"/deb/*.deb; do
    dpkg-deb -x "$package" "$root.partial"
    echo "$(basename "$package"): $root"
done
mv "$root.partial" "$root"
