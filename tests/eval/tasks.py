#!/usr/bin/env python3
"""Few-shot classification and users' own folders, from examples that a stream was fed.

    tests/eval/tasks.py EVALSET [--runs FOLDER] [--device cuda] [-- options of silt-eval]

The C engine reads each stream once (4,096 tokens; the examples end 1,024 before its end) and is
asked behind it; an answer is the likeliest of the labels.  EVALSET is what
stream/retrofit/evalset.py has made: task_NAME.jsonl.  Full context, the base model with all of the
stream before the question, is the most that can be had; `none` is full context over streams with no
example.  Silt's memory is asked in FORMS: the ring alone, with the segments that silt's search
finds, and with found text before the question; `auto` is what siltd does.  "raw" goes on with the
text, others are turns, and "mark" begins the answer with the question's last line.

KV rows are counted as the question's own words see them: of the memory, recalled segments, and what
stands before and around those words.  The search is siltd's and is told nothing of the examples.
What is in the runs folder already is not run again.
"""
import collections
import concurrent.futures
import csv
import json
import math
import os
import pathlib
import re
import subprocess
import sys
import tempfile
import time

import grid
import forms
import questions

ROOT = grid.ROOT
CHUNK, COMP = questions.CHUNK, 16
SETS = ("banking77", "clinc150", "banking77_folders", "clinc150_folders")
SHOTS = (16, 4, 1, 0)
USE = forms.USE
ROOM = 880      # bytes of found text: with it the memory stays under a fifth of full's rows


def words_of(text):
    """In lower case, as the search cuts them."""
    return re.findall(rb"[0-9a-z\x80-\xff]+", re.sub(rb"[A-Z]", lambda c: c[0].lower(),
                                                     text.encode()))


def question_words(question):
    """Those that ask for something."""
    source = (ROOT / "daemon/search_query.c").read_text(encoding="utf-8")
    common = source.split("stop_words[] = {")[1].split("};")[0]
    stop = {word.encode() for word in re.findall(r'"(\w+)"', common)}
    words = list(dict.fromkeys(words_of(question)))
    return ([word for word in words if word not in stop and (len(word) > 1 or word.isdigit())] or
            words)[:32]


def joined(numbers, tokens, vocabulary):
    """Texts of chunks; those that follow each other are one."""
    parts = []
    for number in sorted(numbers):
        if parts and parts[-1][1] == number:
            parts[-1][1] += 1
        else:
            parts.append([number, number + 1])
    return [vocabulary.text(tokens[low * CHUNK:high * CHUNK]) for low, high in parts]


def entries(texts, question, room=ROOM, most=99):
    """Paragraphs of the texts that are of the question's own form: a line of theirs goes on where
    its last line, an open one, ends.  Those most like it, best last: by the words they share with
    it, each by how few of them have it."""
    mark, found = question.split("\n")[-1], []
    if not mark or mark[-1] not in ":>=|-":
        return []
    for text in texts:
        for part in re.split(r"\n\s*\n", text):
            if any(line.startswith(mark) and line[len(mark):].strip()
                   for line in part.strip().split("\n")) and part.strip() not in found:
                found.append(part.strip())
    words = [set(words_of(part)) for part in found]
    weights = {word: math.log((len(found) + 1) / (0.5 + sum(word in some for some in words)))
               for word in question_words(question)}
    scores = [sum(weights[word] for word in weights if word in some) / math.sqrt(len(some) + 1)
              for some in words]
    taken = []
    for place in sorted(range(len(found)), key=lambda place: (-scores[place], place))[:most]:
        room -= len(found[place].encode()) + 2
        if room < 0:
            break
        taken.append(found[place])
    return taken[::-1]


# Forms: (item, found, question, vocabulary) -> what stands before the question and behind it.

def auto_form(item, found, question, vocabulary):
    """siltd's own: a question that goes on a list stands behind its entries, raw; any other in a
    turn, in front of which text may be read again (put)."""
    if found["entries"]:
        return found["entries"] + question
    return siltd_form(forms.SHIPPED)(item, found, question, vocabulary)


def siltd_form(name):
    def form(item, found, question, vocabulary):
        return forms.prompt(forms.FORMS[name], question, found, item["tokens"], vocabulary)
    return form


def chunk_form(count, head=USE, ask="Question: "):
    def form(item, found, question, vocabulary):
        texts = [text.strip() for text in joined(found["all"][:count], item["tokens"], vocabulary)]
        return "\n\n".join([head] * bool(head) + texts + [ask + question])
    return form


def entry_form(most=99, head="", ask="", best_last=True):
    def form(item, found, question, vocabulary):
        texts = entries(joined(found["all"], item["tokens"], vocabulary), question, most=most)
        texts = texts if best_last else texts[::-1]
        return "\n\n".join([head] * bool(head and texts) + texts +
                           [(ask if texts else "") + question])
    return form


# name: (raw, whether the answer repeats the question's last line, form); auto is siltd's, and most
# others are what it was chosen from.
FORMS = {
    "auto": (False, False, auto_form),
    "raw": (True, False, None),
    "turn": (False, False, None),
    "turn, mark": (False, True, None),
    "raw segments": (True, False, None),
    "siltd": (False, False, siltd_form("line")),
    "siltd, mark": (False, True, siltd_form("line")),
    "window 256": (False, False, siltd_form("window 256, once")),
    "window 256, mark": (False, True, siltd_form("window 256, once")),
    "entries": (False, False, entry_form()),
    "entries, mark": (False, True, entry_form()),
    "entries, use": (False, False, entry_form(head=USE, ask="Question: ")),
    "entries, use, mark": (False, True, entry_form(head=USE, ask="Question: ")),
    "entries, head, mark": (False, True, entry_form(head=USE)),
    "entries 4, mark": (False, True, entry_form(4)),
    "entries 4, use": (False, False, entry_form(4, head=USE, ask="Question: ")),
    "entries 4, use, mark": (False, True, entry_form(4, head=USE, ask="Question: ")),
    "raw 1 chunk": (True, False, chunk_form(1, "", "")),
    "raw entries": (True, False, entry_form()),
    "raw entries, first": (True, False, entry_form(best_last=False)),
    "raw entries 1": (True, False, entry_form(1)),
    "raw entries 2": (True, False, entry_form(2)),
    "raw entries 4": (True, False, entry_form(4)),
    "raw entries 8": (True, False, entry_form(8)),
}
ASKED = ("raw", "turn", "turn, mark", "raw segments", "siltd, mark", "auto")


def bare_of(form):
    """The form without found text, beside which a form's rows are counted."""
    return "raw" if FORMS[form][0] or form == "auto" else "turn"


def with_bare(names):
    """Forms as they are asked: what their rows are counted beside is among them."""
    unknown = [form for form in names if form not in FORMS]
    if unknown:
        sys.exit(f"--forms: {unknown[0]} is none of {'; '.join(FORMS)}")
    return list(dict.fromkeys([*map(bare_of, names), *names]))


def find(arguments, item):
    """As questions.find, for all of a stream's questions."""
    chunks = len(item["tokens"]) // CHUNK
    cold = questions.cold_chunks(item)
    asked = [text.strip().replace("\n", "\f") for text in item["asked"]]
    with tempfile.TemporaryDirectory(prefix="silt-tasks-") as folder:
        text = pathlib.Path(folder) / "text"
        text.write_text(item["text"], encoding="utf-8")
        done = subprocess.run(
            [ROOT / "build/tests/eval-find", arguments.model, arguments.adapter, text,
             pathlib.Path(folder) / "journal"], capture_output=True, check=True,
            input="".join(f"{cold}\t{question}\n{chunks - 1}\t{question}\n"
                          for question in asked).encode())
    lines = [line.split("\t") for line in done.stdout.decode(errors="replace").split("\n")[:-1]]
    return [{"cold": [int(chunk) for chunk in old[2].split()][:questions.RECALL_MAX],
             "all": [int(chunk) for chunk in new[2].split()][:questions.RECALL_MAX],
             "excerpt": new[3], "about": new[4] == "1", "entries": new[5].replace("\f", "\n")}
            for old, new in zip(lines[::2], lines[1::2])]


def load(arguments, name):
    """Streams of a set and what their questions find."""
    items = questions.read_items(arguments.set / f"task_{name}.jsonl", arguments)
    items = [item for item in items if item["examples"] in arguments.shots and
             int(item["id"].split()[-1]) < arguments.episodes]
    items.sort(key=lambda item: arguments.shots.index(item["examples"]))
    path = arguments.runs / f"found-{name}.json"
    found = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    rest = [item for item in items if item["id"] not in found]
    if rest:
        print(f"{name}: looking behind {len(rest)} streams", flush=True)
        with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
            for item, hits in zip(rest, pool.map(lambda item: find(arguments, item), rest)):
                found[item["id"]] = hits
        path.write_text(json.dumps(found), encoding="utf-8")
    return items, found


def put(item, found, name, place, vocabulary):
    """A question as silt-eval --choose reads it."""
    asked, hits = item["asked"][place], found[place]
    raw, marked, form = FORMS[name]
    raw = raw or (name == "auto" and bool(hits["entries"]))
    bare = asked.strip()
    text = form(item, hits, bare, vocabulary) if form else bare
    line = {"question": "\n\n" + text if raw else text, "raw": raw,
            "choices": item["choices"] if raw else
            [bare.split("\n")[-1] + choice if marked else choice.strip() + "\n"
             for choice in item["choices"]]}
    if name.endswith("segments"):
        line["recall"] = sorted(hits["cold"])
    elif form:
        line["recall"] = sorted(chunk for chunk in hits["all"]
                                if chunk < questions.cold_chunks(item))
    if name == "auto" and not raw:
        line["before"] = forms.before(forms.FORMS[forms.SHIPPED], hits, item["tokens"], vocabulary)
    return line


def names_of(policy, arguments):
    bare = [name for name in arguments.forms if not FORMS[name][2] and "segments" not in name]
    return bare if policy == "full" else arguments.forms


def lines_for(items, found, names, vocabulary):
    for item in items:
        yield json.dumps({"id": item["id"], "tokens": item["tokens"], "questions": [
            put(item, found[item["id"]], name, place, vocabulary)
            for name in names for place in range(len(item["asked"]))]}) + "\n"


def run(arguments, name, items, found, vocabulary, policy, ratio):
    """One run of silt-eval: a set, by full context or by silt's memory at a ratio."""
    key = f"tasks {name} {policy}" + (f" {ratio}x" if ratio else "")
    path = arguments.runs / f"{key}.json"
    if path.exists():
        return
    begun, names = time.time(), names_of(policy, arguments)
    with tempfile.NamedTemporaryFile("w", suffix=".jsonl") as file:
        file.writelines(lines_for(items, found, names, vocabulary))
        file.flush()
        command = [arguments.program, "--text", file.name, "--choose", "--json", "--policy", policy,
                   "--device", arguments.device, "--model", arguments.model, "--adapter",
                   arguments.adapter, *(["--dmc", ratio] if ratio else []), *arguments.more]
        with open(f"{path}.part", "wb") as out:
            out.write((json.dumps({"forms": names}) + "\n").encode())
            out.flush()
            done = subprocess.run(list(map(str, command)), stdout=out, stderr=subprocess.PIPE,
                                  check=False)
    if done.returncode:
        sys.exit(done.stderr.decode())
    with open(f"{path}.part", "rb") as file:
        answered = sum(1 for _ in file) - 1
    if answered != len(items):
        sys.exit(f"silt-eval answered behind {answered} of {len(items)} streams")
    os.replace(f"{path}.part", path)
    print(f"{key}: {time.time() - begun:.0f} s", flush=True)


Cell = collections.namedtuple("Cell", "right asked rows most")


def read(arguments, name, items, policy, ratio):
    """{(form, examples): Cell}; rows are those before the question's own words."""
    key = f"tasks {name} {policy}" + (f" {ratio}x" if ratio else "")
    path = arguments.runs / f"{key}.json"
    path = path if path.exists() else pathlib.Path(f"{path}.part")
    if not path.exists():
        return {}
    head, *lines = path.read_text(encoding="utf-8").split("\n")
    names, by_id = json.loads(head)["forms"], {item["id"]: item for item in items}
    found = {}
    for line in lines[:-1]:
        line = json.loads(line)
        item = by_id.get(line["document"])
        if not item:
            continue
        count = len(item["asked"])
        told = {form: line["questions"][at * count:(at + 1) * count]
                for at, form in enumerate(names)}
        for form, replies in told.items():
            for reply, alone, right in zip(replies, told[bare_of(form)], item["right"]):
                rows = reply["kv_rows"] + COMP * reply["recalled"] + \
                    reply["tokens"] - alone["tokens"]
                best = reply["losses"].index(min(reply["losses"]))
                found.setdefault((form, item["examples"]), []).append((best == right, rows))
    return {key: Cell(sum(right for right, _ in entries), len(entries),
                      sum(rows for _, rows in entries) / len(entries),
                      max(rows for _, rows in entries)) for key, entries in found.items()}


def share(value, none, full):
    return f"{100 * (value - none) / (full - none):.0f} %" if full > none else "-"


def write(arguments, streams):
    lines, rows = [], []
    for name, items in streams.items():
        full = read(arguments, name, items, "full", "")
        told = {("full", form): cells for form in FORMS
                for cells in [{shots: cell for (which, shots), cell in full.items()
                               if which == form}] if cells}
        for ratio in arguments.dmc:
            found = read(arguments, name, items, "ccm", ratio)
            for form in FORMS:
                cells = {shots: cell for (which, shots), cell in found.items() if which == form}
                if cells:
                    told[f"{ratio}x", form] = cells
        for (memory, form), cells in told.items():
            line = [name, memory, form]
            for shots in sorted(arguments.shots):
                cell = cells.get(shots)
                if not cell:
                    line.append("")
                    continue
                right = 100 * cell.right / cell.asked
                best, none = full.get(("raw", shots)), full.get(("raw", 0))
                way = share(right, 100 * none.right / none.asked, 100 * best.right / best.asked) \
                    if shots and best and none else ""
                line.append(f"{right:.1f}" + f" ({way})" * bool(way))
                rows.append([name, memory, form, shots, cell.asked, f"{right:.2f}",
                             way.replace(" %", ""), f"{cell.rows:.1f}", f"{cell.most:.0f}"])
            most = max(cell.most for cell in cells.values())
            line.append(f"{sum(cell.rows for cell in cells.values()) / len(cells):.0f}, "
                        f"at most {most:.0f}")
            lines.append(line)
    grid.print_table(["set", "memory", "asked", *(f"{shots} examples" for shots in
                                                  sorted(arguments.shots)), "KV rows"], lines)
    with open(arguments.results / "tasks-engine.csv", "w", newline="", encoding="utf-8") as file:
        file.write(f"# {grid.machine_name()}, commit {grid.commit_name()}, tests/eval/tasks.py "
                   f"EVALSET (silt-eval --choose --device {arguments.device}, adapter "
                   f"{arguments.adapter.name}); accuracy and way to full in %, KV rows before the "
                   f"question\n")
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["set", "memory", "asked as", "examples", "questions", "accuracy",
                         "way from none to full", "KV rows, mean", "KV rows, most"])
        writer.writerows(rows)


def main(words=None):
    parser = questions.options(__doc__, dmc="1,4,2,8")
    parser.add_argument("--sets", default=",".join(SETS))
    parser.add_argument("--shots", default=",".join(map(str, SHOTS)))
    parser.add_argument("--forms", default=";".join(ASKED))
    parser.add_argument("--episodes", type=int, default=99)
    parser.add_argument("--no-full", action="store_true")
    parser.add_argument("--find-only", action="store_true")
    parser.add_argument("--read-only", action="store_true")
    arguments = questions.parse(parser, words)
    arguments.dmc = [ratio for ratio in arguments.dmc.split(",") if ratio]
    arguments.shots = [int(shots) for shots in arguments.shots.split(",")]
    arguments.forms = with_bare(arguments.forms.split(";"))
    arguments.results.mkdir(parents=True, exist_ok=True)
    if not arguments.read_only:
        grid.keep_settings(arguments.runs / "settings of tasks", {
            "set": str(arguments.set.resolve()), "model": grid.file_sum(arguments.model),
            "adapter": grid.file_sum(arguments.adapter), "device": arguments.device,
            "shots": arguments.shots, "forms": arguments.forms, "episodes": arguments.episodes,
            "options": arguments.more})
    vocabulary, streams = forms.Vocabulary(arguments.model), {}
    for name in arguments.sets.split(","):
        items, found = load(arguments, name)
        streams[name] = items
        if arguments.find_only or arguments.read_only:
            continue
        if not arguments.no_full:
            run(arguments, name, items, found, vocabulary, "full", "")
        for ratio in arguments.dmc:
            run(arguments, name, items, found, vocabulary, "ccm", ratio)
    if not arguments.find_only:
        write(arguments, streams)
    return 0


if __name__ == "__main__":
    sys.exit(main())
