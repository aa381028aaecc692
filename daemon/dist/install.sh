#!/bin/bash
# Puts what was built in place, or takes it away again: `make install`, `make uninstall`.
#
#   install.sh install|uninstall     O: build folder, PREFIX, DESTDIR
set -euo pipefail
cd "$(dirname "$0")/../.."
build=${O:-build} prefix=${PREFIX:-/usr/local} root=${DESTDIR:-}
share=$prefix/share/silt
units=$prefix/lib/systemd/system
placed=() # everything, for uninstall

put() { # MODE SOURCE TARGET
    placed+=("$3")
    [ "$action" = install ] || return 0
    install -D -m "$1" "$2" "$root$3"
}

put_unit() { # NAME
    placed+=("$units/$1")
    [ "$action" = install ] || return 0
    install -d "$root$units"
    sed "s|@PREFIX@|$prefix|g" "daemon/dist/systemd/$1" >"$root$units/$1"
    chmod 644 "$root$units/$1"
}

action=$1
for program in siltd silt silt-gateway silt-eval; do
    [ "$action" = uninstall ] || [ -e "$build/$program" ] || continue
    put 755 "$build/$program" "$prefix/bin/$program"
done
[ "$action" = uninstall ] || daemon/dist/man.sh "$build" "$build/man"
if [ -d "$build/man" ]; then
    for page in "$build"/man/*.1; do
        put 644 "$page" "$prefix/share/man/man1/${page##*/}"
    done
    put 644 "$build/man/siltd.8" "$prefix/share/man/man8/siltd.8"
fi
put 644 daemon/dist/silt.bash "$prefix/share/bash-completion/completions/silt"
put 644 daemon/dist/silt.bash "$prefix/share/bash-completion/completions/siltd"
for adapter in stream/adapters/*.gguf; do
    put 644 "$adapter" "$share/adapters/${adapter##*/}"
done
put 755 daemon/dist/model.sh "$prefix/lib/silt/get-model"
for unit in siltd.service silt-feed@.service silt-gateway.service; do
    put_unit "$unit"
done
put 644 daemon/dist/systemd/silt.sysusers "$prefix/lib/sysusers.d/silt.conf"

if [ "$action" = uninstall ]; then
    for file in "${placed[@]}"; do
        rm -f "$root$file"
    done
    # What a user wrote stays: configuration, data, the model.
    for folder in "$share/adapters" "$prefix/lib/silt"; do
        rmdir -p --ignore-fail-on-non-empty "$root$folder" 2>/dev/null || true
    done
    exit 0
fi
# A configuration that is there is its owner's.
conf=$root/etc/silt/siltd.conf
[ -e "$conf" ] || install -D -m 644 daemon/dist/siltd.conf "$conf"
install -d "$root/etc/silt/feed"
[ -n "$root" ] || cat <<TEXT
Installed under $prefix. Then, for a siltd of the whole system:
    systemd-sysusers && systemctl daemon-reload
    $prefix/lib/silt/get-model $share/models/smollm2-135m-instruct-q4_1.gguf
    systemctl enable --now siltd
TEXT
