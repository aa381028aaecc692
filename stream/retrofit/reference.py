"""The mechanism, one token at a time, in numpy: slow, and written to be read beside DESIGN.md.

This is the recurrent form that the C engine implements.  The parallel form that trains (model.py)
is checked against it, and the golden vectors of the tiny model come from it.  All in float32.
"""
import numpy as np

import gguf

IMPORTANCE_FLOOR = 2.0 ** -7


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
    """One KV head's part of a chunk: its entries and, while the last one is open, its sums."""

    def __init__(self):
        self.keys, self.values = [], []
        self.z, self.sum_key, self.sum_value = 0.0, None, None


class Stream:
    """One stream at one ratio and ring length; `feed` takes its next token."""

    def __init__(self, base, adapter, ratio=1, ring=None, round_f16=True):
        self.base, self.adapter, self.ratio = base, adapter, ratio
        self.n, self.m = adapter.chunk_tokens, adapter.comp_tokens
        self.sinks_count = adapter.sink_tokens
        self.ring_length = adapter.ring_segments if ring is None else ring
        self.round = (lambda x: x.astype(np.float16).astype(np.float32)) if round_f16 else \
            (lambda x: x)
        self.position = 0
        self.ring = []                      # (chunk number, keys, values), each [layer][kv][m][dim]
        self.pending = None                 # the segment of the previous chunk
        self.summary, self.summary_count = None, 0
        self.sink_keys, self.sink_values = [], []
        self.previous = None
        self.open = self._fresh()
        self.segments = []                  # of every chunk, for golden vectors
        self.decisions, self.decision_logits = [], []
        self._refresh()

    def _fresh(self):
        return [[_Head() for _ in range(self.base.kv_heads)] for _ in range(self.base.layers)]

    def feed(self, token):
        """Runs one token; returns its logits.  Closes the chunk when the token fills it."""
        x = self._layers(self.base.embd[token], None)
        logits = self.base.head @ rms_norm(x, self.base.norm, self.base.eps)
        self.position += 1
        if self.position % self.n == 0:
            self._close_chunk()
        return logits

    # One row through all layers: a stream token (slot None) or COMP number `slot`.

    def _layers(self, x, slot):
        base = self.base
        in_chunk = self.position % self.n
        if slot is None:
            position = self.position
            self.decisions.append([])
            self.decision_logits.append([])
        else:
            # The chunk is full: `position` is already the next chunk's start.
            position = self.position - self.n + (slot + 1) * self.n // self.m - 1
        for layer in range(base.layers):
            block = base.blocks[layer]
            h = rms_norm(x, block["attn_norm"], base.eps)
            q = self._linear(layer, "q", "attn_q", h, slot).reshape(base.heads, base.head_dim)
            k = self._linear(layer, "k", "attn_k", h, slot).reshape(base.kv_heads, base.head_dim)
            v = self._linear(layer, "v", "attn_v", h, slot).reshape(base.kv_heads, base.head_dim)
            q = rotate(q, position, base.theta)
            if slot is None:
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
        """Base weight, DMC LoRA above ratio 1, conditional LoRA on COMP rows."""
        y = self.base.blocks[layer][name] @ h
        kinds = (["dmc"] if self.ratio > 1 else []) + (["comp"] if slot is not None else [])
        for kind in kinds:
            a = self.adapter.get("blk.%d.%s_%s.a" % (layer, kind, part))
            if a is not None:
                y = y + self.adapter["blk.%d.%s_%s.b" % (layer, kind, part)] @ (a @ h)
        return y

    def _enter(self, layer, h, k, v, position, in_chunk):
        """Appends or merges one token's k and v in every KV head of a layer."""
        base = self.base
        if position < self.sinks_count:
            if layer == 0:
                self.sink_keys.append([])
                self.sink_values.append([])
            self.sink_keys[position].append(self.round(k))
            self.sink_values[position].append(self.round(v))
        if self.ratio == 1:
            for head in range(base.kv_heads):
                state = self.open[layer][head]
                state.keys.append(self.round(rotate(k[head], position, base.theta)))
                state.values.append(self.round(v[head]))
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
                if state.keys:      # the entry before is closed now: every later use reads f16
                    state.keys[-1] = self.round(state.keys[-1])
                    state.values[-1] = self.round(state.values[-1])
                state.z, state.sum_key, state.sum_value = omega, omega * k[head], omega * v[head]
            state.keys.append(rotate(state.sum_key / state.z, position, base.theta))
            state.values.append(state.sum_value / state.z)

    def _visible(self, layer, head, slot):
        """sinks | summary | ring | previous chunk | open chunk | COMP rows up to this one."""
        keys, values = [self.far_keys[layer, head]], [self.far_values[layer, head]]
        for chunk in (self.previous, self.open):
            if chunk is not None and chunk[layer][head].keys:
                keys.append(np.stack(chunk[layer][head].keys))
                values.append(np.stack(chunk[layer][head].values))
        if slot is not None:
            start = self.position - self.n
            own = np.stack([k[head] for k, _ in self.comp_raw[layer]])
            places = start + (np.arange(len(own)) + 1) * self.n // self.m - 1
            keys.append(rotate(own, places, self.base.theta))
            values.append(np.stack([v[head] for _, v in self.comp_raw[layer]]))
        return np.concatenate(keys), np.concatenate(values)

    def _close_chunk(self):
        base = self.base
        for row in self.open:
            for state in row:
                state.keys[-1] = self.round(state.keys[-1])
                state.values[-1] = self.round(state.values[-1])
        self.comp_raw = [[] for _ in range(base.layers)]
        for slot in range(self.m):
            self._layers(self.adapter["comp.embd"][slot], slot)
        keys = np.stack([np.stack([k for k, _ in row], 1) for row in self.comp_raw])
        values = np.stack([np.stack([v for _, v in row], 1) for row in self.comp_raw])
        chunk = self.position // self.n - 1
        self.segments.append((keys, values))
        # Slide: the previous chunk's segment takes its entries' place; the new one is held back.
        if self.pending is not None:
            self.ring.append(self.pending)
        self.pending = (chunk, keys, values)
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
            keys.append(rotate(self.summary[0], start - m + np.arange(m), base.theta))
            values.append(self.summary[1])
        for chunk, segment_keys, segment_values in self.ring:
            places = chunk * n + (np.arange(m) + 1) * n // m - 1
            keys.append(rotate(segment_keys, places, base.theta))
            values.append(segment_values)
        self.far_keys, self.far_values = np.concatenate(keys, 2), np.concatenate(values, 2)
