"""Answers and in-context tasks from memory alone, against full context: issue points 5 and 7.

Every stream is read once by each kind of memory; questions then run in forks behind it.
"""
import re
import string

import numpy as np
import torch
import torch.nn.functional as F

import fork as fork_file


def view_of(evaluator, tokens, memory, recalled=None):
    """memory: 0 is the base model with everything in context, else the DMC ratio."""
    return fork_file.read_full(evaluator.base, tokens) if memory == 0 \
        else fork_file.read_memory(evaluator, tokens, memory, recalled)


def oracle(streams, n, ring, count, seed=3):
    """streams [Q, 2, N]: with a passage, without -> for every question `count` of the segments that
    have left the ring (fewer if there are not so many and one): as many of the passage's as lie
    there, the newest first, and any others, all oldest first."""
    random, found = np.random.RandomState(seed), []
    cold = streams.shape[2] // n - ring
    for one in streams:
        own = np.unique(np.flatnonzero(one[0] != one[1]) // n)
        own = own[own < cold][::-1][:count]
        others = np.setdiff1d(random.permutation(cold), own, assume_unique=True)
        room = max(0, min(count, cold - 1) - len(own))
        found.append(sorted([*own, *others[:room]]))
    return found


def log_probabilities(base, hidden):
    return F.log_softmax((hidden @ base.head.t()).float(), -1)


@torch.no_grad()
def ask(evaluator, view, items, length_max):
    """-> the answers' losses (mean over their tokens) and what greedy decoding says, as ids."""
    base, device = evaluator.base, evaluator.device
    ids, real = fork_file.padded([item["tail"] for item in items], device, left=True)
    size = real.sum(1)
    places = (torch.arange(ids.shape[1], device=device) - ids.shape[1] + size[:, None]).clamp(min=0)
    asked = fork_file.Fork(base, view)
    last = asked.feed(ids, places, fork_file.causal(real))[:, -1:]
    gold, gold_real = fork_file.padded([item["gold"] for item in items], device)
    scored = asked.copy()
    order = torch.arange(gold.shape[1], device=device)
    hidden = scored.feed(gold, size[:, None] + order, fork_file.causal(gold_real, real))
    states = torch.cat([last, hidden[:, :-1]], 1)
    nll = -log_probabilities(base, states).gather(2, gold[..., None])[..., 0]
    losses = ((nll * gold_real).sum(1) / gold_real.sum(1)).tolist()
    said, seen, ended = [], real, torch.zeros(len(items), dtype=torch.bool, device=device)
    for step in range(length_max):
        word = (last[:, -1] @ base.head.t()).argmax(-1)
        ended = ended | torch.isin(word, torch.tensor(base.ends, device=device))
        if bool(ended.all()):
            break
        said.append(torch.where(ended, -1, word))
        fresh = torch.ones(len(items), 1, dtype=torch.bool, device=device)
        last = asked.feed(word[:, None], size[:, None] + step, fork_file.causal(fresh, seen))
        seen = torch.cat([seen, fresh], 1)
    said = torch.stack(said, 1).tolist() if said else [[] for _ in items]
    return losses, [[word for word in line if word >= 0] for line in said]


def questions(evaluator, streams, items, memories, batch, decode, save, recall=0):
    """One record a question: its source and, per condition, loss and the ids that were said.
    streams [Q, 2, N]: with passage, without.  Conditions are (memory, which); with `recall` so many
    segments behind the ring are recalled in each, the same with the passage and without."""
    c = evaluator.constants
    recalled = oracle(streams, c["n"], c["ring"], recall) if recall else None
    records = [{"source": item["source"], "text": item["text"], "loss": {}, "said": {}}
               for item in items]
    for memory in memories:
        for which, name in enumerate(("passage", "none")):
            key = "%s %s" % ("full" if memory == 0 else "%dx" % memory
                             + ("+%d" % recall if recall else ""), name)
            for at in range(0, len(items), batch):
                part = items[at:at + batch]
                view = view_of(evaluator, streams[at:at + batch, which], memory,
                               recalled and recalled[at:at + batch])
                length = max(decode.get(item["source"], decode[""]) for item in part)
                losses, said = ask(evaluator, view, part, length)
                for record, loss, ids in zip(records[at:at + batch], losses, said):
                    record["loss"][key] = round(loss, 5)
                    # As alone: not longer for what it is asked beside.
                    record["said"][key] = ids[:decode.get(record["source"], decode[""])]
        save(records)
        print("  memory %d done" % memory, flush=True)
    return records


@torch.no_grad()
def choose(evaluator, view, items):
    """For every stream of a view, every question's log-likelihood of every option: the branches of
    all questions and options run side by side behind the stream.  -> [B][questions][options]."""
    base, device = evaluator.base, evaluator.device
    lines, marks = [], []
    for item in items:
        ids, places, branch, spots = [], [], [], []
        for question in item["tails"]:
            for option in item["options"]:
                text = question + option
                spots.append((len(ids) + len(question), len(option)))
                branch += [len(spots)] * len(text)
                places += range(len(text))
                ids += text
        lines.append((ids, places, branch))
        marks.append(spots)
    ids, real = fork_file.padded([line[0] for line in lines], device)
    places, _ = fork_file.padded([line[1] for line in lines], device)
    branch, _ = fork_file.padded([line[2] for line in lines], device)
    see = fork_file.causal(real) & (branch[:, :, None] == branch[:, None, :])
    hidden = fork_file.Fork(base, view).feed(ids, places, see)
    out = []
    for row, (item, spots) in enumerate(zip(items, marks)):
        wanted = torch.tensor([at + i for at, size in spots for i in range(size)], device=device)
        log_p = log_probabilities(base, hidden[row, wanted - 1])
        log_p = log_p.gather(1, ids[row, wanted][:, None])[:, 0].tolist()
        scores, used = [], 0
        for _, size in spots:
            scores.append(sum(log_p[used:used + size]))
            used += size
        options = len(item["options"])
        out.append([scores[i:i + options] for i in range(0, len(scores), options)])
    return out


def task(evaluator, streams, items, memories, batch, shots):
    """Accuracy and mean gold log-odds per memory and number of examples; rows kept at the end."""
    out = {}
    for memory in memories:
        for which, count in enumerate(shots):
            right, rows = [], []
            for at in range(0, len(items), batch):
                view = view_of(evaluator, streams[at:at + batch, which], memory)
                rows.append(view.rows())
                part = items[at:at + batch]
                for item, scores in zip(part, choose(evaluator, view, part)):
                    right += [int(np.argmax(line)) == gold
                              for line, gold in zip(scores, item["gold"])]
            key = "%s %d" % ("full" if memory == 0 else "%dx" % memory, count)
            out[key] = {"accuracy": round(float(np.mean(right)), 4), "asked": len(right),
                        "rows": round(float(np.mean(rows)), 1)}
    return out


# Exact match and F1, as SQuAD counts them.

def normalise(text):
    text = "".join(" " if letter in string.punctuation else letter for letter in text.lower())
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", text).split())


def match(said, gold):
    """-> exact match, F1 of words."""
    said, gold = normalise(said), normalise(gold)
    if said == gold:
        return 1.0, 1.0
    said_words, gold_words = said.split(), gold.split()
    left, shared = list(gold_words), 0
    for word in said_words:
        if word in left:
            left.remove(word)
            shared += 1
    if not shared:
        return 0.0, 0.0
    precision, recall = shared / len(said_words), shared / len(gold_words)
    return 0.0, 2 * precision * recall / (precision + recall)
