"""TOVA and H2O at the rows that ccm holds: baselines that evict whole tokens, nothing trained.

Blocks of 32 tokens read the cache, then the cache is cut back to the budget, so it holds budget
+ 16 rows in the mean over a block; the budget given is lowered by that.  Keys are rotated by their
index in the cache, as streaming implementations do.  TOVA drops the tokens to which the last query
pays least attention, heads averaged; H2O keeps, per KV head, the newest half and of the rest the
tokens with the most attention summed over all queries so far.
"""
import json
import math

import numpy as np
import torch
import torch.nn.functional as F

import model as model_file
import score as score_file

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
    ids = torch.from_numpy(tokens.astype(np.int64)).to(base.embd.device)
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
    return score_file.nll(torch.cat(hidden, 1), base.head, ids)


def compare(evaluator, streams, ratios, save):
    """streams: kind -> [B, N].  Both policies at each ratio's rows, all kinds in one batch."""
    kinds = list(streams)
    tokens = np.concatenate([streams[kind] for kind in kinds])
    owner = np.repeat(np.arange(len(kinds)), [len(streams[kind]) for kind in kinds])
    out = {"streams": list(tokens.shape)}

    def means(values):
        values = values[:, 1:].mean(1).cpu().numpy()
        return {kind: round(float(values[owner == i].mean()), 4) for i, kind in enumerate(kinds)}

    for ratio in ratios:
        found = [evaluator.ccm(tokens[i:i + 1], ratio)[:2] for i in range(len(tokens))]
        rows = torch.stack([part[1].mean() for part in found]).mean().item()
        budget = int(round(rows)) - BLOCK // 2
        window = [evaluator.window(tokens[i:i + 1], part[1] - evaluator.constants["sinks"])
                  for i, part in enumerate(found)]
        entry = {"rows": round(rows, 1), "ccm": means(torch.cat([part[0] for part in found])),
                 "window": means(torch.cat(window))}
        for name, keep in (("tova", keep_tova), ("h2o", keep_h2o)):
            entry[name] = means(stream_nll(evaluator.base, tokens, budget, keep))
            print("  %dx %-5s %s" % (ratio, name, json.dumps(entry[name])), flush=True)
        out["%dx" % ratio] = entry
        save(out)
    return out
