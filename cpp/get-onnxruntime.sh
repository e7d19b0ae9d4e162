#!/usr/bin/env bash
# Fetches ONNX Runtime's headers and library from packages and lays them out for
# -DRIS_ONNXRUNTIME_ROOT:
#
#   ./get-onnxruntime.sh ROOT [x86_64|aarch64]
#
# Headers: Debian trixie's libonnxruntime-dev (bookworm has none; they are the same for every
# processor), from the mirror that this machine's apt uses or $DEBIAN_MIRROR. Library: the one
# inside the wheel on pip's index. Both are checked against the hashes below. Needs apt, and pip for
# Python 3. Changes nothing outside ROOT, and ROOT only when all is there.
set -eu

HEADERS=1.21.0+dfsg-1
HEADERS_SHA256=14f7d959d5deacbcf1504830d4189f91fc67382b399ed9ae9d3aa9c4050ced08
LIBRARY=1.31.1
LIBRARY_SHA256_x86_64=5752bd508126ae7c49894d3b9d2e83f0c3d487319246d04c444b393308d7ad7f
LIBRARY_SHA256_aarch64=da05378364c44d4407e463982d2bf8d5e4cfea873283757e48beeb41df97b7f3

if [ $# -lt 1 ] || [ $# -gt 2 ]; then
    echo "usage: $0 ROOT [x86_64|aarch64]" >&2
    exit 2
fi
root=$1
machine=${2:-$(uname -m)}
sha256_name=LIBRARY_SHA256_$machine
library_sha256=${!sha256_name:-}
fail() {
    echo "$0: $1; or get ONNX Runtime's headers and library yourself" \
        "and give -DRIS_ONNXRUNTIME_ROOT" >&2
    exit 1
}
[ -n "$library_sha256" ] || fail "no library is listed for $machine; there are x86_64 and aarch64"
[ ! -e "$root" ] || fail "$root is there already; remove it first"
command -v apt-get > /dev/null || fail "apt-get is not here"

work=$(mktemp -d)
trap 'rm -rf "$work" "$root.partial"' EXIT
chmod 755 "$work"  # apt reads as a user of its own

. "$(dirname "$0")/debian.sh"
debian_apt "$work" trixie
quiet "$work/log" "${apt[@]}" update ||
    fail "Debian's package list cannot be fetched from $mirror: $(tail -1 "$work/log")"
(cd "$work/deb" && quiet "$work/log" "${apt[@]}" download "libonnxruntime-dev=$HEADERS") ||
    fail "libonnxruntime-dev $HEADERS cannot be fetched from $mirror: $(tail -1 "$work/log")"
echo "$HEADERS_SHA256  $(echo "$work"/deb/*.deb)" | sha256sum --check --quiet ||
    fail "the headers are not those expected"
dpkg-deb -x "$work"/deb/*.deb "$work/headers"

echo "onnxruntime==$LIBRARY --hash=sha256:$library_sha256" > "$work/requirements.txt"
quiet "$work/log" python3 -m pip download -q --timeout 20 --retries 1 \
    --no-deps --require-hashes --only-binary :all: \
    --python-version 3.11 --platform "manylinux_2_28_$machine" \
    -d "$work/wheel" -r "$work/requirements.txt" ||
    fail "onnxruntime $LIBRARY cannot be fetched by pip: $(tail -1 "$work/log")"
python3 -m zipfile -e "$work"/wheel/*.whl "$work/library"

mkdir -p "$root.partial/include" "$root.partial/lib"
cp "$work"/headers/usr/include/onnxruntime/*.h "$root.partial/include/"
cp "$work/library/onnxruntime/capi/libonnxruntime.so.$LIBRARY" "$root.partial/lib/"
ln -s "libonnxruntime.so.$LIBRARY" "$root.partial/lib/libonnxruntime.so.1"
ln -s libonnxruntime.so.1 "$root.partial/lib/libonnxruntime.so"
cp "$work/library/onnxruntime/LICENSE" "$root.partial/LICENSE.onnxruntime"
mv "$root.partial" "$root"
echo "ONNX Runtime $LIBRARY ($machine), headers $HEADERS: $root"
