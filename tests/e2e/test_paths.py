"""The kernel paths against each other, on the real model: decisions may differ at near-ties, the
loss may not. What each kernel owes the reference, tests/check says: the reference itself takes
minutes here (768 tokens of the golden text at 1x: 3.45968, AVX2 3.45987)."""

import json
import subprocess

import lib

EVAL = lib.BUILD / "silt-eval"
PATHS = {"AVX2": 1, "AVX-VNNI": 3}      # bits of kernels.h; what a machine lacks is left out there
ALL = 0xFF
NLL_MAX = 0.002             # nats a token that two paths may differ by


def loss(text, features, dmc, *args):
    command = [EVAL, "--model", lib.MODEL, "--adapter",
               lib.ROOT / "stream/adapters/smollm2-135m-instruct.gguf", "--text", text, "--policy",
               "ccm", "--dmc", dmc, "--features", features, "--json", *args]
    done = subprocess.run([str(word) for word in command], capture_output=True, check=True,
                          timeout=280 * lib.SLOW)
    return json.loads(done.stdout.splitlines()[-1])["nll"]


def fixed_text():
    """Four thousand tokens that no change of the source touches: on fewer, one flipped decision in
    a repeated phrase weighs more than the difference of the paths."""
    if not lib.MODEL.exists():
        raise lib.Skip("the model is not here: make model")
    path = lib.folder() / "fixed.txt"
    parts = ("tests/golden/smollm2-135m-instruct.txt", "LICENSE")
    path.write_bytes(b"".join((lib.ROOT / part).read_bytes() for part in parts))
    return path


def test_paths_agree():
    text = fixed_text()
    for dmc in (1, 4):
        best = loss(text, ALL, dmc)
        for name, features in PATHS.items():
            other = loss(text, features, dmc)
            print(f"{dmc}x: all features {best:.5f}, {name} {other:.5f}")
            assert abs(best - other) <= NLL_MAX, (dmc, name, best, other)


if __name__ == "__main__":
    lib.main(globals())
