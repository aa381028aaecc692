"""Real text with facts planted in it: the streams of facts.py.

Of each kind of text there is a stream of 120,000 tokens with facts NEAR to one of STOPS, where the
question is asked of the past or as soon as the stream has come there, and facts FAR from its end;
and one of LONG tokens with facts FARTHEST from its end.  A stream once made is kept, as text and
as JSON, and needs neither the text it was made of nor the tokenizer any more.
"""
import json
import pathlib
import random
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parents[2]
MODEL = ROOT / "build/models/smollm2-135m-instruct-q4_1.gguf"
KINDS = ("dialogue", "meeting", "log")
BEFORE = {"dialogue": "User: ", "meeting": "Chair: ", "log": "note: "}
CHUNK = 256
FAR, NEAR = 100000, 10000                   # of facts from the end or stop, tokens
LONG, FARTHEST = 1020000, 1000000           # a stream's length, and of facts from its end
STOPS = 4                                   # the last one is the end of the stream
WINDOW = 4000                               # of near facts at each stop, tokens


def stop_token(stop, length):
    """Where a stream of so many tokens is when it has come to a stop."""
    return length - (STOPS - 1 - stop) * WINDOW if length < LONG else length


def read_lines(path):
    data = path.read_bytes()
    if path.suffix == ".zst":       # by its name zstd would take no link
        data = subprocess.run(["zstd", "-dc"], input=data, stdout=subprocess.PIPE,
                              check=True).stdout
    return [json.loads(line) for line in data.split(b"\n") if line]


def find_file(folder, kind):
    for end in (".jsonl.zst", ".jsonl"):
        if (folder / (kind + end)).exists():
            return folder / (kind + end)
    sys.exit(f"{folder} has no {kind}.jsonl[.zst]")


class Tokens:
    """Where the tokens of a text begin, by siltd's own tokenizer."""

    def __init__(self):
        sys.path.insert(0, str(ROOT / "stream/retrofit"))
        import gguf
        letters = list(range(33, 127)) + list(range(161, 173)) + list(range(174, 256))
        others = [b for b in range(256) if b not in letters]
        size = {chr(b): 1 for b in letters}
        size.update({chr(256 + i): 1 for i in range(len(others))})
        names = gguf.Reader(str(MODEL)).meta["tokenizer.ggml.tokens"]
        self.bytes = [sum(size.get(c, 0) for c in name) for name in names]

    def ends(self, text):
        """Byte offset behind every token."""
        ids = subprocess.run([str(ROOT / "build/tests/token-dump"), str(MODEL)], input=text,
                             stdout=subprocess.PIPE, check=True).stdout
        out, at = [], 0
        for token in memoryview(ids).cast("i"):
            at += self.bytes[token]
            out.append(at)
        return out


def places_of(rng, count, start, end):
    """Rising token places, one in each of as many equal parts."""
    step = (end - start) / max(count, 1)
    return [int(start + step * (i + rng.random() * 0.8)) for i in range(count)]


def facts_of_stops(rng, count, length):
    """Half of them NEAR to one of STOPS, half FAR from the end -> (place, distance, stop); all are
    NEAR where a stream is too short."""
    places, far = [], count // 2 if length >= FAR + WINDOW else 0
    for stop in range(STOPS):
        end = stop_token(stop, length)
        places += [(at, NEAR, stop) for at in
                   places_of(rng, (count - far) // STOPS, end - NEAR - WINDOW // 2,
                             end - NEAR + WINDOW // 2)]
    return places + [(at, FAR, STOPS - 1) for at in
                     places_of(rng, far and count - len(places), length - FAR - 10000,
                               length - FAR + 10000)]


def facts_of_long(rng, count, length):
    return [(at, FARTHEST, STOPS - 1) for at in
            places_of(rng, count, length - FARTHEST - 10000, length - FARTHEST + 10000)]


def make_stream(kind, folder, seed, facts, tokens, length):
    """-> (text, facts with byte and chunk, bytes at the stops); facts are put at line ends next to
    their places in the texts of `folder`."""
    rng = random.Random(f"{kind}{seed}")
    documents = read_lines(find_file(folder, kind))
    rng.shuffle(documents)
    places = (facts_of_stops if length < LONG else facts_of_long)(rng, len(facts), length)
    order = sorted(range(len(places)), key=lambda i: places[i][0])
    # The filler's tokens, and what facts before a place have added: some 16 each.
    filler = "\n".join(d["text"][:20000] for d in documents)[:length * 8].encode()
    ends = tokens.ends(filler)
    text, used, added, out = [], 0, 0, []
    for index in order:
        at, distance, stop = places[index]
        cut = filler.find(b"\n", ends[max(0, min(at - added, len(ends) - 1))], used + 10 ** 9)
        cut = max(cut, used)
        line = ("\n" + BEFORE[kind] + facts[index]["text"]).encode()
        text.append(filler[used:cut])
        begin = sum(map(len, text))
        text.append(line)
        out.append(dict(facts[index], byte=begin + len(line) - len(facts[index]["text"]),
                        distance=distance, stop=stop))
        used, added = cut, added + 16
    text.append(filler[used:])
    whole = b"".join(text)
    ends = tokens.ends(whole)
    if len(ends) < length:
        sys.exit(f"{kind}: {len(ends)} tokens of text, {length} are wanted")
    whole, ends = whole[:ends[length - 1]], ends[:length]
    number = 0
    for fact in out:
        while ends[number] <= fact["byte"]:
            number += 1
        last = number
        while ends[last] < fact["byte"] + len(fact["text"].encode()):
            last += 1
        fact["chunks"] = sorted({number // CHUNK, last // CHUNK})
        fact["token"] = number
    return whole, out, [ends[stop_token(stop, length) - 1] for stop in range(STOPS)]


def kept_stream(path, make):
    """(text, facts, stops) of PATH.txt and PATH.json, which make() makes where there are none."""
    text, more = path.with_suffix(".txt"), path.with_suffix(".json")
    if not more.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        whole, facts, stops = make()
        text.write_bytes(whole)
        more.write_text(json.dumps({"facts": facts, "stops": stops}))
    kept = json.loads(more.read_text())
    return text.read_bytes(), kept["facts"], kept["stops"]
