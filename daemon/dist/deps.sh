#!/bin/bash
# Installs what silt is built and tested with, from Debian's own packages. Quick and silent when all
# of it is there.
set -euo pipefail

build=(gcc make pkg-config git ca-certificates libc6-dev libzmq3-dev libprotobuf-c-dev
    protobuf-c-compiler libsqlite3-dev libxxhash-dev libutf8proc-dev liburing-dev libjansson-dev
    libseccomp-dev libzstd-dev libmicrohttpd-dev libncurses-dev)
test=(g++ libcmocka-dev clang-format python3 python3-pip python3-venv python3-numpy python3-zmq
    python3-protobuf protobuf-compiler mypy procps zstd iproute2 strace)

installed() {
    [ "$(dpkg-query -W -f='${db:Status-Status}' "$1" 2>/dev/null)" = installed ]
}

missing=()
if ! command -v dpkg-query >/dev/null; then
    echo "deps: this is not Debian: install the like of these yourself: ${build[*]} ${test[*]}" >&2
    exit 1
fi
for package in "${build[@]}" "${test[@]}"; do
    installed "$package" || missing+=("$package")
done
[ ${#missing[@]} = 0 ] && exit 0

echo "deps: installing ${missing[*]}"
as_root=()
if [ "$(id -u)" != 0 ]; then
    if ! command -v sudo >/dev/null; then
        echo "deps: not root and no sudo here. Have an administrator run:" >&2
        echo "    apt-get install --no-install-recommends ${missing[*]}" >&2
        exit 1
    fi
    as_root=(sudo)
fi
log=$(mktemp)
trap 'rm -f "$log"' EXIT
apt() {
    "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get -o DPkg::Lock::Timeout=120 \
        -o Acquire::Retries=3 "$@" >>"$log" 2>&1
}
# Old package lists name files that are gone, so they are read afresh before the install.
if ! apt update || ! apt install -y --no-install-recommends "${missing[@]}"; then
    tail -n 15 "$log" >&2
    echo "deps: apt-get failed (above). Without a network, install these by other means:" >&2
    echo "    ${missing[*]}" >&2
    exit 1
fi
