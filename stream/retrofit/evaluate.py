"""Streaming NLL in PyTorch: full, window, none, ccm, ccm-swap at every ratio, on development text.

    python3 evaluate.py --model BASE.gguf --adapter ADAPTER.gguf --text DEV --out FIGURES.json

The same parallel forward that trains serves here with hard decisions, in fp32: equal to feeding the
stream token by token.  `window` holds at every token as many rows as ccm does.
"""
import argparse
import json
import math
import os
import time

import numpy as np
import torch
import torch.nn.functional as F

import data
import export
import model as model_file
import plan as plan_file
import silt_adapter

KINDS = ("book", "dialogue", "meeting", "log")


def load_streams(folder, kind, tokenizer, tokens, count):
    """`count` streams of `tokens` tokens from a kind's documents, joined by blank lines."""
    for ending in (".jsonl", ".jsonl.xz", ".jsonl.zst"):
        path = os.path.join(folder, kind + ending)
        if os.path.exists(path):
            break
    texts, size, need = [], 0, tokens * count * 6
    for document in data.read_documents(path):
        texts.append(document["text"])
        size += len(document["text"])
        if size > need:
            break
    ids = tokenizer.encode("\n\n".join(texts)[:need]).astype(np.int64)
    count = min(count, len(ids) // tokens)
    return ids[:count * tokens].reshape(count, tokens)


def nll(hidden, head, tokens, chunk=4096):
    """[B, N] with entry i = -log p(token i); entry 0 is zero."""
    rows, length = tokens.shape
    out = torch.zeros(rows, length, device=hidden.device)
    for row in range(rows):
        for at in range(0, length - 1, chunk):
            end = min(length - 1, at + chunk)
            logits = (hidden[row, at:end] @ head.t()).float()
            out[row, at + 1:end + 1] = F.cross_entropy(logits, tokens[row, at + 1:end + 1],
                                                       reduction="none")
    return out


class Evaluator:
    def __init__(self, base, parameters, quotas, constants):
        self.base, self.constants = base, constants
        self.device, self.dtype = base.embd.device, base.embd.dtype
        self.silt = model_file.SiltModel(base, parameters.to(self.device),
                                         quotas.to(self.device))

    def tables(self, rows, chunks, ring, slots=None, row_of=None, hide=False):
        c = self.constants
        plan = plan_file.MemoryPlan([ring] * rows, chunks, slots or max(ring, 1), c["n"], c["m"],
                                    c["sinks"], c["alpha_min"], hide_memory=hide)
        return plan, model_file.make_tables(self.base, plan, c["n"], c["m"], self.device,
                                            self.dtype, row_of)

    @torch.no_grad()
    def ccm(self, tokens, ratio, ring=None, policy="ccm", raw=None):
        """-> nll [B, N], rows held at every token [N] (mean over rows, layers, heads), ratio."""
        c = self.constants
        ring = c["ring"] if ring is None else ring
        rows, length = tokens.shape
        chunks = length // c["n"]
        ids = torch.from_numpy(tokens).to(self.device)
        row_of = None
        if policy == "ccm-swap":
            # In lockstep: every stream runs once as itself and once on its neighbour's memory.
            ids = torch.cat([ids, ids])
            order = torch.arange(rows, device=self.device)
            row_of = torch.cat([order, (order + 1) % rows])
        plan, tables = self.tables(len(ids), chunks, ring, row_of=row_of, hide=policy == "none")
        flags = torch.zeros_like(ids, dtype=torch.bool) if raw is None \
            else torch.from_numpy(raw).to(self.device)
        hidden, seen = self.silt.forward(ids, flags, tables, ratio, keep=True)
        if policy == "ccm-swap":
            hidden, ids = hidden[rows:], ids[rows:]
        if ratio > 1:
            hard = torch.stack([layer.float().mean(2) for layer in seen["hard"]]).mean(0)
            fresh = (1 - hard).view(-1, chunks, c["n"])[:rows].mean(0)
        else:
            fresh = torch.ones(chunks, c["n"], device=self.device)
        held = fresh.cumsum(1)
        held[1:] += fresh.sum(1)[:-1, None]
        far = (torch.from_numpy(plan.hidden[0]) == 0).sum(1).to(self.device)
        held = (held + far[:, None]).flatten()
        realised = c["n"] / fresh.sum(1).mean().item()
        return nll(hidden, self.base.head, ids), held, realised

    @torch.no_grad()
    def window(self, tokens, width, block=512):
        """Base weights; token t sees the newest width[t] tokens and the sinks, re-placed."""
        base, sinks = self.base, self.constants["sinks"]
        rows, length = tokens.shape
        ids = torch.from_numpy(tokens).to(self.device)
        width = torch.as_tensor(width, device=self.device).long().clamp(min=1)
        width = width.expand(length).contiguous()
        place = torch.arange(length, device=self.device)
        table = base.rope_table(place, self.device)
        sink_table = base.rope_table(torch.minimum(place, width + sinks - 1), self.device)
        first_table = base.rope_table(torch.arange(sinks), self.device)
        oldest = (place - width + 1).clamp(min=0)
        x = F.embedding(ids, base.embd)
        heads, kv_heads, dim = base.heads, base.kv_heads, base.head_dim
        group = heads // kv_heads
        lows = [int(oldest[at:at + block].min()) for at in range(0, length, block)]
        for attn_norm, qkv_weight, o_weight, ffn_norm, gate_up, down in base.blocks:
            h = model_file.rms_norm(x, attn_norm, base.eps)
            parts = (h @ qkv_weight.t()).split([heads * dim, kv_heads * dim, kv_heads * dim], -1)
            q, k, v = (part.unflatten(-1, (-1, dim)) for part in parts)
            near, far = model_file.rotate(q, table), model_file.rotate(q, sink_table)
            sink_k = model_file.rotate(k[:, :sinks], first_table)
            k = model_file.rotate(k, table)
            out = torch.empty_like(q)
            for index, at in enumerate(range(0, length, block)):
                low, end = lows[index], min(length, at + block)
                mine, cols = slice(at, end), place[low:end]
                see = (cols[None] <= place[mine, None]) & (cols[None] >= oldest[mine, None])
                see_sink = torch.arange(sinks, device=self.device)[None] < oldest[mine, None]

                def fold(t):        # [B, s, heads, dim] -> [B, kv, group, s, dim]
                    return t[:, mine].unflatten(2, (kv_heads, group)).permute(0, 2, 3, 1, 4)

                keys, values = k[:, low:end], v[:, low:end]
                score = torch.cat([
                    (fold(far) @ sink_k.permute(0, 2, 3, 1)[:, :, None])
                    .masked_fill(~see_sink, -math.inf),
                    (fold(near) @ keys.permute(0, 2, 3, 1)[:, :, None])
                    .masked_fill(~see, -math.inf)], -1)
                weight = (score / math.sqrt(dim)).softmax(-1)
                both = torch.cat([v[:, :sinks], values], 1).transpose(1, 2)[:, :, None]
                out[:, mine] = (weight @ both).permute(0, 3, 1, 2, 4).flatten(2, 3)
            x = model_file.mlp(x + out.flatten(2) @ o_weight.t(), ffn_norm, gate_up, down,
                               base.eps)
        return nll(model_file.rms_norm(x, base.norm, base.eps), base.head, ids)


def summary(values):
    """Mean NLL of streams [B, N] and its quarters; the first token has no prediction."""
    values = values[:, 1:]
    return {"nll": round(values.mean().item(), 4),
            "quarters": [round(part.mean().item(), 4) for part in values.chunk(4, 1)]}


def grid(evaluator, streams, ratios, tell=print, rings=(), brief=False):
    """Every policy on the streams of one kind; returns a dict of figures."""
    out, context = {}, evaluator.base.context
    rows = [streams[i:i + 1] for i in range(len(streams))]

    def each(function):
        return torch.cat([function(row) for row in rows])

    sinks = evaluator.constants["sinks"]
    out["full"] = summary(each(lambda row: evaluator.window(row, context - sinks)))
    for ratio in ratios:
        parts = [evaluator.ccm(row, ratio) for row in rows]
        entry = summary(torch.cat([part[0] for part in parts]))
        held = torch.stack([part[1] for part in parts])
        entry["rows"] = round(held.mean().item(), 1)
        entry["ratio"] = round(len(parts) / sum(1 / part[2] for part in parts), 3)
        out["ccm %dx" % ratio] = entry
        swapped = evaluator.ccm(streams[:2], ratio, policy="ccm-swap")[0]
        own = torch.cat([part[0] for part in parts[:2]])
        out["swap %dx" % ratio] = dict(summary(swapped), own=summary(own)["nll"])
        if not brief or ratio in (1, 4):
            out["window %dx" % ratio] = summary(torch.cat(
                [evaluator.window(row, held[i] - sinks) for i, row in enumerate(rows)]))
            out["none %dx" % ratio] = summary(each(
                lambda row: evaluator.ccm(row, ratio, policy="none")[0]))
    for ring in rings:
        for hide in (False, True):
            name = "ring %d%s" % (ring, " without summary" if hide else "")
            out[name] = summary(each(lambda row: without_summary(evaluator, row, ring, hide)))
    for name, entry in out.items():
        tell("  %-22s %s" % (name, json.dumps(entry)))
    return out


@torch.no_grad()
def without_summary(evaluator, tokens, ring, hide, ratio=1):
    c = evaluator.constants
    plan, tables = evaluator.tables(len(tokens), tokens.shape[1] // c["n"], ring)
    if hide:
        tables.hidden[:, :, c["sinks"]:c["sinks"] + c["m"]] = plan_file.HIDDEN
    ids = torch.from_numpy(tokens).to(evaluator.device)
    hidden, _ = evaluator.silt.forward(ids, torch.zeros_like(ids, dtype=torch.bool), tables, ratio)
    return nll(hidden, evaluator.base.head, ids)


# Questions over streams.

def question_rows(folder, tokenizer, count, length=8192, seed=1):
    """Rows ending in a question about a passage 1k to 6k tokens back: with and without passage."""
    random = np.random.RandomState(seed)
    filler = np.concatenate([load_streams(folder, kind, tokenizer, 60000, 1)[0]
                             for kind in ("book", "dialogue")])
    for ending in (".jsonl", ".jsonl.xz", ".jsonl.zst"):
        path = os.path.join(folder, "qa" + ending)
        if os.path.exists(path):
            break
    items = [item for document in data.read_documents(path)
             for item in data.question_items(document)]
    random.shuffle(items)
    words = {name: tokenizer.encode(text).tolist() for name, text in
             (("user", "user\n"), ("assistant", "assistant\n"), ("newline", "\n"))}
    rows = []
    for passage, question, answer in items:
        passage, question, answer = (tokenizer.encode(part).astype(np.int64).tolist()
                                     for part in (passage, question, answer))
        if len(answer) > 12 or len(passage) > 1200 or not answer:
            continue
        tail = [data.USER] + words["user"] + question + [data.TURN_END] + words["newline"] \
            + [data.USER] + words["assistant"] + answer
        if len(tail) > 200:
            continue
        gap = random.randint(1000, 6000)
        at = length - len(tail) - gap - len(passage)
        if at < 0:
            continue
        start = random.randint(0, len(filler) - length)
        text = filler[start:start + length].tolist()
        with_passage = text[:at] + passage + text[at + len(passage):length - len(tail)] + tail
        without = text[:length - len(tail)] + tail
        raw = np.zeros(length, bool)
        raw[length - len(tail):] = True
        rows.append((np.array(with_passage), np.array(without), raw, len(answer)))
        if len(rows) == count:
            break
    return rows


@torch.no_grad()
def answers(evaluator, rows, ratios, batch=8):
    """Loss of the answer's tokens and share of answers greedy decoding would give exactly."""
    def score(run, pick):
        loss = []
        for at in range(0, len(rows), batch):
            part = rows[at:at + batch]
            losses = run(np.stack([row[pick] for row in part]), np.stack([row[2] for row in part]))
            loss += [losses[i, -row[3]:].mean().item() for i, row in enumerate(part)]
        return round(float(np.mean(loss)), 4)

    context = evaluator.base.context
    out = {"rows": len(rows),
           "no passage": score(lambda ids, raw: evaluator.window(ids, context), 1),
           "full context": score(lambda ids, raw: evaluator.window(ids, context), 0)}
    for ratio in ratios:
        out["memory %dx" % ratio] = score(
            lambda ids, raw: evaluator.ccm(ids, ratio, raw=raw)[0], 0)
        out["memory %dx, no passage" % ratio] = score(
            lambda ids, raw: evaluator.ccm(ids, ratio, raw=raw)[0], 1)
    return out


def constants_of(adapter):
    return {"n": adapter.chunk_tokens, "m": adapter.comp_tokens, "ring": adapter.ring_segments,
            "sinks": adapter.sink_tokens, "alpha_min": adapter.summary_alpha_min}


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", required=True)
    parser.add_argument("--adapter", required=True)
    parser.add_argument("--text", required=True)
    parser.add_argument("--out")
    parser.add_argument("--kinds", default=",".join(KINDS))
    parser.add_argument("--tokens", type=int, default=24576)
    parser.add_argument("--book-tokens", type=int, default=65536)
    parser.add_argument("--streams", type=int, default=2)
    parser.add_argument("--ratios", default="1,2,4,8")
    parser.add_argument("--rings", default="", help="ring lengths to try with and without summary")
    parser.add_argument("--questions", type=int, default=0)
    parser.add_argument("--brief", action="store_true")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args()
    torch.set_float32_matmul_precision("high")
    base = model_file.BaseModel(options.model, options.device)
    adapter = silt_adapter.read(options.adapter)
    parameters, quotas = export.from_adapter(base, adapter)
    evaluator = Evaluator(base, parameters, quotas, constants_of(adapter))
    tokenizer = data.Tokenizer(options.model)
    ratios = [int(part) for part in options.ratios.split(",")]
    rings = [int(part) for part in options.rings.split(",") if part]
    figures = {}
    for kind in [part for part in options.kinds.split(",") if part]:
        begun = time.time()
        tokens = options.book_tokens if kind == "book" else options.tokens
        streams = load_streams(options.text, kind, tokenizer, tokens, options.streams)
        print("%s: %d streams of %d tokens" % (kind, len(streams), tokens), flush=True)
        figures[kind] = grid(evaluator, streams, ratios, rings=rings, brief=options.brief)
        print("  %.1f s" % (time.time() - begun), flush=True)
        write_figures(options.out, figures)
    if options.questions:
        begun = time.time()
        rows = question_rows(options.text, tokenizer, options.questions)
        figures["answers"] = answers(evaluator, rows, ratios)
        print("answers %s  %.1f s" % (json.dumps(figures["answers"]), time.time() - begun))
    write_figures(options.out, figures)


def write_figures(path, figures):
    if path:
        with open(path, "w") as file:
            json.dump(figures, file, indent=1)


if __name__ == "__main__":
    main()
