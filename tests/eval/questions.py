#!/usr/bin/env python3
"""Answers out of silt's memory to questions about a passage some thousand tokens back.

    tests/eval/questions.py EVALSET [--runs FOLDER] [--device cuda] [-- options of silt-eval]

The C engine is asked, behind the text, as siltd asks.  EVALSET is what stream/retrofit/evalset.py
has made: questions-passage.jsonl, whose streams hold the passage, and questions-none.jsonl, where
other text stands in its place.  Memories are

    none      neither ring nor summary
    ring      the ring alone
    segments  beside it, the segments that silt's search finds (--recall segments)
    auto      beside these, the found text before the question as siltd puts it (--recall auto)
    full      the base model with all of it in its context: the most that can be had

The search is siltd's, over each stream's text, and is told nothing of the passage.  What is in the
runs folder already is not run again.
"""
import argparse
import concurrent.futures
import csv
import json
import math
import os
import pathlib
import random
import subprocess
import sys
import tempfile
import time

import forms
import grid     # which knows where gguf is
import gguf
from forms import CHUNK

ROOT = grid.ROOT
RECALL_MAX, RING = 8, 15
MEMORIES = {"auto": "ccm", "ring": "ccm", "segments": "ccm", "full": "full", "none": "none"}
SHOWN = ("full", "none", "ring", "segments", "auto")
WHICH = ("passage", "none")
DISTANCES = (1000, 2200, 3500, 5000, 6001)
LONG = "qmsum"      # in the source of questions about meetings
KINDS = (("passages", False), ("meetings", True))   # by whether that is in it
ADAPTER = ROOT / "stream/adapters/smollm2-135m-instruct.gguf"


def cold_chunks(item):
    """How many chunks of the stream the ring has dropped."""
    return max(0, len(item["tokens"]) // CHUNK - item.get("ring", RING))


def read_items(path, arguments):
    """The lines of a set, with the ring that their streams are read with."""
    ring = gguf.Reader(str(arguments.adapter)).meta["silt.ring_segments"]
    if "--ring" in arguments.more:
        ring = int(arguments.more[arguments.more.index("--ring") + 1])
    return [dict(json.loads(line), ring=ring)
            for line in path.read_text(encoding="utf-8").splitlines()]


def find(arguments, item):
    """Chunks that silt's search finds among the cold ones, and among all but the newest, best
    first, with the passage that would stand before the question."""
    chunks, cold = len(item["tokens"]) // CHUNK, cold_chunks(item)
    question = " ".join(item["question"].split())
    with tempfile.TemporaryDirectory(prefix="silt-questions-") as folder:
        text = pathlib.Path(folder) / "text"
        text.write_text(item["text"], encoding="utf-8")
        done = subprocess.run(
            [ROOT / "build/tests/eval-find", arguments.model, arguments.adapter, text,
             pathlib.Path(folder) / "journal"], capture_output=True, check=True,
            input=f"{cold}\t{question}\n{chunks - 1}\t{question}\n".encode())
    parts = [line.split("\t") for line in done.stdout.decode(errors="replace").split("\n")[:2]]
    old, found = ([int(chunk) for chunk in part[2].split()][:RECALL_MAX] for part in parts)
    return {"cold": old, "all": found, "excerpt": parts[1][3], "about": parts[1][4] == "1"}


def find_all(arguments, name):
    """As find, of every question of a file, once."""
    items = read_items(arguments.set / f"questions-{name}.jsonl", arguments)
    path = arguments.runs / f"found-{name}.json"
    if path.exists():
        found = json.loads(path.read_text(encoding="utf-8"))
        if len(found) != len(items):
            sys.exit(f"{path} is of {len(found)} questions, the set has {len(items)}: remove it")
        return items, found
    print(f"looking for {len(items)} questions ({name})", flush=True)
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        found = list(pool.map(lambda item: find(arguments, item), items))
    path.write_text(json.dumps(found), encoding="utf-8")
    return items, found


def asked(vocabulary, item, found, memory, form=None):
    """What a line for silt-eval --ask says beside the stream."""
    line = {"id": item["id"], "question": item["question"], "answer": item["answer"]}
    if memory == "segments":
        line["recall"] = sorted(found["cold"])
    if memory == "auto":
        put = (forms.FORMS[form], found, item["tokens"], vocabulary)
        line.update(recall=sorted(chunk for chunk in found["all"] if chunk < cold_chunks(item)),
                    question=forms.prompt(put[0], item["question"], *put[1:]),
                    before=forms.before(*put))
    return line


def print_hits(items, others, found):
    """How often the passage is found: it is where the streams with it and without differ."""
    among = first = 0
    for item, other, hits in zip(items, others, found):
        differ = [i for i, (a, b) in enumerate(zip(item["tokens"], other["tokens"])) if a != b]
        places = [differ[0] // CHUNK <= chunk <= differ[-1] // CHUNK for chunk in hits["all"]]
        among += any(places)
        first += places[:1] == [True]
    print(f"{len(items)} passages: a chunk of it among the {RECALL_MAX} found {among} times, "
          f"the first of them {first} times\n", flush=True)


def run_name(memory, form=None):
    return memory if form in (None, forms.SHIPPED) else f"{memory}, {form}"


def run_path(arguments, one, name):
    return arguments.runs / f"ask {run_name(*one)} {name}.json"


def run(arguments, runs, name, items, found):
    """runs: (memory, form) of one policy; a stream is read once and asked for each."""
    begun = time.time()
    with tempfile.NamedTemporaryFile("w", suffix=".jsonl") as file:
        for item, place in zip(items, found):
            stream = {"tokens": item["tokens"]}
            for memory, form in runs:
                line = asked(arguments.vocabulary, item, place, memory, form)
                file.write(json.dumps(line | stream) + "\n")
                stream = {"again": True}
        file.flush()
        command = [arguments.program, "--text", file.name, "--ask", "--json", "--policy",
                   MEMORIES[runs[0][0]], "--dmc", arguments.dmc, "--device", arguments.device,
                   "--model", arguments.model, "--adapter", arguments.adapter, *arguments.more]
        done = subprocess.run(list(map(str, command)), capture_output=True, check=False)
    if done.returncode:
        sys.exit(done.stderr.decode())
    answers = done.stdout.splitlines()[:-1]
    if len(answers) != len(items) * len(runs):
        sys.exit(f"silt-eval answered {len(answers)} of {len(items) * len(runs)} questions")
    for i, one in enumerate(runs):
        mine = answers[i::len(runs)]
        path = run_path(arguments, one, name)
        with open(f"{path}.part", "wb") as file:
            file.write(b"".join(line + b"\n" for line in mine))
        os.replace(f"{path}.part", path)
        loss = sum(json.loads(line)["answer_nll"] for line in mine) / len(mine)
        print(f"{run_name(*one):24} {name:8} {loss:.4f}", flush=True)
    print(f"{time.time() - begun:.0f} s", flush=True)


def run_all(arguments, found):
    """What is not there yet, as many of one policy at once as arguments.at_once says."""
    picked = pick([item["id"] for item in found["none"][0]], arguments.each)
    runs = [(memory, form) for memory in arguments.memories.split(",")
            for form in (arguments.forms if memory == "auto" else [None])]
    while runs:
        some = [one for one in runs if MEMORIES[one[0]] == MEMORIES[runs[0][0]]]
        some = some[:1 if some[0][0] == "full" else arguments.at_once]
        runs = [one for one in runs if one not in some]
        for name in WHICH:
            items, places = found[name]
            rest = [one for one in some if not run_path(arguments, one, name).exists()]
            if rest:
                run(arguments, rest, name, [items[i] for i in picked],
                    [places[i] for i in picked])


def read(arguments):
    """{memory: [(without, with)]} of the questions' answers, where both were run."""
    out = {}
    more = [("auto", form) for form in arguments.forms if form != forms.SHIPPED]
    for one in [(memory,) for memory in SHOWN] + more:
        paths = [run_path(arguments, one, name) for name in ("none", "passage")]
        if all(path.exists() for path in paths):
            pair = [[json.loads(line) for line in path.read_text().splitlines()]
                    for path in paths]
            ids = [[line["document"] for line in lines] for lines in pair]
            if ids[0] != ids[1] or ids[0] != out.setdefault("ids", ids[0]):
                sys.exit(f"{paths[1]}: not the questions of the others: name another --runs")
            out[run_name(*one)] = list(zip(*pair))
    out.pop("ids", None)
    return out


def groups(ids):
    """(name, distance, places) of the questions by kind and by how far back the passage lies."""
    for kind, words in KINDS:
        for low, high in zip(DISTANCES, DISTANCES[1:]):
            places = [i for i, name in enumerate(ids) if (LONG in name) == words
                      and low <= distance_of(name) < high]
            if places:
                yield kind, f"{low:,}-{high // 100 * 100:,}", places
        places = [i for i, name in enumerate(ids) if (LONG in name) == words]
        if places:
            yield kind, "all", places
    yield "all", "all", list(range(len(ids)))


def distance_of(name):
    """Of "qmsum, 2187 tokens ago"."""
    return int(name.replace(",", "").split()[1])


def pick(ids, each):
    """Places of `each` questions of every group, drawn five at a time, so that more hold the fewer;
    0: all of them."""
    cells, picked = {}, []
    for i, name in enumerate(ids):
        distance = sum(distance_of(name) >= low for low in DISTANCES)
        cells.setdefault((LONG in name, distance), []).append(i)
    while len(picked) < each * len(cells):
        chance = random.Random(4)
        rest = [[i for i in cell if i not in picked] for cell in cells.values()]
        some = [i for cell in rest for i in chance.sample(cell, min(5, len(cell)))]
        if not some:
            break
        picked += some
    return sorted(picked) if each else list(range(len(ids)))


def figures(pairs, places):
    """Loss without and with the passage, its gain and that's standard error; exact, F1 with it."""
    n = len(places)
    low, high = ([pairs[i][side]["answer_nll"] for i in places] for side in (0, 1))
    gains = [a - b for a, b in zip(low, high)]
    mean = sum(gains) / n
    error = (sum((gain - mean) ** 2 for gain in gains) / max(n - 1, 1) / n) ** 0.5
    said = [100 * sum(pairs[i][side].get(name, math.nan) for i in places) / n
            for name in ("exact", "f1") for side in (0, 1)]
    return [sum(low) / n, sum(high) / n, mean, error, *said]


def write(arguments):
    found = read(arguments)
    if not found:
        return
    told, rows, lines = {}, [], []
    for memory, pairs in found.items():
        for kind, distance, places in groups([pair[0]["document"] for pair in pairs]):
            told.setdefault((kind, distance), {})[memory] = (len(places), figures(pairs, places))
    for (kind, distance), entry in told.items():
        full = entry.get("full", (0, None))[1]
        for memory, (count, values) in entry.items():
            says = [f"{value:.1f}" if memory != "full" else "" for value in values[4:]]
            rows.append([kind, distance, count, memory, *(f"{value:.4f}" for value in values[:4]),
                         *says])
            lines.append([kind, distance, count, memory, f"{values[0]:.3f} / {values[1]:.3f}",
                          f"{values[2]:.3f} ± {values[3]:.3f}",
                          grid.share(values[2], full[2]) if full else "",
                          grid.share(full[0] - values[1], full[0] - full[1]) if full else "",
                          " / ".join(says[:2]), " / ".join(says[2:])])
    grid.print_table(["questions", "tokens back", "of them", "memory", "loss without / with",
                      "gain", "of full's", "way to full", "exact % without / with",
                      "F1 % without / with"], lines)
    with open(arguments.results / "answers-engine.csv", "w", newline="", encoding="utf-8") as file:
        file.write(f"# {grid.machine_name()}, commit {grid.commit_name()}, tests/eval/questions.py "
                   f"EVALSET (silt-eval --ask --device {arguments.device} --dmc {arguments.dmc}, "
                   f"adapter {arguments.adapter.name}); nats a token of the answer\n")
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["questions", "tokens back", "of them", "memory",
                         "loss without the passage", "with it", "gain", "standard error",
                         "exact % without", "exact % with", "F1 % without", "F1 % with"])
        writer.writerows(rows)


def options(text, dmc):
    """What all that asks silt-eval takes."""
    parser = argparse.ArgumentParser(description=text.split("\n")[0])
    parser.add_argument("set", type=pathlib.Path)
    parser.add_argument("--runs", type=pathlib.Path, default=ROOT / "build/quality/grid")
    parser.add_argument("--results", type=pathlib.Path, default=ROOT / "tests/eval/results")
    parser.add_argument("--program", type=pathlib.Path, default=ROOT / "build/silt-eval")
    parser.add_argument("--model", type=pathlib.Path, default=grid.MODEL)
    parser.add_argument("--adapter", type=pathlib.Path, default=ADAPTER)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--dmc", default=dmc)
    return parser


def parse(parser, words):
    """Options, and in .more those of silt-eval; the folders are there."""
    words = sys.argv[1:] if words is None else words
    cut = words.index("--") if "--" in words else len(words)
    arguments = parser.parse_args(words[:cut])
    arguments.more = words[cut + 1:]
    arguments.runs.mkdir(parents=True, exist_ok=True)
    arguments.results.mkdir(parents=True, exist_ok=True)
    return arguments


def main(words=None):
    parser = options(__doc__, dmc="1")
    parser.add_argument("--each", type=int, default=0,
                        help="so many questions of each kind and distance; 0: all")
    parser.add_argument("--at-once", type=int, default=8,
                        help="memories and forms that ask a stream which is read once")
    parser.add_argument("--memories", default=",".join(MEMORIES))
    parser.add_argument("--forms", default=forms.SHIPPED,
                        help=f"of auto, with ; between them: {'; '.join(forms.FORMS)}")
    arguments = parse(parser, words)
    arguments.forms = arguments.forms.split(";")
    arguments.vocabulary = forms.Vocabulary(arguments.model)
    grid.keep_settings(arguments.runs / "settings of questions", {
        "set": str(arguments.set.resolve()), "model": grid.file_sum(arguments.model),
        "adapter": grid.file_sum(arguments.adapter), "device": arguments.device,
        "dmc": arguments.dmc, "questions of each kind": arguments.each,
        "options": arguments.more})
    found = {name: find_all(arguments, name) for name in WHICH}
    print_hits(found["passage"][0], found["none"][0], found["passage"][1])
    run_all(arguments, found)
    write(arguments)
    return 0


if __name__ == "__main__":
    sys.exit(main())
