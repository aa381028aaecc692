"""TOVA and H2O at the rows that ccm holds: baselines that evict whole tokens, nothing trained.

    python3 evict.py --model BASE.gguf --adapter ADAPTER.gguf --text DEV --tokens 2048 --ratio 4

Blocks of 32 tokens read the cache, then the cache is cut back to the budget, so it holds budget
+ 16 rows in the mean over a block; the budget given is lowered by that.  Keys are rotated by their
index in the cache, as streaming implementations do.  TOVA drops the tokens to which the last query
pays least attention, heads averaged; H2O keeps, per KV head, the newest half and of the rest the
tokens with the most attention summed over all queries so far.
"""
import argparse
import json
import math

import numpy as np
import torch
import torch.nn.functional as F

import data
import evaluate
import export
import model as model_file
import silt_adapter

BLOCK = 32


def keep_tova(weight, total, budget):
    """weight [B, kv, group, s, keys] -> kept indices [B, kv, budget], in order."""
    score = weight[:, :, :, -1].mean((1, 2))
    kept = score.topk(budget, -1).indices.sort(-1).values
    return kept[:, None].expand(-1, weight.shape[1], -1)


def keep_h2o(weight, total, budget):
    """total [B, kv, keys]: attention received so far."""
    recent = budget // 2
    keys = total.shape[-1]
    heavy = total[..., :keys - recent].topk(budget - recent, -1).indices.sort(-1).values
    newest = torch.arange(keys - recent, keys, device=total.device).expand(*total.shape[:2], -1)
    return torch.cat([heavy, newest], -1)


@torch.no_grad()
def stream_nll(base, tokens, budget, keep):
    """[B, N] -> nll [B, N] with at most budget rows a head left after every block."""
    ids = torch.from_numpy(tokens).to(base.embd.device)
    rows, length = ids.shape
    heads, kv_heads, dim = base.heads, base.kv_heads, base.head_dim
    caches = [None] * base.layers
    hidden = []
    for at in range(0, length, BLOCK):
        x = F.embedding(ids[:, at:at + BLOCK], base.embd)
        size = x.shape[1]
        for layer, block in enumerate(base.blocks):
            attn_norm, qkv_weight, o_weight, ffn_norm, gate_up, down = block
            h = model_file.rms_norm(x, attn_norm, base.eps)
            parts = (h @ qkv_weight.t()).split([heads * dim, kv_heads * dim, kv_heads * dim], -1)
            q, k, v = (part.unflatten(-1, (-1, dim)).transpose(1, 2) for part in parts)
            total = torch.zeros(rows, kv_heads, size, device=x.device)
            if caches[layer] is not None:
                old_k, old_v, old_total = caches[layer]
                k, v = torch.cat([old_k, k], 2), torch.cat([old_v, v], 2)
                total = torch.cat([old_total, total], 2)
            count = k.shape[2]
            cos, sin = base.rope_table(torch.arange(count), x.device)
            table = (cos[None, :, None], sin[None, :, None])

            def turn(t, start):
                half = (table[0][:, start:, 0], table[1][:, start:, 0])
                return model_file.rotate(t.transpose(1, 2), half).transpose(1, 2)

            q = turn(q, count - size).unflatten(1, (kv_heads, heads // kv_heads))
            score = q @ turn(k, 0)[:, :, None].transpose(-1, -2) / math.sqrt(dim)
            place = torch.arange(count, device=x.device)
            late = place[None] > place[count - size:, None]
            weight = score.masked_fill(late, -math.inf).softmax(-1)
            out = (weight @ v[:, :, None]).flatten(1, 2).transpose(1, 2).flatten(2)
            total = total + weight.mean(2).sum(2)
            if count > budget:
                kept = keep(weight, total, budget)
                index = kept[..., None].expand(-1, -1, -1, dim)
                k, v, total = k.gather(2, index), v.gather(2, index), total.gather(2, kept)
            caches[layer] = (k, v, total)
            x = model_file.mlp(x + out @ o_weight.t(), ffn_norm, gate_up, down, base.eps)
        hidden.append(model_file.rms_norm(x, base.norm, base.eps))
    return evaluate.nll(torch.cat(hidden, 1), base.head, ids)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", required=True)
    parser.add_argument("--adapter", required=True)
    parser.add_argument("--text", required=True)
    parser.add_argument("--tokens", type=int, default=24576)
    parser.add_argument("--ratio", type=int, default=4)
    parser.add_argument("--kinds", default=",".join(evaluate.KINDS))
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args()
    base = model_file.BaseModel(options.model, options.device)
    adapter = silt_adapter.read(options.adapter)
    parameters, quotas = export.from_adapter(base, adapter)
    evaluator = evaluate.Evaluator(base, parameters, quotas, evaluate.constants_of(adapter))
    tokenizer = data.Tokenizer(options.model)
    kinds = options.kinds.split(",")
    tokens = np.concatenate([evaluate.load_streams(options.text, kind, tokenizer, options.tokens,
                                                   1) for kind in kinds])
    own, held, realised = evaluator.ccm(tokens, options.ratio)
    budget = int(round(held.mean().item())) - BLOCK // 2

    def tell(name, values):
        figures = {kind: round(values[i, 1:].mean().item(), 4) for i, kind in enumerate(kinds)}
        print("%-12s %s" % (name, json.dumps(figures)), flush=True)

    print("%d tokens, ratio %d (%.2fx), %.0f rows in the mean"
          % (options.tokens, options.ratio, realised, held.mean().item()), flush=True)
    tell("ccm", own)
    tell("tova", stream_nll(base, tokens, budget, keep_tova))
    tell("h2o", stream_nll(base, tokens, budget, keep_h2o))
    tell("window", evaluator.window(tokens, held - evaluator.constants["sinks"]))
    tell("full", evaluator.window(tokens, base.context - evaluator.constants["sinks"]))


if __name__ == "__main__":
    main()
