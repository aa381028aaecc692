"""Checks of the training code on a tiny random model, in a minute or two on a CPU.

    python3 check.py FOLDER

makes the tiny model in FOLDER and holds the parallel forward equal to the recurrent reference, the
loss to its definition and the window to the plain model; then trains a few steps, resumes, exports
and writes golden vectors.
"""
import argparse
import json
import os
import shutil
import subprocess
import sys
import time

import numpy as np
import torch

import answers
import asks
import batches
import calibrate
import check_use
import checkpoint
import data
import evalset
import evaluate
import evict
import export
import figures
import fork
import gguf
import golden
import golden_file
import loss as loss_file
import model as model_file
import plan as plan_file
import reference
import score as score_file
import silt_adapter
import tiny


def check_parallel(folder, ratio, chunks=6, ring=2):
    """Decisions equal, NLL and segments close, for the tiny random model in fp32."""
    path = os.path.join(folder, "tiny.gguf")
    adapter = silt_adapter.read(os.path.join(folder, "tiny.adapter.gguf"))
    base = model_file.BaseModel(path)
    n, m = adapter.chunk_tokens, adapter.comp_tokens
    tokens = (tiny.Source(7).words(chunks * n) % np.uint64(500)).astype(np.int64) + 3
    stream = reference.Stream(reference.Base(path), adapter, ratio, ring, round_f16=False)
    slow = np.stack([stream.feed(token) for token in tokens])
    parameters, quotas = export.from_adapter(base, adapter)
    plan = plan_file.MemoryPlan([ring], chunks, 4, n, m, adapter.sink_tokens,
                                adapter.summary_alpha_min)
    tables = model_file.make_tables(base, plan, n, m, "cpu", torch.float32)
    silt = model_file.SiltModel(base, parameters, quotas)
    ids = torch.from_numpy(tokens)[None]
    with torch.no_grad():
        hidden, seen = silt.forward(ids, torch.zeros_like(ids, dtype=torch.bool), tables, ratio,
                                    keep=True)
    fast = (hidden[0] @ base.head.t()).numpy()
    error = np.abs(fast - slow).max()
    worst = 0.0
    for layer in range(base.layers):
        for which in range(2):
            mine = seen["segments"][layer][which].numpy()                  # [T, m, kv, dim]
            theirs = np.stack([segment[which][layer] for segment in stream.segments])
            worst = max(worst, np.abs(mine - theirs.transpose(0, 2, 1, 3)).max())
    flips = 0
    if ratio > 1:
        mine = torch.stack(seen["hard"], 1).transpose(1, 2).reshape(len(tokens), -1).numpy()
        flips = int((mine != np.array(stream.decisions)).sum())
    print("parallel == recurrent, ratio %d: logits within %.1e, segments within %.1e, "
          "%d decisions differ" % (ratio, error, worst, flips))
    return error < 2e-3 and worst < 2e-3 and flips == 0


def check_gradients():
    """head_loss gives the loss and gradient that holding all logits would give."""
    torch.manual_seed(0)
    hidden = torch.randn(2, 40, 16, requires_grad=True)
    teacher, head = torch.randn(2, 40, 16), torch.randn(50, 16)
    tokens, weight = torch.randint(0, 50, (2, 40)), torch.rand(2, 40)
    loss, _, _ = loss_file.head_loss(hidden, teacher, head, tokens, weight, 0.5, chunk=16)
    loss.backward()
    mine, hidden.grad = hidden.grad.clone(), None
    log_p = (hidden @ head.t()).log_softmax(-1)[:, :-1]
    log_t = (teacher @ head.t()).log_softmax(-1)[:, :-1]
    ce = -log_p.gather(2, tokens[:, 1:, None])[..., 0]
    kl = (log_t.exp() * (log_t - log_p)).sum(-1)
    mass = weight[:, 1:]
    direct = ((0.5 * ce + 0.5 * kl) * mass).sum() / mass.sum().clamp(min=1)
    direct.backward()
    error = (mine - hidden.grad).abs().max().item()
    places, weights = torch.tensor([3, 7, 30, 0]), torch.tensor([0.5, 0.3, 0.2, 0.0])
    asked, seen = loss_file.asked_loss(hidden[0], head, tokens[0], places, weights,
                                       teacher=teacher[0], kl_share=0.4)
    wanted = ((0.6 * ce + 0.4 * kl)[0, places] * weights).sum()
    value = max(abs(loss.item() - direct.item()), abs(asked.item() - wanted.item()),
                abs(seen.item() - (ce[0, places] * weights).sum().item()))
    print("loss without logits: value within %.1e, gradient within %.1e" % (value, error))
    return error < 1e-5 and value < 1e-4


def check_window(folder):
    """A window wider than the stream, and a cache with room, are the plain causal model."""
    base = model_file.BaseModel(os.path.join(folder, "tiny.gguf"))
    adapter = silt_adapter.read(os.path.join(folder, "tiny.adapter.gguf"))
    parameters, quotas = export.from_adapter(base, adapter)
    evaluator = evaluate.Evaluator(base, parameters, quotas, evaluate.constants_of(adapter))
    tokens = (tiny.Source(9).words(300) % np.uint64(500)).astype(np.int64)[None] + 3
    wide = evaluator.window(tokens, 1000, block=128)
    plain = score_file.nll(model_file.PlainModel(base).forward(torch.from_numpy(tokens)), base.head,
                         torch.from_numpy(tokens))
    cached = evict.stream_nll(base, tokens, 1000, evict.keep_tova)
    error = max((wide - plain).abs().max().item(), (cached - plain).abs().max().item())
    print("wide window, roomy eviction cache == plain model: NLL within %.1e" % error)
    return error < 1e-3


def check_fork(folder, ratio, recalled=None):
    """A fork behind a stream scores what raw rows in the parallel forward score, segments recalled
    or not, and branches side by side what each scores alone."""
    base_path = os.path.join(folder, "tiny.gguf")
    evaluator = evaluate.open_evaluator(base_path, os.path.join(folder, "tiny.adapter.gguf"), "cpu")
    n, silt = evaluator.constants["n"], evaluator.silt
    tokens = (tiny.Source(11).words(7 * n) % np.uint64(500)).astype(np.int64)[None] + 3
    ids = torch.from_numpy(tokens)
    raw = torch.zeros_like(ids, dtype=torch.bool)
    raw[:, 6 * n:] = True
    ring = evaluator.constants["ring"] = 2
    _, tables = evaluator.tables(1, 7, ring, ring + len(recalled or ()),
                                 recall={(0, 6): recalled} if recalled else None)
    with torch.no_grad():
        whole = silt.forward(ids, raw, tables, ratio)[0]
    want = score_file.nll(whole, evaluator.base.head, ids)[0, 6 * n + 1:6 * n + 21]
    view = fork.read_memory(evaluator, tokens[:, :6 * n], ratio, [recalled] if recalled else None)
    tail = tokens[0, 6 * n:6 * n + 21].tolist()
    items = [{"tail": tail[:1], "gold": tail[1:]}]
    loss = answers.ask(evaluator, view, items, 1)[0][0]
    error = abs(loss - want.mean().item())
    tails, options = [tail[:5], tail[2:10]], [tail[5:8], tail[9:10]]
    both = answers.choose(evaluator, view, [{"tails": tails, "options": options}])[0]
    alone = [[answers.choose(evaluator, view, [{"tails": [a], "options": [b]}])[0][0][0]
              for b in options] for a in tails]
    error = max(error, np.abs(np.array(both) - alone).max())
    print("fork == raw rows of the parallel forward, branches == alone, ratio %d%s: within %.1e"
          % (ratio, ", %d recalled" % len(recalled) if recalled else "", error))
    return error < 2e-3


def check_other_summary(folder):
    """A stream that lends itself its summary scores what it scored; another's is another."""
    evaluator = evaluate.open_evaluator(os.path.join(folder, "tiny.gguf"),
                                        os.path.join(folder, "tiny.adapter.gguf"), "cpu")
    tokens = (tiny.Source(19).words(2 * 4 * 256) % np.uint64(500)).astype(np.int64)
    tokens = tokens.reshape(2, -1) + 3
    own, same, other = (evaluator.ccm(tokens[:1], 4, 1, policy, lender)[0] for policy, lender in (
        ("ccm", None), ("other-summary", tokens[:1]), ("other-summary", tokens[1:])))
    error, change = (own - same).abs().max().item(), (own - other).abs()
    # A ring of one and the chunk before it: the third chunk is the first that has a summary.
    print("another stream's summary: its own within %.1e, another's changes %.2f"
          % (error, change.max()))
    early, late = change[:, :512].max().item(), change[:, 512:].max().item()
    return error < 1e-4 and early < 1e-4 and late > 0.01


def check_oracle():
    """Of a passage's segments those behind the ring, the newest first, and others beside them."""
    streams = np.zeros((2, 2, 12 * 64), np.uint16)
    streams[0, 0, 3 * 64 + 5:6 * 64 + 1] = 1        # segments 3 to 6, of which 8 have left
    streams[1, 0, 9 * 64:10 * 64] = 1
    found = answers.oracle(streams, 64, 4, 3), answers.oracle(streams, 64, 4, 9)
    good = found[0][0] == [4, 5, 6] and all(
        len(part) == 7 and max(part) < 8 and part == sorted(set(part)) for part in found[1]) \
        and {3, 4, 5, 6} <= set(found[1][0])
    print("oracle: %s" % ("a passage's segments and others" if good else "WRONG"))
    return good


def check_evaluation(folder):
    """Every part of evaluate.py on a small set, and the tables and plots of what it finds."""
    found, out = os.path.join(folder, "set"), os.path.join(folder, "figures")
    for path in (found, out):
        shutil.rmtree(path, ignore_errors=True)
        os.makedirs(path)
    n, source = 64, tiny.Source(13)

    def words(*shape):
        return (source.words(int(np.prod(shape))) % np.uint64(500)).astype(np.uint16).reshape(
            shape) + 3

    # Three streams, of which one has no neighbour of its own, and no whole chunks.
    np.save(os.path.join(found, "book.npy"), words(3, 8 * n + 7))
    np.save(os.path.join(found, "long.npy"), words(16 * n + 7))
    asked = {"source": "qmsum", "tail": words(9).tolist(), "gold": words(3).tolist(), "text": "it"}
    evalset.pack(os.path.join(found, "questions.npz"), words(2, 2, 4 * n), [asked, asked])
    task = {"tails": [words(5).tolist()], "options": [words(1).tolist(), words(2).tolist()],
            "gold": [1]}
    evalset.pack(os.path.join(found, "task_one.npz"), words(1, 4, 4 * n), [task])
    here = os.path.dirname(os.path.abspath(__file__))
    subprocess.run([sys.executable, os.path.join(here, "evaluate.py"), "--model",
                    os.path.join(folder, "tiny.gguf"), "--adapter",
                    os.path.join(folder, "tiny.adapter.gguf"), "--set", found, "--kinds", "book",
                    "--ratios", "1,4", "--device", "cpu", "--parts", ",".join(evaluate.PARTS),
                    "--out", os.path.join(out, "all.json")], check=True)
    subprocess.run([sys.executable, os.path.join(here, "evaluate.py"), "--model",
                    os.path.join(folder, "tiny.gguf"), "--adapter",
                    os.path.join(folder, "tiny.adapter.gguf"), "--set", found, "--no-full", "--ring",
                    "1", "--ratios", "4", "--device", "cpu", "--parts", "answers", "--recall", "2",
                    "--out", os.path.join(out, "recalled.json")], check=True)
    figures_found = figures.merge(out)
    figures.write_grid(figures_found["grid"], out)
    figures.write_foreign(figures_found["grid"], out)
    figures.write_answers(figures_found["answers"], out)
    figures.draw(figures_found, out)
    book = figures_found["grid"]["book"]
    same = abs(book["1x ccm"]["nll"] - book["full"]["nll"])
    print("evaluation: %s; ccm within %.2f of full" % (", ".join(sorted(figures_found)), same))
    return sorted(figures_found) == sorted(evaluate.PARTS) and same < 0.5 \
        and len(book["1x swap"]["streams"]) == 3 \
        and len(figures_found["answers"]) == 2 \
        and [line_count(os.path.join(out, name)) for name in ("foreign.csv", "answers.csv")] \
        == [3, 5] \
        and os.path.getsize(os.path.join(out, "heads.svg")) > 500


def line_count(path):
    with open(path) as file:
        return len(file.readlines())


def write_shards(folder):
    """Shards of the licence's bytes: real enough to train on, and no tokenizer package needed."""
    os.makedirs(folder, exist_ok=True)
    here = os.path.dirname(os.path.abspath(__file__))
    with open(os.path.join(here, "..", "..", "LICENSE"), "rb") as file:
        tokens = np.frombuffer(file.read(), np.uint8).astype(np.uint16) + len(tiny.SPECIAL)
    for kind in ("book", "log"):
        np.save(os.path.join(folder, kind + ".npy"), tokens)
    # Fifty passages of 60 tokens, each with a question of 12 and an answer of 8; facts likewise.
    for name in ("items", "facts"):
        np.save(os.path.join(folder, name + ".npy"), tokens[:4000])
        np.save(os.path.join(folder, name + "_ends.npy"), np.cumsum([60, 12, 8] * 50))
    # Forty labels of one token with six texts of nine each.
    np.save(os.path.join(folder, "labels.npy"), tokens[:40 * 55])
    np.save(os.path.join(folder, "labels_ends.npy"), np.cumsum([1, 9, 9, 9, 9, 9, 9] * 40))
    np.save(os.path.join(folder, "singles.npy"), np.arange(100, 200, dtype=np.uint16))
    with open(os.path.join(folder, "labels.json"), "w") as file:
        json.dump({"sets": [[[7 * i, 7 * i + 1, 6] for i in range(40)]] * 3,
                   "forms": [[[13], [14], [15]]], "styles": [[[14], [15]]]}, file)
    np.save(os.path.join(folder, "spaced.npy"), np.roll(np.arange(512, dtype=np.uint16), -1))
    with open(os.path.join(folder, "words.json"), "w") as file:
        json.dump(dict({name: [13] for name in (
            "user", "assistant", "newline", "question", "answer", "blank", "line_ends", "use",
            "asks", "apart", "wish")}, sentence_ends=[13, 35, 49], space=16,
                       digits=list(range(20, 30))), file)


def check_rows(folder):
    """Every sort of row that asks: as long as it should be, its weights one, what it asks for said
    before."""
    write_shards(folder)
    maker = asks.AskMaker(data.RowMaker(folder, 2048, 5), folder)
    for sort in asks.SORTS:
        for _ in range(4):
            row = maker.row(sort, 3840, 0.1 * maker.random.randint(11))
            tokens, weight, _, link = row
            # What is scored is asked for, and what is asked for was said before.
            asked = [(np.flatnonzero(link == -i), np.flatnonzero(link == i))
                     for i in np.unique(-link[weight > 0])]
            if {len(part) for part in row} != {2048} or abs(weight.sum() - 1) > 1e-4 \
                    or (weight > 0).mean() > 0.5 \
                    or not all(len(said) and said[0] < where[0] for where, said in asked):
                print("rows that ask: %s is not as it should be" % sort)
                return False
    print("rows that ask: %s" % ", ".join(asks.SORTS))
    return check_found(maker) and check_recall(folder)


def check_found(maker):
    """siltd's turn holds the sentence twice with the question between, and a passage's sentence is
    the one with the answer."""
    passage, ends = np.arange(30, 60), set(maker.words["sentence_ends"])
    sentence = maker._sentence(passage, np.array([41, 42]))
    turn = maker._found(sentence, np.array([90, 91]), True).tolist()
    begins = [i for i in range(len(turn)) if turn[i:i + len(sentence)] == sentence.tolist()]
    good = sentence[-1] in ends and not ends & set(sentence[:-1]) and {41, 42} <= set(sentence) \
        and len(begins) == 2 and begins[0] < turn.index(maker.spaced[90]) < begins[1] \
        and maker._sentence(passage, np.array([42, 41])) is None
    print("found text: %s" % ("before and behind its question" if good else "WRONG"))
    return good


def check_recall(folder):
    """Where something is asked for that has left the ring, most rows recall its segments."""
    options = argparse.Namespace(n=64, chunks=32)
    random, hits = np.random.RandomState(3), []
    maker = asks.AskMaker(data.RowMaker(folder, 2048, 6), folder)
    for _ in range(20):
        link = maker.row("facts", 4 * 64)[3]
        found = batches.draw_recall(random, options, 4, link, 12)
        for chunk, segments in found.items():
            if len(segments) > 8 or max(segments) >= chunk - 4 or segments != sorted(set(segments)):
                print("recall: %s for chunk %d" % (segments, chunk))
                return False
        for chunk in range(6, 32):
            asked = -link[64 * chunk:64 * chunk + 64]
            told = np.unique(np.flatnonzero(np.isin(link, asked[asked > 0])) // 64)
            told = told[told < chunk - 4]
            if 0 < len(told) <= min(8, chunk - 5):
                hits.append(set(told) <= set(found.get(chunk, ())))
    print("recall: %d of %d of what has left the ring is recalled where it is asked for"
          % (sum(hits), len(hits)))
    return len(hits) > 50 and sum(hits) > 0.6 * len(hits)


def check_widened(folder):
    """A wider COMP LoRA computes the same."""
    base = model_file.BaseModel(os.path.join(folder, "tiny.gguf"))
    narrow, quotas = export.from_adapter(base, silt_adapter.read(
        os.path.join(folder, "tiny.adapter.gguf")))
    n, m = 64, narrow.comp_embd.shape[0]
    tokens = torch.from_numpy((tiny.Source(15).words(4 * n) % np.uint64(500)).astype(np.int64))[None]
    plan = plan_file.MemoryPlan([2], 4, 2, n, m, 4, 1 / 8)
    tables = model_file.make_tables(base, plan, n, m, "cpu", torch.float32)
    found = []
    for parameters in (narrow, model_file.widened(base, narrow, narrow.comp_o_a.shape[1] + 3)):
        with torch.no_grad():
            found.append(model_file.SiltModel(base, parameters, quotas).forward(
                tokens, torch.zeros_like(tokens, dtype=torch.bool), tables, 4)[0])
    error = (found[0] - found[1]).abs().max().item()
    print("wider COMP LoRA == as it was: within %.1e" % error)
    return error < 1e-4


def check_calibration():
    """A shift realises its ratio with quotas in force, where some heads merge by force; quotas stay
    within their sum, and a head that never merges keeps its own."""
    torch.manual_seed(3)
    logits = torch.randn(5, 4, 64, 3)                       # [layers, C, n, kv]
    wide, tight = torch.full((5, 3), 64), torch.full((5, 3), 64)
    tight[2:, 1] = 4
    found = {}
    for name, quotas in (("wide", wide), ("tight", tight)):
        found[name] = calibrate.choose_shift(logits, 4, quotas)
        kept = [(~calibrate.apply_rules(layer, found[name], quota)).float().mean().item()
                for layer, quota in zip(logits, quotas)]
        if abs(len(kept) / sum(kept) - 4) > 0.05:
            print("%s quotas: %.3fx instead of 4x" % (name, len(kept) / sum(kept)))
            return False
    mean, most = torch.tensor([[64., 1.], [8., 20.]]), torch.tensor([[64., 4.], [30., 64.]])
    quotas = calibrate.choose_quotas(mean, most, 64, 128)
    return found["tight"] < found["wide"] - 0.01 and quotas.sum() <= 128 \
        and quotas[0, 0] == 64 and (quotas > mean).sum() == 3 \
        and torch.equal(calibrate.choose_quotas(mean, most, 64, 9999),
                        torch.tensor([[64., 6.], [39., 64.]]))


def all_end_well(processes):
    """One that fails leaves the others waiting for it: they end with it."""
    try:
        while any(one.poll() is None for one in processes):
            if any(one.poll() for one in processes):
                return False
            time.sleep(0.1)
        return not any(one.returncode for one in processes)
    finally:
        for one in processes:
            one.kill()
            one.wait()


def check_processes():
    """One process that fails ends both, at once."""
    begun = time.monotonic()
    code = "import sys, time; time.sleep(float(sys.argv[1])); sys.exit(int(sys.argv[2]))"
    ends = [all_end_well([subprocess.Popen([sys.executable, "-c", code, seconds, status])
                          for seconds, status in pair])
            for pair in ((("60", "0"), ("0", "1")), (("0", "0"), ("0.2", "0")))]
    return ends == [False, True] and time.monotonic() - begun < 30


def check_merging(folder):
    """Figures of another adapter do not go among these."""
    with open(os.path.join(folder, "other.json"), "w") as file:
        json.dump({"made": {"adapter": "another"}, "grid": {}}, file)
    try:
        figures.merge(folder)
    except SystemExit as error:
        return "different adapters" in str(error)
    return False


def check_training(folder):
    """train.py for a few steps, again from its checkpoint, then export and golden vectors."""
    shards, run = os.path.join(folder, "shards"), os.path.join(folder, "run")
    write_shards(shards)
    shutil.rmtree(run, ignore_errors=True)
    here = os.path.dirname(os.path.abspath(__file__))
    base_path = os.path.join(folder, "tiny.gguf")
    command = [sys.executable, os.path.join(here, "train.py"), "--model", base_path, "--shards",
               shards, "--out", run, "--rows", "1", "--chunks", "5", "--ring", "2",
               "--chunk-tokens", "64", "--comp-tokens", "4", "--comp-rank", "4", "--dmc-rank", "4",
               "--no-compile",
               "--workers", "1", "--device", "cpu", "--long", "64", "--steps"]
    subprocess.run(command + ["3"], check=True)
    # From an adapter file, with a wider COMP LoRA, rows that ask beside the text, and rings longer
    # than a stream's; what is written is the average of the weights.
    asking, begun = os.path.join(folder, "asking"), os.path.join(folder, "begun.gguf")
    base = model_file.BaseModel(base_path)
    parameters, quotas, state = checkpoint.load(run, base)
    export.write(begun, base, parameters, quotas, state["constants"], gguf.fingerprint(base_path),
                 "begun")
    shutil.rmtree(asking, ignore_errors=True)
    more = [asking if part == run else part for part in command]
    written = os.path.join(folder, "asked.gguf")
    subprocess.run(more + ["4", "--from", begun, "--rows", "2", "--ask-rows", "1", "--ring-max",
                           "3", "--ramp", "0", "--noise", "0.3,0.2", "--comp-rank", "6", "--lr-dmc",
                           "4e-4", "--fall", "0.5", "--average", "0.9", "--small-rings", "0.3",
                           "--ask-kl", "0.5", "--recall", "2", "--kl-above", "0.4",
                           "--save-minutes", "0", "--export", written], check=True)
    if checkpoint.load(asking, base)[2]["constants"]["ring"] != 2 \
            or silt_adapter.read(written)["blk.0.comp_q.a"].shape[0] != 6:
        return False
    # The summary's map alone, of an adapter with recall keys: nothing else of it changes.
    kept, alone = silt_adapter.read(written), os.path.join(folder, "alone")
    kept.tensors["recall.gain"], kept.recall_layer = np.ones(512, np.float32), 2
    silt_adapter.write(written, kept)
    shutil.rmtree(alone, ignore_errors=True)
    mapped = os.path.join(folder, "mapped.gguf")
    subprocess.run([alone if part == run else part for part in command]
                   + ["3", "--from", written, "--comp-rank", "6", "--only-summary", "--export",
                      mapped], check=True)
    found = silt_adapter.read(mapped)
    same = [name for name in kept.tensors if np.array_equal(kept[name], found[name])]
    if found.recall_layer != 2 or set(kept.tensors) - set(same) != {
            name for name in kept.tensors if ".summary" in name}:
        print("--only-summary changed something else")
        return False
    # On from the checkpoint, in two processes as torchrun starts them (Debian's own torchrun does
    # not run under Debian's Python).
    both = [subprocess.Popen(command + ["2", "--calibrate", "4"], env=dict(
        os.environ, RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="2",
        MASTER_ADDR="127.0.0.1", MASTER_PORT=str(20000 + os.getpid() % 20000)))
        for rank in (1, 0)]
    if not all_end_well(both):
        raise SystemExit("a process of the training in two failed")
    base = model_file.BaseModel(base_path)
    parameters, quotas, state = checkpoint.load(run, base)
    path = os.path.join(folder, "trained.gguf")
    fingerprint = gguf.fingerprint(base_path)
    export.write(path, base, parameters, quotas, state["constants"], fingerprint, "check")
    adapter = silt_adapter.read(path)
    tokens = (tiny.Source(5).words(6 * adapter.chunk_tokens) % np.uint64(500)).astype(np.int64) + 3
    golden_path = os.path.join(folder, "trained.r4.golden")
    golden.make(golden_path, base, adapter, tokens, 4, fingerprint)
    vectors = golden_file.read(golden_path)
    losses = [item["ce"] for item in state["history"]]
    print("trained %d steps, adapter of %d bytes, golden vectors read back"
          % (state["step"], os.path.getsize(path)))
    return state["step"] == 5 and np.isfinite(losses).all() \
        and os.path.getsize(os.path.join(run, "loss.svg")) > 500 \
        and np.isfinite(vectors["nll"]).all() and vectors["decisions"].shape[0] == len(tokens)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder")
    options = parser.parse_args()
    os.makedirs(options.folder, exist_ok=True)
    base_path = os.path.join(options.folder, "tiny.gguf")
    tiny.write_base(base_path)
    tiny.write_adapter(os.path.join(options.folder, "tiny.adapter.gguf"),
                       gguf.fingerprint(base_path))
    passed = [check_gradients(), check_window(options.folder)]
    passed += [check_parallel(options.folder, ratio, chunks=5) for ratio in (1, 4)]
    passed += [check_fork(options.folder, ratio) for ratio in (1, 4)]
    passed += [check_fork(options.folder, 4, [0, 2]), check_oracle()]
    passed.append(check_evaluation(options.folder))
    passed += [check_merging(os.path.join(options.folder, "figures")), check_processes()]
    passed.append(check_widened(options.folder))
    passed.append(check_other_summary(options.folder))
    passed += [check_use.check_text(options.folder), check_use.check_sets(options.folder),
               check_use.check_options(options.folder),
               check_use.check_workers(options.folder), check_use.check_checkpoint(options.folder),
               check_use.check_keys(options.folder), check_use.check_models(),
               check_use.check_kernel(), check_use.check_recalibration(options.folder),
               check_use.check_measuring(options.folder)]
    passed.append(check_rows(os.path.join(options.folder, "shards")))
    passed.append(check_calibration())
    passed.append(check_training(options.folder))
    print("check: %s" % ("passed" if all(passed) else "FAILED"))
    return 0 if all(passed) else 1


if __name__ == "__main__":
    sys.exit(main())
