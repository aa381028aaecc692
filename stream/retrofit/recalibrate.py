#!/usr/bin/env python3
"""Shifts a ratio's bias in an adapter file until the C engine realises that ratio on given texts.

    recalibrate.py ADAPTER --ratio 8 --text FILE.jsonl.zst [--text …] [--tokens 16384] [--rounds 3]

`train.py --calibrate` does this for every head on rows of the training mix, in PyTorch.  Streams of
joined text come out a little higher at 8x; this moves all heads by one number, by secants on the
mean over the texts (each counts alike), and changes nothing else in the file.
"""
import argparse
import json
import math
import pathlib
import subprocess
import sys
import tempfile

import numpy as np

import gguf

ROOT = pathlib.Path(__file__).resolve().parents[2]
TOLERANCE = 0.005       # of the asked ratio
FIRST_STEP = 0.1        # a shift, in logits, to learn the slope by


def shifted(path, ratio, shift):
    """The file's bytes with the ratio's bias moved by shift."""
    reader = gguf.Reader(path)
    kind, shape, offset = reader.tensors["dmc.ratio_bias"]
    if kind != gguf.F32:
        raise SystemExit(f"{path}: dmc.ratio_bias is not F32")
    served = reader.meta["silt.dmc_ratios"]
    if ratio not in served:
        raise SystemExit(f"{path} serves {served}, not {ratio}")
    data = bytearray(reader.data)
    start = reader.base + offset + served.index(ratio) * shape[1] * 4
    row = np.frombuffer(data, "<f4", shape[1], start) + np.float32(shift)
    data[start:start + row.nbytes] = row.astype("<f4").tobytes()
    return data


def realised(arguments, data):
    """The mean realised ratio over the texts, by silt-eval."""
    ratios = []
    with tempfile.NamedTemporaryFile(suffix=".gguf") as file:
        file.write(data)
        file.flush()
        for text in arguments.text:
            done = subprocess.run([arguments.engine, "--model", arguments.model, "--adapter",
                                   file.name, "--text", text, "--policy", "ccm", "--dmc",
                                   str(arguments.ratio), "--join", "--streams", "1", "--tokens",
                                   str(arguments.tokens), "--json"],
                                  stdout=subprocess.PIPE, check=False)
            if done.returncode:
                sys.exit(done.returncode)       # it has said why
            ratios.append(json.loads(done.stdout.splitlines()[-1])["dmc_ratio"])
    print("  " + "  ".join(f"{pathlib.Path(text).name.split('.')[0]} {ratio:.2f}"
                           for text, ratio in zip(arguments.text, ratios)), flush=True)
    return sum(ratios) / len(ratios)


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("adapter")
    parser.add_argument("--ratio", type=int, required=True)
    parser.add_argument("--text", action="append", required=True)
    parser.add_argument("--tokens", type=int, default=16384, help="of each text")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--model", default=ROOT / "build/models/smollm2-135m-instruct-q4_1.gguf")
    parser.add_argument("--engine", default=ROOT / "build/silt-eval")
    parser.add_argument("--out", help="default: the adapter itself")
    arguments = parser.parse_args()

    shift, seen = 0.0, []
    for turn in range(arguments.rounds + 1):
        data = shifted(arguments.adapter, arguments.ratio, shift)
        ratio = realised(arguments, data)
        print(f"shift {shift:+.4f}: realised {ratio:.3f}x on average", flush=True)
        error = math.log(ratio / arguments.ratio)
        if abs(error) < TOLERANCE:
            break
        seen.append((shift, error))
        if turn == arguments.rounds:
            print(f"not within {100 * TOLERANCE} % after {turn} rounds", file=sys.stderr)
            sys.exit(1)
        if len(seen) == 1 or error == seen[-2][1]:
            shift -= math.copysign(FIRST_STEP, error)       # a lower bias merges less
        else:
            (a, at_a), (b, at_b) = seen[-2:]
            shift = b - at_b * (b - a) / (at_b - at_a)
    out = pathlib.Path(arguments.out or arguments.adapter)
    part = out.with_name(out.name + ".part")        # one that is there is whole
    part.write_bytes(data)
    part.replace(out)


if __name__ == "__main__":
    main()
