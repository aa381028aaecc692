#!/usr/bin/python3
"""Far facts: are they found, by words, by recall keys, by both; and is the answer right?

    tests/eval/facts.py --text TRAIN --data FOLDER [--json FILE]     by `make facts`

TRAIN holds dialogue, meeting and log texts (KIND.jsonl[.zst]).  One stream of each is made, 120,000
tokens long, with facts planted (planted.py) 10,000 or 100,000 tokens before its end, or before one
of three stops on the way to it, where the question is asked of the past (--at).  Every fact is
asked for with siltd on words alone, on keys alone and on both: a hit is its chunk among the 8
recalled.
Then answers: from the stream with `--recall text`, and with nothing recalled but the fact's own
surroundings in the prompt; the ratio of both with a paired bootstrap interval.
With --qmsum FILE the marked spans of its meetings' questions are looked for, too.
FOLDER keeps streams and figures: run again, it goes on where it stopped.
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
STOPS = 4                                   # the last one is the end of the stream
WINDOW = 4000                               # of near facts at each stop, tokens
SIGNALS = ("words", "keys", "both")
ANSWER_TOKENS, AROUND = 24, 300             # AROUND: bytes of text on both sides of a fact


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


def make_stream(kind, folder, facts, tokens):
    """-> (text, facts with byte and chunk); facts are put at line ends next to their places."""
    rng = random.Random(kind)
    documents = read_lines(find_file(folder, kind))
    rng.shuffle(documents)
    per_stop = len(facts) // 2 // STOPS
    places = []
    for stop in range(STOPS):
        end = LENGTH - (STOPS - 1 - stop) * WINDOW
        places += [(at, NEAR, stop) for at in
                   places_of(rng, per_stop, end - NEAR - WINDOW // 2, end - NEAR + WINDOW // 2)]
    places += [(at, FAR, STOPS - 1) for at in
               places_of(rng, len(facts) - len(places), LENGTH - FAR - 10000, LENGTH - FAR + 10000)]
    order = sorted(range(len(places)), key=lambda i: places[i][0])
    # The filler's tokens, and what facts before a place have added: some 16 each.
    filler = "\n".join(d["text"][:20000] for d in documents)[:LENGTH * 8].encode()
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
    whole = whole[:ends[LENGTH - 1]]
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


# ---- siltd ----

class Daemon:
    def __init__(self, data, find, adapter):
        self.folder = tempfile.mkdtemp(prefix="silt-facts-")
        self.endpoint = f"ipc://{self.folder}/s"
        command = [str(ROOT / "build/siltd"), "--listen", self.endpoint, "--data", str(data),
                   "--find", find] + (["--adapter", adapter] if adapter else [])
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

    def ask(self, stream, question, recall, tokens_max, at=None):
        answer = self.client.ask(stream, question, recall=recall, tokens_max=tokens_max, at=at)
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
    print(f"{'':34}{'facts':>6}" + "".join(f"{s:>8}" for s in SIGNALS))
    groups = [("distance", lambda h: f"{h['distance']:,} tokens"),
              ("question", lambda h: f"{h['distance']:,}, {h['degree']}"),
              ("stream", lambda h: f"{h['distance']:,}, {h['stream']}"),
              ("kind", lambda h: f"{h['distance']:,}, {h['kind']}")]
    for title, name in groups:
        for key in sorted({name(h) for h in hits}):
            rows = [h for h in hits if name(h) == key]
            print(f"{title:10}{key:24}{len(rows):6}" + "".join(
                f"{100 * share(h[s] for h in rows):7.1f}%" for s in SIGNALS))


def is_right(answer, text):
    return answer.lower().replace(",", "") in text.lower().replace(",", "")


def ask_hits(options, streams, results):
    for signal_name in SIGNALS:
        with Daemon(options.data / "streams", signal_name, options.adapter) as daemon:
            for kind, (_, _, facts) in streams.items():
                for index, fact in sorted(enumerate(facts), key=lambda item: item[1]["stop"]):
                    behind = (STOPS - 1 - fact["stop"]) * WINDOW
                    _, found = daemon.ask(kind, fact["question"], "segments", 1,
                                          LENGTH - behind if behind else None)
                    name = f"{kind}/{index}"
                    results["hits"].setdefault(name, dict(
                        stream=kind, distance=fact["distance"], degree=fact["degree"],
                        kind=fact["kind"]))
                    results["hits"][name][signal_name] = \
                        bool(set(found[:FOUND_MAX]) & set(fact["chunks"]))


def ask_answers(options, streams, results):
    asked = [(kind, i) for kind in streams for i, f in enumerate(streams[kind][2])
             if f["distance"] == FAR]
    random.Random(2).shuffle(asked)
    with Daemon(options.data / "streams", "both", options.adapter) as daemon:
        for kind, index in asked[:options.answers]:
            text, _, facts = streams[kind]
            fact = facts[index]
            around = text[max(0, fact["byte"] - AROUND):fact["byte"] + AROUND]
            passage = around.decode(errors="ignore")
            prompt = f"Use this text to answer the question.\n\n{passage}\n\n" \
                     f"Question: {fact['question']}"
            far, _ = daemon.ask(kind, fact["question"], "text", ANSWER_TOKENS)
            near, _ = daemon.ask(kind, prompt, "none", ANSWER_TOKENS)
            results["answers"].append([is_right(fact["answer"], far),
                                       is_right(fact["answer"], near)])


def qmsum(options, tokens, results):
    """Marked spans of dev questions; one stream a meeting."""
    meetings = sorted(read_lines(options.qmsum), key=lambda d: d["id"])[:options.meetings]
    with Daemon(options.data / "meetings", "both", options.adapter) as daemon:
        for meeting in meetings:
            daemon.feed(meeting["id"], meeting["text"].encode())
    for signal_name in SIGNALS:
        with Daemon(options.data / "meetings", signal_name, options.adapter) as daemon:
            for meeting in meetings:
                lines = [line.encode() + b"\n" for line in meeting["text"].split("\n")]
                begins = [0]
                for line in lines:
                    begins.append(begins[-1] + len(line))
                ends = tokens.ends(meeting["text"].encode())
                for index, item in enumerate(meeting["qa"]):
                    chunks = set()
                    for first, last in item.get("spans") or ():
                        low, high = begins[int(first)], begins[min(int(last) + 1, len(lines))]
                        chunks |= {n // CHUNK for n, end in enumerate(ends) if low < end <= high}
                    if chunks:
                        _, found = daemon.ask(meeting["id"], item["q"], "segments", 1)
                        results["qmsum"].setdefault(f"{meeting['id']}/{index}", {})[signal_name] = \
                            bool(set(found[:FOUND_MAX]) & chunks)


def run(options, results, save):
    tokens = Tokens()
    if options.qmsum and not results["qmsum"]:
        qmsum(options, tokens, results)
        save()
    if not results["hits"] or options.answers and not results["answers"]:
        facts = planted.make_facts(len(KINDS) * options.facts)
        streams = {kind: make_stream(kind, options.text, facts[i * options.facts:][:options.facts],
                                      tokens)
                   for i, kind in enumerate(KINDS)}
        if not results["fed"]:
            with Daemon(options.data / "streams", "both", options.adapter) as daemon:
                for kind, (text, _, _) in streams.items():
                    daemon.feed(kind, text)
            results["fed"] = True
            save()
        if not results["hits"]:
            ask_hits(options, streams, results)
            save()
        if options.answers and not results["answers"]:
            ask_answers(options, streams, results)
            save()


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--text", type=pathlib.Path, required=True)
    parser.add_argument("--data", type=pathlib.Path, required=True)
    parser.add_argument("--adapter", help="default: the shipped one")
    parser.add_argument("--facts", type=int, default=280, help="of a stream, both distances")
    parser.add_argument("--answers", type=int, default=200, help="questions answered, 0: none")
    parser.add_argument("--qmsum", type=pathlib.Path, help="JSON lines of meetings with spans")
    parser.add_argument("--meetings", type=int, default=35)
    parser.add_argument("--json", type=pathlib.Path)
    options = parser.parse_args()
    options.data.mkdir(parents=True, exist_ok=True)
    state = options.data / "figures.json"
    results = {"fed": False, "hits": {}, "answers": [], "qmsum": {}}
    if state.exists():
        results = json.loads(state.read_text())

    def save():
        state.write_text(json.dumps(results))

    run(options, results, save)
    print_hits(list(results["hits"].values()))
    if results["qmsum"]:
        rows = list(results["qmsum"].values())
        print(f"{'QMSum, marked spans':34}{len(rows):6}" + "".join(
            f"{100 * share(r[s] for r in rows):7.1f}%" for s in SIGNALS))
    if results["answers"]:
        pairs = results["answers"]
        low, high = interval(pairs)
        print(f"answers: {len(pairs)} asked, right from {FAR:,} tokens back "
              f"{100 * share(a for a, _ in pairs):.1f} %, with the passage in the prompt "
              f"{100 * share(b for _, b in pairs):.1f} %, ratio 95 % in {low:.2f} to {high:.2f}")
    if options.json:
        options.json.write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
