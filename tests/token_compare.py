"""Compares silt's tokenizer, token for token, with the `tokenizers` package (from PyPI).

    python3 tests/token_compare.py MODEL.gguf [TEXT ...] [--fuzz N] [--pieces P] [--seed S]

The reference is the training code's (stream/retrofit/data.py), built from the GGUF's own tokens and
merges.  Each TEXT (plain, .jsonl or .jsonl.zst with a "text" field) is compared document by
document, then N fuzzed documents of random Unicode.  Every code point is also tried between
letters, signs and blanks.

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

sys.path.insert(0, os.path.join(os.path.dirname(__file__), "..", "stream", "retrofit"))
import data  # noqa: E402
import gguf  # noqa: E402
import tiny  # noqa: E402


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
        self.names = gguf.Reader(arguments.model).meta["tokenizer.ggml.tokens"]
        self.tokenizer = data.Tokenizer(arguments.model).fast
        table = tiny.byte_names()
        have = set(self.names)
        self.missing = {byte for byte in range(256) if table[byte] not in have}
        self.bytes = self.tokens = self.cut = 0

    def clean(self, text):
        text = text.encode("utf-8", "replace").decode()
        return "".join(c for c in text if unicodedata.category(c) != "Cn" and
                       not self.missing.intersection(c.encode()))

    def compare(self, text, name, seed):
        text = self.clean(text)
        raw = text.encode()
        pieces = self.tokenizer.pre_tokenizer.pre_tokenize_str(text)
        if any(len(piece) > 1024 for piece, _ in pieces):
            self.cut += 1
            return True
        wanted = self.tokenizer.encode(text, add_special_tokens=False).ids
        for cuts in (0, seed):
            got = dump(self.arguments.dump, self.arguments.model, raw, cuts)
            if got != wanted:
                at = next((i for i, (a, b) in enumerate(zip(got, wanted)) if a != b),
                          min(len(got), len(wanted)))
                print(f"{name}: differs at token {at} (cuts {cuts}):")
                for who, ids in (("silt", got), ("reference", wanted)):
                    print(f"  {who:9}", [self.names[i] for i in ids[max(0, at - 3):at + 5]])
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
