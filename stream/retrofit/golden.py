"""Golden vectors of a real model with its adapter, by the parallel forward in fp32.

    python3 golden.py --model BASE.gguf --adapter ADAPTER.gguf --text TEXT --out PREFIX

writes PREFIX.r1.golden and PREFIX.r4.golden in the layout of tests/golden/README.md.  Weights are
dequantised to fp32; nothing is rounded to f16 on the way, so the engine differs by its own rounding.
"""
import argparse

import numpy as np
import torch

import data
import score as score_file
import export
import golden_file
import model as model_file
import plan as plan_file
import silt_adapter
import gguf

CHUNKS, RING = 6, 2     # a ring of two, so that the summary is in use within six chunks


def segment_layers(layers):
    """First, middle, last: the file stays small."""
    return sorted({0, layers // 2, layers - 1})


@torch.no_grad()
def make(path, base, adapter, tokens, ratio, fingerprint):
    parameters, quotas = export.from_adapter(base, adapter)
    n, m = adapter.chunk_tokens, adapter.comp_tokens
    plan = plan_file.MemoryPlan([RING], CHUNKS, RING, n, m, adapter.sink_tokens,
                                adapter.summary_alpha_min)
    tables = model_file.make_tables(base, plan, n, m, "cpu", torch.float32)
    silt = model_file.SiltModel(base, parameters, quotas)
    ids = torch.from_numpy(tokens)[None]
    hidden, seen = silt.forward(ids, torch.zeros_like(ids, dtype=torch.bool), tables, ratio,
                                keep=True)
    nll = score_file.nll(hidden, base.head, ids)[0].numpy()
    count = len(tokens)
    places = [0, 1, 31, 32, n - 1, n, n + 1, 2 * n - 1, 2 * n, 3 * n + n // 8, 4 * n - 1, 4 * n,
              5 * n - 1, 5 * n, 5 * n + n * 15 // 32, count - 1]
    chosen = segment_layers(base.layers)
    segments = np.stack([np.stack([part.numpy() for part in seen["segments"][layer]], 3)
                         for layer in chosen])                  # [L][T, m, kv, 2, dim]
    decisions = logits = None
    if ratio > 1:
        def flat(name):
            return torch.stack(seen[name], 2).reshape(count, -1).numpy()    # [N, L*kv]
        decisions, logits = flat("hard").astype(np.uint8), flat("logit")
    golden_file.write(
        path, base_fingerprint=fingerprint, ratio=ratio, ring=RING, chunk_tokens=n,
        comp_tokens=m, layers=base.layers, kv_heads=base.kv_heads, head_dim=base.head_dim,
        tokens=tokens, nll=nll, segment_layers=chosen,
        segments=segments.transpose(1, 0, 3, 2, 4, 5), top_positions=places,
        logits=(hidden[0, places] @ base.head.t()).numpy(), decisions=decisions,
        decision_logits=logits)
    share = 1.0 if decisions is None else 1 - decisions.mean()
    near = 0 if logits is None else int((np.abs(logits) < 0.02).sum())
    print("%s: mean NLL %.4f, %.2fx, %d decisions within 0.02 of a tie"
          % (path, nll[1:].mean(), 1 / share, near), flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", required=True)
    parser.add_argument("--adapter", required=True)
    parser.add_argument("--text", required=True)
    parser.add_argument("--out", required=True)
    options = parser.parse_args()
    base = model_file.BaseModel(options.model)
    adapter = silt_adapter.read(options.adapter)
    with open(options.text, encoding="utf-8") as file:
        tokens = data.Tokenizer(options.model).encode(file.read()).astype(np.int64)
    need = CHUNKS * adapter.chunk_tokens
    if len(tokens) < need:
        raise SystemExit("the text has %d tokens, %d are needed" % (len(tokens), need))
    for ratio in (1, 4):
        make("%s.r%d.golden" % (options.out, ratio), base, adapter, tokens[:need], ratio,
             gguf.fingerprint(options.model))


if __name__ == "__main__":
    main()
