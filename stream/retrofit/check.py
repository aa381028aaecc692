"""Checks that need no trained model: the parallel forward equals the recurrent reference.

    python3 check.py FOLDER        uses or makes the tiny model there
"""
import argparse
import os
import sys

import numpy as np
import torch

import export
import model as model_file
import plan as plan_file
import reference
import silt_adapter
import tiny


def nll_of(hidden, base, tokens):
    logits = (hidden @ base.head.t()).float()
    return torch.nn.functional.cross_entropy(logits[:-1], tokens[1:], reduction="none")


def check_parallel(folder, ratio, chunks=6, ring=2):
    """Decisions equal, NLL and segments close, for the tiny random model in fp32."""
    path = os.path.join(folder, "tiny.gguf")
    adapter = silt_adapter.read(os.path.join(folder, "tiny.adapter.gguf"))
    base = model_file.BaseModel(path)
    n, m = adapter.chunk_tokens, adapter.comp_tokens
    tokens = (tiny.Source(7).words(chunks * n) % np.uint64(500)).astype(np.int64) + 3
    stream = reference.Stream(reference.Base(path), adapter, ratio, ring, round_f16=False)
    slow = np.stack([stream.feed(token) for token in tokens])
    parameters, quotas = export.from_adapter(base, adapter)
    plan = plan_file.MemoryPlan([ring], chunks, 4, n, m, adapter.sink_tokens,
                                adapter.summary_alpha_min)
    tables = model_file.make_tables(base, plan, n, m, "cpu", torch.float32)
    silt = model_file.SiltModel(base, parameters, quotas)
    ids = torch.from_numpy(tokens)[None]
    with torch.no_grad():
        hidden, seen = silt.forward(ids, torch.zeros_like(ids, dtype=torch.bool), tables, ratio,
                                    keep=True)
    fast = (hidden[0] @ base.head.t()).numpy()
    error = np.abs(fast - slow).max()
    worst = 0.0
    for layer in range(base.layers):
        for which in range(2):
            mine = seen["segments"][layer][which].numpy()                  # [T, m, kv, dim]
            theirs = np.stack([segment[which][layer] for segment in stream.segments])
            worst = max(worst, np.abs(mine - theirs.transpose(0, 2, 1, 3)).max())
    flips = 0
    if ratio > 1:
        mine = torch.stack(seen["hard"], 1).transpose(1, 2).reshape(len(tokens), -1).numpy()
        flips = int((mine != np.array(stream.decisions)).sum())
    print("parallel == recurrent, ratio %d: logits within %.1e, segments within %.1e, "
          "%d decisions differ" % (ratio, error, worst, flips))
    return error < 2e-3 and worst < 2e-3 and flips == 0


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder")
    options = parser.parse_args()
    torch.set_num_threads(2)
    if not os.path.exists(os.path.join(options.folder, "tiny.adapter.gguf")):
        sys.argv = ["tiny.py", options.folder, "--no-golden"]
        tiny.main()
    passed = all([check_parallel(options.folder, ratio) for ratio in (1, 4, 8)])
    print("check: %s" % ("passed" if passed else "FAILED"))
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
