#!/bin/bash
# Shows silt at work: sets everything up, starts siltd on a socket of its own, feeds text of this
# machine, asks during and after, shows the memory, and leaves nothing behind.
set -euo pipefail
cd "$(dirname "$0")/../.."

tokens_least=60000
stream=machine
work='' daemon=''
started=$SECONDS

step() { printf '\n== %s\n' "$*"; }
fail() {
    echo "demo: $*" >&2
    [ -z "$work" ] || tail -n 5 "$work/siltd.log" >&2
    exit 1
}
stop() {
    [ -z "$daemon" ] || kill -TERM "$daemon" 2>/dev/null || true
    [ -z "$daemon" ] || wait "$daemon" || true
    daemon=''
    [ -z "$work" ] || rm -rf "$work"
    work=''
}
trap stop EXIT
trap 'exit 130' INT TERM

# Prints a command as one would type it, then runs it.
show() {
    local word line='$ silt'
    for word in "$@"; do
        word=${word#"$work"/}
        [[ $word == *' '* ]] && word="\"$word\""
        line+=" $word"
    done
    printf '\n%s\n' "$line"
    build/silt "$@"
}
# A number of `silt stat --json`.
number() {
    build/silt stat $stream --json |
        python3 -c 'import json, sys; print(json.load(sys.stdin)[sys.argv[1]])' "$1"
}

step "Set-up: packages, build, model"
daemon/dist/deps.sh
make -j"$(nproc)" build/siltd build/silt >/dev/null || fail "the build failed: run make to see why"
daemon/dist/model.sh

work=$(mktemp -d /tmp/silt-demo.XXXXXX)
export SILT_ENDPOINT=ipc://$work/silt.sock

step "Text of this machine"
# The package log costs more tokens a byte than prose: digits are read one by one.
tail -q -c 40000 /var/log/dpkg.log 2>/dev/null >"$work/packages.log" || true
for page in tar dpkg apt-get bash; do
    man "$page" 2>/dev/null | head -c 10000 || true
done >"$work/manuals.txt"
cat /usr/share/doc/{bash,coreutils,dpkg,apt,libc6,gcc-*-base}/{copyright,README*} 2>/dev/null |
    grep -av '^.\{400\}' | head -c 30000 >>"$work/manuals.txt" || true
cat /usr/share/common-licenses/{Apache-2.0,MPL-2.0,GPL-3} >"$work/licences.txt" 2>/dev/null || true
wc -c "$work"/packages.log "$work"/*.txt | sed "s|$work/||"

step "siltd: reads streams that never end, each in a fixed number of bytes"
echo "\$ siltd --streams-max 2 --forks-max 2 --data …"
build/siltd --listen "$SILT_ENDPOINT" --data "$work/data" --streams-max 2 --forks-max 2 \
    >"$work/siltd.log" 2>&1 &
daemon=$!
for _ in $(seq 600); do
    build/silt ls >/dev/null 2>&1 && break
    kill -0 $daemon 2>/dev/null || fail "siltd did not start"
    sleep 0.1
done
sed -n '/memory plan/,$p' "$work/siltd.log"

step "Feed: an ack means that the text is on disk; computing goes on behind it"
[ -s "$work/packages.log" ] && show feed $stream "$work/packages.log"
echo
echo "Ask while it reads: the answer says at which token the question was asked."
sleep 4
show ask $stream "Name a package that was installed." --tokens 32
show feed $stream "$work/manuals.txt"
show ask $stream "What is this text about?" --tokens 48
show feed $stream "$work/licences.txt" --wait
for file in /usr/share/common-licenses/{LGPL-2.1,GFDL-1.3,GPL-2,GPL-1,MPL-1.1,LGPL-2} \
    /usr/share/doc/*/copyright; do
    [ "$(number tokens_acked)" -lt $tokens_least ] || break
    build/silt feed -q $stream "$file"
done
tokens=$(number tokens_acked)
[ "$tokens" -ge $tokens_least ] || fail "this machine has text for $tokens tokens only"

step "Ask when all of it is read (--wait: what was acked first)"
show ask $stream "What is this text about?" --wait --tokens 48
show ask $stream "What does the license permit you to do?" --tokens 32

step "The memory: full attention over the same text would hold every token's keys and values"
show stat $stream
build/silt stat $stream --json | python3 -c '
import json, sys
s = json.load(sys.stdin)
plan, used = s["bytes_plan_by_tier"], s["bytes_used"]
assert sum(plan.values()) == s["bytes_plan"], "the tiers do not add up to the plan"
assert all(used[tier] <= plan[tier] for tier in plan), "a tier is over its plan"
assert s["lag_tokens"] == 0 or s["tokens_acked"] - s["tokens_computed"] < 32, "not all is computed"
row = 2 * 30 * 3 * 64 * 2  # K and V of 30 layers and 3 heads of 64, two bytes each
tokens, mb, total = s["tokens_computed"], 1e6, s["bytes_plan"] / 1e6
full = tokens * row
print(f"\n{tokens:,} tokens: {full / mb:,.0f} MB of keys and values in full, "
      f"{sum(used.values()) / mb:.1f} MB here, of a plan of {total:.1f} MB")
' || fail "the memory is not as planned"

step "Clean-up"
pid=$daemon
kill -TERM "$pid"
wait "$pid" || fail "siltd did not end cleanly"
daemon=''
stop
echo "siltd has ended, its data is removed; this took $((SECONDS - started)) s."
echo "Next: build/siltd in one terminal; build/silt --help in another."
