"""What evaluate.py measures on, as small token arrays: text goes in here, once, and no further.

    python3 evalset.py --model BASE.gguf --text DEV [--sets SETS [--train TRAIN]] --out EVALSET

DEV holds KIND.jsonl[.xz|.zst]; SETS, for the in-context tasks, the files of two open sets (README);
TRAIN, for those that forms are chosen on, the text of training.
EVALSET gets KIND.npy [streams, tokens], long.npy [tokens], questions.npz, task_NAME.npz, and as text
(and tokens) for the C engine questions-passage.jsonl, questions-none.jsonl and task_NAME.jsonl.
"""
import argparse
import csv
import json
import os

import numpy as np

import data
import labels

CHUNK = 256
STREAMS = {"dialogue": 24576, "meeting": 24576, "log": 24576, "mixed": 24576, "book": 65536}
QUICK = (2, 16384)      # streams of tests/eval/quality.py, which runs the engine on the same text
MIXED_PIECE = 3000      # tokens of one log before another vendor's goes on
LONG_TOKENS = 1 << 20
QUESTION_TOKENS = 31 * CHUNK    # a stream before its question, which then fits 8,192
TASK_TOKENS = 16 * CHUNK
SHOTS = (0, 1, 4, 16)
FOLDERS = ("red", "blue", "green", "black")     # a user's own names: nothing to guess them by


def joined(tokenizer, texts, tokens=None):
    """Texts strung together by blank lines, as silt-eval --join does."""
    if tokens:
        size, kept = 0, []
        for text in texts:
            kept.append(text)
            size += len(text)
            if size > 8 * tokens:
                break
        texts = kept
    return tokenizer.encode("\n\n".join(texts))


def kind_streams(tokenizer, folder, kind, tokens, count, spread=False):
    """The first `count` streams of the joined documents, or `count` places spread evenly; fewer
    where there is less text, none [0, tokens] where it is shorter than one."""
    ids = joined(tokenizer, [item["text"] for item in data.documents_of(folder, kind)],
                 None if spread else tokens * count)
    count = min(count, len(ids) // tokens)
    starts = [i * tokens for i in range(count)]
    if spread:
        starts = [int(place) for place in np.linspace(0, len(ids) - tokens, count)]
    return np.array([ids[start:start + tokens] for start in starts], tokenizer.kind).reshape(
        count, tokens)


def vendor(document):
    return document["source"] + "/" + document.get("id", "").split("/")[0].split(".")[0]


def mixed_streams(tokenizer, folder, tokens, count):
    """Logs of different vendors in turn, a few thousand tokens each: what one machine's log of many
    programs is like, and a stream whose memory is not another's."""
    groups = {}
    for document in data.documents_of(folder, "log"):
        groups.setdefault(vendor(document), []).append(tokenizer.encode(document["text"]))
    pieces = []
    for name in sorted(groups):
        ids = np.concatenate(groups[name])
        pieces.append([ids[at:at + MIXED_PIECE] for at in range(0, len(ids), MIXED_PIECE)])
    turns = [part[i] for i in range(max(map(len, pieces), default=0)) for part in pieces
             if i < len(part)]
    ids = np.concatenate(turns or [[]]).astype(tokenizer.kind)
    count = min(count, len(ids) // tokens)
    return ids[:count * tokens].reshape(count, tokens)


def long_stream(tokenizer, folder, tokens):
    """Documents of all kinds in turn until there are tokens enough."""
    names = ("book", "dialogue", "meeting", "log", "longqa_qmsum_val", "agent")
    queues = [[item["text"] for item in data.documents_of(folder, name)] for name in names]
    parts, size = [], 0
    while size < tokens and any(queues):
        for queue in queues:
            if queue:
                text = queue[0][:120000]        # a book's next part waits for its next turn
                queue[0] = queue[0][120000:]
                if not queue[0]:
                    queue.pop(0)
                parts.append(tokenizer.encode(text + "\n\n"))
                size += len(parts[-1])
    ids = np.concatenate(parts or [[]]).astype(tokenizer.kind)[:tokens]
    return ids[:len(ids) // CHUNK * CHUNK]


# Questions about a passage some thousand tokens back.

def question_tail(tokenizer, question):
    return tokenizer.start + tokenizer.role("user") + tokenizer.encode(question).tolist() \
        + tokenizer.end + tokenizer.encode("\n").tolist() + tokenizer.start \
        + tokenizer.role("assistant")


def questions(tokenizer, folder, counts, seed=1):
    """streams [Q, 2, tokens]: with the passage and with other text in its place; a list of
    dicts with source, tail and answer ids, the answer's text, and the distance."""
    random = np.random.RandomState(seed)
    filler = np.concatenate([
        joined(tokenizer, [item["text"] for item in data.documents_of(folder, kind)],
               60000)[:60000] for kind in ("book", "dialogue")])
    streams, items = [], []
    for name, count, longest in (("qa", counts[0], 40), ("longqa_qmsum_val", counts[1], 100)):
        found = [(document["source"],) + item for document in data.documents_of(folder, name)
                 for item in data.question_items(document)]
        random.shuffle(found)
        for source, passage, question, answer in found if len(filler) > QUESTION_TOKENS else ():
            if count == 0:
                break
            passage, gold = tokenizer.encode(passage), tokenizer.encode(answer)
            tail = question_tail(tokenizer, question)
            gap = random.randint(1000, 6001)
            at = QUESTION_TOKENS - gap - len(passage)
            if not 0 < len(gold) <= longest or len(passage) > 1200 or len(tail) > 150 or at < 0:
                continue
            start = random.randint(0, len(filler) - QUESTION_TOKENS)
            without = filler[start:start + QUESTION_TOKENS]
            with_passage = without.copy()
            with_passage[at:at + len(passage)] = passage
            streams.append(np.stack([with_passage, without]))
            items.append({"source": source, "question": question, "tail": tail,
                          "gold": gold.tolist(), "text": answer, "distance": gap})
            count -= 1
    return np.array(streams, tokenizer.kind), items


# Few-shot classification and users' own folders: examples come in a stream, other text follows.

def intent_sets(folder):
    """name -> {label: [texts]} from the files of CLINC150 and BANKING77."""
    sets = {}
    path = os.path.join(folder, "clinc150.json")
    if os.path.exists(path):
        groups = {}
        with open(path) as file:
            for text, label in json.load(file)["test"]:
                groups.setdefault(label.replace("_", " "), []).append(text)
        sets["clinc150"] = groups
    path = os.path.join(folder, "banking77.csv")
    if os.path.exists(path):
        groups = {}
        with open(path, newline="") as file:
            for row in csv.DictReader(file):
                groups.setdefault(row["category"].replace("_", " ").strip("?").lower(),
                                  []).append(row["text"].strip().replace("\n", " "))
        sets["banking77"] = groups
    return sets


def episodes(tokenizer, groups, own_names, filler, count, random):
    """Per episode: four labels, 16 examples in a balanced random order, four questions.  With
    own_names the labels are a user's folders: four intents each, names that say nothing."""
    names = [name for name in sorted(groups) if len(groups[name]) >= 12]
    streams, items = [], []
    for episode in range(count):
        picked = random.choice(len(names), 16 if own_names else 4, replace=False)
        by_label = {}
        for place, index in enumerate(picked):
            label = FOLDERS[place % 4] if own_names else names[index]
            texts = list(groups[names[index]])
            random.shuffle(texts)
            by_label.setdefault(label, []).extend(texts[:5 if own_names else 12])
        labels = list(by_label)
        for texts in by_label.values():
            random.shuffle(texts)
        head, mark = ("Message: ", "\nFolder:") if own_names else ("Text: ", "\nIntent:")
        shots = [(by_label[label].pop(), label) for _ in range(4) for label in
                 [labels[i] for i in random.permutation(4)]]
        asked = [(by_label[label].pop(), label) for label in labels]
        start = random.randint(0, len(filler) - TASK_TOKENS)
        row = []
        for shot_count in SHOTS:
            text = "".join(head + text + mark + " " + label + "\n\n"
                           for text, label in shots[:shot_count])
            ids = tokenizer.encode("\n\n" + text)
            # Examples end some thousand tokens before the stream does: none is in the window.
            at = TASK_TOKENS - 1024 - len(ids)
            line = filler[start:start + TASK_TOKENS].copy()
            line[at:at + len(ids)] = ids
            row.append(line)
        streams.append(np.stack(row))
        options = [tokenizer.encode(" " + label + "\n").tolist() for label in labels]
        items.append({"tails": [tokenizer.encode("\n\n" + head + text + mark).tolist()
                                for text, _ in asked],
                      "options": options, "gold": [labels.index(label) for _, label in asked]})
    return np.stack(streams), items


def tasks(tokenizer, text_folder, sets_folder, count, seed=2):
    random = np.random.RandomState(seed)
    filler = joined(tokenizer, [item["text"] for item in data.documents_of(text_folder, "dialogue")],
                    100000)[:100000]
    out = {}
    for name, groups in intent_sets(sets_folder).items():
        out[name] = episodes(tokenizer, groups, False, filler, count, random)
        out[name + ", user's folders"] = episodes(tokenizer, groups, True, filler, count, random)
    return out


def choosing_tasks(tokenizer, train_folder, sets_folder, count, seed=6):
    """Episodes that forms of what is put before a question are chosen on: other texts of CLINC150's
    labels, those texts in users' folders, and MedQuAD's questions by what they ask for."""
    random, texts, size, train = np.random.RandomState(seed), [], 0, {}
    for document in data.documents_of(train_folder, "dialogue"):
        if size <= 700000:
            texts.append(document["text"])
            size += len(document["text"])
    filler = joined(tokenizer, texts, 100000)[:100000]
    with open(os.path.join(sets_folder, "clinc150.json")) as file:
        for text, label in json.load(file)["train"]:
            train.setdefault(label.replace("_", " "), []).append(text)
    asked = {label: list(dict.fromkeys(texts))[:60] for label, texts in
             labels.medical(data.documents_of(train_folder, "qa"))}
    asked = {label: texts for label, texts in asked.items() if len(texts) >= 12}
    return {name: episodes(tokenizer, groups, own, filler, count, random) for name, groups, own in
            (("made_clinc", train, False), ("made_clinc, user's folders", train, True),
             ("made_med", asked, False))}


def task_lines(tokenizer, name, streams, items):
    """The same as text, for tests/eval/tasks.py: a line a stream, with what is asked behind it."""
    for episode, (rows, item) in enumerate(zip(streams, items)):
        for shots, row in zip(SHOTS, rows):
            yield json.dumps({
                "id": "%s, %d examples, episode %d" % (name, shots, episode), "examples": shots,
                "text": tokenizer.decode(row), "tokens": row.tolist(),
                "asked": [tokenizer.decode(tail) for tail in item["tails"]],
                "choices": [tokenizer.decode(option) for option in item["options"]],
                "right": item["gold"]}) + "\n"


def pack(path, streams, items):
    np.savez_compressed(path, streams=streams, items=np.array(json.dumps(items)))


def unpack(path):
    with np.load(path) as file:
        return file["streams"], json.loads(str(file["items"]))


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", required=True)
    parser.add_argument("--text", required=True)
    parser.add_argument("--sets", default="")
    parser.add_argument("--train", default="")
    parser.add_argument("--out", required=True)
    parser.add_argument("--streams", type=int, default=4)
    parser.add_argument("--questions", default="160,96", help="of qa and of meetings")
    parser.add_argument("--episodes", type=int, default=48)
    options = parser.parse_args()
    os.makedirs(options.out, exist_ok=True)
    tokenizer = data.Tokenizer(options.model)
    for kind, tokens in STREAMS.items():
        quick = None
        if kind == "mixed":
            streams = mixed_streams(tokenizer, options.text, tokens, options.streams)
        else:                   # what comes first in the logs is one project's: spread
            streams = kind_streams(tokenizer, options.text, kind, tokens, options.streams,
                                   kind == "log")
            quick = kind_streams(tokenizer, options.text, kind, QUICK[1], QUICK[0])
        for name, part in ((kind, streams), ("quick-" + kind, quick)):
            if part is not None and len(part):
                np.save(os.path.join(options.out, name + ".npy"), part)
        print("%-9s %s" % (kind, streams.shape if len(streams) else
                           "less text than a stream of %d tokens" % tokens), flush=True)
    ids = long_stream(tokenizer, options.text, LONG_TOKENS)
    if len(ids):
        np.save(os.path.join(options.out, "long.npy"), ids)
    print("long      %d tokens" % len(ids), flush=True)
    counts = [int(part) for part in options.questions.split(",")]
    streams, items = questions(tokenizer, options.text, counts)
    print("questions %s" % (streams.shape,), flush=True)
    if items:
        pack(os.path.join(options.out, "questions.npz"), streams, items)
    for which, name in enumerate(("passage", "none") if items else ()):     # for silt-eval --ask
        with open(os.path.join(options.out, "questions-%s.jsonl" % name), "w") as file:
            for line, item in zip(streams[:, which], items):
                file.write(json.dumps({
                    "id": "%s, %d tokens ago" % (item["source"], item["distance"]),
                    "text": tokenizer.decode(line), "tokens": line.tolist(),
                    "question": item["question"],
                    "answer": item["text"]}) + "\n")
    if options.sets:
        found = tasks(tokenizer, options.text, options.sets, options.episodes)
        if options.train:
            found.update(choosing_tasks(tokenizer, options.train, options.sets,
                                        options.episodes // 2))
        for name, (streams, items) in found.items():
            path = "task_%s.npz" % name.replace(", user's ", "_")
            pack(os.path.join(options.out, path), streams, items)
            with open(os.path.join(options.out, path[:-4] + ".jsonl"), "w") as file:
                file.writelines(task_lines(tokenizer, path[5:-4], streams, items))
            print("%s %s" % (path, streams.shape), flush=True)


if __name__ == "__main__":
    main()
