"""The mechanism, one token at a time, in numpy: slow, and written to be read beside DESIGN.md.

This is the recurrent form that the C engine implements.  The parallel form that trains (model.py)
is checked against it, and the golden vectors of the tiny model come from it.  All in float32.
"""
import numpy as np

import gguf

IMPORTANCE_FLOOR = 2.0 ** -7
BLOCK = 32      # tokens, aligned in the chunk: merges come into view a block late


class Base:
    """The base model's weights, dequantised."""

    def __init__(self, path):
        reader = gguf.Reader(path)
        meta = reader.meta
        self.fingerprint = gguf.fingerprint(path)
        self.layers = meta["llama.block_count"]
        self.width = meta["llama.embedding_length"]
        self.heads = meta["llama.attention.head_count"]
        self.kv_heads = meta["llama.attention.head_count_kv"]
        self.head_dim = self.width // self.heads
        self.eps = meta["llama.attention.layer_norm_rms_epsilon"]
        self.theta = meta["llama.rope.freq_base"]
        self.embd = reader.tensor("token_embd.weight")
        tied = "output.weight" not in reader.tensors
        self.head = self.embd if tied else reader.tensor("output.weight")
        self.norm = reader.tensor("output_norm.weight")
        names = ("attn_norm", "attn_q", "attn_k", "attn_v", "attn_output", "ffn_norm", "ffn_gate",
                 "ffn_up", "ffn_down")
        self.blocks = [{name: reader.tensor("blk.%d.%s.weight" % (layer, name)) for name in names}
                       for layer in range(self.layers)]


def rotate(x, positions, theta):
    """RoPE on pairs (2i, 2i+1).  x: [..., head_dim], positions broadcastable to [...]."""
    half = x.shape[-1] // 2
    frequency = theta ** (-np.arange(half, dtype=np.float64) / half)
    angle = np.asarray(positions, np.float64)[..., None] * frequency
    cos, sin = np.cos(angle).astype(np.float32), np.sin(angle).astype(np.float32)
    even, odd = x[..., 0::2], x[..., 1::2]
    out = np.empty_like(x)
    out[..., 0::2] = even * cos - odd * sin
    out[..., 1::2] = even * sin + odd * cos
    return out


def rms_norm(x, weight, eps):
    return x / np.sqrt(np.mean(x * x, -1, keepdims=True) + np.float32(eps)) * weight


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


class _Head:
    """One KV head's part of a chunk: its entries, the sums of the last one while it is open, and
    what a query sees of them.

    Merging is seen a block late (delayed eviction, arXiv 2506.05345): the queries of block b see
    the entries as they stood when block b-2 ended, then the rows of blocks b-1 and b un-merged.
    """

    def __init__(self):
        self.keys, self.values = [], []
        self.z, self.sum_key, self.sum_value = 0.0, None, None
        self.in_view = ([], [])         # entries (keys, values) when the last but one block ended
        self.waiting = ([], [])         # when the last block ended
        self.rows_before = ([], [])     # the rows of the last block
        self.rows = ([], [])            # of the block being read

    def end_block(self):
        self.in_view, self.waiting = self.waiting, (list(self.keys), list(self.values))
        self.rows_before, self.rows = self.rows, ([], [])

    def visible(self):
        parts = (self.in_view, self.rows_before, self.rows)
        return sum((part[0] for part in parts), []), sum((part[1] for part in parts), [])


class Stream:
    """One stream at one ratio and ring length; `feed` takes its next token, `ask` forks."""

    def __init__(self, base, adapter, ratio=1, ring=None, round_f16=True):
        self.base, self.adapter, self.ratio = base, adapter, ratio
        self.n, self.m = adapter.chunk_tokens, adapter.comp_tokens
        self.sinks_count = adapter.sink_tokens
        self.ring_length = adapter.ring_segments if ring is None else ring
        self.round = (lambda x: x.astype(np.float16).astype(np.float32)) if round_f16 else \
            (lambda x: x)
        self.position = 0
        self.ring = []                      # (chunk number, keys, values), each [layer][kv][m][dim]
        self.summary, self.summary_count = None, 0
        self.sink_keys, self.sink_values = [], []
        self.previous = None
        self.open = self._fresh()
        self.tail = None                    # a fork's rows while it runs, [layer]: (keys, values)
        self.segments = []                  # of every chunk, for golden vectors
        self.decisions, self.decision_logits = [], []
        self._refresh()

    def _fresh(self):
        return [[_Head() for _ in range(self.base.kv_heads)] for _ in range(self.base.layers)]

    def feed(self, token):
        """Runs one token; returns its logits.  Closes the chunk when the token fills it."""
        self.decisions.append([])
        self.decision_logits.append([])
        x = self._layers(self.base.embd[token], None)
        self.position += 1
        if self.position % BLOCK == 0:
            for row in self.open:
                for state in row:
                    state.end_block()
        if self.position % self.n == 0:
            self._close_chunk()
        return self._logits(x)

    def ask(self, tokens):
        """Logits after a question in a fork: raw rows behind the stream's, base weights alone."""
        self.tail = [([], []) for _ in range(self.base.layers)]
        for token in tokens:
            x = self._layers(self.base.embd[token], None)
        self.tail = None
        return self._logits(x)

    def _logits(self, x):
        return self.base.head @ rms_norm(x, self.base.norm, self.base.eps)

    # One row through all layers: a token of the stream or of a fork (slot None) or COMP number
    # `slot`.

    def _layers(self, x, slot):
        base = self.base
        in_chunk = self.position % self.n
        position = self.position
        if self.tail is not None:
            position += len(self.tail[0][0])
        elif slot is not None:
            # The chunk is full: `position` is already the next chunk's start.
            position = self.position - self.n + (slot + 1) * self.n // self.m - 1
        for layer in range(base.layers):
            block = base.blocks[layer]
            h = rms_norm(x, block["attn_norm"], base.eps)
            q = self._linear(layer, "q", "attn_q", h, slot).reshape(base.heads, base.head_dim)
            k = self._linear(layer, "k", "attn_k", h, slot).reshape(base.kv_heads, base.head_dim)
            v = self._linear(layer, "v", "attn_v", h, slot).reshape(base.kv_heads, base.head_dim)
            q = rotate(q, position, base.theta)
            if self.tail is not None:
                self.tail[layer][0].append(self.round(rotate(k, position, base.theta)))
                self.tail[layer][1].append(self.round(v))
            elif slot is None:
                self._enter(layer, h, k, v, position, in_chunk)
            else:
                self.comp_raw[layer].append((self.round(k), self.round(v)))
            out = np.empty_like(q)
            group = base.heads // base.kv_heads
            for head in range(base.kv_heads):
                keys, values = self._visible(layer, head, slot)
                score = q[head * group:(head + 1) * group] @ keys.T / np.sqrt(base.head_dim)
                weight = np.exp(score - score.max(1, keepdims=True))
                out[head * group:(head + 1) * group] = \
                    weight @ values / weight.sum(1, keepdims=True)
            x = x + self._linear(layer, "o", "attn_output", out.reshape(-1), slot)
            h = rms_norm(x, block["ffn_norm"], base.eps)
            gate = block["ffn_gate"] @ h
            x = x + block["ffn_down"] @ (gate * sigmoid(gate) * (block["ffn_up"] @ h))
        return x

    def _linear(self, layer, part, name, h, slot):
        """Base weight, DMC LoRA above ratio 1 but in a fork, conditional LoRA on COMP rows."""
        y = self.base.blocks[layer][name] @ h
        kinds = (["dmc"] if self.ratio > 1 and self.tail is None else []) \
            + (["comp"] if slot is not None else [])
        for kind in kinds:
            a = self.adapter.get("blk.%d.%s_%s.a" % (layer, kind, part))
            if a is not None:
                y = y + self.adapter["blk.%d.%s_%s.b" % (layer, kind, part)] @ (a @ h)
        return y

    def _enter(self, layer, h, k, v, position, in_chunk):
        """Appends or merges one token's k and v in every KV head of a layer."""
        base = self.base
        rotated = self.round(rotate(k, position, base.theta))
        for head in range(base.kv_heads):
            state = self.open[layer][head]
            state.rows[0].append(rotated[head])
            state.rows[1].append(self.round(v[head]))
        if position < self.sinks_count:
            if layer == 0:
                self.sink_keys.append([])
                self.sink_values.append([])
            self.sink_keys[position].append(self.round(k))
            self.sink_values[position].append(self.round(v))
        if self.ratio == 1:
            for head in range(base.kv_heads):
                state = self.open[layer][head]
                state.keys.append(state.rows[0][-1])
                state.values.append(state.rows[1][-1])
            return
        index = self.adapter.dmc_ratios.index(self.ratio)
        flat = self.adapter["blk.%d.dmc_decide" % layer] @ h \
            + self.adapter["blk.%d.dmc_decide.bias" % layer]
        for head in range(base.kv_heads):
            state = self.open[layer][head]
            column = layer * base.kv_heads + head
            logit = flat[head] + self.adapter["dmc.ratio_bias"][index][column]
            omega = sigmoid(flat[base.kv_heads + head]) + np.float32(IMPORTANCE_FLOOR)
            full = len(state.keys) >= int(self.adapter["dmc.quota"][index][column])
            merge = in_chunk > 0 and (full or logit > 0)
            self.decisions[-1].append(int(merge))
            self.decision_logits[-1].append(float(logit))
            if merge:
                state.z += omega
                state.sum_key = state.sum_key + omega * k[head]
                state.sum_value = state.sum_value + omega * v[head]
                state.keys.pop(), state.values.pop()
            else:
                state.z, state.sum_key, state.sum_value = omega, omega * k[head], omega * v[head]
            state.keys.append(self.round(rotate(state.sum_key / state.z, position, base.theta)))
            state.values.append(self.round(state.sum_value / state.z))

    def _visible(self, layer, head, slot):
        """sinks | summary | ring | previous chunk | open chunk | COMP or a fork's rows so far."""
        keys, values = [self.far_keys[layer, head]], [self.far_values[layer, head]]
        near = [self.open[layer][head].visible()]
        if self.previous is not None:
            near.insert(0, (self.previous[layer][head].keys, self.previous[layer][head].values))
        if self.tail is not None:
            near.append([[row[head] for row in part] for part in self.tail[layer]])
        for near_keys, near_values in near:
            if near_keys:
                keys.append(np.stack(near_keys))
                values.append(np.stack(near_values))
        if slot is not None:
            start = self.position - self.n
            own = np.stack([k[head] for k, _ in self.comp_raw[layer]])
            places = start + (np.arange(len(own)) + 1) * self.n // self.m - 1
            keys.append(rotate(own, places, self.base.theta))
            values.append(np.stack([v[head] for _, v in self.comp_raw[layer]]))
        return np.concatenate(keys), np.concatenate(values)

    def _close_chunk(self):
        base = self.base
        self.comp_raw = [[] for _ in range(base.layers)]
        for slot in range(self.m):
            self._layers(self.adapter["comp.embd"][slot], slot)
        keys = np.stack([np.stack([k for k, _ in row], 1) for row in self.comp_raw])
        values = np.stack([np.stack([v for _, v in row], 1) for row in self.comp_raw])
        chunk = self.position // self.n - 1
        self.segments.append((keys, values))
        # Slide: the segment joins the ring while its chunk's entries are still there.
        self.ring.append((chunk, keys, values))
        if len(self.ring) > self.ring_length:
            self._fold(self.ring.pop(0))
        self.previous, self.open = self.open, self._fresh()
        self._refresh()

    def _fold(self, segment):
        _, keys, values = segment
        self.summary_count += 1
        alpha = np.float32(max(1 / self.summary_count, self.adapter.summary_alpha_min))
        if self.summary is None:
            self.summary = (keys.copy(), values.copy())
        else:
            self.summary = tuple((1 - alpha) * old + alpha * new
                                 for old, new in zip(self.summary, (keys, values)))

    def _map_summary(self, part, mean):
        """What is seen of the summary's K (part 0) or V (1), [layer][kv][m][dim]: the mean as it is,
        or the adapter's map of it."""
        if self.adapter.get("blk.0.summary") is None:
            return mean
        seen = np.empty_like(mean)
        for layer in range(self.base.layers):
            weight = self.adapter["blk.%d.summary" % layer].reshape(
                2, self.base.kv_heads, self.base.head_dim, self.base.head_dim)[part]
            bias = self.adapter["blk.%d.summary.bias" % layer].reshape(
                2, self.base.kv_heads, self.base.head_dim)[part]
            seen[layer] = mean[layer] + mean[layer] @ weight.transpose(0, 2, 1) + bias[:, None]
        return seen

    def _refresh(self):
        """Rebuilds the rotated rows that stay the same for a whole chunk."""
        base, n, m = self.base, self.n, self.m
        shape = (base.layers, base.kv_heads, 0, base.head_dim)
        keys, values = [np.zeros(shape, np.float32)], [np.zeros(shape, np.float32)]
        start = self.ring[0][0] * n if self.ring else 0
        if self.position >= 2 * n:
            at = start - m - self.sinks_count if start > 0 else 0
            sink = np.array(self.sink_keys).transpose(1, 2, 0, 3)
            keys.append(rotate(sink, at + np.arange(self.sinks_count), base.theta))
            values.append(np.array(self.sink_values).transpose(1, 2, 0, 3))
        if self.summary is not None:
            seen = [self._map_summary(part, mean) for part, mean in enumerate(self.summary)]
            keys.append(rotate(seen[0], start - m + np.arange(m), base.theta))
            values.append(seen[1])
        for chunk, segment_keys, segment_values in self.ring:
            places = chunk * n + (np.arange(m) + 1) * n // m - 1
            keys.append(rotate(segment_keys, places, base.theta))
            values.append(segment_values)
        self.far_keys, self.far_values = np.concatenate(keys, 2), np.concatenate(values, 2)
