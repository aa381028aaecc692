#!/usr/bin/python3
"""Far facts: are they found, by words, by recall keys, by both; and is the answer right?

    tests/eval/facts.py --text TRAIN --data FOLDER [--json FILE]     by `make facts`

TRAIN holds dialogue, meeting and log texts (KIND.jsonl[.zst]).  Of each a stream of 120,000 tokens
is made, with facts planted (planted.py) 10,000 or 100,000 tokens before its end, or before one of
three stops on the way to it, where the question is asked of the past; and one of 1,020,000 tokens
with facts a million before its end.  Every fact is asked for by words alone, by keys alone and by
both: a hit is its chunk among the 8 recalled.  siltd's index and search need nothing of the model
but to read the question, so tests/eval_find.c runs them alone, on streams that no model has read.
Then answers: from the stream of 120,000 tokens, which siltd has read, with `--recall text`, and
with nothing recalled but the fact's surroundings, or its line alone, in the prompt; the ratio to
each with a paired bootstrap interval.
With --qmsum FILE the marked spans of its meetings' questions are looked for, too.
FOLDER keeps streams and figures: run again, it goes on where it stopped.  Constants of the search
are chosen with `--seed 3` and the meetings of training, `--qmsum TRAIN/meeting.jsonl.zst --meetings
200`; figures are told of the default seed and of meetings that no choice has seen.
"""
import argparse
import json
import math
import os
import pathlib
import random
import signal
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "tests/eval"), str(ROOT / "stream/retrofit"),
                str(ROOT / "clients/python")]

import gguf  # noqa: E402
import planted  # noqa: E402
import silt  # noqa: E402

MODEL = ROOT / "build/models/smollm2-135m-instruct-q4_1.gguf"
KINDS = ("dialogue", "meeting", "log")
BEFORE = {"dialogue": "User: ", "meeting": "Chair: ", "log": "note: "}
CHUNK, FOUND_MAX = 256, 8
LENGTH, FAR, NEAR = 120000, 100000, 10000
LONG, FARTHEST = 1020000, 1000000
STOPS = 4                                   # the last one is the end of the stream
WINDOW = 4000                               # of near facts at each stop, tokens
SIGNALS = ("words", "keys", "both")
ANSWER_TOKENS, AROUND = 24, 300             # AROUND: bytes of text on both sides of a fact
ADAPTER = ROOT / "stream/adapters/smollm2-135m-instruct.gguf"


# ---- text with facts in it ----

def read_lines(path):
    data = path.read_bytes()
    if path.suffix == ".zst":
        data = subprocess.run(["zstd", "-dc", str(path)], stdout=subprocess.PIPE,
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
    step = (end - start) / count
    return [int(start + step * (i + rng.random() * 0.8)) for i in range(count)]


def facts_of_stops(rng, count):
    """Half of them NEAR to one of STOPS, half FAR from the end -> (place, distance, stop)."""
    places = []
    for stop in range(STOPS):
        end = LENGTH - (STOPS - 1 - stop) * WINDOW
        places += [(at, NEAR, stop) for at in
                   places_of(rng, count // 2 // STOPS, end - NEAR - WINDOW // 2,
                             end - NEAR + WINDOW // 2)]
    return places + [(at, FAR, STOPS - 1) for at in
                     places_of(rng, count - len(places), LENGTH - FAR - 10000,
                               LENGTH - FAR + 10000)]


def facts_of_long(rng, count):
    return [(at, FARTHEST, STOPS - 1) for at in
            places_of(rng, count, LONG - FARTHEST - 10000, LONG - FARTHEST + 10000)]


def make_stream(kind, options, facts, tokens, length):
    """-> (text, token ends, facts with byte and chunk); facts are put at line ends next to their
    places."""
    rng = random.Random(f"{kind}{options.seed}")
    documents = read_lines(find_file(options.text, kind))
    rng.shuffle(documents)
    places = (facts_of_stops if length == LENGTH else facts_of_long)(rng, len(facts))
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
    return whole, ends, out


# ---- the search alone ----

def find_chunks(options, text, folder, questions):
    """questions: (chunk_end, question) -> of each, ({signal: chunks, best first}, excerpt)."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    path = folder.parent / f"{folder.name}.txt"
    path.write_bytes(text)
    lines = "".join(f"{end}\t{question}\n" for end, question in questions)
    out = subprocess.run([str(ROOT / "build/tests/eval-find"), str(MODEL),
                          str(options.adapter or ADAPTER), str(path), str(folder)],
                         input=lines.encode(), stdout=subprocess.PIPE, check=True).stdout
    found = []
    for line in out.decode(errors="replace").split("\n")[:-1]:
        *lists, excerpt = line.split("\t", len(SIGNALS))
        found.append((dict(zip(SIGNALS, ([int(c) for c in part.split()] for part in lists))),
                      excerpt))
    return found


# ---- siltd ----

class Daemon:
    def __init__(self, data, adapter):
        self.folder = tempfile.mkdtemp(prefix="silt-facts-")
        self.endpoint = f"ipc://{self.folder}/s"
        command = [str(ROOT / "build/siltd"), "--listen", self.endpoint, "--data", str(data),
                   *(["--adapter", adapter] if adapter else [])]
        with open(f"{data}.log", "ab") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log)
        self.client = None

    def __enter__(self):
        for _ in range(600):
            if self.process.poll() is not None:
                sys.exit("siltd ended by itself: see the log beside its data folder")
            if subprocess.run([str(ROOT / "build/silt"), "-c", self.endpoint, "ls"],
                              capture_output=True, check=False).returncode == 0:
                break
            time.sleep(0.1)
        self.client = silt.Client(self.endpoint, timeout=120)
        return self

    def __exit__(self, *_):
        self.client.close()
        self.process.send_signal(signal.SIGTERM)
        self.process.wait()
        os.rmdir(self.folder) if not os.listdir(self.folder) else None

    def feed(self, stream, text):
        subprocess.run([str(ROOT / "build/silt"), "-c", self.endpoint, "feed", stream],
                       input=text, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=True)
        while True:
            stat = self.client.stat(stream)
            if stat.tokens_computed // 32 >= stat.tokens_acked // 32 and \
                    stat.indexed_to >= stat.tokens_acked // CHUNK * CHUNK:
                return
            time.sleep(0.2)

    def ask(self, stream, question, recall, tokens_max):
        answer = self.client.ask(stream, question, recall=recall, tokens_max=tokens_max)
        text = answer.text()
        return text, [source.segment for source in answer.done.sources]


# ---- figures ----

def share(values):
    values = list(values)
    return sum(values) / len(values) if values else math.nan


def interval(pairs, rounds=2000):
    """Bootstrap over facts: 95 % interval of right from memory / right from the prompt."""
    rng, ratios = random.Random(1), []
    for _ in range(rounds):
        drawn = [rng.choice(pairs) for _ in pairs]
        below = sum(b for _, b in drawn)
        if below:
            ratios.append(sum(a for a, _ in drawn) / below)
    ratios.sort()
    return ratios[int(len(ratios) * 0.025)], ratios[int(len(ratios) * 0.975) - 1]


def print_hits(hits):
    print(f"{'':40}{'among the 8':>24}{'the first':>24}")
    print(f"{'':34}{'facts':>6}" + "".join(f"{s:>8}" for s in SIGNALS * 2)
          + f"{'excerpt':>9}")
    groups = [("distance", lambda h: f"{h['distance']:,} tokens"),
              ("question", lambda h: f"{h['distance']:,}, {h['degree']}"),
              ("stream", lambda h: f"{h['distance']:,}, {h['stream']}"),
              ("kind", lambda h: f"{h['distance']:,}, {h['kind']}")]
    for title, name in groups:
        for key in sorted({name(h) for h in hits}):
            rows = [h for h in hits if name(h) == key]
            print(f"{title:10}{key:24}{len(rows):6}" + "".join(
                f"{100 * share(h[s] > 0 for h in rows):7.1f}%" for s in SIGNALS) + "".join(
                f"{100 * share(h[s] == 1 for h in rows):7.1f}%" for s in SIGNALS)
                  + f"{100 * share(h['excerpt'] for h in rows):8.1f}%")


def is_right(answer, text):
    return answer.lower().replace(",", "") in text.lower().replace(",", "")


def ask_hits(options, streams, folder, results):
    """Where the fact's chunk came among those found, from 1; 0: not among the 8."""
    for kind, (text, ends, facts) in streams.items():
        at = [(len(ends) - (STOPS - 1 - fact["stop"]) * WINDOW) // CHUNK for fact in facts]
        found = find_chunks(options, text, options.data / folder / kind,
                            [(end, fact["question"]) for end, fact in zip(at, facts)])
        for fact, (chunks, excerpt) in zip(facts, found):
            row = dict(stream=kind, distance=fact["distance"], degree=fact["degree"],
                       kind=fact["kind"], excerpt=is_right(fact["answer"], excerpt))
            for name in SIGNALS:
                row[name] = next((rank for rank, chunk in enumerate(chunks[name][:FOUND_MAX], 1)
                                  if chunk in fact["chunks"]), 0)
            results["hits"].append(row)


def ask_answers(options, streams, results, save):
    asked = [(kind, i) for kind in streams for i, f in enumerate(streams[kind][2])
             if f["distance"] == FAR]
    random.Random(2).shuffle(asked)
    with Daemon(options.data / "streams", options.adapter) as daemon:
        for kind, index in asked[len(results["answers"]):options.answers]:
            text, _, facts = streams[kind]
            fact = facts[index]
            around = text[max(0, fact["byte"] - AROUND):fact["byte"] + AROUND]
            asked_of = [daemon.ask(kind, fact["question"], "text", ANSWER_TOKENS)[0]]
            for passage in (around.decode(errors="ignore"), BEFORE[kind] + fact["text"]):
                prompt = f"Use this text to answer the question.\n\n{passage}\n\n" \
                         f"Question: {fact['question']}"
                asked_of.append(daemon.ask(kind, prompt, "none", ANSWER_TOKENS)[0])
            results["answers"].append([is_right(fact["answer"], answer) for answer in asked_of])
            save()


def ask_meeting(options, meeting, tokens):
    """Of every question with marked spans: {signal: one of their chunks is among the 8}."""
    lines = [line.encode() + b"\n" for line in meeting["text"].split("\n")]
    begins = [0]
    for line in lines:
        begins.append(begins[-1] + len(line))
    text = meeting["text"].encode()
    ends, asked, chunks = tokens.ends(text), [], []
    for item in meeting["qa"]:
        spans = [(begins[int(first)], begins[min(int(last) + 1, len(lines))])
                 for first, last in item.get("spans") or ()]
        marked = {n // CHUNK for low, high in spans
                  for n, end in enumerate(ends) if low < end <= high}
        if marked:
            asked.append((len(ends) // CHUNK, " ".join(item["q"].split())))
            chunks.append(marked)
    found = find_chunks(options, text,
                        options.data / "qmsum" / meeting["id"].replace("/", "_"), asked)
    return [{name: bool(set(row[name][:FOUND_MAX]) & marked) for name in SIGNALS}
            for (row, _), marked in zip(found, chunks)]


def run(options, results, save):
    tokens = Tokens()
    if options.qmsum and not results["qmsum"]:
        meetings = sorted((d for d in read_lines(options.qmsum) if d.get("qa")),
                          key=lambda d: d["id"])[:options.meetings]
        results["qmsum"] = [row for m in meetings for row in ask_meeting(options, m, tokens)]
        save()
    facts = planted.make_facts(len(KINDS) * options.facts, options.seed)

    def make(length, count):
        return {kind: make_stream(kind, options, facts[i * options.facts:][:count], tokens,
                                  length) for i, kind in enumerate(KINDS)}

    streams = make(LENGTH, options.facts)
    if not results["hits"]:
        ask_hits(options, streams, "find", results)
        if options.far:
            ask_hits(options, make(LONG, options.facts // 2), "find-long", results)
        save()
    if options.answers and not results["fed"]:
        with Daemon(options.data / "streams", options.adapter) as daemon:
            for kind, (text, _, _) in streams.items():
                daemon.feed(kind, text)
        results["fed"] = True
        save()
    if options.answers > len(results["answers"]):
        ask_answers(options, streams, results, save)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--text", type=pathlib.Path, required=True)
    parser.add_argument("--data", type=pathlib.Path, required=True)
    parser.add_argument("--adapter", help="default: the shipped one")
    parser.add_argument("--seed", type=int, default=2,
                        help="of facts and streams; constants were chosen with 3")
    parser.add_argument("--facts", type=int, default=280, help="of a stream, both distances")
    parser.add_argument("--answers", type=int, default=200, help="questions answered, 0: none")
    parser.add_argument("--far", action=argparse.BooleanOptionalAction, default=True,
                        help="facts a million tokens back, too")
    parser.add_argument("--qmsum", type=pathlib.Path, help="JSON lines of meetings with spans")
    parser.add_argument("--meetings", type=int, default=35)
    parser.add_argument("--json", type=pathlib.Path)
    options = parser.parse_args()
    options.data.mkdir(parents=True, exist_ok=True)
    state = options.data / "figures.json"
    results = {"fed": False, "hits": [], "answers": [], "qmsum": []}
    if state.exists():
        results = json.loads(state.read_text())

    def save():
        state.write_text(json.dumps(results))

    run(options, results, save)
    print_hits(results["hits"])
    if results["qmsum"]:
        rows = results["qmsum"]
        print(f"{'QMSum, marked spans':34}{len(rows):6}" + "".join(
            f"{100 * share(r[s] for r in rows):7.1f}%" for s in SIGNALS))
    if results["answers"]:
        rows = results["answers"]
        print(f"answers: {len(rows)} asked, right from {FAR:,} tokens back "
              f"{100 * share(row[0] for row in rows):.1f} %")
        for at, what in ((1, f"the fact and {AROUND} bytes on both sides"), (2, "its line alone")):
            low, high = interval([(row[0], row[at]) for row in rows])
            print(f"with {what} in the prompt {100 * share(row[at] for row in rows):.1f} %, "
                  f"ratio {share(row[0] for row in rows) / share(row[at] for row in rows):.2f}, "
                  f"95 % in {low:.2f} to {high:.2f}")
    if options.json:
        options.json.write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
