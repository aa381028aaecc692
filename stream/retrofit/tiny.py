"""Writes a tiny random base model, an adapter for it and its golden vectors: numpy only.

    python3 tiny.py OUTPUT_FOLDER [--no-golden]

makes tiny.gguf, tiny.adapter.gguf, tiny.r1.golden and tiny.r4.golden.  The model has the shape of
a real one (grouped heads, tied embeddings, byte-level BPE with real merges), so
the C tests run the same code in seconds.  Nothing depends on numpy's random streams: the numbers
come from a small integer generator written out here, so every machine makes the same file.
"""
import argparse
import collections
import os
import re

import numpy as np

import gguf
import golden_file
import reference
import silt_adapter

LAYERS, WIDTH, HEADS, KV_HEADS, FEED = 4, 128, 4, 2, 256
HEAD_DIM = WIDTH // HEADS
CONTEXT, THETA, EPS = 8192, 100000.0, 1e-5
VOCABULARY = 512
CHUNK, COMP, RING, SINKS = 256, 16, 4, 8
RATIOS = (2, 4, 8)
GOLDEN_CHUNKS, GOLDEN_RING = 6, 2
# With and without pending tokens, on both sides of a block's and of a chunk's end.
FORK_POSITIONS = [0, 1, 31, 32, 33, 64, 255, 256, 257, 288, 512, 513] \
    + [1024 + at for at in (0, 1, 31, 32, 33, 64, 65, 255, 256, 257)]
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
CHAT_TEMPLATE = (
    "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n' + message['content']"
    " + '<|im_end|>' + '\n'}}{% endfor %}{% if add_generation_prompt %}"
    "{{ '<|im_start|>assistant\n' }}{% endif %}")


class Source:
    """splitmix64 by counter: the same numbers on every machine and numpy version."""

    def __init__(self, seed):
        self.counter = np.uint64(seed)

    def words(self, count):
        step = np.uint64(0x9E3779B97F4A7C15)
        with np.errstate(over="ignore"):
            z = self.counter + step * np.arange(1, count + 1, dtype=np.uint64)
            self.counter = z[-1]
            z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
            z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
            return z ^ (z >> np.uint64(31))

    def normal(self, *shape):
        """Nearly normal, unit variance: the sum of four 16-bit uniforms, exact in float64."""
        word = self.words(int(np.prod(shape)))
        total = sum(((word >> np.uint64(16 * i)) & np.uint64(65535)).astype(np.float64)
                    for i in range(4))
        return ((total / 65536 - 2) * np.sqrt(3)).astype(np.float32).reshape(shape)


def byte_names():
    """GPT-2's printable stand-in for each byte."""
    plain = list(range(33, 127)) + list(range(161, 173)) + list(range(174, 256))
    names, extra = {}, 0
    for byte in range(256):
        if byte in plain:
            names[byte] = chr(byte)
        else:
            names[byte] = chr(256 + extra)
            extra += 1
    return names


def learn_merges(text, count):
    """The `count` first byte-level BPE merges of a text; ties go to the smaller pair."""
    names = byte_names()
    words = collections.Counter(re.findall(r" ?[A-Za-z]+| ?[^\sA-Za-z0-9]+", text))
    split = {word: [names[b] for b in word.encode()] for word in words}
    merges = []
    while len(merges) < count:
        pairs = collections.Counter()
        for word, parts in split.items():
            for pair in zip(parts, parts[1:]):
                pairs[pair] += words[word]
        if not pairs:
            raise ValueError("the text is too short for %d merges" % count)
        best = min(pairs, key=lambda pair: (-pairs[pair], pair))
        merges.append(best)
        for word, parts in split.items():
            at, joined = 0, []
            while at < len(parts):
                if tuple(parts[at:at + 2]) == best:
                    joined.append(best[0] + best[1])
                    at += 2
                else:
                    joined.append(parts[at])
                    at += 1
            split[word] = joined
    return merges


def write_base(path):
    here = os.path.dirname(os.path.abspath(__file__))
    with open(os.path.join(here, "..", "..", "LICENSE"), encoding="utf-8") as file:
        text = file.read()
    names = byte_names()
    symbols = [names[byte] for byte in sorted(names, key=lambda b: names[b])]
    merges = learn_merges(text, VOCABULARY - len(SPECIAL) - len(symbols))
    tokens = SPECIAL + symbols + [a + b for a, b in merges]
    kinds = [3] * len(SPECIAL) + [1] * (len(tokens) - len(SPECIAL))
    string, u32, f32 = gguf.STRING, gguf.U32, gguf.FLOAT32
    meta = [
        ("general.architecture", string, "llama"), ("general.type", string, "model"),
        ("general.name", string, "silt tiny random"), ("llama.block_count", u32, LAYERS),
        ("llama.context_length", u32, CONTEXT), ("llama.embedding_length", u32, WIDTH),
        ("llama.feed_forward_length", u32, FEED), ("llama.attention.head_count", u32, HEADS),
        ("llama.attention.head_count_kv", u32, KV_HEADS), ("llama.rope.freq_base", f32, THETA),
        ("llama.attention.layer_norm_rms_epsilon", f32, EPS), ("general.file_type", u32, 3),
        ("llama.vocab_size", u32, len(tokens)), ("llama.rope.dimension_count", u32, HEAD_DIM),
        ("tokenizer.ggml.add_space_prefix", gguf.BOOL, False),
        ("tokenizer.ggml.add_bos_token", gguf.BOOL, False),
        ("tokenizer.ggml.model", string, "gpt2"), ("tokenizer.ggml.pre", string, "smollm"),
        ("tokenizer.ggml.tokens", (gguf.ARRAY, string), tokens),
        ("tokenizer.ggml.token_type", (gguf.ARRAY, gguf.I32), kinds),
        ("tokenizer.ggml.merges", (gguf.ARRAY, string), ["%s %s" % pair for pair in merges]),
        ("tokenizer.ggml.bos_token_id", u32, 1), ("tokenizer.ggml.eos_token_id", u32, 2),
        ("tokenizer.ggml.unknown_token_id", u32, 0), ("tokenizer.ggml.padding_token_id", u32, 2),
        ("tokenizer.chat_template", string, CHAT_TEMPLATE),
        ("general.quantization_version", u32, 2),
    ]
    source = Source(1)
    kv = KV_HEADS * HEAD_DIM

    def matrix(out, width, gain=1.0):
        return source.normal(out, width) * np.float32(gain / np.sqrt(width))

    tensors = [("token_embd.weight", 0.2 * source.normal(len(tokens), WIDTH), gguf.F32)]
    for layer in range(LAYERS):
        parts = [
            ("attn_norm", 1 + 0.1 * source.normal(WIDTH), gguf.F32),
            ("ffn_down", matrix(WIDTH, FEED), gguf.F32),
            ("ffn_gate", matrix(FEED, WIDTH), gguf.F32),
            ("ffn_up", matrix(FEED, WIDTH), gguf.F32),
            ("ffn_norm", 1 + 0.1 * source.normal(WIDTH), gguf.F32),
            # Gains above one make the attention choose: a flat one would hide wrong rows.
            ("attn_k", matrix(kv, WIDTH, 1.5), gguf.F32),
            ("attn_output", matrix(WIDTH, WIDTH), gguf.F32),
            ("attn_q", matrix(WIDTH, WIDTH, 1.5), gguf.F32),
            ("attn_v", matrix(kv, WIDTH), gguf.F32),
        ]
        tensors += [("blk.%d.%s.weight" % (layer, name), array, kind)
                    for name, array, kind in parts]
    tensors.append(("output_norm.weight",
                    0.4 + 0.02 * source.normal(WIDTH), gguf.F32))
    gguf.write(path, meta, tensors)


def write_adapter(path, base_fingerprint):
    source = Source(2)
    kv = KV_HEADS * HEAD_DIM
    shapes = {"q": (WIDTH, WIDTH), "k": (WIDTH, kv), "v": (WIDTH, kv), "o": (WIDTH, WIDTH)}
    tensors = {"comp.embd": 0.2 * source.normal(COMP, WIDTH)}
    for layer in range(LAYERS):
        for kind, rank in (("comp", 8), ("dmc", 4)):
            for part, (width, out) in shapes.items():
                name = "blk.%d.%s_%s" % (layer, kind, part)
                tensors[name + ".a"] = source.normal(rank, width) / np.float32(np.sqrt(width))
                tensors[name + ".b"] = source.normal(out, rank) * np.float32(0.3 / np.sqrt(rank))
        tensors["blk.%d.dmc_decide" % layer] = \
            source.normal(2 * KV_HEADS, WIDTH) / np.float32(np.sqrt(WIDTH))
        tensors["blk.%d.dmc_decide.bias" % layer] = 0.1 * source.normal(2 * KV_HEADS)
    columns = LAYERS * KV_HEADS
    # The normal quantiles of 1 - 1/ratio: logits are nearly standard normal here.
    tensors["dmc.ratio_bias"] = np.array([[0.0], [0.674], [1.15]], np.float32) \
        + 0.1 * source.normal(len(RATIOS), columns)
    # Close to the mean number of appends, so that some heads do reach their quota.
    tensors["dmc.quota"] = np.stack([
        np.clip(np.rint(CHUNK / ratio * (1.1 + 0.2 * source.normal(columns))), 1,
                min(CHUNK, 2 * CHUNK // ratio)) for ratio in RATIOS])
    source = Source(4)
    for layer in range(LAYERS):
        tensors["blk.%d.summary" % layer] = \
            source.normal(2 * kv, HEAD_DIM) * np.float32(0.5 / np.sqrt(HEAD_DIM))
        tensors["blk.%d.summary.bias" % layer] = 0.3 * source.normal(2 * kv)
    silt_adapter.write(path, silt_adapter.Adapter(
        tensors, base_fingerprint, CHUNK, COMP, RING, SINKS, 0.25, RATIOS), "silt tiny random")


def write_golden(folder, base, adapter, ratio):
    count = GOLDEN_CHUNKS * CHUNK
    tokens = (Source(3).words(count) % np.uint64(VOCABULARY - len(SPECIAL))).astype(int) \
        + len(SPECIAL)
    question = tokens[count // 2:count // 2 + 5]
    stream = reference.Stream(base, adapter, ratio, GOLDEN_RING)
    forks = {}
    nll, rows = np.zeros(count, np.float32), {}
    places = [0, 1, 31, 32, 255, 256, 257, 511, 512, 800, 1023, 1024, 1279, 1280, 1400, count - 1]
    for at, token in enumerate(tokens):
        if at in FORK_POSITIONS:
            forks[at] = stream.ask(question)
        logits = stream.feed(token).astype(np.float64)
        if at in places:
            rows[at] = logits
        if at + 1 < count:
            top = logits.max()
            nll[at + 1] = top + np.log(np.exp(logits - top).sum()) - logits[tokens[at + 1]]
    segments = np.stack([np.stack([keys, values], 3) for keys, values in stream.segments])
    golden_file.write(
        os.path.join(folder, "tiny.r%d.golden" % ratio), base_fingerprint=base.fingerprint,
        ratio=ratio, ring=GOLDEN_RING, chunk_tokens=CHUNK, comp_tokens=COMP, layers=LAYERS,
        kv_heads=KV_HEADS, head_dim=HEAD_DIM, tokens=tokens, nll=nll,
        segment_layers=range(LAYERS), segments=segments, top_positions=places,
        logits=np.stack([rows[at] for at in places]),
        decisions=stream.decisions if ratio > 1 else None,
        decision_logits=stream.decision_logits if ratio > 1 else None,
        fork_positions=FORK_POSITIONS, question=question,
        fork_logits=np.stack([forks[at] for at in FORK_POSITIONS]))
    share = 1 - np.mean(stream.decisions) if ratio > 1 else 1.0
    print("tiny.r%d.golden: mean NLL %.4f, %.2fx" % (ratio, nll[1:].mean(), 1 / share))


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder")
    parser.add_argument("--no-golden", action="store_true", help="the model and adapter alone")
    options = parser.parse_args()
    os.makedirs(options.folder, exist_ok=True)
    base_path = os.path.join(options.folder, "tiny.gguf")
    adapter_path = os.path.join(options.folder, "tiny.adapter.gguf")
    write_base(base_path)
    base = reference.Base(base_path)
    write_adapter(adapter_path, base.fingerprint)
    if not options.no_golden:
        adapter = silt_adapter.read(adapter_path)
        for ratio in (1, 4):
            write_golden(options.folder, base, adapter, ratio)


if __name__ == "__main__":
    main()
