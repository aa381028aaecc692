#!/bin/bash
# A Debian package of the committed tree: build/deb/silt_VERSION_ARCH.deb.
set -euo pipefail
cd "$(dirname "$0")/../.."

if ! command -v dpkg-buildpackage >/dev/null || ! command -v dh >/dev/null; then
    echo "deb: needs dpkg-dev and debhelper: apt-get install dpkg-dev debhelper" >&2
    exit 1
fi
version=$(dpkg-parsechangelog -l daemon/dist/debian/changelog -S Version)
work=build/deb/silt-$version
rm -rf build/deb
mkdir -p "$work"
git archive HEAD | tar -x -C "$work"
cp -r daemon/dist/debian "$work/debian"
git diff --quiet HEAD || echo "deb: changes that are not committed are not in the package"
jobs=$(nproc)
if ! (cd "$work" && DEB_BUILD_OPTIONS="nocheck parallel=$jobs" dpkg-buildpackage -us -uc -b) \
    >build/deb/log 2>&1; then
    tail -n 30 build/deb/log >&2
    echo "deb: not built; all of it: build/deb/log" >&2
    exit 1
fi
rm -rf "$work"
ls build/deb/*.deb
