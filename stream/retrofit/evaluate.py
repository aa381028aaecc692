"""What silt's memory costs and what it is worth, in PyTorch: every policy, on development text.

    python3 evaluate.py --model BASE.gguf --adapter ADAPTER.gguf --set EVALSET --parts grid,rings \
                        --kinds book --out FIGURES.json

EVALSET comes from evalset.py; parts are grid, rings, drift, evict, answers, tasks, precision.  Each
process uses one GPU, so kinds and parts can run side by side.  figures.py makes tables and plots
of the files.  The parallel forward that trains serves here with hard decisions: equal to feeding
the stream token by token.  `window` holds at every token as many rows as ccm does.
"""
import argparse
import glob
import json
import math
import os
import time

import numpy as np
import torch
import torch.nn.functional as F

import answers
import evalset
import evict
import export
import gguf
import model as model_file
import plan as plan_file
import score as score_file
import silt_adapter

PARTS = ("grid", "rings", "drift", "evict", "answers", "tasks", "precision")
KINDS = ("dialogue", "meeting", "log", "mixed", "book")
RINGS = (4, 8, 14, 20, 28)
BLOCK = 32              # tokens that the engine computes at a time
DECODE = {"": 16, "qmsum": 48}
BATCH = {"cuda": 16, "cpu": 2}
RING_POLICIES = ("ccm", "no-summary", "other-summary")
POLICIES = ("full", "ccm", "window", "window+lora", "none", "swap", "foreign")


def in_parts(function, count, size=256):
    """A function of chunks, some at a time: what it needs for a million tokens fits nowhere.  Its
    first `count` arguments are per chunk; it returns a tensor or several."""
    def run(*arguments):
        found = [function(*(part[at:at + size] for part in arguments[:count]), *arguments[count:])
                 for at in range(0, len(arguments[0]), size)]
        if isinstance(found[0], tuple):
            return tuple(torch.cat(parts) for parts in zip(*found))
        return torch.cat(found)
    return run


class Evaluator:
    def __init__(self, base, parameters, quotas, constants):
        self.base, self.constants = base, constants
        self.device, self.dtype = base.embd.device, base.embd.dtype
        self.silt = model_file.SiltModel(base, parameters.to(self.device),
                                         quotas.to(self.device))

    def ids(self, tokens):
        return torch.from_numpy(np.asarray(tokens).astype(np.int64)).to(self.device)

    def tables(self, rows, chunks, ring, slots=None, row_of=None, hide=False, recall=None,
               summary_of=None):
        c = self.constants
        plan = plan_file.MemoryPlan([ring] * rows, chunks, slots or max(ring, 1), c["n"], c["m"],
                                    c["sinks"], c["alpha_min"], recall, hide)
        return plan, model_file.make_tables(self.base, plan, c["n"], c["m"], self.device,
                                            self.dtype, row_of, summary_of)

    @torch.no_grad()
    def ccm(self, tokens, ratio, ring=None, policy="ccm", lender=None):
        """-> nll [B, N]; rows held at every token [N] (mean over streams, layers, heads); entries
        a chunk of every layer and head [layers, kv], n without merging.  Policies: ccm, ccm-swap,
        none, no-summary, and other-summary.  With a lender [B, N], ccm-swap shows its memory, and
        other-summary its summary before the stream's own ring, else the neighbour's."""
        c = self.constants
        ring = c["ring"] if ring is None else ring
        rows, length = tokens.shape
        chunks = length // c["n"]
        ids = self.ids(tokens)
        row_of = summary_of = None
        if policy in ("ccm-swap", "other-summary"):
            # In lockstep: every stream runs once as itself and once on its neighbour's memory.
            other = ids if lender is None else self.ids(lender)
            ids = torch.cat([other, ids])
            order = torch.arange(rows, device=self.device)
            lent = torch.cat([order, (order + 1) % rows if lender is None else order])
            row_of, summary_of = (lent, None) if policy == "ccm-swap" else (None, lent)
        plan, tables = self.tables(len(ids), chunks, ring, row_of=row_of, hide=policy == "none",
                                   summary_of=summary_of)
        if policy == "no-summary":
            tables.hidden[:, :, c["sinks"]:c["sinks"] + c["m"]] = plan_file.HIDDEN
        raw = torch.zeros_like(ids, dtype=torch.bool)
        hidden, seen = self.silt.forward(ids, raw, tables, ratio, keep=ratio > 1)
        if len(ids) > rows:
            hidden, ids = hidden[rows:], ids[rows:]
        fresh = torch.ones(chunks, c["n"], device=self.device)
        entries = torch.full((self.base.layers, self.base.kv_heads), float(c["n"]))
        if ratio > 1:
            kept = [1 - layer.float().view(-1, chunks, c["n"], self.base.kv_heads)[:rows]
                    for layer in seen["hard"]]
            fresh = torch.stack([layer.mean((0, 3)) for layer in kept]).mean(0)
            entries = torch.stack([layer.mean((0, 1, 2)) for layer in kept]).cpu() * c["n"]
        # A block's queries see entries as of the last block but one, then raw rows.
        place = torch.arange(c["n"], device=self.device)
        merged = place // BLOCK * BLOCK - BLOCK
        entered = F.pad(fresh.cumsum(1), (1, 0))[:, merged.clamp(min=0)]
        held = entered + place + 1 - merged.clamp(min=0)
        held[1:] += fresh.sum(1)[:-1, None]
        far = (torch.from_numpy(plan.hidden[0]) == 0).sum(1).to(self.device)
        held = (held + far[:, None]).flatten()
        return score_file.nll(hidden, self.base.head, ids), held, entries

    @torch.no_grad()
    def window(self, tokens, width, block=512, lora=False):
        """Token t sees the newest width[t] tokens and the sinks, re-placed.  Base weights, or with
        the DMC LoRA on every row."""
        base, sinks = self.base, self.constants["sinks"]
        rows, length = tokens.shape
        ids = self.ids(tokens)
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
        deltas = [weights[1] for weights in self.silt.parameters.layer_weights(self.dtype)]
        for (attn_norm, qkv_weight, o_weight, ffn_norm, gate_up, down), dmc in zip(base.blocks,
                                                                                  deltas):
            h = model_file.rms_norm(x, attn_norm, base.eps)
            qkv = h @ qkv_weight.t()
            if lora:
                qkv = qkv + model_file.qkv_delta(h @ dmc[0].t(), dmc[1])
            parts = qkv.split([heads * dim, kv_heads * dim, kv_heads * dim], -1)
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
            out = out.flatten(2)
            y = out @ o_weight.t()
            if lora:
                y = y + (out @ dmc[2].t()) @ dmc[3].t()
            x = model_file.mlp(x + y, ffn_norm, gate_up, down, base.eps)
        return score_file.nll(model_file.rms_norm(x, base.norm, base.eps), base.head, ids)


def grid(evaluator, streams, ratios, foreign, policies=POLICIES):
    """Every policy on the streams of one kind.  foreign [B, N]: streams of quite other documents
    (those of `swap`, neighbours in joined text, may share one), whose memory each is lent too."""
    rows = [streams[i:i + 1] for i in range(len(streams))]
    pairs = [(streams[i:i + 2], None) for i in range(0, len(streams) - 1, 2)]
    if len(streams) % 2 and pairs:          # the odd one has the first's memory
        pairs.append((streams[-1:], streams[:1]))
    sinks, n = evaluator.constants["sinks"], evaluator.constants["n"]
    runs, out = {}, {"streams": list(streams.shape)}

    def note(name, values, **more):
        runs[name] = torch.cat([part.cpu() for part in values]).numpy()
        out[name] = dict(score_file.summary(runs[name], n), **more)
        print("  %-18s %.4f  %s" % (name, out[name]["nll"], more.get("rows", "")), flush=True)

    if "full" in policies:
        note("full", [evaluator.window(part, evaluator.base.context - sinks) for part in rows])
    for ratio in ratios:
        found = [evaluator.ccm(part, ratio) for part in rows]
        held = [part[1] for part in found]
        entries = torch.stack([part[2] for part in found]).mean(0)
        note("%dx ccm" % ratio, [part[0] for part in found],
             rows=round(torch.stack(held).mean().item(), 1),
             ratio=round(n / entries.mean().item(), 4),
             heads=[[round(n / item, 2) for item in layer] for layer in entries.tolist()])
        for name, lora in (("window", False), ("window+lora", True)):
            if name in policies and (not lora or ratio == max(ratios) or ratio == 1):
                note("%dx %s" % (ratio, name), [evaluator.window(part, held[i] - sinks, lora=lora)
                                                for i, part in enumerate(rows)])
        if "none" in policies:
            note("%dx none" % ratio, [evaluator.ccm(part, ratio, policy="none")[0]
                                      for part in rows])
        if "swap" in policies and pairs:
            note("%dx swap" % ratio, [
                evaluator.ccm(part, ratio, policy="ccm-swap", lender=lender)[0]
                for part, lender in pairs])
        if "foreign" in policies and not np.array_equal(streams, foreign):
            note("%dx foreign" % ratio,
                 [evaluator.ccm(part, ratio, policy="ccm-swap", lender=foreign[i:i + 1])[0]
                  for i, part in enumerate(rows)])
    out["repetition"] = score_file.by_repetition(streams, {
        name: values for name, values in runs.items() if len(values) == len(streams)})
    return out


def rings(evaluator, streams, lengths, ratio=1):
    out = {}
    for ring in lengths:
        for policy in RING_POLICIES:
            values = torch.cat([evaluator.ccm(streams[i:i + 1], ratio, ring, policy,
                                              streams[i - 1:i] if i else streams[-1:])[0].cpu()
                                for i in range(len(streams))])
            out["%d %s" % (ring, policy)] = score_file.summary(values, evaluator.constants["n"])
            print("  ring %2d %-10s %.4f" % (ring, policy, values[:, 1:].mean()), flush=True)
    return out


def drift(evaluator, ids, ratios):
    """The last quarter of a long stream against the same text at a stream's start."""
    from_here = len(ids) * 3 // 4 // evaluator.constants["n"] * evaluator.constants["n"]
    out = {"tokens": len(ids), "from": from_here}
    for ratio in ratios:
        late = evaluator.ccm(ids[None], ratio)[0][0, from_here:].cpu()
        early = evaluator.ccm(ids[None, from_here:], ratio)[0][0].cpu()
        late, early = late[1:], early[1:]
        out["%dx" % ratio] = {
            "late": round(late.mean().item(), 4), "early": round(early.mean().item(), 4),
            "difference": round((late - early).mean().item(), 4),
            "late eighths": [round(part.mean().item(), 4) for part in late.chunk(8)],
            "early eighths": [round(part.mean().item(), 4) for part in early.chunk(8)]}
        print("  drift %dx %s" % (ratio, out["%dx" % ratio]), flush=True)
    return out


def precision(evaluator, streams, ratios):
    """What TF32 products change, on one stream: NLL with them minus NLL in fp32."""
    out = {}
    for ratio in ratios:
        found = []
        for mode in ("highest", "high"):
            torch.set_float32_matmul_precision(mode)
            found.append(evaluator.ccm(streams, ratio)[0][:, 1:].mean().item())
        out["%dx" % ratio] = round(found[1] - found[0], 5)
    print("  TF32 changes NLL by %s" % out, flush=True)
    return out


def constants_of(adapter):
    return {"n": adapter.chunk_tokens, "m": adapter.comp_tokens, "ring": adapter.ring_segments,
            "sinks": adapter.sink_tokens, "alpha_min": adapter.summary_alpha_min}


def open_evaluator(model_path, adapter_path, device):
    base = model_file.BaseModel(model_path, device)
    adapter = silt_adapter.read(adapter_path)
    parameters, quotas = export.from_adapter(base, adapter)
    return Evaluator(base, parameters, quotas, constants_of(adapter))


def parse():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", required=True)
    parser.add_argument("--adapter", required=True)
    parser.add_argument("--set", required=True, help="folder that evalset.py made")
    parser.add_argument("--parts", default="grid")
    parser.add_argument("--out", required=True)
    parser.add_argument("--kinds", default=",".join(KINDS))
    parser.add_argument("--streams", type=int, default=99, help="of each kind, at most")
    parser.add_argument("--tokens", type=int, default=0, help="cut streams to so many")
    parser.add_argument("--ratios", default="1,2,4,8")
    parser.add_argument("--policies", default=",".join(POLICIES), help="of the grid; ccm always")
    parser.add_argument("--ring", type=int, default=0, help="segments; 0: the adapter's")
    parser.add_argument("--rings", default=",".join(map(str, RINGS)), help="of the part rings")
    parser.add_argument("--no-full", action="store_true",
                        help="answers, tasks: not the base model, which no adapter changes")
    parser.add_argument("--recall", type=int, default=0,
                        help="answers: so many segments from behind the ring are recalled with every"
                        " question, those of its passage, as an oracle knows them, and others")
    parser.add_argument("--items", type=int, default=9999, help="questions, episodes: at most")
    parser.add_argument("--batch", type=int, default=0,
                        help="streams side by side in answers and tasks; 0: 16 on a GPU, 2 else."
                        " Full context wants some 2.5 GB for each")
    parser.add_argument("--sources", default="", help="questions of these sources only")
    parser.add_argument("--tasks", default="", help="tasks whose name has this in it")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    return parser.parse_args()


def load_streams(options, kind, turn=0):
    """The streams of a kind; with a turn, of all of them others from the same place on."""
    path = os.path.join(options.set, kind + ".npy")
    if not os.path.exists(path):
        raise SystemExit("%s has no streams of %s: --kinds names those that it has"
                         % (options.set, kind))
    streams = np.load(path)
    streams = np.roll(streams, -turn * len(streams) // 2, 0)[:options.streams]
    return whole_chunks(streams, options)


def whole_chunks(tokens, options):
    """As many of the last axis as --tokens says, in whole chunks of the adapter."""
    count = min(options.tokens or tokens.shape[-1], tokens.shape[-1])
    return tokens[..., :count // options.chunk * options.chunk]


def run_part(evaluator, part, options, ratios, save):
    """A part's figures; save() writes what there is, so that a run cut short leaves some."""
    if part == "drift":
        ids = np.load(os.path.join(options.set, "long.npy"))
        return drift(evaluator, whole_chunks(ids, options), ratios)
    if part == "evict":
        streams = {kind: load_streams(options, kind)[:2] for kind in options.kinds}
        least = min(part.shape[1] for part in streams.values())
        streams = {kind: part[:, :least] for kind, part in streams.items()}
        return evict.compare(evaluator, streams, [ratio for ratio in ratios if ratio > 1], save)
    memories = ([] if options.no_full else [0]) + ratios
    batch = options.batch or BATCH[options.device.split(":")[0]]
    if part == "answers":
        streams, items = evalset.unpack(os.path.join(options.set, "questions.npz"))
        picked = [i for i, item in enumerate(items)
                  if not options.sources or item["source"] in options.sources.split(",")]
        picked = picked[:options.items]
        if not picked:
            raise SystemExit("%s has no questions of %s" % (options.set, options.sources))
        return answers.questions(evaluator, streams[picked], [items[i] for i in picked], memories,
                                 batch, DECODE, save, options.recall)
    if part == "tasks":
        out = {}
        for path in sorted(glob.glob(os.path.join(options.set, "task_*.npz"))):
            name = os.path.basename(path)[5:-4]
            if options.tasks in name:
                streams, items = evalset.unpack(path)
                out[name] = answers.task(evaluator, streams[:options.items],
                                         items[:options.items], memories, batch, evalset.SHOTS)
                save(out)
                print("  %s %s" % (name, json.dumps(out[name])), flush=True)
        if not out:
            raise SystemExit("%s has no task_*%s*.npz" % (options.set, options.tasks))
        return out
    out = {}
    for kind in options.kinds:
        streams = load_streams(options, kind)
        print(" %s: %d streams of %d tokens" % ((kind,) + streams.shape), flush=True)
        if part == "grid":
            out[kind] = grid(evaluator, streams, ratios, load_streams(options, kind, turn=1),
                             options.policies.split(","))
        elif part == "rings":
            out[kind] = rings(evaluator, streams, [int(part) for part in options.rings.split(",")])
        else:
            out[kind] = precision(evaluator, streams[:1, :24576], ratios)
        save(out)
    return out


def main():
    options = parse()
    options.kinds = options.kinds.split(",")
    ratios = [int(part) for part in options.ratios.split(",")]
    for part in options.parts.split(","):
        if part not in PARTS:
            raise SystemExit("--parts: %s is none of %s" % (part, ", ".join(PARTS)))
    torch.set_float32_matmul_precision("high")
    model_file.attention_function = in_parts(model_file.attention_function, 4)
    model_file.mlp = in_parts(model_file.mlp, 1)
    model_file.pool = in_parts(model_file.pool, 4)
    begun = time.time()
    evaluator = open_evaluator(options.model, options.adapter, options.device)
    options.chunk = evaluator.constants["n"]
    evaluator.constants["ring"] = options.ring or evaluator.constants["ring"]
    figures = {"made": {"adapter": gguf.fingerprint(options.adapter),
                        "model": gguf.fingerprint(options.model)}}
    if silt_adapter.read(options.adapter).base_fingerprint != figures["made"]["model"]:
        raise SystemExit("%s is for another model than %s" % (options.adapter, options.model))
    for part in options.parts.split(","):
        print("%s, %.0f s" % (part, time.time() - begun), flush=True)

        def save(found, part=part):
            figures[part] = found
            with open(options.out + ".part", "w") as file:
                json.dump(figures, file)
            os.replace(options.out + ".part", options.out)      # a run cut short leaves it whole

        save(run_part(evaluator, part, options, ratios, save))
        torch.set_float32_matmul_precision("high")
    print("%.0f s in all" % (time.time() - begun))


if __name__ == "__main__":
    main()
