"""Checks of what a user brings and of what comes between: other text, other models, options that do
not go together, a machine that is lost while it writes.  Part of check.py."""
import argparse
import json
import lzma
import os
import shutil
import subprocess
import sys
import time

import numpy as np
import torch

import answers
import asks
import attention
import batches
import calibrate
import checkpoint
import data
import evaluate
import evalset
import figures
import key
import model as model_file
import silt_adapter
import tiny
import train


class Bytes:
    """A tokenizer of bytes behind tiny's special tokens, for where the package is not there; it has
    some words of its own, which it does not use."""

    words = [" " + 3 * chr(letter) for letter in range(97, 123)]

    def __init__(self, _):
        self.plain = 256 + len(tiny.SPECIAL)
        self.size, self.sum, self.kind = self.plain + len(self.words), "bytes", np.uint16
        self.start, self.end = [1], [2]

    def role(self, name):
        return self.encode(name + "\n").tolist()

    def decode(self, ids):
        return "".join(self.words[(i - self.plain) % len(self.words)] if i >= self.plain else
                       chr(i - len(tiny.SPECIAL)) for i in map(int, ids) if i >= len(tiny.SPECIAL))

    def encode(self, text):
        return (np.frombuffer(text.encode(), np.uint8) + len(tiny.SPECIAL)).astype(self.kind)

    def encode_many(self, texts):
        return [self.encode(text) for text in texts]


def refused(work, *words):
    """Whether it ends with a sentence that has these words."""
    try:
        work()
    except SystemExit as error:
        return all(word in str(error) for word in words)
    return False


def prepared(folder, files):
    """Shards of files {name: documents or bytes}."""
    text, out = os.path.join(folder, "text"), os.path.join(folder, "own")
    for path in (text, out):
        shutil.rmtree(path, ignore_errors=True)
    os.makedirs(text)
    for name, documents in files.items():
        raw = documents if isinstance(documents, bytes) else b"".join(
            json.dumps(document).encode() + b"\n" for document in documents)
        path = os.path.join(text, name)
        if name.endswith(".zst"):       # a link to it, as to data that lies elsewhere
            with open(path + ".there", "wb") as file:
                subprocess.run(["zstd", "-qc"], input=raw, stdout=file, check=True)
            os.symlink(name + ".there", path)
            continue
        with (lzma.open if name.endswith(".xz") else open)(path, "wb") as file:
            file.write(raw)
    whole, facts = data.Tokenizer, data.FACTS
    data.Tokenizer, data.FACTS = Bytes, 60
    try:
        data.prepare("none", text, out)
    finally:
        data.Tokenizer, data.FACTS = whole, facts
    return out


def rows_of(folder, length, held_out=False):
    """One row of every sort."""
    maker = data.RowMaker(folder, length, 3, held_out)
    rows = [maker.row(sort) for sort in data.SORTS for _ in range(3)]
    asker = asks.AskMaker(maker, folder)
    return maker, rows + [asker.row(sort, 1024)[:3] for sort in asks.SORTS]


def check_text(folder):
    """Any kinds of text, with questions and without, none at all, shorter than a row."""
    passage = "The ferry to the island leaves at nine, and it takes an hour. " * 4
    lines = [{"text": "Line %d of what was said on that day by somebody else.\n" % i * 5}
             for i in range(300)]
    asked = {"text": passage, "qa": [
        {"q": "When does the ferry leave?", "a": "at nine"}, {"question": "Why?", "a": "so"}]}
    packed = "talk.jsonl.zst" if shutil.which("zstd") else "talk.jsonl"
    cases = (("own text", {"chats.jsonl": lines, "mail.jsonl.xz": lines, "log.jsonl": b"\n",
                           packed: lines}, 2048),
             ("one question", {"book.jsonl": lines, "talks.jsonl": [asked]}, 2048),
             ("short", {"notes.jsonl": lines[:2]}, 2048))
    for name, files, length in cases:
        out = prepared(folder, files)
        for held_out in (False, True):
            maker, rows = rows_of(out, length, held_out)
            if any({len(part) for part in row} != {length} or row[0].min() < 1 for row in rows):
                print("%s: a row is not as it should be" % name)
                return False
        if abs(maker.shares.sum() - 1) > 1e-6 or len(calibrate.held_out_rows(maker, 5)) != 5 \
                or set(maker.names) != {file.split(".")[0] for file in files} - {"log"}:
            print("%s: %s in shares of %s" % (name, maker.names, maker.shares))
            return False
    one = data.RowMaker(prepared(folder, cases[1][1]), 2048)
    long = {"text": "x" * 9000 + passage, "source": data.OWN, "qa": asked["qa"]}
    good = "at nine" in data.question_items(long)[0][0][:1400] \
        and one.item()[2].tolist() == Bytes(0).encode("at nine").tolist() \
        and refused(lambda: prepared(folder, {}), "no text") \
        and refused(lambda: prepared(folder, {"a.jsonl": b'{"text": "b"}\nno\n'}), "line 2") \
        and refused(lambda: prepared(folder, {"a.jsonl": [{"words": "b"}]}), "line 1") \
        and refused(lambda: prepared(folder, {"facts.jsonl": lines}), "facts")
    print("own text: %s" % ("any kinds, with questions and without" if good else "WRONG"))
    return good


def check_sets(folder):
    """Sets to measure on of text that is shorter than a stream: none of it, and said so."""
    prepared(folder, {"book.jsonl": [{"text": "Too short.\n" * 9}]})
    text, found = os.path.join(folder, "text"), Bytes(0)
    return evalset.kind_streams(found, text, "book", 512, 4).shape == (0, 512) \
        and evalset.mixed_streams(found, text, 512, 4).shape == (0, 512) \
        and len(evalset.long_stream(found, text, 4096)) == 0 \
        and evalset.questions(found, text, (4, 4))[1] == []


def check_keys(folder):
    """Recall keys of text without any question; what is held out shares no passage with the rest."""
    lines = [{"text": "Line %d of what was said on that day by somebody else.\n" % i * 9}
             for i in range(60)]
    prepared(folder, {"chats.jsonl": lines})
    path, kept = os.path.join(folder, "pairs.npz"), (data.Tokenizer, key.FACTS, key.FACTS_HELD)
    data.Tokenizer, key.FACTS, key.FACTS_HELD = Bytes, 40, 8
    try:
        key.prepare("none", os.path.join(folder, "text"), path)
    finally:
        data.Tokenizer, key.FACTS, key.FACTS_HELD = kept
    pairs = key.Pairs(path)
    base = model_file.BaseModel(os.path.join(folder, "tiny.gguf"))
    made = key.Key(base, np.resize(pairs.rarity, len(base.embd)), 32)
    rates = key.hit_rates(made, key.Reader(base, pairs.head, 2), pairs, 32)
    questions, chunks = pairs.batch(40)
    drawn = [("Passage %d" % (i % 40), 0, "Question %d?" % i, ("qa", i % 50)) for i in range(200)]
    trained, held = key.split(drawn)
    good = len(questions) == len(chunks) == 40 and rates[0] == 0 and rates[1] > 0.2 \
        and len(held) == 6 and len(trained) > 100 \
        and not {pair[0] for pair in held} & {pair[0] for pair in trained} \
        and not {pair[3] for pair in held} & {pair[3] for pair in trained}
    print("recall keys: %s" % ("of text without questions; held-out passages are new" if good else
                               "WRONG: %s, %d, %d" % (rates, len(trained), len(held))))
    return good


def parsed(*words, context=8192):
    """train.py's options."""
    kept, sys.argv = sys.argv, ["train.py", "--model", "m", "--shards", "s", "--out", "o", *words]
    try:
        options = train.parse()
    finally:
        sys.argv = kept
    train.settle(options, context)
    options.base = options.vocabulary = "0" * 16
    return options


def check_options(folder):
    """What does not go together is refused, at once; a checkpoint goes on as it began."""
    wrong = (("--ask-kl", "0.5", "--kl", "0"), ("--ask-rows", "9"), ("--workers", "0"),
             ("--chunks", "5"), ("--chunks", "64"), ("--ring", "31"), ("--ratios", "4,2"),
             ("--ratio-shares", "0.5,0.5"), ("--ratio-shares", "0.5,0.5,0.5,0.5"),
             ("--chunk-tokens", "100"))
    for words in wrong:
        if not refused(lambda: parsed(*words), "train.py: ", words[0]):
            print("options: %s was taken" % " ".join(words))
            return False
    options, short = parsed(), parsed(context=2048)
    good = [options.chunks, options.ring, short.chunks, short.ring] == [32, 15, 8, 3] \
        and parsed(context=4000).chunks == 12
    state = train.made_of(options, [2, 4, 8])
    train.check_same(options, json.loads(json.dumps(state)), state)     # as it was
    other = train.made_of(parsed_with(options, ring=4, base="1" * 16), [2, 4, 8])
    good &= refused(lambda: train.check_same(options, state, other), "ring was 15, is 4", "base was")
    # Shards of another vocabulary, or none at all: said where the first batch is waited for.
    prepared(folder, {"notes.jsonl": [{"text": "Some line.\n" * 400}]})
    for shards, why in (("nowhere", "words.json"), ("own", "another model's vocabulary")):
        options = parsed_with(parsed("--workers", "1"), shards=os.path.join(folder, shards))
        good &= refused(lambda: batches.Batches(options, 0, 0).get(), why)
    print("options: %s" % ("what cannot work is refused" if good else "WRONG"))
    return good


def parsed_with(options, **more):
    return argparse.Namespace(**dict(vars(options), **more))


def alive(process):
    try:
        with open("/proc/%d/stat" % process) as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def check_workers(folder):
    """A trainer that is killed leaves no worker behind."""
    prepared(folder, {"notes.jsonl": [{"text": "Some line.\n" * 400}]})
    options = parsed("--workers", "1", "--rows", "1", "--chunk-tokens", "64", "--comp-tokens", "4",
                     "--chunks", "8", "--long", "64", "--ring", "2")
    options = parsed_with(options, shards=os.path.join(folder, "own"), vocabulary="bytes")
    kept, batches.LOOK_SECONDS = batches.LOOK_SECONDS, 0.2
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            rows = batches.Batches(options, 0, 0)
            rows.get()
            os.write(write, b"%d" % rows.workers[0].pid)
        finally:
            os._exit(0)
    os.close(write)
    os.waitpid(child, 0)
    batches.LOOK_SECONDS, worker, end = kept, int(os.read(read, 20)), time.monotonic() + 60
    while alive(worker) and time.monotonic() < end:
        time.sleep(0.05)
    print("workers: %s" % ("end with their trainer" if not alive(worker) else "LEFT BEHIND"))
    return not alive(worker)


def check_checkpoint(folder):
    """One that ends in the middle, and one that is not finite, leave the one before whole."""
    base = model_file.BaseModel(os.path.join(folder, "tiny.gguf"))
    options, out = parsed(), os.path.join(folder, "kept")
    shutil.rmtree(out, ignore_errors=True)
    parameters = model_file.AdapterParameters(base, 4, 4, 4, (2, 4))
    optimizer = train.make_optimizer(parameters, options)
    quotas = torch.ones(2, base.layers, base.kv_heads)
    state = {"step": 1, "ratios": [2, 4], "constants": {}}

    def is_first():
        found, _, told = checkpoint.load(out, base)
        return told["step"] == 1 and all(
            torch.equal(a, b) for a, b in zip(found.parameters(), first))

    for size in (15 << 20, 20000):      # of parts
        checkpoint.PART_BYTES = size
        checkpoint.save(out, parameters, quotas, optimizer, state)
        first = [p.detach().clone() for p in parameters.parameters()]
        with torch.no_grad():
            for p in parameters.parameters():
                p += 1
        whole, count = checkpoint.write, [0]
        for last in range(2):           # writes that still go well

            def torn(path, raw):
                count[0] += 1
                whole(path, raw[:len(raw) // 2] if count[0] > last else raw)
                if count[0] > last:
                    raise OSError(28, "No space left on device")

            checkpoint.write, count[0] = torn, 0
            try:
                checkpoint.save(out, parameters, quotas, optimizer, dict(state, step=2))
                return False
            except OSError:
                pass
            finally:
                checkpoint.write = whole
            if not is_first():
                print("checkpoint: torn by the write after %d" % last)
                return False
    with torch.no_grad():
        parameters.decide[0, 0, 0] = float("nan")
    good = refused(lambda: checkpoint.save(out, parameters, quotas, optimizer, state), "finite") \
        and is_first()
    checkpoint.PART_BYTES = 15 << 20
    print("checkpoint: %s" % ("the one before stays whole" if good else "WRONG"))
    return good


def check_kernel():
    """The attention kernel on a CPU, by Triton's interpreter, where there is Triton."""
    if not attention.TRITON:
        print("attention kernel: skipped, no Triton")
        return True
    code = "import attention, model, torch; print(max(attention.difference(model.attend, 'cpu', " \
        "torch.float32, entries, 1, 64, 4, 80, 3, 1, 16) for entries in (0, 32)))"
    found = subprocess.run([sys.executable, "-c", code], cwd=os.path.dirname(
        os.path.abspath(__file__)), env=dict(os.environ, TRITON_INTERPRET="1"), check=True,
        stdout=subprocess.PIPE).stdout
    print("attention kernel, interpreted: relative error %.1e" % float(found))
    return float(found) < 1e-5


def check_recalibration(folder):
    """A bias that changes the ratio is found; one that does not ends it, with the file as it was."""
    shipped, own = (os.path.join(folder, name) for name in ("tiny.adapter.gguf", "shifted.gguf"))
    here, begin = os.path.dirname(os.path.abspath(__file__)), silt_adapter.read(shipped)
    engine, good = os.path.join(folder, "engine.py"), True
    for ratio in ("9 * math.exp(bias - %r)" % float(begin["dmc.ratio_bias"][2].mean()), "9"):
        with open(engine, "w") as file:
            file.write("#!%s\nimport json, math, sys\nsys.path.insert(0, %r)\nimport silt_adapter\n"
                       "found = silt_adapter.read(sys.argv[sys.argv.index('--adapter') + 1])\n"
                       "bias = float(found['dmc.ratio_bias'][2].mean())\n"
                       "print(json.dumps({'dmc_ratio': %s}))\n" % (sys.executable, here, ratio))
        os.chmod(engine, 0o755)
        shutil.copy(shipped, own)
        done = subprocess.run([sys.executable, os.path.join(here, "recalibrate.py"), own, "--ratio",
                               "8", "--text", "none", "--engine", engine], stdout=subprocess.PIPE,
                              stderr=subprocess.PIPE)
        moved = silt_adapter.read(own)["dmc.ratio_bias"] - begin["dmc.ratio_bias"]
        good &= bool((moved[:2] == 0).all()) and b"Traceback" not in done.stderr
        good &= abs(float(moved[2].mean()) - np.log(8 / 9)) < 0.01 and done.returncode == 0 \
            if ratio != "9" else bool((moved == 0).all()) and done.returncode == 1
    print("recalibration: %s" % ("the asked ratio, or the file as it was" if good else "WRONG"))
    return good


class File:
    """As gguf.Reader."""

    def __init__(self, meta, **tensors):
        self.meta, self.tensors = meta, tensors

    def tensor(self, name):
        return self.tensors[name]


def check_models():
    """RoPE's frequencies by the file's own factors and scaling; the ends of answers; the kernel is
    tried in the model's own shape."""
    factors = np.array([1, 2, 8, 32], np.float32)
    found = model_file.rope_frequency(File(
        {"llama.rope.freq_base": 10000.0, "llama.rope.scaling.type": "linear",
         "llama.rope.scaling.factor": 4.0}, **{"rope_freqs.weight": factors}), 4)
    want = 10000.0 ** (-np.arange(4) / 4) / factors / 4
    older = [model_file.rope_frequency(File({"llama.rope." + key: 4.0}), 4)
             for key in ("scaling.factor", "scale_linear")]
    ends = model_file.end_tokens({"tokenizer.ggml.eos_token_id": 7, "tokenizer.ggml.tokens":
                                  ["a", "<|endoftext|>", "<|eot_id|>"]})
    tried, kept = [], (attention.difference, attention.TRITON)
    attention.difference = lambda *_, **shape: tried.append(shape) or 0.0
    attention.TRITON = True
    try:
        attention.usable(model_file.attend, "cuda", torch.float32, n=64, comp=4, heads=5,
                         kv_heads=5, dim=80)
    finally:
        attention.difference, attention.TRITON = kept
    good = np.allclose(found.numpy(), want) and ends == [1, 2, 7] \
        and all(np.allclose(one.numpy(), want * factors) for one in older) and bool(tried) \
        and all(shape["dim"] == 80 and shape["heads"] == 5 and shape["n"] == 64 for shape in tried)
    print("models: %s" % ("RoPE factors, ends, shapes" if good else "WRONG"))
    return good


def check_measuring(folder):
    """A stream alone has no other's memory; an answer is as long as it would be alone."""
    evaluator = evaluate.open_evaluator(os.path.join(folder, "tiny.gguf"),
                                        os.path.join(folder, "tiny.adapter.gguf"), "cpu")
    n = evaluator.constants["n"]
    tokens = (tiny.Source(17).words(2 * 2 * n) % np.uint64(500)).astype(np.uint16).reshape(2, -1) + 3
    one = evaluate.grid(evaluator, tokens[:1], [1], tokens[:1], ("foreign", "swap"))
    items = [{"source": source, "tail": [5, 6], "gold": [7], "text": "x"}
             for source in ("qa", "qmsum")]
    said = answers.questions(evaluator, np.stack([tokens, tokens], 1), items, [1], 2,
                             {"": 1, "qmsum": 3}, lambda _: None)
    figures.print_answers(said, Bytes(0))       # as with --no-full
    figures.print_tasks({"one": {"1x 0": {"accuracy": 0.25, "asked": 4, "rows": 9.0}}})
    lengths = [[len(ids) for ids in record["said"].values()] for record in said]
    good = not {"1x foreign", "1x swap"} & set(one) and lengths == [[1, 1], [3, 3]]
    print("measuring: %s" % ("a stream alone, answers beside others" if good else
                             "WRONG: %s, %s" % (list(one), lengths)))
    return good
