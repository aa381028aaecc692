"""Writes small sound GGUF files for the fuzzer to bend: seed_gguf.py FOLDER."""
import pathlib
import struct
import sys


def text(value):
    return struct.pack("<Q", len(value.encode())) + value.encode()


def letter(byte):
    """GPT-2's letter for a byte."""
    visible = [*range(33, 127), *range(161, 173), *range(174, 256)]
    if byte in visible:
        return chr(byte)
    return chr(256 + [b for b in range(256) if b not in visible].index(byte))


def strings(values):
    return struct.pack("<IIQ", 9, 8, len(values)) + b"".join(map(text, values))


def file(keys, tensors=0, rest=b""):
    head = b"GGUF" + struct.pack("<IQQ", 3, tensors, len(keys))
    return head + b"".join(text(name) + value for name, value in keys) + rest


tokens = ["<|im_start|>", "<|im_end|>", *map(letter, range(256)), "th", "the"]
vocabulary = [
    ("tokenizer.ggml.model", struct.pack("<I", 8) + text("gpt2")),
    ("tokenizer.ggml.pre", struct.pack("<I", 8) + text("smollm")),
    ("tokenizer.ggml.tokens", strings(tokens)),
    ("tokenizer.ggml.token_type",
     struct.pack("<IIQ", 9, 5, len(tokens)) + struct.pack("<i", 3) * 2 +
     struct.pack("<i", 1) * (len(tokens) - 2)),
    ("tokenizer.ggml.merges", strings(["t h", "th e"])),
    ("tokenizer.ggml.eos_token_id", struct.pack("<II", 4, 1)),
]
tensor = text("t") + struct.pack("<IQQIQ", 2, 32, 2, 8, 0)
small = file([("general.alignment", struct.pack("<II", 4, 32))], 1, tensor)
small += bytes(-len(small) % 32 + 68)
folder = pathlib.Path(sys.argv[1])
(folder / "vocabulary").write_bytes(file(vocabulary))
(folder / "tensor").write_bytes(small)
