"""Recall keys: trains how a question finds the chunks that answer it, and adds that to an adapter.

    python3 key.py --model BASE.gguf --text FOLDER --prepare PAIRS.npz      # needs `tokenizers`
    python3 key.py --model BASE.gguf --adapter IN.gguf --pairs PAIRS.npz --out OUT.gguf --seconds 100

A chunk's key is the set of its tokens.  A question's token i has a query: a linear map of its own
embedding and of its hidden state after `silt.recall_layer` layers of the base model, read with
nothing before it.  It is compared with the mapped embedding of every token of a chunk, and the best
counts (late interaction, ColBERT, arXiv 2004.12832, with a static side for the text):

    score = sum over i of weight_i * max over v in chunk of gain_v * relu(cos(query_i, key_v))

So nothing is stored for a chunk but 256 token numbers, made again from the journal at any time, and
"car" still finds "automobile".  Trained with InfoNCE on passages and questions, half of the time
without the words that both have, on facts in other words (key_facts.py), and on spans taken out of
their text.  The start, leading directions of the embeddings, is a good key already: what training
found is mixed with it as held-out forms and words ask for.
"""
import argparse
import json
import os
import sys
import time

import numpy as np
import torch
import torch.nn.functional as F

import data
import gguf
import key_facts
import model as model_file
import silt_adapter

CHUNK = 256
QUESTION_MAX = 64       # tokens
SORTS = ("passage", "fact", "passage held out", "fact held out")
FACTS, FACTS_HELD = 60000, 1200
NO_FILLER = ("qa", "docs")              # kinds that other text is not taken from
FILLER_TOKENS = 4000000
VOCABULARY_MAX = 1 << 16                # the engine's keys are numbers of 16 bits
SPAN_SHARE, FACT_SHARE = 0.15, 0.40     # of a batch; the rest are passages


# ---- pairs ----

def passage_pairs(folder):
    """(passage, place in it, question, document) of all documents with questions."""
    for kind, path in data.kinds_of(folder).items():
        for number, document in enumerate(data.read_documents(path)):
            for passage, question, answer in data.question_items(document):
                passage = passage[:6000]
                yield passage, max(0, passage.find(answer)), question, (kind, number)
            if document["source"] == "qa_medquad":
                at = document["ans_at"]
                question = document["text"][:at].replace("Question:", "").replace("Answer:", "")
                yield document["text"][at:at + 1200], 0, question.strip(), (kind, number)


def split(pairs):
    """-> pairs to train on, pairs held out: a thirtieth of them, and none to train on is of their
    documents or passages, which several questions and several prompts may share."""
    held, rest = pairs[:len(pairs) // 30], pairs[len(pairs) // 30:]

    def names(pair):
        return {pair[3], " ".join(pair[0].split())[:300]}

    taken = set().union(*map(names, held))
    return [pair for pair in rest if not names(pair) & taken], held


def chunk_frequency(pieces, size):
    """Of every token, the share of chunks it is in, as -log."""
    count, total = np.ones(size), 1
    for tokens in pieces:
        for at in range(0, len(tokens) - CHUNK, CHUNK):
            count[np.unique(tokens[at:at + CHUNK])] += 1
            total += 1
    return np.log(total / count).astype(np.float32)


def prepare(model_path, text_folder, out, seed=0):
    tokenizer, random = data.Tokenizer(model_path), np.random.RandomState(seed)
    if tokenizer.size > VOCABULARY_MAX:
        raise SystemExit("no recall keys for %d tokens: the engine takes %d at most"
                         % (tokenizer.size, VOCABULARY_MAX))
    pairs, held = list(passage_pairs(text_folder)), len(SORTS) // 2
    random.shuffle(pairs)
    texts, sort, passages = [], [], split(pairs)
    for which, part in zip((held, 0), passages[::-1]):
        for passage, place, question, _ in part:
            before = passage[:place][-500:]
            texts += [before + passage[place:place + 700], "\n" + question]
            sort.append(which)
    for index in range(FACTS + FACTS_HELD):
        fact, question, _ = key_facts.make_fact(random, index >= FACTS)
        texts += ["\n" + fact + "\n", "\n" + question]
        sort.append(1 if index < FACTS else 1 + held)
    parts = tokenizer.encode_many(texts)
    for index in range(1, len(parts), 2):       # the question's line break is the template's
        parts[index] = parts[index][1:1 + QUESTION_MAX]
    filler, kinds = [], data.kinds_of(text_folder)
    for kind in [kind for kind in kinds if kind not in NO_FILLER] or kinds:
        documents = list(data.read_documents(kinds[kind]))
        random.shuffle(documents)
        pieces = [d["text"][:30000] + "\n\n" for d in documents[:300]]
        filler.append(np.concatenate(tokenizer.encode_many(pieces))[:FILLER_TOKENS // 5])
    part = out + ".part.npz"        # one that is there is whole
    np.savez(part, tokens=np.concatenate(parts), ends=np.cumsum([len(p) for p in parts]), sort=sort,
             filler=np.concatenate(filler), rarity=chunk_frequency(filler, tokenizer.size),
             head=tokenizer.start + tokenizer.role("user"))
    os.replace(part, out)
    print("%d passages, %d held out, %d facts, %.1fM tokens of other text"
          % (*map(len, passages), FACTS, sum(map(len, filler)) / 1e6))


class Pairs:
    """Questions, and chunks that answer them, at random."""

    def __init__(self, path, seed=0):
        file = np.load(path)
        self.tokens, self.ends, self.sort = file["tokens"], file["ends"], file["sort"]
        self.filler, self.rarity = file["filler"], file["rarity"]
        self.head = [int(t) for t in file["head"]]
        self.random = np.random.RandomState(seed)
        self.places = [np.flatnonzero(self.sort == s) for s in range(len(SORTS))]

    def part(self, index):
        return self.tokens[self.ends[index - 1] if index else 0:self.ends[index]].astype(np.int64)

    def other(self, count=CHUNK):
        at = self.random.randint(0, max(1, len(self.filler) - count))
        return np.resize(self.filler[at:at + count], count).astype(np.int64)

    def pair(self, sort):
        """question, chunk: the passage somewhere in other text."""
        index = self.random.choice(self.places[sort])
        passage = self.part(2 * index)[:CHUNK]
        text = self.other()
        at = self.random.randint(0, CHUNK - len(passage) + 1)
        text[at:at + len(passage)] = passage
        return self.part(2 * index + 1), text

    def span(self):
        """A piece of text, and the chunk it was taken out of."""
        text = self.other()
        at, size = self.random.randint(0, CHUNK - 24), self.random.randint(6, 24)
        return text[at:at + size], np.concatenate([text[:at], text[at + size:]])

    def batch(self, count):
        """Half of the pairs lose words that question and chunk share: so others must do."""
        questions, chunks = [], []
        for _ in range(count):
            draw = self.random.rand()
            if draw < SPAN_SHARE:
                question, chunk = self.span()
                lose = 0.8
            else:
                fact = draw < SPAN_SHARE + FACT_SHARE or not len(self.places[0])
                question, chunk = self.pair(1 if fact else 0)
                lose = self.random.choice([0, 0.3, 0.7])
            chunk = np.unique(chunk)
            shared = np.isin(chunk, question) & (self.random.rand(len(chunk)) < lose)
            questions.append(question)
            chunks.append(chunk if shared.all() else chunk[~shared])
        return questions, chunks

    def pool(self, sort, count):
        """Held-out questions, each answered by the chunk of the same number."""
        keep, self.random = self.random, np.random.RandomState(sort)
        drawn = [self.pair(sort) for _ in range(count)]
        self.random = keep
        return [q for q, _ in drawn], [np.unique(c) for _, c in drawn]


def padded(parts, device):
    """Parts of different lengths as [count, longest]; the last token again behind the end."""
    longest = max(len(part) for part in parts)
    out = np.stack([np.pad(part, (0, longest - len(part)), mode="edge") for part in parts])
    return torch.from_numpy(out).to(device)


# ---- the key ----

def unit_rms(x):
    x = x.float()
    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-5)


class Key(torch.nn.Module):
    """Names are those of FORMAT.md, but that gain and weight are made from rarity there."""

    def __init__(self, base, rarity, dim):
        super().__init__()
        rows = unit_rms(base.embd)
        self.register_buffer("rows", rows)
        self.register_buffer("rarity", torch.as_tensor(rarity[:len(rows)] / 5).to(rows.device))
        mean = rows.mean(0)
        spread = (rows - mean).double()
        _, vectors = torch.linalg.eigh((spread.t() @ spread).cpu())
        lead = vectors[:, -dim:].t().float().to(rows.device) / rows.shape[1] ** 0.5
        self.token = torch.nn.Parameter(lead.clone())                       # [dim, d]
        self.token_bias = torch.nn.Parameter(-(lead @ mean))
        self.query = torch.nn.Parameter(torch.cat([lead, torch.zeros_like(lead)], 1))  # [dim, 2d]
        self.query_bias = torch.nn.Parameter(-(lead @ mean))
        self.gain = torch.nn.Parameter(torch.zeros(rows.shape[1]))
        self.gain_of = torch.nn.Parameter(torch.tensor([0.0, 1.0]))
        self.weight = torch.nn.Parameter(torch.zeros(rows.shape[1]))
        self.weight_deep = torch.nn.Parameter(torch.zeros(rows.shape[1]))
        self.weight_of = torch.nn.Parameter(torch.tensor([0.0, 0.7]))
        self.scale = torch.nn.Parameter(torch.tensor(1.0))

    def gains(self):
        return F.softplus(self.gain_of[0] + self.gain_of[1] * self.rarity + self.rows @ self.gain)

    def weights(self):
        """Of a question's token, before softplus and without its hidden state's share."""
        return self.weight_of[0] + self.weight_of[1] * self.rarity + self.rows @ self.weight

    def keys(self):
        x = self.rows @ self.token.t() + self.token_bias
        return F.normalize(x, dim=1) * self.gains()[:, None]

    def queries(self, tokens, deep):
        """tokens [n], deep [n, d] -> [n, dim], weight included."""
        x = torch.cat([self.rows[tokens], deep], 1) @ self.query.t() + self.query_bias
        weight = F.softplus(self.weights()[tokens] + deep @ self.weight_deep)
        return F.normalize(x, dim=1) * weight[:, None]


class Reader:
    """Questions through the first layers of the base model, each on its own."""

    def __init__(self, base, head, layer):
        self.base, self.head, self.layer = base, head, layer

    @torch.no_grad()
    def read(self, questions):
        """-> tokens [n], hidden [n, d], question's number [n]: the questions' own tokens."""
        base, device = self.base, self.base.embd.device
        tokens = padded([np.concatenate([self.head, q]) for q in questions], device)
        x = F.embedding(tokens, base.embd)
        table = base.rope_table(np.arange(tokens.shape[1]), device)
        shape = (base.heads, base.kv_heads, base.head_dim, base.eps)
        for block in base.blocks[:self.layer]:
            x = model_file.plain_layer(x, block, table, shape)
        number = torch.repeat_interleave(torch.arange(len(questions)),
                                         torch.tensor([len(q) for q in questions]))
        column = torch.cat([torch.arange(len(q)) for q in questions]) + len(self.head)
        number, column = number.to(device), column.to(device)
        return tokens[number, column], unit_rms(x[number, column]), number


def scores(key, read, chunks):
    """[questions, chunks]; chunks [count, tokens]."""
    tokens, deep, number = read
    near = F.relu(key.queries(tokens, deep) @ key.keys()[chunks.flatten()].t())
    near = near.unflatten(1, chunks.shape).amax(2)
    out = torch.zeros(int(number.max()) + 1, len(chunks), device=near.device)
    return out.index_add(0, number, near)


@torch.no_grad()
def hit_rates(key, reader, pairs, count):
    """Share of held-out questions whose chunk is among the best 8 of the pool, by sort; 0 of those
    of which there are none."""
    out = []
    for sort in (2, 3):
        if not len(pairs.places[sort]):
            out.append(0.0)
            continue
        questions, chunks = pairs.pool(sort, min(count, 4 * len(pairs.places[sort])))
        table, hits = padded(chunks, key.token.device), []
        for at in range(0, len(questions), 32):
            read = reader.read(questions[at:at + 32])
            parts = [scores(key, read, table[b:b + 256]) for b in range(0, len(table), 256)]
            best = torch.cat(parts, 1).topk(8, 1).indices.cpu()
            own = torch.arange(at, at + len(best))[:, None]
            hits.append((best == own).any(1).float())
        out.append(torch.cat(hits).mean().item())
    return out


def train(key, reader, pairs, options):
    start = {name: value.detach().clone() for name, value in key.named_parameters()}
    said = hit_rates(key, reader, pairs, options.pool)
    print("untrained: passages %.3f facts %.3f" % tuple(said), flush=True)
    maps = [p for p in key.parameters() if p.dim() == 2]
    others = [p for p in key.parameters() if p.dim() < 2]
    optimizer = torch.optim.AdamW([{"params": maps, "lr": options.rate},
                                   {"params": others, "lr": options.rate * 2}],
                                  weight_decay=0.0, betas=(0.9, 0.98))
    rates = [group["lr"] for group in optimizer.param_groups]
    begun, step, shown, mean = time.time(), 0, 0.0, None
    device = key.token.device
    while time.time() - begun < options.seconds and step < options.steps:
        done = max((time.time() - begun) / options.seconds, step / options.steps)
        for group, rate in zip(optimizer.param_groups, rates):
            group["lr"] = rate * min(1, (step + 1) / 50) * (0.05 + 0.95 * (1 - done))
        questions, chunks = pairs.batch(options.batch)
        chunks += [np.unique(pairs.other()) for _ in range(options.batch // 4)]
        score = scores(key, reader.read(questions), padded(chunks, device)) * key.scale.exp()
        loss = F.cross_entropy(score, torch.arange(len(questions), device=device))
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(key.parameters(), 1.0)
        optimizer.step()
        step += 1
        mean = loss.detach() if mean is None else 0.95 * mean + 0.05 * loss.detach()
        if time.time() - shown > 10:
            shown = time.time()
            print("step %5d loss %.3f %4.0f s" % (step, mean.item(), shown - begun), flush=True)
    return start, said


def mix(key, reader, pairs, start, options):
    """Between the start and where training went, what held-out pairs like best."""
    trained = {name: value.detach().clone() for name, value in key.named_parameters()}
    best = None
    for share in (0.0, 0.25, 0.5, 0.75, 1.0):
        with torch.no_grad():
            for name, value in key.named_parameters():
                value.copy_(start[name] + share * (trained[name] - start[name]))
        rates = hit_rates(key, reader, pairs, options.pool)
        print("share %.2f of the way: passages %.3f facts %.3f" % (share, *rates), flush=True)
        if best is None or sum(rates) > best[0]:
            best = (sum(rates), share, {n: v.detach().clone() for n, v in key.named_parameters()})
    key.load_state_dict(best[2], strict=False)
    return best[1]


def tensors(key):
    new = {"recall.token": key.token, "recall.token.bias": key.token_bias,
           "recall.query": key.query, "recall.query.bias": key.query_bias,
           "recall.gain": key.gains(), "recall.weight": key.weights(),
           "recall.weight_deep": key.weight_deep}
    return {name: value.detach().float().cpu().numpy() for name, value in new.items()}


def write(options, new, layer, fingerprint):
    """The adapter as it is, and the key."""
    adapter = silt_adapter.read(options.adapter)
    if adapter.base_fingerprint != fingerprint:
        raise SystemExit("%s is for another model" % options.adapter)
    adapter.tensors.update(new)
    adapter.recall_layer = layer
    silt_adapter.write(options.out, adapter, silt_adapter.name_of(options.adapter))


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", required=True)
    parser.add_argument("--text", help="folder of KIND.jsonl[.xz|.zst], with --prepare")
    parser.add_argument("--prepare", metavar="PAIRS.npz")
    parser.add_argument("--adapter")
    parser.add_argument("--key", metavar="GGUF", help="an adapter of the same base: its key is taken")
    parser.add_argument("--pairs")
    parser.add_argument("--out")
    parser.add_argument("--layer", type=int, default=12)
    parser.add_argument("--dim", type=int, default=128)
    parser.add_argument("--seconds", type=float, default=90)
    parser.add_argument("--steps", type=int, default=4000)
    parser.add_argument("--batch", type=int, default=192)
    parser.add_argument("--rate", type=float, default=4e-4)
    parser.add_argument("--pool", type=int, default=1024)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args()
    if options.prepare and not options.text:
        sys.exit("--prepare: --text is needed")
    if options.dim % 32 or not 0 < options.dim <= 256:
        sys.exit("--dim: a multiple of 32 up to 256")
    if options.prepare:
        prepare(options.model, options.text, options.prepare)
        return
    if not (options.adapter and options.out and (options.pairs or options.key)):
        sys.exit("--adapter, --out and one of --pairs and --key are needed")
    if options.key:
        other = silt_adapter.read(options.key)
        if other.recall_layer is None:
            sys.exit("%s has no recall keys" % options.key)
        write(options, {name: value for name, value in other.tensors.items()
                        if name.startswith("recall.")}, other.recall_layer, other.base_fingerprint)
        return
    torch.manual_seed(0)
    dtype = torch.bfloat16 if options.device == "cuda" else torch.float32
    base = model_file.BaseModel(options.model, options.device, dtype)
    pairs = Pairs(options.pairs)
    options.layer = min(options.layer, base.layers)
    key = Key(base, pairs.rarity, min(options.dim, base.width)).to(options.device)
    reader = Reader(base, pairs.head, options.layer)
    start, before = train(key, reader, pairs, options)
    share = mix(key, reader, pairs, start, options)
    write(options, tensors(key), options.layer, gguf.fingerprint(options.model))
    after = hit_rates(key, reader, pairs, options.pool)
    print(json.dumps({"untrained": before, "written": after, "share": share}))


if __name__ == "__main__":
    main()
