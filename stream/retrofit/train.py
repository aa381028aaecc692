"""Trains an adapter for a Llama-family GGUF.

    python3 train.py --model BASE.gguf --shards SHARDS --out RUN --minutes 10 --total-minutes 30

The schedule runs over --total-minutes; a run of --minutes leaves a checkpoint in RUN, and the same
command goes on from it.  SHARDS come from data.py.  The end of the last run draws RUN/loss.svg.
On several GPUs: `torchrun --nproc_per_node N train.py …`; --rows are those of one GPU.
"""
import argparse
import math
import os
import time

import numpy as np
import torch
import torch.distributed as dist

import asks
import attention
import batches
import calibrate
import checkpoint
import data
import export
import gguf
import loss as loss_file
import model as model_file
import plot
import silt_adapter

ROW_CHUNKS, RING = 32, 15
ROW_MIN = 320           # tokens: rows of questions and excerpts have no room in less
REPORT_STEPS, REPORT_SECONDS = 50, 60   # a progress line after so many, whichever comes first


def parse():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", required=True)
    parser.add_argument("--shards", required=True)
    parser.add_argument("--out", required=True)
    parser.add_argument("--minutes", type=float, default=10, help="of this run")
    parser.add_argument("--total-minutes", type=float, default=30, help="of the whole schedule")
    parser.add_argument("--steps", type=int, default=0, help="stop after so many steps, for tests")
    parser.add_argument("--rows", type=int, default=8)
    parser.add_argument("--ask-rows", type=int, default=0,
                        help="so many of the rows ask their memory (asks.py)")
    parser.add_argument("--ask-share", type=float, default=0.5, help="of the loss that is theirs")
    parser.add_argument("--ask-kl", type=float, default=0.0,
                        help="share of KL, to the base model that has the whole row before it, in"
                        " what is asked; with it the text between what is asked is text like other"
                        " rows'.  0: no teacher for rows that ask")
    parser.add_argument("--chunks", type=int, default=0,
                        help="of a row; 0: what the model's context holds, at most 32")
    parser.add_argument("--chunk-tokens", dest="n", type=int, default=256)
    parser.add_argument("--comp-tokens", dest="m", type=int, default=16)
    parser.add_argument("--ring", type=int, default=0,
                        help="of a new stream; 0: 15, fewer where the context is short")
    parser.add_argument("--ring-max", type=int, default=0, help="that rows train; 0: the ring")
    parser.add_argument("--small-rings", type=float, default=0.0,
                        help="share of rows with a ring of 2 to 6: there the summary has to serve")
    parser.add_argument("--full-rings", type=float, default=0.4,
                        help="share of rows with the ring of a new stream; the rest's are of any"
                        " length")
    parser.add_argument("--recall", type=int, default=0,
                        help="segments that may be recalled behind the longest ring; 0: as many as"
                        " a row's ring leaves room for")
    parser.add_argument("--sinks", type=int, default=8)
    parser.add_argument("--alpha-min", type=float, default=1 / 32)
    parser.add_argument("--comp-rank", type=int, default=32,
                        help="of the LoRA on COMP rows; with --from, more than the file has adds"
                        " directions that begin at nothing")
    parser.add_argument("--dmc-rank", type=int, default=32)
    parser.add_argument("--ratios", default="2,4,8")
    parser.add_argument("--ratio-shares", default="0.4,0.12,0.26,0.22", help="of 1x, then ratios")
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--lr-dmc", type=float, default=0.0, help="of the DMC part; 0: --lr")
    parser.add_argument("--lr-bias", type=float, default=1e-2)
    parser.add_argument("--lr-summary", type=float, default=1e-3, help="of the summary's map")
    parser.add_argument("--only-summary", action="store_true",
                        help="train the summary's map alone: all else of --from stays as it is")
    parser.add_argument("--fall", type=float, default=0.0,
                        help="share of the schedule at whose end the rates fall, straight to a"
                        " hundredth; 0: a cosine over all of it")
    parser.add_argument("--average", type=float, default=0.0,
                        help="what is exported is a running average of the weights, of which a step"
                        " keeps this share (0.995: about 200 steps); 0: the weights themselves")
    parser.add_argument("--kl", type=float, default=0.5, help="share of the loss that is KL")
    parser.add_argument("--kl-above", type=float, default=-1.0,
                        help="the same at ratios above 1, where a LoRA reads every token and KL to"
                        " the base model keeps it from the text; -1: --kl")
    parser.add_argument("--long", type=int, default=1024,
                        help="tokens of the short context that far-context weights are taken from;"
                        " 0: all tokens weigh alike")
    parser.add_argument("--hinge", type=float, default=3.0)
    parser.add_argument("--ramp", type=float, default=0.12, help="share of the schedule")
    parser.add_argument("--noise", default="1.0,0.2", help="width at the start and at the end")
    parser.add_argument("--loss-chunk", type=int, default=8192)
    parser.add_argument("--from", dest="start",
                        help="an adapter file to begin from: weights only, no moments")
    parser.add_argument("--export", help="an adapter file to write with every checkpoint")
    parser.add_argument("--cap", choices=("each", "sum"), default="sum",
                        help="bound the sum of the heads' appends (FORMAT.md), or each by 2n/ratio")
    parser.add_argument("--save-minutes", type=float, default=3, help="between checkpoints")
    parser.add_argument("--calibrate", type=int, default=0,
                        help="held-out rows to set ratio bias and quotas on at the end")
    parser.add_argument("--recompute", action="store_true")
    parser.add_argument("--no-compile", action="store_true")
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    return parser.parse_args()


def ratios_of(options):
    return [int(ratio) for ratio in options.ratios.split(",")]


def settle(options, context):
    """What the model's context leaves open.  What cannot work is said before anything is begun."""
    if not options.chunks:
        options.chunks = min(ROW_CHUNKS, context // options.n)
        while options.long and options.chunks > 3 and options.chunks * options.n % options.long:
            options.chunks -= 1
    options.ring = options.ring or max(1, min(RING, context // options.n * RING // ROW_CHUNKS))
    shares = [float(share) for share in options.ratio_shares.split(",")]
    wrong = [
        (options.n % model_file.BLOCK or options.n % options.m,
         "--chunk-tokens: a multiple of %d and of --comp-tokens" % model_file.BLOCK),
        (options.chunks * options.n > context,
         "--chunks: rows of %d tokens are more than the model's context of %d: it cannot teach there"
         % (options.chunks * options.n, context)),
        ((options.ring + 1) * options.n + options.m + options.sinks >= context,
         "--ring: %d segments of %d tokens do not fit the model's context of %d"
         % (options.ring, options.n, context)),
        (options.rows < 1 or options.workers < 1, "--rows, --workers: at least 1"),
        (not 0 <= options.ask_rows <= options.rows, "--ask-rows: at most --rows"),
        (options.only_summary and not options.start,
         "--only-summary: --from says whose summary"),
        (options.only_summary and options.calibrate,
         "--calibrate: with --only-summary decisions stay as they are"),
        (options.ask_kl and not options.kl, "--ask-kl: there is no teacher without --kl"),
        (options.ask_rows == options.rows and not options.ask_kl,
         "--ask-rows: without --ask-kl some of --rows must be text"),
        (options.kl > 0 and options.long > 0 and options.chunks * options.n % options.long,
         "--chunks, --long: the %d tokens of a row are no multiple of it"
         % (options.chunks * options.n)),
        (options.chunks < 3 or options.chunks * options.n < ROW_MIN,
         "--chunks: at least 3, and %d tokens" % ROW_MIN),
        (sorted(set(ratios_of(options))) != ratios_of(options) or min(ratios_of(options)) < 2
         or max(ratios_of(options)) > 8, "--ratios: rising, from 2 to 8"),
        (len(shares) != 1 + len(ratios_of(options)) or abs(sum(shares) - 1) > 1e-6,
         "--ratio-shares: one of 1x and one of each ratio, together 1")]
    for is_wrong, why in wrong:
        if is_wrong:
            raise SystemExit("train.py: " + why)


def make_optimizer(parameters, options):
    groups = {"comp": [], "dmc": [], "bias": [], "summary": []}
    for name, p in parameters.named_parameters():
        part = name.split("_")[0]
        part = "bias" if name == "ratio_bias" else part if part in groups else "dmc"
        groups[part].append(p)
        p.requires_grad_(part == "summary" or not options.only_summary)
    peaks = {"comp": options.lr, "dmc": options.lr_dmc or options.lr, "bias": options.lr_bias,
             "summary": options.lr_summary}
    return torch.optim.AdamW([{"params": groups[part], "lr": peaks[part], "peak": peaks[part]}
                              for part in groups], betas=(0.9, 0.98), weight_decay=0.0)


def default_quotas(base, options, ratios):
    """Training applies the cap that any quota must keep: min(n, 2n/ratio)."""
    caps = torch.tensor([min(options.n, 2 * options.n // ratio) for ratio in ratios])
    return caps[:, None, None].expand(-1, base.layers, base.kv_heads).contiguous()


class Ranks:
    """The processes of one training; alone, all of this does nothing."""

    def __init__(self):
        self.rank, self.count = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
        self.first = self.rank == 0

    def join(self, device):
        """-> this process's device."""
        if device == "cuda":
            device = "cuda:%d" % int(os.environ.get("LOCAL_RANK", 0))
            torch.cuda.set_device(device)
        if self.count > 1:
            dist.init_process_group("cpu:gloo,cuda:nccl" if device != "cpu" else "gloo")
        return device

    def agreed(self, value):
        """The first process's value: schedules by the clock must be the same for all."""
        if self.count == 1:
            return value
        shared = torch.tensor([value], dtype=torch.float64)
        dist.broadcast(shared, 0)
        return shared.item()

    def average(self, parameters):
        """Gradients become their mean over all processes, those that no graph reached excepted."""
        if self.count == 1:
            return
        grads = [p.grad for p in parameters if p.grad is not None]
        flat = torch.cat([grad.flatten() for grad in grads])
        dist.all_reduce(flat)
        flat /= self.count
        for grad, part in zip(grads, flat.split([grad.numel() for grad in grads])):
            grad.copy_(part.view_as(grad))


def run_step(silt, teacher, functions, batch, ratio, goal, width, options, shift):
    """Forward, loss, backward.  Returns the figures as tensors: no wait for the GPU."""
    base = silt.base
    if options.only_summary:
        width = None            # decisions and quotas are the engine's
    elif ratio > 1:     # the cap rises with the goal, or the ramp would start at a forced 2n/ratio
        cap = options.n if options.cap == "sum" else min(options.n, int(2 * options.n / goal))
        silt.quotas[silt.parameters.ratios.index(ratio)] = cap
    device, dtype = base.embd.device, base.embd.dtype
    tokens, weight, raw = (torch.from_numpy(part).to(device, non_blocking=True)
                           for part in batch[:3])
    tables = model_file.make_tables(base, batch[3], options.n, options.m, device, dtype)
    text = options.rows - options.ask_rows
    read = options.rows if options.ask_kl else text         # rows whose text counts as text
    target = teacher.forward(tokens[:read]) if options.kl > 0 else None
    short = None
    if options.long and options.kl > 0:
        short = loss_file.short_losses(teacher, base.head, tokens[:read], options.long,
                                       options.long // 4, shift, functions[1], options.loss_chunk)
    hidden, seen = silt.forward(tokens, raw, tables, ratio, width)
    share = options.kl_above if ratio > 1 and options.kl_above >= 0 else options.kl
    loss, ce, kl = loss_file.head_loss(hidden[:read], target, base.head, tokens[:read],
                                       weight[:read], share, functions[0],
                                       options.loss_chunk, short)
    asked = []
    if options.ask_rows:
        places, weights = (torch.from_numpy(part).to(device, non_blocking=True)
                           for part in batch[4:6])
        found = [loss_file.asked_loss(hidden[text + i], base.head, tokens[text + i], places[i],
                                      weights[i], functions[2],
                                      target[text + i] if options.ask_kl else None, options.ask_kl)
                 for i in range(options.ask_rows)]
        loss = (1 - options.ask_share) * loss \
            + options.ask_share * sum(part for part, _ in found) / len(found)
        asked = [ce for _, ce in found]
    rate = torch.zeros((), device=device)
    if ratio > 1:
        rate = seen["rate"].mean()
        # Two-sided: one-sided overshoots by a tenth.  A third of it row by row, the rest on the
        # batch, so that kinds of text may differ in how much they merge, but not by far.
        miss = seen["rate"] - (1 - 1 / goal)
        loss = loss + options.hinge * (miss.abs().mean() / 3 + miss.mean().abs() * 2 / 3)
    loss.backward()
    return (ce.detach(), kl.detach(), rate.detach()), asked


def fingerprint_of(options):
    """The base model's, by the file or, where there is no XXH3, by the adapter to begin from."""
    start = silt_adapter.read(options.start).base_fingerprint if options.start else None
    try:
        found = gguf.fingerprint(options.model)
    except gguf.NoHash:
        if start is None:
            raise
        return start
    if start not in (None, found):
        raise SystemExit("%s is for another model than %s" % (options.start, options.model))
    return found


def made_of(options, ratios):
    """What of a training stays the same from its first step to its last."""
    return {"ratios": ratios, "base": options.base,
            "constants": {"n": options.n, "m": options.m, "ring": options.ring,
                          "sinks": options.sinks, "alpha_min": options.alpha_min}}


def check_same(options, state, given):
    """A checkpoint goes on as it began: its adapter would say one thing and have learned another."""
    pairs = [(name, state["constants"][name], value) for name, value in given["constants"].items()]
    pairs += [(name, state.get(name, given[name]), given[name]) for name in ("ratios", "base")]
    other = ["%s was %s, is %s" % (name, was, now) for name, was, now in pairs if was != now]
    if other:
        raise SystemExit("%s holds a training with other options: %s; give those, or another --out"
                         % (options.out, "; ".join(other)))


def begin(options, base, ratios):
    """-> parameters, quotas, optimizer, state: from the checkpoint, an adapter file or nothing."""
    if checkpoint.head_of(options.out):
        parameters, quotas, state, optimizer = checkpoint.load(
            options.out, base, lambda p: make_optimizer(p, options))
        check_same(options, state, made_of(options, ratios))
        return parameters, quotas.to(options.device), optimizer, state
    parameters = model_file.AdapterParameters(base, options.m, options.comp_rank, options.dmc_rank,
                                              ratios)
    if options.start:
        adapter = silt_adapter.read(options.start)
        parameters = export.from_adapter(base, adapter)[0]
        if parameters.ratios != tuple(ratios) or adapter.comp_tokens != options.m:
            raise SystemExit("%s has other ratios or another m" % options.start)
        parameters = model_file.widened(base, parameters, options.comp_rank)
    parameters = parameters.to(options.device)
    state = dict(made_of(options, ratios), step=0, seconds=0.0, tokens=0, history=[])
    quotas = default_quotas(base, options, ratios).to(options.device)
    return parameters, quotas.contiguous(), make_optimizer(parameters, options), state


class Trainer:
    """One process's share of a training."""

    def __init__(self, options, ranks, rows):
        self.options, self.ranks, self.rows = options, ranks, rows
        self.device, self.ratios = options.device, ratios_of(options)
        self.base = model_file.BaseModel(options.model, self.device,
                                         torch.float32 if self.device == "cpu" else torch.bfloat16)
        self.parameters, quotas, self.optimizer, self.state = begin(options, self.base, self.ratios)
        # What an adapter holds that is written on the way, before any calibration.
        self.usual = default_quotas(self.base, options, self.ratios)
        self.start = silt_adapter.read(options.start) if options.start else None
        if self.start:
            self.usual = export.from_adapter(self.base, self.start)[1]
        if options.only_summary:
            quotas = self.usual.to(self.device)
        self.averaged = [p.detach().clone() for p in self.parameters.parameters()]
        compiled = not options.no_compile and self.device != "cpu"
        if compiled and attention.usable(
                model_file.attend, self.device, torch.bfloat16, n=options.n, comp=options.m,
                heads=self.base.heads, kv_heads=self.base.kv_heads, dim=self.base.head_dim):
            model_file.attention_function = attention.attend
        self.silt = model_file.SiltModel(self.base, self.parameters, quotas, compiled,
                                         options.recompute)
        self.teacher = model_file.PlainModel(self.base, compiled)
        self.functions = [torch.compile(part, dynamic=False) if compiled else part
                          for part in (loss_file.head_chunk, loss_file.head_nll,
                                       loss_file.head_chunk)]
        # The same draws in every process: a step has one ratio.
        self.random = np.random.RandomState(options.seed + self.state["step"])
        self.first, self.sums, self.asked = self.state["step"], {}, {}
        self.step_tokens = ranks.count * options.rows * options.chunks * options.n

    def schedule(self, progress, local):
        """-> ratio of the step, goal on the ramp, noise width; sets the learning rates."""
        options = self.options
        # The first steps of a run compile every graph; ratios in turn get that over with.
        order = [1] + self.ratios
        shares = [float(part) for part in options.ratio_shares.split(",")]
        ratio = int(order[local % len(order)] if local < len(order)
                    else self.random.choice(order, p=shares))
        scale = 0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * progress))
        if options.fall:
            scale = min(1.0, max(0.01, (1 - progress) / options.fall))
        scale *= min(1.0, (local + 1) / 50)
        for group in self.optimizer.param_groups:
            group["lr"] = group["peak"] * scale
        ramp = min(1.0, progress / max(options.ramp, 1e-9))
        noise = [float(part) for part in options.noise.split(",")]
        return ratio, 1 + (ratio - 1) * ramp, noise[0] * (noise[1] / noise[0]) ** progress

    def run(self):
        options, state = self.options, self.state
        begun, mark, saved = time.time(), time.time(), time.time()
        while True:
            local = state["step"] - self.first
            spent = self.ranks.agreed(time.time() - begun)
            progress = (state["seconds"] + spent) / (options.total_minutes * 60)
            if spent > options.minutes * 60 or progress > 1 \
                    or (options.steps and local >= options.steps):
                break
            self.rows.progress.value = progress
            ratio, goal, width = self.schedule(progress, local)
            self.optimizer.zero_grad(set_to_none=True)
            shift = self.random.randint(max(1, options.long))
            batch = self.rows.get()
            figures, asked = run_step(self.silt, self.teacher, self.functions, batch, ratio, goal,
                                      torch.tensor(width, device=self.device), options, shift)
            self.ranks.average(self.parameters.parameters())
            torch.nn.utils.clip_grad_norm_([p for p in self.parameters.parameters()
                                            if p.grad is not None], 1.0)
            self.optimizer.step()
            self.keep_average(local)
            state["step"] += 1
            state["tokens"] += self.step_tokens
            self.sums.setdefault(ratio, []).append(torch.stack(figures))
            for sort, value in zip(batch[6] if asked else (), asked):
                self.asked.setdefault((ratio, sort), []).append(value)
            if local < 1 + len(self.ratios):
                if self.device != "cpu":
                    torch.cuda.synchronize()
                self.tell("first step at %dx: %.1f s" % (ratio, time.time() - begun))
            if state["step"] % REPORT_STEPS == 0 or time.time() - mark > REPORT_SECONDS \
                    or (options.steps and state["step"] < REPORT_STEPS):
                self.report(mark, spent, progress, width)
                mark = time.time()
            if self.ranks.first and time.time() - saved > options.save_minutes * 60:
                self.save(dict(state, seconds=state["seconds"] + time.time() - begun))
                saved = time.time()
        if self.sums:
            self.report(mark, spent, progress, width)
        state["seconds"] += time.time() - begun

    def report(self, mark, spent, progress, width):
        self.tell(report(self.state, self.sums, mark, spent, progress, width, self.step_tokens,
                         self.options))
        if self.asked:
            self.tell("  asked " + told_asked(self.asked))
        self.sums, self.asked = {}, {}

    @torch.no_grad()
    def keep_average(self, local):
        """Of the steps so far at first, so that what they began from does not linger."""
        if self.options.average:
            share = min(self.options.average, (1 + local) / (10 + local))
            for kept, p in zip(self.averaged, self.parameters.parameters()):
                if p.requires_grad:         # what is not trained stays to the bit, -0.0 too
                    kept.lerp_(p, 1 - share)

    @torch.no_grad()
    def swap_average(self):
        """The average in the weights' place, and back."""
        if self.options.average:
            for p, other in zip(self.parameters.parameters(), self.averaged):
                kept = p.detach().clone()
                p.copy_(other)
                other.copy_(kept)

    def save(self, state, quotas=None):
        """quotas: calibrated, for the weights as they are; without, the adapter holds the average
        of the weights and the quotas that it began from."""
        options = self.options
        checkpoint.save(options.out, self.parameters, self.silt.quotas, self.optimizer, state)
        plot.losses(os.path.join(options.out, "loss.svg"), state["history"])
        if options.export:
            if quotas is None:
                self.swap_average()
            part = options.export + ".part"      # whoever copies it meanwhile gets a whole one
            export.write(part, self.base, self.parameters,
                         self.usual if quotas is None else quotas, state["constants"], options.base,
                         "silt adapter", self.start)
            os.replace(part, options.export)
            if quotas is None:
                self.swap_average()

    def tell(self, line):
        if self.ranks.first:
            print(line, flush=True)

    def finish(self):
        """Calibrates, saves, draws: the first process's work."""
        options, state = self.options, self.state
        self.save(state)                # the machine may be lost while it calibrates
        self.swap_average()
        if not options.only_summary:
            self.silt.quotas.copy_(default_quotas(self.base, options, self.ratios))
        if options.calibrate:
            maker = data.RowMaker(options.shards, options.chunks * options.n, 99, held_out=True)
            plain = model_file.SiltModel(self.base, self.parameters, self.silt.quotas)
            calibrate.calibrate(plain, calibrate.held_out_rows(maker, options.calibrate),
                                state["constants"], cap_sum=options.cap == "sum")
        self.save(state, self.silt.quotas)
        if self.device != "cpu":
            print("peak GPU memory %.1f GB" % (torch.cuda.max_memory_allocated() / 1e9))
        print("step %d, %.1fM tokens, %.0f s in all" % (state["step"], state["tokens"] / 1e6,
                                                        state["seconds"]))


def main():
    options = parse()
    meta = gguf.Reader(options.model).meta
    settle(options, meta["llama.context_length"])
    torch.manual_seed(options.seed)
    ranks = Ranks()
    head = checkpoint.head_of(options.out)
    steps_done = head["state"]["step"] if head else 0
    options.base, options.vocabulary = fingerprint_of(options), data.tokenizer_sum(meta)
    rows = batches.Batches(options, steps_done, ranks.rank)     # forked before CUDA starts
    options.device = ranks.join(options.device)
    torch.manual_seed(options.seed * 1000 + steps_done + ranks.rank)        # the noise
    trainer = Trainer(options, ranks, rows)
    trainer.run()
    if ranks.first:
        trainer.finish()


def told_asked(asked):
    """Mean losses of what was asked, by sort: at 1x / at higher ratios."""
    parts = []
    for sort in asks.SORTS:
        means = []
        for group in ([r for r, s in asked if s == sort and r == 1],
                      [r for r, s in asked if s == sort and r > 1]):
            values = [value for ratio in group for value in asked[ratio, sort]]
            means.append("%.3f" % torch.stack(values).mean().item() if values else "-")
        parts.append("%s %s" % (sort, " / ".join(means)))
    return "  ".join(parts)


def report(state, sums, mark, spent, progress, width, step_tokens, options):
    """The progress line: per ratio CE, KL to the full-context model, realised ratio."""
    parts = []
    for ratio in sorted(sums):
        ce, kl, rate = torch.stack(sums[ratio]).mean(0).tolist()
        state["history"].append({"step": state["step"], "ratio": ratio, "ce": round(ce, 4),
                                 "kl": round(kl, 4), "rate": round(rate, 4)})
        parts.append("%dx ce %.3f kl %.3f" % (ratio, ce, kl)
                     + (" (%.2fx)" % (1 / max(1e-6, 1 - rate)) if ratio > 1 else ""))
    count = sum(len(part) for part in sums.values()) * step_tokens
    speed = count / max(1e-9, time.time() - mark)
    return ("step %5d  %4.1f/%.0f min  %3.0fk tok/s  noise %.2f  %s"
            % (state["step"], (state["seconds"] + spent) / 60, options.total_minutes, speed / 1e3,
               width, "  ".join(parts)))


if __name__ == "__main__":
    main()
