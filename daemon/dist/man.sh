#!/bin/bash
# Man pages from the programs' own --help, so that a page never says what the program does not.
#
#   man.sh BUILD OUT     writes OUT/silt.1, OUT/silt-COMMAND.1 for each command, OUT/silt-eval.1
#                        where that is built, OUT/siltd.8
set -euo pipefail
build=$1 out=$2
date=$(date -u -d "@${SOURCE_DATE_EPOCH:-$(date +%s)}" +%Y-%m-%d)

# Help on stdin. Lines that begin with spaces are shown as they stand; "  -x, --long ARG   text" is
# an option with what follows it.
body() {
    awk '
    function plain(s) { gsub(/\\/, "\\e", s); gsub(/-/, "\\-", s); sub(/^[.\047]/, "\\\\\\&&", s)
                        return s }
    function close_block() { if (block) print ".fi\n.RE"; block = 0 }
    /^$/ { close_block(); option = 0; print ".PP"; next }
    /^ +-/ {
        close_block()
        line = $0; sub(/^ +/, "", line)
        at = match(line, /   */)
        while (at && match(substr(line, at), /^  +-/)) { # a second option on the line
            rest = substr(line, at); sub(/^ +/, "", rest)
            next_at = match(rest, /   */)
            if (!next_at) { at = 0; break }
            at = at + length(substr(line, at)) - length(rest) + next_at - 1
        }
        name = at ? substr(line, 1, at - 1) : line
        text = at ? substr(line, at) : ""
        sub(/^ +/, "", text)
        print ".TP\n.B " plain(name)
        if (text != "") print plain(text)
        option = 1
        next
    }
    /^        / && option { sub(/^ +/, ""); print plain($0); next }
    /^  / {
        option = 0
        if (!block) print ".RS 2\n.nf"
        block = 1
        sub(/^  /, "")
        print plain($0)
        next
    }
    { close_block(); option = 0; print plain($0) }
    END { close_block() }'
}

# NAME SECTION SUMMARY SYNOPSIS, the rest of the help on stdin
page() {
    printf '.TH %s %s %s silt "silt"\n.SH NAME\n%s \\- %s\n' "${1^^}" "$2" "$date" "$1" "$3"
    printf '.SH SYNOPSIS\n.B %s\n.SH DESCRIPTION\n' "${4//-/\\-}"
    body
    printf '.SH SEE ALSO\n.BR silt (1),\n.BR siltd (8),\n'
    local command
    for command in "${commands[@]}"; do
        [ "silt-$command" = "$1" ] || printf '.BR silt\\-%s (1),\n' "$command"
    done | sed '$ s/,$//'
}

# Whole pages alone stand in OUT: an install beside this one may be reading them.
pages=$out
out=$(mktemp -d "$pages.XXXXXX")
trap 'rm -rf "$out"' EXIT
help=$("$build/silt" --help)
mapfile -t commands < <(sed -n '/^Commands/,/^$/s/^  \([a-z]*\) .*/\1/p' <<<"$help")
page silt 1 "feeds text without end to siltd and asks what was read" \
    "silt [-c ENDPOINT] COMMAND …" <<<"$help" >"$out/silt.1"
for command in "${commands[@]}"; do
    summary=$(sed -n "/^Commands/,/^\$/s/^  $command  *//p" <<<"$help")
    text=$("$build/silt" "$command" --help)
    page "silt-$command" 1 "$summary" "$(head -n 1 <<<"$text")" \
        < <(tail -n +2 <<<"$text" | sed '1{/^$/d}') >"$out/silt-$command.1"
done
"$build/siltd" --help | tail -n +4 | page siltd 8 \
    "keeps token streams that never end in fixed memory and answers from them" "siltd [OPTION]…" \
    >"$out/siltd.8"
[ ! -e "$build/silt-eval" ] || "$build/silt-eval" --help | tail -n +5 | page silt-eval 1 \
    "how well a model predicts a text under one way of remembering what it has read" \
    "silt-eval --text FILE --policy POLICY [OPTION]…" >"$out/silt-eval.1"
mkdir -p "$pages"
mv -f "$out"/* "$pages"/
