"""Text to token shards, and shards to training rows.

    python3 data.py --model BASE.gguf --text FOLDER --out SHARDS

FOLDER holds KIND.jsonl, .jsonl.xz or .jsonl.zst files; one document a line with `text`, and where
there are questions about it `qa`, a list of {"q": question, "a": answer} (`start`: the answer's place,
else where its words are first), or `ans_at`, where in a text that asks its answer begins.  Any KIND
will do; those of SHARES have these shares, others theirs by size.

A row is T chunks of tokens with a loss weight and a flag for raw (fork) tokens.  Four sorts of row:
plain text; text in which earlier excerpts come back, which rewards exact content; text with passages
whose questions follow a thousand tokens or more later; and text strewn with single made-up facts,
each asked for later in other words.  Rows that do nothing but ask are asks.py's.
"""
import argparse
import hashlib
import json
import lzma
import os
import re
import subprocess

import numpy as np

import facts
import gguf
import labels

# Shares of the rows' text.  Books and dialogue lose most to rows that ask, and want all the text that
# there is: of a part of it much is learned by heart (RUNS.md, run 7).
SHARES = {"dialogue": 0.29, "log": 0.17, "book": 0.27, "meeting": 0.19, "agent": 0.02,
          "docs": 0.03, "qa": 0.03}
HELD_OUT = 0.02         # the end of every kind's tokens: calibration, never trained on
START, END = [1], [2]   # <|im_start|>, <|im_end|> of shards that do not say
OWN_SHARE = 0.5         # of all kinds together that have none in SHARES
ANSWER_WEIGHT = 4.0
NOT_KINDS = ("items", "facts", "labels", "singles", "spaced")      # names of other shards
SORTS = {"plain": 0.50, "recall": 0.15, "question": 0.20, "facts": 0.15}
FACTS = 40000
TEXT_MIN = 64           # tokens of a kind
OWN = "own"             # the source of documents that name none

LLAMA3 = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,%d}"
          r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+")
# tokenizer.ggml.pre, as stream/pretoken.c has them.
DIGITS = ("smollm", "starcoder", "refact", "command-r", "codeshell")
PLAIN = ("default", "gpt-2", "gpt2", "olmo", "phi-2", "mpt")
SPLIT = {"llama-bpe": 3, "llama3": 3, "llama-v3": 3, "qwen2": 1}     # digits of a number at once


def pre_tokenizer(rule):
    """None: the engine does not know it either."""
    from tokenizers import Regex, pre_tokenizers
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=rule not in SPLIT)
    if rule in PLAIN:
        return byte_level
    if rule in DIGITS:
        first = pre_tokenizers.Digits(individual_digits=True)
    elif rule in SPLIT:
        first = pre_tokenizers.Split(Regex(LLAMA3 % SPLIT[rule]), "isolated")
    else:
        return None
    return pre_tokenizers.Sequence([first, byte_level])


def tokenizer_sum(meta):
    """What shards are of: tokens are numbers of one vocabulary."""
    texts = meta["tokenizer.ggml.tokens"] + meta.get("tokenizer.ggml.merges", [])
    return hashlib.sha256("\0".join(texts).encode("utf-8", "surrogateescape")).hexdigest()[:16]


class Tokenizer:
    """The GGUF's own: byte-level BPE behind the pre-tokenizer that it names, as the engine has it
    (tests/token_compare.py).  `start` and `end` are what a turn stands between, nothing where the
    model has no ChatML; `kind` is the type of its token numbers."""

    def __init__(self, model_path):
        try:
            from tokenizers import Tokenizer as Fast, decoders, models
        except ImportError:
            raise SystemExit("the Python package `tokenizers` is needed: pip install tokenizers")
        meta = gguf.Reader(model_path).meta
        rule = meta.get("tokenizer.ggml.pre", "default")
        if meta.get("tokenizer.ggml.model") != "gpt2" or pre_tokenizer(rule) is None:
            raise SystemExit("%s: tokenizer %s, %s is not supported, by siltd neither" % (
                model_path, meta.get("tokenizer.ggml.model"), rule))
        tokens = meta["tokenizer.ggml.tokens"]
        merges = [tuple(line.split(" ", 1)) for line in meta["tokenizer.ggml.merges"]]
        self.fast = Fast(models.BPE(vocab={text: i for i, text in enumerate(tokens)},
                                    merges=merges, ignore_merges=rule in SPLIT and rule != "qwen2"))
        self.fast.pre_tokenizer = pre_tokenizer(rule)
        self.fast.decoder = decoders.ByteLevel()
        self.size, self.sum = len(tokens), tokenizer_sum(meta)
        self.kind = np.uint16 if self.size <= 1 << 16 else np.uint32
        chat = "<|im_start|>" in tokens and "<|im_end|>" in tokens
        self.start = [tokens.index("<|im_start|>")] if chat else []
        self.end = [tokens.index("<|im_end|>")] if chat else []

    def role(self, name):
        """Who speaks, behind `start`."""
        return self.encode(name + ("\n" if self.start else ": ")).tolist()

    def decode(self, ids):
        return self.fast.decode(list(ids), skip_special_tokens=False)

    def encode(self, text):
        return np.array(self.fast.encode(text, add_special_tokens=False).ids, self.kind)

    def encode_many(self, texts):
        return [np.array(item.ids, self.kind)
                for item in self.fast.encode_batch(texts, add_special_tokens=False)]


def read_documents(path):
    """Yields one dict a line, `source` OWN where it does not say.  Lines end in a newline only:
    texts hold other separators."""
    if path.endswith(".xz"):
        data = lzma.open(path).read()
    elif path.endswith(".zst"):
        with open(path, "rb") as file:      # by its name zstd would take no link
            data = subprocess.run(["zstd", "-dc"], stdin=file, stdout=subprocess.PIPE,
                                  check=True).stdout
    else:
        with open(path, "rb") as file:
            data = file.read()
    for number, line in enumerate(data.split(b"\n"), 1):
        if line.strip():
            try:
                document = json.loads(line)
                if not isinstance(document["text"], str):
                    raise ValueError
            except (ValueError, KeyError, TypeError):
                raise SystemExit('%s, line %d: not a JSON object with a "text"' % (path, number))
            yield dict(document, source=document.get("source", OWN))


def kinds_of(folder):
    """{kind: path} of all KIND.jsonl[.xz|.zst]."""
    found = {}
    for name in sorted(os.listdir(folder)):
        kind, dot, ending = name.partition(".")
        if dot and ending in ("jsonl", "jsonl.xz", "jsonl.zst"):
            if kind in found:
                raise SystemExit("%s has %s twice" % (folder, kind))
            found[kind] = os.path.join(folder, name)
    if not found:
        raise SystemExit("%s has no text: KIND.jsonl, .jsonl.xz or .jsonl.zst" % folder)
    return found


def documents_of(folder, kind):
    """All documents of a kind, none where there is no such file."""
    path = kinds_of(folder).get(kind)
    return list(read_documents(path)) if path else []


def cut_text(text, size=60000):
    """Pieces at line ends, so that long documents tokenise in parallel."""
    pieces, at = [], 0
    while len(text) - at > size * 3 // 2:
        end = text.rfind("\n", at, at + size)
        end = at + size if end <= at else end
        pieces.append(text[at:end])
        at = end
    return pieces + [text[at:]]


def find_question(prompt):
    """The last sentence ending in a question mark near the prompt's end or start, or None."""
    for part in (prompt[-400:], prompt[:400]):
        found = re.findall(r"[A-Z][^.?!\n\"]{10,200}\?", part)
        if found:
            return found[-1]
    return None


def question_items(document):
    """(passage, question, answer) triples of one document."""
    text, items = document["text"], []
    at = document.get("ans_at")
    if at and document["source"] in (OWN, "qa_t0_selfinstruct"):
        question = find_question(text[:at])
        if question and at < 7000:
            passage = text[:at].replace(question, "").replace("Answer:", "").strip()
            items.append((passage, question, text[at:].strip()))
    for entry in document.get("qa") or ():
        answer = entry.get("a")
        if not isinstance(answer, str) or not answer.strip() or not isinstance(entry.get("q"), str):
            continue
        start = entry.get("start")
        if start is None and document["source"] == OWN and answer in text:
            start = text.index(answer)
        if start is not None:
            begin = max(0, start - 600)
            items.append((text[begin:begin + 1400], entry["q"], answer))
        elif entry.get("spans"):
            turns = text.split("\n")
            parts = ["\n".join(turns[int(a):int(b) + 1]) for a, b in entry["spans"]]
            items.append(("\n".join(parts)[:5000], entry["q"], answer))
        elif document["source"] in (OWN, "qa_cosmos"):
            items.append((text, entry["q"], answer))
    return [item for item in items if len(item[0]) > 100 and len(item[2]) < 1500]


def prepare(model_path, text_folder, out, seed=0):
    tokenizer = Tokenizer(model_path)
    random = np.random.RandomState(seed)
    os.makedirs(out, exist_ok=True)
    items, kinds = [], {}
    for kind, path in kinds_of(text_folder).items():
        if kind in NOT_KINDS:
            raise SystemExit("%s: this name is taken, give it another" % path)
        documents = list(read_documents(path))
        random.shuffle(documents)
        pieces = []
        for document in documents:
            items.extend(question_items(document))
            # Passage prompts are used as questions over streams instead.
            if document["source"] != "qa_t0_selfinstruct":
                pieces.extend(cut_text(document["text"] + "\n\n"))
        tokens = np.concatenate(tokenizer.encode_many(pieces) or [[]]).astype(tokenizer.kind)
        if len(tokens) < TEXT_MIN:
            print("%-9s has no text" % kind, flush=True)
            continue
        kinds[kind] = len(tokens)
        np.save(os.path.join(out, kind + ".npy"), tokens)
        print("%-9s %6d documents %6.1fM tokens" % (kind, len(documents), len(tokens) / 1e6),
              flush=True)
    if not kinds:
        raise SystemExit("%s has no text" % text_folder)
    random.shuffle(items)
    for name, group in (("items", items), ("facts", [facts.draw(random) for _ in range(FACTS)])):
        flat = tokenizer.encode_many([text for item in group for text in item])
        np.save(os.path.join(out, name + ".npy"),
                np.concatenate(flat or [[]]).astype(tokenizer.kind))
        np.save(os.path.join(out, name + "_ends.npy"),
                np.cumsum([len(part) for part in flat], dtype=np.int64))
    prepare_words(tokenizer, kinds, out)
    print("%d passages with a question%s" % (
        len(items), "" if items else ": made-up facts are asked for alone"), flush=True)
    prepare_labels(tokenizer, documents_of(text_folder, "qa"), documents_of(text_folder, "docs"),
                   out, random)


def prepare_words(tokenizer, kinds, out):
    """words.json: what rows are put together with, and of what; spaced.npy: for every token the one
    that has a space in front, itself where there is none."""
    words = {name: tokenizer.encode(text).tolist() for name, text in
             (("newline", "\n"), ("question", "\n\nQuestion: "), ("answer", "\nAnswer: "),
              ("blank", "\n\n"))}
    words.update(user=tokenizer.role("user"), assistant=tokenizer.role("assistant"),
                 start=tokenizer.start, end=tokenizer.end, kinds=kinds, tokenizer=tokenizer.sum)
    words["line_ends"] = [token for token in range(tokenizer.size)
                          if tokenizer.decode([token]).endswith("\n")]
    words["space"] = tokenizer.encode(" ").tolist()[0]
    words["digits"] = [tokenizer.encode(str(digit)).tolist()[0] for digit in range(10)]
    # siltd's turn around found text, daemon/ask_recall.c; as one text, ends are not tokens of
    # their own.
    use = "Use this text to answer the question."
    wish = "Answer with a sentence of the text."
    words["use"] = tokenizer.encode(use + "\n\nA").tolist()[:-1]
    words["asks"] = tokenizer.encode("\n\nQuestion:").tolist()
    words["apart"] = tokenizer.encode("A\n\nA").tolist()[1:-1]
    words["wish"] = tokenizer.encode("\n\n" + wish).tolist()
    texts = [tokenizer.decode([token]) for token in range(tokenizer.size)]
    words["sentence_ends"] = [token for token, text in enumerate(texts)
                              if re.search(r"[.?!]$|\n$", text)]
    order = {text: token for token, text in enumerate(texts)}
    spaced = [order.get(" " + text, token) for token, text in enumerate(texts)]
    np.save(os.path.join(out, "spaced.npy"), np.array(spaced, tokenizer.kind))
    with open(os.path.join(out, "words.json"), "w") as file:
        json.dump(words, file)


def prepare_labels(tokenizer, qa, docs, out, random):
    """What asks.py needs: label sets, forms of examples, marks of pairs, words of one token."""
    texts, sets = [], []
    for groups in labels.sets(qa, docs, random):
        found = []
        for label, members in groups:
            found.append([len(texts), len(texts) + 1, len(members)])
            texts += [" " + label] + members
        sets.append(found)
    flat = tokenizer.encode_many(texts)
    np.save(os.path.join(out, "labels.npy"), np.concatenate(flat))
    np.save(os.path.join(out, "labels_ends.npy"), np.cumsum([len(part) for part in flat]))
    np.save(os.path.join(out, "singles.npy"), np.array(
        [token for token in range(min(tokenizer.size, 24000))
         if re.fullmatch(" [a-z]{3,10}", tokenizer.decode([token]))], tokenizer.kind))

    def encoded(parts):
        return [[tokenizer.encode(text).tolist() for text in line] for line in parts]

    with open(os.path.join(out, "labels.json"), "w") as file:
        json.dump({"sets": sets, "forms": encoded(labels.FORMS), "styles": encoded(labels.MARKS)},
                  file)
    print("%d labels" % sum(map(len, sets)), flush=True)


class RowMaker:
    """Random rows from a shard folder; every call of `row` is independent."""

    def __init__(self, folder, length, seed=0, held_out=False):
        self.length, self.random = length, np.random.RandomState(seed)
        with open(os.path.join(folder, "words.json")) as file:
            self.words = json.load(file)
        sizes = self.words.get("kinds", {})
        self.kinds, self.shares = {}, []
        for kind in [*SHARES, *(kind for kind in sizes if kind not in SHARES)]:
            path = os.path.join(folder, kind + ".npy")
            if os.path.exists(path):
                tokens = np.load(path, mmap_mode="r")
                # At least a row of it, but of what is short a tenth.
                edge = min(int(len(tokens) * (1 - HELD_OUT)),
                           len(tokens) - max(1, min(length, len(tokens) // 10)))
                self.kinds[kind] = tokens[edge:] if held_out else tokens[:edge]
                self.shares.append(SHARES.get(kind, 0) or OWN_SHARE * sizes[kind] / sum(
                    size for name, size in sizes.items() if name not in SHARES))
        self.names = list(self.kinds)
        self.shares = np.array(self.shares) / sum(self.shares)
        self.items = {name: (np.load(os.path.join(folder, name + ".npy"), mmap_mode="r"),
                             np.load(os.path.join(folder, name + "_ends.npy")))
                      for name in ("items", "facts")}
        self.held_out = held_out

    def text(self, kind, count):
        tokens = self.kinds[kind]
        at = self.random.randint(0, max(1, len(tokens) - count))
        return np.resize(tokens[at:at + count], count).astype(np.int64)

    def row(self, sort=None, kind=None):
        """tokens int64, weight f32 (for predicting each token), raw bool: all [length]."""
        sort = sort or self.random.choice(list(SORTS), p=list(SORTS.values()))
        kind = kind or self.random.choice(self.names, p=self.shares)
        if sort == "plain":
            return (self.text(kind, self.length), np.ones(self.length, np.float32),
                    np.zeros(self.length, bool))
        if sort == "recall":
            return self._recall(kind)
        return self._question(kind) if sort == "question" else self._facts(kind)

    def _recall(self, kind):
        """Earlier excerpts come back word for word; their first tokens, the cue, carry no loss."""
        text = self.text(kind, self.length)
        out, weight, used = [], [], 0
        places = np.sort(self.random.randint(min(700, self.length // 4), self.length - 200,
                                             self.random.randint(4, 10)))
        for place in places:
            gap = place - sum(len(part) for part in out)
            if gap < 100:
                continue
            out.append(text[used:used + gap])
            weight.append(np.ones(gap, np.float32))
            used += gap
            so_far = np.concatenate(out)
            size = self.random.randint(32, 160)
            back = self.random.randint(min(560, len(so_far)), min(len(so_far), 4500) + 560)
            start = max(0, len(so_far) - back)
            excerpt = so_far[start:start + size]
            out.append(np.concatenate([self.words["blank"], excerpt]).astype(np.int64))
            mark = np.ones(len(out[-1]), np.float32)
            mark[:8] = 0
            weight.append(mark)
        rest = self.length - sum(len(part) for part in out)
        out.append(text[used:used + max(0, rest)])
        weight.append(np.ones(len(out[-1]), np.float32))
        tokens = np.concatenate(out)[:self.length]
        return tokens, np.concatenate(weight)[:self.length], np.zeros(self.length, bool)

    def item(self, name="items"):
        """(passage, question, answer), or of "facts" (statement, question, answer), as tokens."""
        items, ends = self.items[name if len(self.items[name][1]) else "facts"]
        count = len(ends) // 3
        edge = max(1, int(count * (1 - HELD_OUT)))
        low, high = (min(edge, count - 1), count) if self.held_out else (0, edge)
        index = 3 * self.random.randint(low, high)
        starts = [0 if index == 0 else ends[index - 1], ends[index], ends[index + 1]]
        return [items[a:b].astype(np.int64) for a, b in zip(starts, ends[index:index + 3])]

    def turns(self, question, answer, chat=False):
        """Question and answer as the engine asks (chat template, raw rows) or as plain text."""
        words = self.words
        if chat or self.random.rand() < 0.6:
            start, end = words.get("start", START), words.get("end", END)
            head = start + words["user"] + list(question) + end + words["newline"] \
                + start + words["assistant"]
            tail, raw = end + words["newline"], True
        else:
            head = words["question"] + list(question) + words["answer"]
            tail, raw = words["blank"], False
        tokens = np.array(head + list(answer) + tail, np.int64)
        weight = np.zeros(len(tokens), np.float32)
        weight[len(head):len(tokens) - len(tail) + 1] = ANSWER_WEIGHT
        return tokens, weight, np.full(len(tokens), raw)

    def _question(self, kind):
        events = []
        for _ in range(self.random.randint(3, 7)):
            passage, question, answer = self.item()
            passage = passage[:min(1200, self.length // 4)]
            at = self.random.randint(0, self.length - self.length // 5)
            later = at + len(passage) + self.random.randint(500, 6000)
            events.append((at, (passage, np.ones(len(passage), np.float32),
                                np.zeros(len(passage), bool))))
            room = self.length - len(question) - len(answer[:200]) - 20
            events.append((max(0, min(later, room)), self.turns(question, answer)))
        return self.laid_over(kind, events)

    def _facts(self, kind):
        """Statements all along the text; questions come near (a sixth) or far behind them."""
        events = []
        for _ in range(self.random.randint(8, 25)):
            statement, question, answer = self.item("facts")
            blank = np.array(self.words["newline"])
            said = np.concatenate([blank, statement, blank])
            at = self.random.randint(0, self.length - self.length // 8)
            gap = self.random.randint(50, 512) if self.random.rand() < 0.17 \
                else self.random.randint(512, 6500)
            events.append((at, (said, np.ones(len(said), np.float32), np.zeros(len(said), bool))))
            if at + gap < self.length - 100:
                events.append((at + gap, self.turns(question, answer)))
        return self.laid_over(kind, events)

    def laid_over(self, kind, events, weight=1.0):
        """Text of a kind, of this weight, interrupted by (place, parts) events.  Parts are tokens,
        weight, raw and what else the caller marks tokens with, which for the text is nothing."""
        events.sort(key=lambda event: event[0])
        text, used, count, parts = self.text(kind, self.length), 0, 0, []
        marks = len(events[0][1]) - 3 if events else 0
        for place, event in events + [(self.length, None)]:
            gap = max(0, min(place, self.length) - count)
            parts.append((text[used:used + gap], np.full(gap, weight, np.float32),
                          np.zeros(gap, bool)) + (np.zeros(gap, np.int32),) * marks)
            used, count = used + gap, count + gap
            if event is not None:
                parts.append(event)
                count += len(event[0])
        return tuple(np.concatenate([part[i] for part in parts])[:self.length]
                     for i in range(3 + marks))


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", required=True)
    parser.add_argument("--text", required=True)
    parser.add_argument("--out", required=True)
    options = parser.parse_args()
    prepare(options.model, options.text, options.out)


if __name__ == "__main__":
    main()
