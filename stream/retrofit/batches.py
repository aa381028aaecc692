"""Batches of training rows, made by worker processes: rows and plan tables are numpy, the GPU never
waits.  A worker that fails says why where the next batch is waited for.
"""
import multiprocessing
import os
import queue as queue_file
import traceback

import numpy as np

import asks
import data
import plan as plan_file

ASKED = 2048            # tokens of a row that asks which carry loss, at most
LOOK_SECONDS = 5        # without a batch, whether the workers live


def draw_ring(random, options, sort=None):
    """For a row that asks, its sort: what is restated lies close, in half of the rows alone."""
    longest, small = options.ring_max or options.ring, options.small_rings
    draw = random.rand()
    if draw < small or (sort == "restated" and draw < 0.5):
        return random.randint(min(2, longest), min(6, longest) + 1)
    return options.ring if draw < small + options.full_rings \
        else random.randint(2, longest + 1)


def draw_recall(random, options, ring, link, slots):
    """{chunk: cold segments that are recalled for it} of one row.  Where something is asked for
    that has left the ring (link: asks.py, or None), mostly its segments, among others."""
    out, n = {}, options.n
    for chunk in range(options.chunks):
        cold = chunk - ring
        most = min(8, slots - ring, cold - 1)
        if most < 1:
            continue
        wanted = np.zeros(0, np.int64)
        if link is not None:
            asked = -link[chunk * n:(chunk + 1) * n]
            told = np.isin(link[:cold * n], asked[asked > 0])
            wanted = random.permutation(np.unique(np.flatnonzero(told) // n))[:most]
        if len(wanted) and random.rand() < 0.8:
            others = np.setdiff1d(random.choice(cold, most, replace=False), wanted)
            count = random.randint(0, most - len(wanted) + 1)
            out[chunk] = sorted([*wanted, *random.permutation(others)[:count]])
        elif random.rand() < 0.2:
            out[chunk] = sorted(random.choice(cold, random.randint(1, most + 1), replace=False))
    return out


def make_batch(maker, asker, random, options, progress=1.0):
    """-> tokens, weight as text, raw, plan; for the rows that ask, which are the last: where what
    is scored is predicted, each one's weight, and their sorts."""
    text = options.rows - options.ask_rows
    # Beside rows that ask, text is text.
    rows = [maker.row("plain" if options.ask_rows and random.rand() < 0.85 else None)
            for _ in range(text)]
    sorts = [asker.sort() for _ in range(options.ask_rows)]
    longest = options.ring_max or options.ring
    rings = [draw_ring(random, options, sort) for sort in [None] * text + sorts]
    asking = [asker.row(sort, ring * options.n, progress) for sort, ring in zip(sorts, rings[text:])]
    links = [None] * text + [row[3] for row in asking]
    rows += [(tokens, (link == 0).astype(np.float32), raw) for tokens, _, raw, link in asking]
    slots = longest + options.recall
    recall = {(row, chunk): segments for row, ring in enumerate(rings) for chunk, segments in
              draw_recall(random, options, ring, links[row], slots).items()}
    plan = plan_file.MemoryPlan(rings, options.chunks, slots, options.n, options.m,
                                options.sinks, options.alpha_min, recall)
    batch = [np.stack([row[i] for row in rows]) for i in range(3)] + [plan]
    if asking:
        size = min(ASKED, options.chunks * options.n)
        places = np.zeros((len(asking), size), np.int64)
        weights = np.zeros((len(asking), size), np.float32)
        for row, (_, weight, _, _) in enumerate(asking):
            scored = np.flatnonzero(weight[1:])
            if len(scored) > size:
                scored = np.sort(random.choice(scored, size, replace=False))
            places[row, :len(scored)] = scored
            weights[row, :len(scored)] = weight[1:][scored] / weight[1:][scored].sum()
        batch += [places, weights, sorts]
    return batch


def put(queue, item):
    """As soon as there is room; a worker whose trainer was killed ends."""
    while True:
        try:
            return queue.put(item, timeout=LOOK_SECONDS)
        except queue_file.Full:
            if not multiprocessing.parent_process().is_alive():
                os._exit(0)     # its queue's thread would wait for ever


def work(queue, options, seed, progress):
    try:
        maker = data.RowMaker(options.shards, options.chunks * options.n, seed)
        if maker.words.get("tokenizer", options.vocabulary) != options.vocabulary:
            put(queue, "%s has tokens of another model's vocabulary" % options.shards)
            return
        asker = asks.AskMaker(maker, options.shards) if options.ask_rows else None
        random = np.random.RandomState(seed + 7)
        while True:
            put(queue, make_batch(maker, asker, random, options, progress.value))
    except Exception:
        put(queue, traceback.format_exc())


class Batches:
    """A queue of batches, and `progress`, how far the training is, for the workers to know."""

    def __init__(self, options, steps_done, rank):
        context = multiprocessing.get_context("fork")
        self.queue, self.progress = context.Queue(maxsize=12), context.Value("d", 0.0)
        self.workers = []
        for worker in range(options.workers):
            seed = options.seed * 1000 + steps_done * 100 + rank * 10 + worker
            self.workers.append(context.Process(
                target=work, args=(self.queue, options, seed, self.progress), daemon=True))
            self.workers[-1].start()

    def get(self):
        while True:
            try:
                batch = self.queue.get(timeout=LOOK_SECONDS)
            except queue_file.Empty:
                if not any(worker.is_alive() for worker in self.workers):
                    raise SystemExit("training: no worker is left that makes rows (out of memory?)")
                continue
            if isinstance(batch, str):
                raise SystemExit("training: a worker that makes rows failed:\n%s" % batch)
            return batch
