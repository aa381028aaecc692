#!/usr/bin/env python3
"""A model of a given shape with random weights, and an adapter for it, to measure speed with.

    tests/bench/shape.py 8b build/models/random-8b.gguf [--base GGUF]

Writes the model and, beside it, NAME.adapter.gguf. The tokenizer is the base model's (so the
vocabulary is too, smaller than that of the models whose shapes these are); weights are blocks of
--type, of one pool of random bytes, so that 8 billion of them take half a minute. The adapter has
all parts but recall keys, its decisions merging about half of the tokens at 2x. Nothing here can
answer a question: only bytes and time are real.
"""

import argparse
import os
import random
import struct

SHAPES = {  # layers, dim, heads, KV heads, head dim, ff
    "tiny": (2, 64, 2, 1, 32, 128),
    "135m": (30, 576, 9, 3, 64, 1536),
    "1b": (16, 2048, 32, 8, 64, 8192),
    "8b": (32, 4096, 32, 8, 128, 14336),
}
F32, F16, Q4_0, Q4_1, Q8_0 = 0, 1, 2, 3, 8
TYPES = {"f16": F16, "q4_0": Q4_0, "q4_1": Q4_1, "q8_0": Q8_0}
ROW_BYTES = {F32: (4, 1), F16: (2, 1), Q4_0: (18, 32), Q4_1: (20, 32),
             Q8_0: (34, 32)}  # bytes of a block, its values
U32, FLOAT, STRING, ARRAY, U64 = 4, 6, 8, 9, 10
SCALAR = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
POOL = 1 << 20  # blocks
ALIGN = 32
CHUNK, COMP, RING, SINKS, RANK = 256, 16, 15, 8, 32
RATIOS = (2, 4, 8)


def string(text):
    data = text.encode() if isinstance(text, str) else text
    return struct.pack("<Q", len(data)) + data


def key(name, kind, value):
    packed = {U32: "<I", FLOAT: "<f", U64: "<Q"}
    body = string(value) if kind == STRING else struct.pack(packed[kind], value)
    return string(name) + struct.pack("<I", kind) + body


def value_end(data, at, kind):
    """Where a GGUF value ends."""
    if kind == STRING:
        return at + 8 + struct.unpack_from("<Q", data, at)[0]
    if kind != ARRAY:
        return at + SCALAR[kind]
    inner, count = struct.unpack_from("<IQ", data, at)
    at += 12
    if inner != STRING:
        return at + count * SCALAR[inner]
    for _ in range(count):
        at = value_end(data, at, STRING)
    return at


def tokenizer_keys(path):
    """The base's keys of its tokenizer, as they are, and how many tokens it has."""
    with open(path, "rb") as file:
        data = file.read(16 << 20)
    assert data[:4] == b"GGUF", f"{path} is no GGUF"
    count = struct.unpack_from("<Q", data, 16)[0]
    at, keys, vocab = 24, [], 0
    for _ in range(count):
        start, end = at, value_end(data, at, STRING)
        name = data[at + 8:end]
        kind = struct.unpack_from("<I", data, end)[0]
        at = value_end(data, end + 4, kind)
        if name == b"tokenizer.ggml.tokens":
            vocab = struct.unpack_from("<Q", data, end + 8)[0]
        if name.startswith(b"tokenizer."):
            keys.append(data[start:at])
    return keys, vocab


def tensor_bytes(kind, rows, cols):
    block, values = ROW_BYTES[kind]
    return rows * cols // values * block


class Filler:
    """Random blocks of one kind, a slice of the pool that begins elsewhere each time."""

    def __init__(self, seed):
        self.random = random.Random(seed)
        self.pools = {}

    def pool(self, kind, scale):
        if (kind, scale) not in self.pools:
            draw = self.random
            if kind in (Q4_0, Q4_1, Q8_0):  # codes around 0, times the scale
                head = struct.pack("<e", scale / (64 if kind == Q8_0 else 4))
                head += struct.pack("<e", -2 * scale) if kind == Q4_1 else b""
                blocks = (head + draw.randbytes(ROW_BYTES[kind][0] - len(head))
                          for _ in range(POOL))
            else:
                form = "<e" if kind == F16 else "<f"
                blocks = (struct.pack(form, draw.gauss(0, scale)) for _ in range(POOL))
            self.pools[kind, scale] = b"".join(blocks)
        return self.pools[kind, scale]

    def write(self, file, kind, rows, cols, scale):
        pool, left = self.pool(kind, scale), tensor_bytes(kind, rows, cols)
        block = ROW_BYTES[kind][0]
        while left:
            start = self.random.randrange(POOL // 2) * block
            part = pool[start:start + left]
            file.write(part)
            left -= len(part)


def write_file(path, keys, tensors, filler):
    """tensors: (name, kind, rows, cols, scale or the bytes)."""
    with open(path, "wb") as file:
        file.write(b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(keys)))
        file.write(b"".join(keys))
        at = 0
        for name, kind, rows, cols, _ in tensors:
            dims = [cols, rows] if rows > 1 else [cols]
            file.write(string(name) + struct.pack("<I", len(dims)))
            file.write(struct.pack(f"<{len(dims)}Q", *dims) + struct.pack("<IQ", kind, at))
            at += (tensor_bytes(kind, rows, cols) + ALIGN - 1) // ALIGN * ALIGN
        for _, kind, rows, cols, what in tensors:
            file.write(bytes(-file.tell() % ALIGN))
            if isinstance(what, bytes):
                file.write(what)
            else:
                filler.write(file, kind, rows, cols, what)
        file.write(bytes(-file.tell() % ALIGN))


def floats(value, count):
    return struct.pack("<f", value) * count


def model(path, shape, base, kind, filler):
    layers, dim, heads, kv_heads, head_dim, ff = shape
    keys, vocab = tokenizer_keys(base)
    numbers = {"block_count": layers, "context_length": 8192, "embedding_length": dim,
               "feed_forward_length": ff, "attention.head_count": heads,
               "attention.head_count_kv": kv_heads, "attention.key_length": head_dim,
               "attention.value_length": head_dim, "rope.dimension_count": head_dim,
               "vocab_size": vocab}
    keys = [key("general.architecture", STRING, "llama"),
            key("general.name", STRING, "random"),
            key("llama.attention.layer_norm_rms_epsilon", FLOAT, 1e-5),
            key("llama.rope.freq_base", FLOAT, 100000.0),
            *(key(f"llama.{name}", U32, value) for name, value in numbers.items()), *keys]
    tensors = [("token_embd.weight", kind, vocab, dim, 1 / dim**0.5),
               ("output_norm.weight", F32, 1, dim, floats(1.0, dim))]
    for n in range(layers):
        rows = {"attn_q": (heads * head_dim, dim), "attn_k": (kv_heads * head_dim, dim),
                "attn_v": (kv_heads * head_dim, dim), "attn_output": (dim, heads * head_dim),
                "ffn_gate": (ff, dim), "ffn_up": (ff, dim), "ffn_down": (dim, ff)}
        for norm in ("attn_norm", "ffn_norm"):
            tensors.append((f"blk.{n}.{norm}.weight", F32, 1, dim, floats(1.0, dim)))
        for name, (out, cols) in rows.items():
            tensors.append((f"blk.{n}.{name}.weight", kind, out, cols, 1 / cols**0.5))
    write_file(path, keys, tensors, filler)


def fingerprint(path):
    import ctypes
    import ctypes.util
    library = ctypes.CDLL(ctypes.util.find_library("xxhash") or "libxxhash.so.0")
    library.XXH3_64bits.restype = ctypes.c_uint64
    library.XXH3_64bits.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
    import mmap
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY) as data:
        view = (ctypes.c_char * len(data)).from_buffer(data)
        value = library.XXH3_64bits(ctypes.addressof(view), len(data))
        del view
    return f"{value:016x}"


def adapter(path, base, shape, filler):
    layers, dim, heads, kv_heads, head_dim, _ = shape
    keys = [key("general.type", STRING, "adapter"), key("adapter.type", STRING, "silt"),
            key("general.architecture", STRING, "llama"), key("silt.version", U32, 1),
            key("silt.base_fingerprint", STRING, fingerprint(base)),
            key("silt.chunk_tokens", U32, CHUNK), key("silt.comp_tokens", U32, COMP),
            key("silt.ring_segments", U32, RING), key("silt.sink_tokens", U32, SINKS),
            key("silt.summary_alpha_min", FLOAT, 0.01),
            string("silt.dmc_ratios") + struct.pack("<IIQ", ARRAY, U32, len(RATIOS)) +
            struct.pack(f"<{len(RATIOS)}I", *RATIOS)]
    q_dim, kv_dim, all_heads = heads * head_dim, kv_heads * head_dim, layers * kv_heads
    tensors = [("comp.embd", F32, COMP, dim, 1 / dim**0.5)]
    for n in range(layers):
        for kind in ("comp", "dmc"):
            for name, cols, out in (("q", dim, q_dim), ("k", dim, kv_dim), ("v", dim, kv_dim),
                                    ("o", q_dim, dim)):
                tensors.append((f"blk.{n}.{kind}_{name}.a", F16, RANK, cols, 0.01))
                tensors.append((f"blk.{n}.{kind}_{name}.b", F16, out, RANK, 0.01))
        tensors.append((f"blk.{n}.dmc_decide", F32, 2 * kv_heads, dim, 1 / dim**0.5))
        tensors.append((f"blk.{n}.dmc_decide.bias", F32, 1, 2 * kv_heads,
                        floats(0.0, 2 * kv_heads)))
    # A logit is about normal: its quantiles make the share of merges.
    bias = b"".join(floats({2: 0.0, 4: 0.67, 8: 1.15}[r], all_heads) for r in RATIOS)
    quota = b"".join(floats(2 * CHUNK // r, all_heads) for r in RATIOS)
    tensors += [("dmc.ratio_bias", F32, len(RATIOS), all_heads, bias),
                ("dmc.quota", F32, len(RATIOS), all_heads, quota)]
    write_file(path, keys, tensors, filler)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("shape", choices=SHAPES)
    parser.add_argument("path")
    parser.add_argument("--type", choices=TYPES, default="q4_0", help="of its weights")
    parser.add_argument("--base", default="build/models/smollm2-135m-instruct-q4_1.gguf",
                        help="whose tokenizer it has")
    options = parser.parse_args()
    filler = Filler(options.shape)
    model(options.path, SHAPES[options.shape], options.base, TYPES[options.type], filler)
    beside = os.path.splitext(options.path)[0] + ".adapter.gguf"
    adapter(beside, options.path, SHAPES[options.shape], filler)
    for path in (options.path, beside):
        print(f"{path} {os.path.getsize(path) / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
