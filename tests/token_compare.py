"""Compares silt's tokenizer, token for token, with the `tokenizers` package (from PyPI).

    python3 tests/token_compare.py MODEL.gguf [TEXT ...] [--fuzz N] [--pieces P] [--seed S]

The reference is built from the GGUF's own tokens and merges.  Each TEXT (plain, .jsonl or
.jsonl.zst with a "text" field) is compared document by document, then N fuzzed documents of random
Unicode.  Every code point is also tried between letters, signs and blanks.

Left out, by name: code points that Python's Unicode does not know (libraries of different age class
them differently), bytes the vocabulary has no token for (the reference drops them, silt marks the
place), and pre-tokens over 1,024 bytes, which silt cuts.  Exits 1 at a difference and prints it.
"""
import argparse
import json
import os
import random
import struct
import subprocess
import sys
import unicodedata

import tokenizers
from tokenizers import Regex, models, pre_tokenizers

sys.path.insert(0, os.path.join(os.path.dirname(__file__), "..", "stream", "retrofit"))

LLAMA3 = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,%d}"
          r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+")


def read_gguf(path):
    """The keys of a GGUF, arrays as lists: just enough of a reader for the tokenizer."""
    data = open(path, "rb").read(64 << 20)
    at = 4 + 4
    sizes = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<B", 10: "<Q",
             11: "<q", 12: "<d"}

    def take(form):
        nonlocal at
        value, = struct.unpack_from(form, data, at)
        at += struct.calcsize(form)
        return value

    def value(kind):
        nonlocal at
        if kind == 8:
            size = take("<Q")
            at += size
            return data[at - size:at].decode("utf-8", "replace")
        if kind == 9:
            inner, count = take("<I"), take("<Q")
            return [value(inner) for _ in range(count)]
        return take(sizes[kind])

    take("<Q")
    return {value(8): value(take("<I")) for _ in range(take("<Q"))}


def letters():
    """GPT-2's letters, byte by byte."""
    visible = [*range(33, 127), *range(161, 173), *range(174, 256)]
    rest = iter(range(256, 512))
    return [chr(byte) if byte in visible else chr(next(rest)) for byte in range(256)]


def reference(keys):
    tokens = keys["tokenizer.ggml.tokens"]
    types = keys["tokenizer.ggml.token_type"]
    vocabulary = {token: i for i, token in enumerate(tokens) if types[i] == 1}
    merges = [tuple(merge.split(" ", 1)) for merge in keys["tokenizer.ggml.merges"]]
    rule = keys.get("tokenizer.ggml.pre", "default")
    out = tokenizers.Tokenizer(models.BPE(vocabulary, merges, ignore_merges=rule == "llama-bpe"))
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False,
                                          use_regex=rule not in ("llama-bpe", "qwen2"))
    if rule in ("smollm", "starcoder"):
        first = pre_tokenizers.Digits(individual_digits=True)
    elif rule in ("llama-bpe", "qwen2"):
        digits = 3 if rule == "llama-bpe" else 1
        first = pre_tokenizers.Split(Regex(LLAMA3 % digits), "isolated")
    else:
        return out, byte_level
    return out, first, byte_level


def dump(program, model, text, seed):
    result = subprocess.run([program, model, *([str(seed)] if seed else [])], input=text,
                            capture_output=True, check=True)
    return list(struct.unpack(f"<{len(result.stdout) // 4}i", result.stdout))


def documents(path, limit):
    if path.endswith((".jsonl", ".jsonl.zst")):
        packed = path.endswith(".zst")
        command = ["zstd", "-dqc", path] if packed else ["cat", path]
        raw = subprocess.run(command, capture_output=True, check=True).stdout
        for line in raw.splitlines():
            text = json.loads(line).get("text") or ""
            yield text[:limit]
            limit -= min(limit, len(text))
            if not limit:
                return
    else:
        yield open(path, encoding="utf-8", errors="replace").read()[:limit]


POOLS = [
    [(0x20, 0x7e)], [(0x61, 0x7a)], [(0x30, 0x39)], [(0x20, 0x20), (0x9, 0xd)], [(0xa0, 0x2ff)],
    [(0x370, 0x58f)], [(0x5d0, 0x74f)], [(0x900, 0xdff)],
    [(0x1680, 0x1680), (0x2000, 0x206f), (0x3000, 0x3000), (0x85, 0x85)],
    [(0x2150, 0x218b), (0x2460, 0x249b), (0xb2, 0xb9), (0x660, 0x669)],
    [(0x3041, 0x30ff), (0x4e00, 0x4fff)], [(0xac00, 0xadff)], [(0x1f300, 0x1f6ff)],
    [(0x300, 0x36f)], [(0x1d400, 0x1d7ff)], [(0x10000, 0x1ffff)], [(0x27, 0x27)],
    [(0xd, 0xd), (0xa, 0xa)],
]
EDGES = ["'s", "'re", "'ll", " 'd", "'T", "\u2019s", "  ", " \n", "\n\n ", " 1", "\u00a0a", "x'",
         "' r", "'l", "12 345"]


def fuzzed(rng, pieces):
    out = []
    for _ in range(rng.randint(1, pieces)):
        if rng.random() < 0.2:
            out.append(rng.choice(EDGES))
            continue
        low, high = rng.choice(rng.choice(POOLS))
        out.extend(chr(rng.randint(low, high)) for _ in range(rng.choice([1, 1, 2, 3, 7])))
    return "".join(out)


class Comparison:
    def __init__(self, arguments):
        self.arguments = arguments
        self.keys = read_gguf(arguments.model)
        self.tokenizer, *steps = reference(self.keys)
        self.steps = pre_tokenizers.Sequence(steps)
        self.tokenizer.pre_tokenizer = self.steps
        have = set(self.keys["tokenizer.ggml.tokens"])
        table = letters()
        self.missing = {byte for byte in range(256) if table[byte] not in have}
        self.bytes = self.tokens = self.cut = 0

    def clean(self, text):
        text = text.encode("utf-8", "replace").decode()
        return "".join(c for c in text if unicodedata.category(c) != "Cn" and
                       not self.missing.intersection(c.encode()))

    def compare(self, text, name, seed):
        text = self.clean(text)
        raw = text.encode()
        if any(len(piece) > 1024 for piece, _ in self.steps.pre_tokenize_str(text)):
            self.cut += 1
            return True
        wanted = self.tokenizer.encode(text, add_special_tokens=False).ids
        for cuts in (0, seed):
            got = dump(self.arguments.dump, self.arguments.model, raw, cuts)
            if got != wanted:
                at = next((i for i, (a, b) in enumerate(zip(got, wanted)) if a != b),
                          min(len(got), len(wanted)))
                tokens = self.keys["tokenizer.ggml.tokens"]
                print(f"{name}: differs at token {at} (cuts {cuts}):")
                print("  silt     ", [tokens[i] for i in got[max(0, at - 3):at + 5]])
                print("  reference", [tokens[i] for i in wanted[max(0, at - 3):at + 5]])
                return False
        self.bytes += len(raw)
        self.tokens += len(wanted)
        return True


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("model")
    parser.add_argument("text", nargs="*")
    parser.add_argument("--fuzz", type=int, default=0, help="fuzzed documents")
    parser.add_argument("--pieces", type=int, default=400, help="of a fuzzed document, at most")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--bytes-max", type=int, default=1 << 22, help="of each TEXT")
    parser.add_argument("--dump", default="build/tests/token-dump")
    parser.add_argument("--write", metavar="IDS",
                        help="write the reference's tokens of the one TEXT (tests/golden) and stop")
    parser.add_argument("--make", metavar="TEXT",
                        help="write the fuzzed documents as such a TEXT and stop")
    arguments = parser.parse_args()
    comparison = Comparison(arguments)
    rng = random.Random(arguments.seed)
    if arguments.make:
        text = "".join(fuzzed(rng, arguments.pieces) for _ in range(arguments.fuzz))
        open(arguments.make, "wb").write(comparison.clean(text).encode())
        return 0
    if arguments.write:
        text = comparison.clean(open(arguments.text[0], encoding="utf-8", newline="").read())
        ids = comparison.tokenizer.encode(text, add_special_tokens=False).ids
        lines = [" ".join(map(str, ids[i:i + 20])) for i in range(0, len(ids), 20)]
        open(arguments.write, "w").write("\n".join(lines) + "\n")
        return 0
    good = True
    for path in arguments.text:
        for i, text in enumerate(documents(path, arguments.bytes_max)):
            good &= comparison.compare(text, f"{path} document {i}", i + 1)
    for plane in range(0, 0x110000, 0x1000):
        points = (chr(i) for i in range(plane, plane + 0x1000) if not 0xd800 <= i < 0xe000)
        text = "".join(f"a{c}b {c}!{c}{c} 1" for c in points
                       if unicodedata.category(c) not in ("Cn", "Co"))
        good &= comparison.compare(text, f"code points from {plane:x}", 0)
    joined = max(100, 40000 // arguments.pieces)  # documents that make one text
    for i in range(0, arguments.fuzz, joined):
        text = "".join(fuzzed(rng, arguments.pieces) for _ in range(joined))
        good &= comparison.compare(text, f"fuzz {i}", i + 1)
    verdict = "equal" if good else "DIFFERENT"
    print(f"{comparison.bytes} bytes, {comparison.tokens} tokens: {verdict}"
          f" ({comparison.cut} documents with pre-tokens over 1,024 bytes left out)")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
