"""Text for tests: the same bytes on every machine, with what a tokenizer finds hard in them."""

import random

WORDS = ("the of and to in silt river slow water carries what is fine leaves what is coarse 1024 "
         "2026-11-22 naïve Übergröße Привет 日本語 🙂 don't ERROR [ok] x86_64 e.g. <|im_start|> "
         "http://example.org/a?b=c&d \t \n \r\n !!! ... ____ 3.14159 αβγ İstanbul").split(" ")


def text(bytes_count, seed=1):
    """So many bytes of words, lines and odd characters; ends where it ends."""
    rng = random.Random(seed)
    out = bytearray()
    while len(out) < bytes_count:
        line = " ".join(rng.choice(WORDS) for _ in range(rng.randrange(1, 14)))
        out += line.encode() + b"\n" * rng.randrange(1, 3)
    return bytes(out[:bytes_count])


def cuts(data, seed=1, longest=700):
    """The data in pieces of random lengths, most of them short: through words and characters."""
    rng = random.Random(seed)
    pieces, at = [], 0
    while at < len(data):
        length = rng.choice((1, 2, 3, rng.randrange(1, 20), rng.randrange(1, longest)))
        pieces.append(data[at:at + length])
        at += length
    return pieces
