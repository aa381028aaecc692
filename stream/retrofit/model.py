"""The base model with DMC and CCM, all chunks of a row in one parallel forward.

A row is T chunks of n tokens; each chunk carries its m COMP rows behind it, so hidden states are
[B*T, n+m, d].  There is no loop over time: within a layer the segments of all chunks exist at once,
and a chunk attends to the segments, previous entries, own entries and own raw rows that it may see.
reference.py is the same thing one token at a time; check.py holds the two together.
"""
import math
from typing import NamedTuple, Optional

import numpy as np
import torch
import torch.nn.functional as F
from torch.utils.checkpoint import checkpoint

import gguf

BLOCK = 32              # tokens that the engine computes at a time; merging lags by one such block
IMPORTANCE_FLOOR = 2.0 ** -7
TEMPERATURE = 0.1       # of the Gumbel-sigmoid: noise of width one, nearly hard decisions
FAR_LOG = -30.0         # stands for log 0 where infinities would make NaN in products
HIDDEN = -1e9


class BaseModel:
    """Frozen weights: per layer a tuple of tensors, so that one compiled layer serves all."""

    def __init__(self, path, device="cpu", dtype=torch.float32):
        reader = gguf.Reader(path)
        meta = reader.meta
        if meta.get("general.architecture") != "llama":
            raise gguf.GGUFError("%s: only the llama architecture is supported" % path)
        self.path = path
        self.layers = meta["llama.block_count"]
        self.width = meta["llama.embedding_length"]
        self.heads = meta["llama.attention.head_count"]
        self.kv_heads = meta.get("llama.attention.head_count_kv", self.heads)
        self.head_dim = meta.get("llama.attention.key_length", self.width // self.heads)
        self.eps = meta.get("llama.attention.layer_norm_rms_epsilon", 1e-5)
        turned = meta.get("llama.rope.dimension_count", self.head_dim)
        if turned != self.head_dim:
            raise gguf.GGUFError("%s: RoPE over %d of %d dimensions of a head is not supported"
                                 % (path, turned, self.head_dim))
        bias = next((name for name in reader.tensors if name.endswith(".bias")), None)
        if bias:
            raise gguf.GGUFError("%s: biases, as '%s', are not supported" % (path, bias))
        self.frequency = rope_frequency(reader, self.head_dim // 2)
        self.context = meta["llama.context_length"]
        self.ends = end_tokens(meta)

        def load(name):
            return torch.from_numpy(reader.tensor(name)).to(device=device, dtype=dtype)

        self.embd = load("token_embd.weight")
        tied = "output.weight" not in reader.tensors
        self.head = self.embd if tied else load("output.weight")
        self.norm = load("output_norm.weight")
        self.blocks = []
        for layer in range(self.layers):
            def part(name):
                return load("blk.%d.%s.weight" % (layer, name))
            self.blocks.append((
                part("attn_norm"), torch.cat([part("attn_q"), part("attn_k"), part("attn_v")]),
                part("attn_output"), part("ffn_norm"),
                torch.cat([part("ffn_gate"), part("ffn_up")]), part("ffn_down")))

    def rope_table(self, positions, device):
        """cos and sin for integer positions; the angle in double, as the engine does it."""
        places = torch.as_tensor(positions).to(device).double()
        angle = places[..., None] * self.frequency.to(device)
        return angle.cos().float(), angle.sin().float()


def end_tokens(meta):
    """What ends an answer, as stream/vocab.c has it."""
    names = dict(map(reversed, enumerate(meta.get("tokenizer.ggml.tokens", ()))))
    ends = [meta.get("tokenizer.ggml.%s_token_id" % key) for key in ("eos", "eot", "eom")] \
        + [names.get(name) for name in ("<|im_end|>", "<|endoftext|>", "<|eot_id|>",
                                        "<|end_of_text|>", "<|eom_id|>", "</s>")]
    return sorted({token for token in ends if token is not None})


def rope_frequency(reader, half):
    """theta^(-i/half), divided by the file's own factors where it has them, as the engine does."""
    theta = reader.meta.get("llama.rope.freq_base", 10000.0)
    scaling, factor = reader.meta.get("llama.rope.scaling.type"), 1.0
    if scaling in (None, "linear"):
        given = [reader.meta[key] for key in ("llama.rope.scaling.factor", "llama.rope.scale_linear")
                 if key in reader.meta]
        if scaling and not given:
            raise gguf.GGUFError("RoPE scaling without its factor")
        factor = (given + [1.0])[0]
    elif scaling != "none":
        raise gguf.GGUFError("RoPE scaling '%s' is not supported, only linear" % scaling)
    frequency = theta ** (-torch.arange(half, dtype=torch.float64) / half) / factor
    if "rope_freqs.weight" in reader.tensors:
        frequency = frequency / torch.from_numpy(reader.tensor("rope_freqs.weight")).double()
    return frequency


def rms_norm(x, weight, eps):
    y = x.float()
    y = y * torch.rsqrt(y.pow(2).mean(-1, keepdim=True) + eps)
    return (y * weight.float()).to(x.dtype)


def rotate(x, table):
    """RoPE on pairs (2i, 2i+1).  x [..., heads, dim]; table cos, sin [..., dim/2]."""
    cos, sin = (part.unsqueeze(-2) for part in table)
    y = x.float().unflatten(-1, (-1, 2))
    even, odd = y[..., 0], y[..., 1]
    return torch.stack([even * cos - odd * sin, even * sin + odd * cos], -1).flatten(-2).to(x.dtype)


def mlp(x, norm, gate_up, down, eps):
    h = rms_norm(x, norm, eps)
    gate, up = (h @ gate_up.t()).chunk(2, -1)
    return x + (F.silu(gate) * up) @ down.t()


# Adapter parameters: stacked over layers, float32 masters.

class AdapterParameters(torch.nn.Module):
    """What is trained.  Names here are the checkpoint's; export.py turns them into FORMAT.md's."""

    def __init__(self, base, comp_tokens=16, comp_rank=32, dmc_rank=32, ratios=(2, 4, 8), seed=0):
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        layers, d, kv = base.layers, base.width, base.kv_heads * base.head_dim
        q = base.heads * base.head_dim
        self.ratios = tuple(ratios)

        def normal(*shape):
            return torch.randn(*shape, generator=generator) / math.sqrt(shape[-1])

        # COMP embeddings start as means of spread vocabulary rows: in distribution, all different.
        rows = base.embd.float().cpu()
        self.comp_embd = torch.nn.Parameter(
            torch.stack([rows[s::comp_tokens].mean(0) for s in range(comp_tokens)])
            + 0.5 * rows.std() * torch.randn(comp_tokens, d, generator=generator))
        for kind, rank in (("comp", comp_rank), ("dmc", dmc_rank)):
            setattr(self, kind + "_qkv_a", torch.nn.Parameter(normal(layers, 3 * rank, d)))
            for part, out in (("q", q), ("k", kv), ("v", kv)):
                setattr(self, "%s_%s_b" % (kind, part),
                        torch.nn.Parameter(torch.zeros(layers, out, rank)))
            setattr(self, kind + "_o_a", torch.nn.Parameter(normal(layers, rank, q)))
            setattr(self, kind + "_o_b", torch.nn.Parameter(torch.zeros(layers, d, rank)))
        self.decide = torch.nn.Parameter(0.1 * normal(layers, 2 * base.kv_heads, d))
        bias = torch.zeros(layers, 2 * base.kv_heads)
        bias[:, base.kv_heads:] = 2.0            # importance starts nearly equal for all tokens
        self.decide_bias = torch.nn.Parameter(bias)
        # Logits start well under zero: nothing merges until the hinge asks for it.
        self.ratio_bias = torch.nn.Parameter(torch.full((len(ratios), layers, base.kv_heads), -3.0))
        # The summary's map begins as none: the mean is seen as it is.
        self.summary = torch.nn.Parameter(torch.zeros(layers, 2 * kv, base.head_dim))
        self.summary_bias = torch.nn.Parameter(torch.zeros(layers, 2 * kv))

    def layer_weights(self, dtype):
        """Per layer: (comp a, comp b, comp oa, comp ob), the same for dmc, decide, its bias, and
        (summary, its bias)."""
        out = []
        cast = {name: p if name.startswith("decide") or name == "ratio_bias" else p.to(dtype)
                for name, p in self.named_parameters()}
        parts = {name: p.unbind(0) for name, p in cast.items()
                 if name not in ("comp_embd", "ratio_bias")}
        for layer in range(self.decide.shape[0]):
            row = []
            for kind in ("comp", "dmc"):
                row.append((parts[kind + "_qkv_a"][layer],
                            tuple(parts["%s_%s_b" % (kind, p)][layer] for p in "qkv"),
                            parts[kind + "_o_a"][layer], parts[kind + "_o_b"][layer]))
            out.append((row[0], row[1], parts["decide"][layer], parts["decide_bias"][layer],
                        (parts["summary"][layer], parts["summary_bias"][layer])))
        return out


def widened(base, parameters, comp_rank):
    """The same adapter with a wider COMP LoRA, if that is wider: its further directions have a
    random A and a B of nothing, so that it computes what it did."""
    layers, rank = parameters.comp_o_a.shape[:2]
    if comp_rank <= rank:
        return parameters
    wide = AdapterParameters(base, parameters.comp_embd.shape[0], comp_rank,
                             parameters.dmc_o_a.shape[1], parameters.ratios)
    with torch.no_grad():
        for name, p in wide.named_parameters():
            old = getattr(parameters, name)
            if name == "comp_qkv_a":
                p.view(layers, 3, comp_rank, -1)[:, :, :rank] = old.view(layers, 3, rank, -1)
            elif p.shape == old.shape:
                p.copy_(old)
            else:       # rank is the second axis of an A, the last of a B
                p[tuple(slice(size) for size in old.shape)] = old
    return wide


def qkv_delta(low, b):
    """low [..., 3r] -> [..., q+k+v]: each of q, k, v has its own third."""
    thirds = low.chunk(3, -1)
    return torch.cat([part @ weight.t() for part, weight in zip(thirds, b)], -1)


class Tables(NamedTuple):
    """A MemoryPlan and the fixed rotation tables as tensors; a tuple, for torch.compile's sake."""
    rows: int
    chunks: int
    n: int
    m: int
    sinks: int
    own: tuple              # cos, sin [T, n+m, half]
    far: tuple              # [B, T, far, half]
    sink: tuple             # [B, T, sinks, half]
    hidden: torch.Tensor    # [B, T, sinks+far]
    select: torch.Tensor    # [B, T*(1+S), T]
    row_of: Optional[torch.Tensor] = None   # for the swapped control: whose segments a row sees
    summary_of: Optional[torch.Tensor] = None       # likewise, whose summary before its own ring


def make_tables(base, plan, n, m, device, dtype, row_of=None, summary_of=None):
    rows, chunks = plan.hidden.shape[:2]
    starts = np.arange(chunks)[:, None] * n
    places = np.concatenate([starts + np.arange(n), starts + (np.arange(m) + 1) * n // m - 1], 1)
    return Tables(rows, chunks, n, m, plan.sinks.shape[2], base.rope_table(places, device),
                  base.rope_table(plan.places, device), base.rope_table(plan.sinks, device),
                  torch.from_numpy(plan.hidden).to(device),
                  torch.from_numpy(plan.select).to(device=device, dtype=dtype), row_of,
                  summary_of)


def running_sum(x):
    """cumsum over dim 1 as a product with a triangle: inductor (torch 2.11) cannot fuse the scan."""
    n = x.shape[1]
    return torch.ones(n, n, device=x.device).tril() @ x


def decide(h, weights, bias, ratio_bias, noise, width, raw, quota, kv_heads):
    """h [C, n, d] -> log a, log(1-a), straight-through a, hard merges, omega; all [C, n, kv].
    noise is logistic, of the given width; None decides as the engine does."""
    # fp32 from the same rounding as the engine: near ties must not depend on matrix hardware.
    flat = h.float() @ weights.float().t() + bias.float()
    logit = flat[..., :kv_heads] + ratio_bias
    omega = torch.sigmoid(flat[..., kv_heads:]) + IMPORTANCE_FLOOR
    noisy = logit if noise is None else logit + width * noise
    appends = torch.zeros_like(noisy, dtype=torch.bool)
    appends[:, 0] = True
    appends = appends | raw[..., None]
    hard = (noisy > 0) & ~appends
    fresh = (~hard).float()
    forced = ((running_sum(fresh) - fresh) >= quota) & ~appends
    hard = hard | forced
    if noise is None:
        log_a = torch.where(hard, 0.0, FAR_LOG)
        log_keep = torch.where(hard, HIDDEN, 0.0)
        return log_a, log_keep, hard.float(), hard, omega, logit
    z = noisy / TEMPERATURE
    log_a = F.logsigmoid(z).clamp(min=FAR_LOG)
    log_a = torch.where(appends, torch.full_like(z, FAR_LOG), log_a)
    log_a = torch.where(forced, torch.zeros_like(z), log_a)
    log_keep = F.logsigmoid(-z)
    log_keep = torch.where(appends, torch.zeros_like(z), log_keep)
    log_keep = torch.where(forced, torch.full_like(z, -1e4), log_keep)
    # Forward the hard mean, backward its expectation: under logistic noise P(merge) is this
    # sigmoid, while the one at the low temperature is flat almost everywhere.
    rate = torch.where(appends | forced, hard.float(), torch.sigmoid(logit / width))
    return log_a, log_keep, hard.float() + rate - rate.detach(), hard, omega, logit


def pool(k, v, log_a, omega):
    """Every token's running merge in parallel: [C, n, kv, dim] twice, log a and omega [C, n, kv]."""
    total = running_sum(log_a).transpose(1, 2)                           # [C, kv, n]
    n = total.shape[-1]
    order = torch.arange(n, device=k.device)
    earlier = order[:, None] >= order[None, :]
    distance = (total[..., :, None] - total[..., None, :]).masked_fill(~earlier, -math.inf)
    weight = distance.exp() * omega.transpose(1, 2)[..., None, :]
    weight = (weight / weight.sum(-1, keepdim=True)).to(k.dtype)
    both = torch.cat([k, v], -1).transpose(1, 2)                         # [C, kv, n, 2*dim]
    return (weight @ both).transpose(1, 2).chunk(2, -1)


def last_merged(rows, n, device):
    """Row i of [tokens n | COMP rows] sees its chunk's entries up to this token, and raw rows after
    it: the queries of block b see what was merged by the end of block b-2 (cf. the delayed eviction
    of DMS, arXiv 2506.05345)."""
    row = torch.arange(rows, device=device).clamp(max=n)
    return (row // BLOCK) * BLOCK - BLOCK - 1


def attend(q, keys, values, column, n, entries):
    """q [C, S, heads, dim]; keys, values [C, K, kv, dim]; column [C, kv, K] added per key.  The last
    S keys are the chunk's own raw rows, n tokens and then COMP rows.  Before them lie `entries` own
    entries, as they stood after each of the first tokens: the entry of the token that is
    last_merged() is seen as it is, without its column, the earlier ones with it.  Without entries
    all raw rows are seen."""
    chunks, rows, heads, dim = q.shape
    kv_heads, count = keys.shape[2], keys.shape[1]
    group = heads // kv_heads
    q = q.unflatten(2, (kv_heads, group)).permute(0, 2, 3, 1, 4).flatten(2, 3)
    score = (q @ keys.permute(0, 2, 3, 1)).unflatten(2, (group, rows)).float() / math.sqrt(dim)
    row = torch.arange(rows, device=q.device)[:, None]
    own = torch.arange(count, device=q.device)[None, :] - (count - rows)
    column = column[:, :, None, None, :]
    hidden = own > row
    if entries:
        merged = last_merged(rows, n, q.device)[:, None]
        entry = own + entries
        is_entry = (entry >= 0) & (own < 0)
        hidden = hidden | ((own >= 0) & (own <= merged)) | (is_entry & (entry > merged))
        column = torch.where(is_entry & (entry == merged), 0.0, column)
    weight = (score + column).masked_fill(hidden, -math.inf).softmax(-1)
    out = weight.to(values.dtype).flatten(2, 3) @ values.transpose(1, 2)
    return out.unflatten(2, (group, rows)).permute(0, 3, 1, 2, 4).flatten(2)


attention_function = attend     # or attention.attend, where that has been found to agree


def map_summary(mean, summary):
    """What is seen of summaries (FORMAT.md): mean [B, T, m, kv, 2*dim], K beside V -> the same."""
    weight, bias = summary
    kv_heads, dim = mean.shape[-2], weight.shape[-1]
    both = torch.stack(mean.chunk(2, -1))
    both = both + torch.einsum("pbtmhd,phed->pbtmhe", both, weight.view(2, kv_heads, dim, dim)) \
        + bias.view(2, 1, 1, 1, kv_heads, dim)
    return torch.cat(both.unbind(0), -1)


def core(q, k, v, log_a, log_keep, omega, tables, summary):
    """Pooling, gathering of far rows, attention: q, k, v un-rotated -> [C, n+m, heads*dim]."""
    rows, chunks, n, m = tables.rows, tables.chunks, tables.n, tables.m
    kv_heads, dim = k.shape[2], k.shape[3]
    fold = (rows, chunks)
    own_k = rotate(k.unflatten(0, fold), tables.own)
    own_v = v.unflatten(0, fold)
    q = rotate(q.unflatten(0, fold), tables.own).flatten(0, 1)
    closed_k, closed_v, entries = own_k[:, :, :n], own_v[:, :, :n], 0
    if log_a is not None:
        closed_k, closed_v = pool(k[:, :n], v[:, :n], log_a, omega)
        closed_k = rotate(closed_k.unflatten(0, fold), tuple(part[:, :n] for part in tables.own))
        closed_v = closed_v.unflatten(0, fold)
        # An entry stays visible only if the next token appended.
        visible = F.pad(log_keep[:, 1:], (0, 0, 0, 1)).transpose(1, 2)   # [C, kv, n]
        entries = max(0, n - BLOCK)
    else:
        visible = torch.zeros(rows * chunks, kv_heads, n, device=q.device)
    shift = (0, 0, 0, 0, 0, 0, 1, 0)
    previous_k = F.pad(closed_k[:, :-1], shift)
    previous_v = F.pad(closed_v[:, :-1], shift)
    segments = torch.cat([k[:, n:], v[:, n:]], -1).unflatten(0, fold).flatten(2)
    if tables.row_of is not None:
        segments = segments[tables.row_of]
    far = (tables.select @ segments).view(rows, chunks, -1, kv_heads, 2 * dim)
    mean = far[:, :, :m] if tables.summary_of is None else far[tables.summary_of, :, :m]
    far = torch.cat([map_summary(mean, summary), far[:, :, m:]], 2)
    far_k, far_v = far.chunk(2, -1)
    far_k = rotate(far_k, tables.far)
    sink_shape = (rows, chunks, tables.sinks, kv_heads, dim)
    sink_k = k.unflatten(0, fold)[:, :1, :tables.sinks].expand(sink_shape)
    sink_v = v.unflatten(0, fold)[:, :1, :tables.sinks].expand(sink_shape)
    keys = torch.cat([rotate(sink_k, tables.sink), far_k, previous_k, closed_k[:, :, :entries],
                      own_k], 2).flatten(0, 1)
    values = torch.cat([sink_v, far_v, previous_v, closed_v[:, :, :entries], own_v],
                       2).flatten(0, 1)
    before = F.pad(visible.unflatten(0, fold)[:, :-1], (0, 0, 0, 0, 1, 0))
    first = (torch.arange(chunks, device=q.device) == 0)[None, :, None, None]
    before = before.masked_fill(first, HIDDEN).flatten(0, 1)
    hidden = tables.hidden.flatten(0, 1)[:, None].expand(-1, kv_heads, -1)
    column = torch.cat([hidden, before, F.pad(visible[..., :entries], (0, n + m))], -1)
    return attention_function(q, keys, values, column, n, entries)


def stream_layer(x, block, weights, ratio_bias, noise, width, quota, raw, tables, base_shape,
                 recompute):
    """One layer over all chunks.  ratio_bias None means ratio 1: base weights on stream rows."""
    heads, kv_heads, dim, eps = base_shape
    attn_norm, qkv_weight, o_weight, ffn_norm, gate_up, down = block
    comp, dmc, decide_weight, decide_bias, summary = weights
    n = tables.n
    h = rms_norm(x, attn_norm, eps)
    qkv = h @ qkv_weight.t()
    live = None
    if ratio_bias is not None:
        live = F.pad(~raw, (0, tables.m), value=True)[..., None].to(x.dtype)
        qkv = qkv + qkv_delta((h @ dmc[0].t()) * live, dmc[1])
    qkv = qkv + F.pad(qkv_delta(h[:, n:] @ comp[0].t(), comp[1]), (0, 0, n, 0))
    q, k, v = qkv.split([heads * dim, kv_heads * dim, kv_heads * dim], -1)
    q, k, v = (part.unflatten(-1, (-1, dim)) for part in (q, k, v))
    log_a = log_keep = rate = hard = omega = logit = None
    if ratio_bias is not None:
        log_a, log_keep, rate, hard, omega, logit = decide(
            h[:, :n], decide_weight, decide_bias, ratio_bias, noise, width, raw, quota,
            kv_heads)
    if recompute:
        out = checkpoint(core, q, k, v, log_a, log_keep, omega, tables, summary,
                         use_reentrant=False)
    else:
        out = core(q, k, v, log_a, log_keep, omega, tables, summary)
    y = out @ o_weight.t() + F.pad((out[:, n:] @ comp[2].t()) @ comp[3].t(), (0, 0, n, 0))
    if ratio_bias is not None:
        y = y + ((out @ dmc[2].t()) * live) @ dmc[3].t()
    x = mlp(x + y, ffn_norm, gate_up, down, eps)
    return x, rate, hard, logit, (k[:, n:], v[:, n:])


class SiltModel:
    """The base with an AdapterParameters on it.  `compile_layer` wraps the layer function once."""

    def __init__(self, base, parameters, quotas, compiled=False, recompute=False):
        self.base, self.parameters = base, parameters
        self.quotas = quotas                    # tensor [ratios, layers, kv_heads]
        self.recompute = recompute
        self.layer = torch.compile(stream_layer, dynamic=False) if compiled else stream_layer

    def forward(self, tokens, raw, tables, ratio, noise_width=None, keep=False):
        """tokens, raw [B, T*n] -> hidden [B, T*n, d] after the last norm, and a dict of what
        happened: `rate` [B] (mean a, with gradient), and when asked every layer's decisions."""
        base = self.base
        n, m, rows, chunks = tables.n, tables.m, tables.rows, tables.chunks
        dtype = base.embd.dtype
        x = F.embedding(tokens, base.embd).view(rows * chunks, n, -1)
        comp = self.parameters.comp_embd.to(dtype).expand(rows * chunks, m, -1)
        x = torch.cat([x, comp], 1)
        raw = raw.view(rows * chunks, n)
        index = None if ratio == 1 else self.parameters.ratios.index(ratio)
        weights = self.parameters.layer_weights(dtype)
        shape = (base.heads, base.kv_heads, base.head_dim, base.eps)
        seen = {"rate": 0.0, "hard": [], "logit": [], "segments": []}
        if index is not None:
            bias = self.parameters.ratio_bias[index].unbind(0)
            noisy = noise_width is not None
            if noisy:
                noise = torch.rand(base.layers, rows * chunks, n, base.kv_heads, device=x.device)
                noise = torch.logit(noise, eps=1e-6)
        for layer in range(base.layers):
            dmc = index is not None
            x, rate, hard, logit, segment = self.layer(
                x, base.blocks[layer], weights[layer], bias[layer] if dmc else None,
                noise[layer] if dmc and noisy else None, noise_width,
                self.quotas[index, layer] if dmc else None, raw, tables, shape, self.recompute)
            if dmc:
                seen["rate"] = seen["rate"] + rate.view(rows, -1).mean(1) / base.layers
            if keep:
                seen["hard"].append(hard)
                seen["logit"].append(logit)
                # A copy: a slice would keep the layer's whole q, k and v.
                seen["segments"].append(tuple(part.contiguous() for part in segment))
        x = rms_norm(x[:, :n], base.norm, base.eps)
        return x.reshape(rows, chunks * n, -1), seen


# The plain model: teacher and baselines.

def plain_layer(x, block, table, base_shape):
    heads, kv_heads, dim, eps = base_shape
    attn_norm, qkv_weight, o_weight, ffn_norm, gate_up, down = block
    h = rms_norm(x, attn_norm, eps)
    q, k, v = (h @ qkv_weight.t()).split([heads * dim, kv_heads * dim, kv_heads * dim], -1)
    q, k, v = (part.unflatten(-1, (-1, dim)) for part in (q, k, v))
    q, k = rotate(q, table), rotate(k, table)
    out = causal_attention(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2))
    x = x + out.transpose(1, 2).flatten(2) @ o_weight.t()
    return mlp(x, ffn_norm, gate_up, down, eps)


def causal_attention(q, k, v):
    group = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(group, 1), v.repeat_interleave(group, 1)
    if hasattr(F, "scaled_dot_product_attention"):
        return F.scaled_dot_product_attention(q, k, v, is_causal=True)
    score = q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])
    mask = torch.ones(score.shape[-2:], dtype=torch.bool, device=q.device).tril()
    return score.masked_fill(~mask, -math.inf).softmax(-1) @ v


class PlainModel:
    """The base model with its whole row in context: the teacher."""

    def __init__(self, base, compiled=False):
        self.base = base
        self.layer = torch.compile(plain_layer, dynamic=False) if compiled else plain_layer

    @torch.no_grad()
    def forward(self, tokens):
        base = self.base
        x = F.embedding(tokens, base.embd)
        table = base.rope_table(np.arange(tokens.shape[1]), x.device)
        shape = (base.heads, base.kv_heads, base.head_dim, base.eps)
        for block in base.blocks:
            x = self.layer(x, block, table, shape)
        return rms_norm(x, base.norm, base.eps)
