"""Questions over a stream that has been read: the memory it left, and raw rows behind it.

`read_memory` and `read_full` give what later tokens see; a `Fork` runs any tokens behind that with
base weights, as the engine's fork does (DESIGN.md §2.7), many rows and many branches at once.
"""
import math
from typing import NamedTuple

import torch
import torch.nn.functional as F

import model as model_file


class View(NamedTuple):
    """What a question sees: per layer K (rotated) and V [B, K, kv, dim] and an additive mask
    [B, kv, K] or None; `position` is the next token's."""
    layers: list
    position: int

    def rows(self):
        """KV rows a layer and head in the mean: what it costs to keep."""
        return sum(layer[0].shape[1] if layer[2] is None
                   else (layer[2] == 0).float().sum(-1).mean().item()
                   for layer in self.layers) / len(self.layers)


@torch.no_grad()
def read_memory(evaluator, tokens, ratio, recalled=None):
    """tokens [B, whole chunks] -> the View of a fork opened behind them; recalled: for each of B
    the segments from behind its ring, oldest first, that it sees too."""
    c, kept, rows = evaluator.constants, [], len(tokens)
    plain = model_file.attention_function

    def capture(q, keys, values, column, n, entries):
        # A chunk of padding behind the stream sees what a fork would: its own rows are cut off.
        shared = keys.shape[1] - entries - n - c["m"]
        last = [part.unflatten(0, (rows, -1))[:, -1] for part in (keys, values, column)]
        kept.append((last[0][:, :shared].clone(), last[1][:, :shared].clone(),
                     last[2][..., :shared].clone()))
        return plain(q, keys, values, column, n, entries)

    ids = F.pad(torch.from_numpy(tokens.astype("int64")).to(evaluator.device), (0, c["n"]))
    chunks, recall, slots = ids.shape[1] // c["n"], None, None
    if recalled is not None:
        recall = {(row, chunks - 1): segments for row, segments in enumerate(recalled)}
        slots = c["ring"] + max(map(len, recalled))
    _, tables = evaluator.tables(rows, chunks, c["ring"], slots, recall=recall)
    model_file.attention_function = capture
    try:
        evaluator.silt.forward(ids, torch.zeros_like(ids, dtype=torch.bool), tables, ratio)
    finally:
        model_file.attention_function = plain
    return View(kept, tokens.shape[1])


@torch.no_grad()
def read_full(base, tokens):
    """tokens [B, N] -> the View of the base model with all of them in context."""
    ids = torch.from_numpy(tokens.astype("int64")).to(base.embd.device)
    heads, kv_heads, dim = base.heads, base.kv_heads, base.head_dim
    table = base.rope_table(torch.arange(ids.shape[1]), base.embd.device)
    x, kept = F.embedding(ids, base.embd), []
    for attn_norm, qkv_weight, o_weight, ffn_norm, gate_up, down in base.blocks:
        h = model_file.rms_norm(x, attn_norm, base.eps)
        parts = (h @ qkv_weight.t()).split([heads * dim, kv_heads * dim, kv_heads * dim], -1)
        q, k, v = (part.unflatten(-1, (-1, dim)) for part in parts)
        q, k = model_file.rotate(q, table), model_file.rotate(k, table)
        out = model_file.causal_attention(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2))
        x = model_file.mlp(x + out.transpose(1, 2).flatten(2) @ o_weight.t(), ffn_norm, gate_up,
                           down, base.eps)
        kept.append((k, v, None))
    return View(kept, ids.shape[1])


class Fork:
    """Rows behind a View.  `own` holds what was fed; a copy of a Fork goes its own way."""

    def __init__(self, base, view):
        self.base, self.view = base, view
        self.own = [None] * base.layers
        self.count = 0

    def copy(self):
        other = Fork(self.base, self.view)
        other.own, other.count = list(self.own), self.count
        return other

    @torch.no_grad()
    def feed(self, ids, places, see):
        """ids, places [B, S]: tokens and their distance behind the stream's end; see [B, S,
        fed so far + S]: which rows of the fork each may see.  -> hidden [B, S, d]."""
        base = self.base
        heads, kv_heads, dim = base.heads, base.kv_heads, base.head_dim
        group = heads // kv_heads
        x = F.embedding(ids, base.embd)
        table = base.rope_table(self.view.position + places, x.device)
        wall = torch.where(see, 0.0, -math.inf)[:, None, None]
        for layer, block in enumerate(base.blocks):
            attn_norm, qkv_weight, o_weight, ffn_norm, gate_up, down = block
            h = model_file.rms_norm(x, attn_norm, base.eps)
            parts = (h @ qkv_weight.t()).split([heads * dim, kv_heads * dim, kv_heads * dim], -1)
            q, k, v = (part.unflatten(-1, (-1, dim)) for part in parts)
            q, k = model_file.rotate(q, table), model_file.rotate(k, table)
            if self.own[layer] is not None:
                k, v = (torch.cat(pair, 1) for pair in zip(self.own[layer], (k, v)))
            self.own[layer] = (k, v)
            far_k, far_v, column = self.view.layers[layer]
            q = q.unflatten(2, (kv_heads, group)).permute(0, 2, 3, 1, 4)    # [B, kv, g, S, dim]
            far = q.flatten(2, 3) @ far_k.permute(0, 2, 3, 1)
            if column is not None:
                far = far + column[:, :, None] * math.sqrt(dim)
            near = q.flatten(2, 3) @ k.permute(0, 2, 3, 1)
            near = near.unflatten(2, (group, -1)) / math.sqrt(dim) + wall
            far = far.unflatten(2, (group, -1)) / math.sqrt(dim)
            weight = torch.cat([far, near], -1).float().softmax(-1).to(v.dtype).flatten(2, 3)
            count = far.shape[-1]
            out = weight[..., :count] @ far_v.transpose(1, 2) \
                + weight[..., count:] @ v.transpose(1, 2)
            out = out.unflatten(2, (group, -1)).permute(0, 3, 1, 2, 4).flatten(2)
            x = model_file.mlp(x + out @ o_weight.t(), ffn_norm, gate_up, down, base.eps)
        self.count += ids.shape[1]
        return model_file.rms_norm(x, base.norm, base.eps)


def padded(lists, device, left=False):
    """Lists of ids -> ids [B, S] and which are real [B, S]; padding in front if left."""
    size = max(map(len, lists))
    ids = torch.zeros(len(lists), size, dtype=torch.long)
    real = torch.zeros(len(lists), size, dtype=torch.bool)
    for row, values in enumerate(lists):
        part = slice(size - len(values), size) if left else slice(0, len(values))
        ids[row, part] = torch.tensor(values, dtype=torch.long)
        real[row, part] = True
    return ids.to(device), real.to(device)


def causal(real, before=None):
    """see for a feed of rows with padding; before [B, P]: which earlier rows are real."""
    size = real.shape[1]
    order = torch.arange(size, device=real.device)
    see = (order[None, :] <= order[:, None])[None] & real[:, None, :]
    see = see | (order[None, :] == order[:, None])[None]        # padding sees itself: no NaN
    if before is not None:
        see = torch.cat([before[:, None].expand(-1, size, -1), see], -1)
    return see
