#!/usr/bin/python3
"""Far facts: are they found, by words, by recall keys, by both; and is the answer right?

    tests/eval/facts.py --text TRAIN --data FOLDER [--json FILE]     by `make facts`

TRAIN holds dialogue, meeting and log texts (KIND.jsonl[.zst]).  Of each a stream of 120,000 tokens
is made, with facts planted (planted.py) 10,000 or 100,000 tokens before its end, or before one of
three stops on the way to it, where the question is asked of the past; and one of 1,020,000 tokens
with facts a million before its end (streams.py).  Every fact is asked for by words alone, by keys
alone and by both: a hit is its chunk among the 8 recalled.  siltd's index and search need nothing
of the model but to read the question, so tests/eval_find.c runs them alone, on streams that no
model has read.  Then answers (answers.py): from streams that siltd has read, with `--recall text`,
and with nothing recalled but the fact's surroundings, or its line alone, in the prompt; the ratio
to each with a paired bootstrap interval.
With --qmsum FILE the marked spans of its meetings' questions are looked for, too.
FOLDER keeps streams and figures: run again, it goes on where it stopped; streams that it has need
no TRAIN.  Of several seeds, `--seed 2,4,5`, each has a folder in it, and figures are of all facts
together.  What looking costs eval-find says on stderr.  Constants of the search are chosen with
`--seed 3` and the meetings of training, `--qmsum TRAIN/meeting.jsonl.zst --meetings 200`; figures
are told of other seeds and of meetings that no choice has seen.
On a GPU: `--siltd '--device cuda --forks-max 48' --at-once 48 --answers 420 --answers-far`.
"""
import argparse
import json
import pathlib
import subprocess
import sys

import answers
import planted
from answers import is_right, share
from grid import file_sum, keep_settings
from streams import (CHUNK, FARTHEST, KINDS, LONG, MODEL, ROOT, Tokens, kept_stream, make_stream,
                     read_lines, stop_token)

FOUND_MAX = 8
SIGNALS = ("words", "keys", "both")
ADAPTER = ROOT / "stream/adapters/smollm2-135m-instruct.gguf"


# ---- the search alone ----

def find_chunks(options, text, folder, questions):
    """questions: (chunk_end, question) -> of each, ({signal: chunks, best first}, excerpt)."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    path = folder.parent / f"{folder.name}.txt"
    path.write_bytes(text)
    lines = "".join(f"{end}\t{' '.join(question.split())}\n" for end, question in questions)
    out = subprocess.run([str(ROOT / "build/tests/eval-find"), str(MODEL),
                          str(options.adapter or ADAPTER), str(path), str(folder)],
                         input=lines.encode(), stdout=subprocess.PIPE, check=True).stdout
    found = []
    for line in out.decode(errors="replace").split("\n")[:-1]:
        *lists, excerpt, _, _ = line.split("\t")
        found.append((dict(zip(SIGNALS, ([int(c) for c in part.split()] for part in lists))),
                      excerpt))
    if len(found) != len(questions):
        sys.exit(f"eval-find answered {len(found)} of {len(questions)} questions")
    return found


def ask_hits(options, streams, folder, length, results):
    """Where the fact's chunk came among those found, from 1; 0: not among the 8."""
    for kind, (_, text, facts, _) in streams.items():
        at = [stop_token(fact["stop"], length) // CHUNK for fact in facts]
        found = find_chunks(options, text, options.data / folder / kind,
                            [(end, fact["question"]) for end, fact in zip(at, facts)])
        for fact, (chunks, excerpt) in zip(facts, found):
            row = dict(stream=kind, seed=options.seed, distance=fact["distance"],
                       degree=fact["degree"], kind=fact["kind"],
                       excerpt=is_right(fact["answer"], excerpt))
            for name in SIGNALS:
                row[name] = next((rank for rank, chunk in enumerate(chunks[name][:FOUND_MAX], 1)
                                  if chunk in fact["chunks"]), 0)
            results["hits"].append(row)


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


def ask_meetings(options):
    meetings = sorted((d for d in read_lines(options.qmsum) if d.get("qa")),
                      key=lambda d: d["id"])[:options.meetings]
    tokens = Tokens()
    return [row for meeting in meetings for row in ask_meeting(options, meeting, tokens)]


# ---- figures ----

def print_hits(hits):
    print(f"{'':40}{'among the 8':>24}{'the first':>24}")
    print(f"{'':34}{'facts':>6}" + "".join(f"{s:>8}" for s in SIGNALS * 2)
          + f"{'excerpt':>9}")
    groups = [("distance", lambda h: f"{h['distance']:,} tokens"),
              ("seed", lambda h: f"{h['distance']:,}, seed {h['seed']}"),
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


def run(options, results, save):
    if options.qmsum:
        keep_settings(options.data / "settings of qmsum", {
            "meetings": options.meetings, "text": file_sum(options.qmsum)})
    if options.qmsum and not results["qmsum"]:
        results["qmsum"] = ask_meetings(options)
        save()
    facts = planted.make_facts(len(KINDS) * options.facts, options.seed)

    def keep(folder, length, count):
        def make(kind):
            at = KINDS.index(kind) * options.facts
            return make_stream(kind, options.text, options.seed, facts[at:at + count], Tokens(),
                               length)
        return {kind: (kind, *kept_stream(options.data / folder / kind, lambda: make(kind)))
                for kind in KINDS}

    streams = keep("find", options.length, options.facts)
    far = keep("find-long", LONG, options.facts // 2) if options.far else {}
    have = {hit["distance"] == FARTHEST for hit in results["hits"]}
    for long, some, folder, length in ((False, streams, "find", options.length),
                                       (True, far, "find-long", LONG)):
        if options.hits and long not in have:
            ask_hits(options, some, folder, length, results)
            save()
    if options.answers:
        if options.answers_far:
            streams.update({f"{kind}-long": stream for kind, stream in far.items()})
        answers.ask_answers(options, streams, results["answers"], save)


def figures_of(options):
    """Of one seed, from where an earlier run stopped."""
    options.data.mkdir(parents=True, exist_ok=True)
    keep_settings(options.data / "settings", {
        "adapter": file_sum(options.adapter or ADAPTER), "model": file_sum(MODEL),
        "seed": options.seed, "facts": options.facts, "length": options.length})
    state = options.data / "figures.json"
    results = {"hits": [], "answers": [], "qmsum": []}
    if state.exists():
        results = json.loads(state.read_text())

    def save():
        fresh = state.with_suffix(".new")
        fresh.write_text(json.dumps(results))
        fresh.replace(state)

    run(options, results, save)
    return results


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--text", type=pathlib.Path, help="folder of KIND.jsonl[.zst]")
    parser.add_argument("--data", type=pathlib.Path, required=True)
    parser.add_argument("--adapter", help="default: the shipped one")
    parser.add_argument("--seed", default="2",
                        help="of facts and streams, or several: 2,4,5; 3 chose the constants")
    parser.add_argument("--facts", type=int, default=280, help="of a stream, both distances")
    parser.add_argument("--length", type=int, default=120000,
                        help="of a stream, tokens; below 104,000 all its facts are near")
    parser.add_argument("--hits", action=argparse.BooleanOptionalAction, default=True,
                        help="look for the facts")
    parser.add_argument("--answers", type=int, default=200,
                        help="questions answered at each distance, 0: none")
    parser.add_argument("--far", action=argparse.BooleanOptionalAction, default=True,
                        help="facts a million tokens back, too")
    parser.add_argument("--answers-far", action="store_true",
                        help="answers a million tokens back, too: siltd reads 3 million tokens")
    parser.add_argument("--siltd", default="", help="more options of siltd, as one word")
    parser.add_argument("--at-once", type=int, default=4, help="questions")
    parser.add_argument("--seconds", type=float, default=1e6,
                        help="after so many no more is read or asked of siltd")
    parser.add_argument("--qmsum", type=pathlib.Path, help="JSON lines of meetings with spans")
    parser.add_argument("--meetings", type=int, default=35)
    parser.add_argument("--json", type=pathlib.Path)
    options = parser.parse_args()
    seeds = [int(seed) for seed in options.seed.split(",")]
    results = {"hits": [], "answers": [], "qmsum": []}
    for seed in seeds:
        one = argparse.Namespace(**dict(vars(options), seed=seed))
        if len(seeds) > 1:
            one.data = options.data / f"seed-{seed}"
        one.qmsum = options.qmsum if seed == seeds[0] else None
        for name, rows in figures_of(one).items():
            results[name] += rows
    if results["hits"]:
        print_hits(results["hits"])
    if results["qmsum"]:
        rows = results["qmsum"]
        print(f"{'QMSum, marked spans':34}{len(rows):6}" + "".join(
            f"{100 * share(r[s] for r in rows):7.1f}%" for s in SIGNALS))
    if not any(results.values()):
        sys.exit("nothing was looked for or asked")
    answers.print_answers(results["answers"])
    if options.json:
        options.json.write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
