"""Makes the realised ratio the asked one, and quotas small: the last step before export.

Training hides decisions under noise, so the hard threshold realises another ratio than the noisy
one.  Here every ratio's bias is shifted until held-out rows of training text come out at the asked
ratio.  Quotas are set from the most appends seen in any chunk, with headroom.
"""
import numpy as np
import torch

import model as model_file
import plan as plan_file

HEADROOM = 1.3
KINDS = ("book", "dialogue", "meeting", "log")      # of held-out text, where there is any of them
MISSED = 0.05           # share of a ratio by which it may miss what was asked without a word


def apply_rules(logit, shift, quota):
    """The engine's rules on logits [C, n, kv] -> merges [C, n, kv]."""
    hard = logit + shift > 0
    hard[:, 0] = False
    fresh = (~hard).int()
    return hard | ((fresh.cumsum(1) - fresh) >= quota)


@torch.no_grad()
def observe(silt, rows, ratio, options, batch=4):
    """Logits of every layer over the rows, [layers][C, n, kv], as the hard model sees them."""
    device, dtype = silt.base.embd.device, silt.base.embd.dtype
    logits = []
    for at in range(0, len(rows), batch):
        tokens = torch.from_numpy(np.stack(rows[at:at + batch])).to(device)
        chunks = tokens.shape[1] // options["n"]
        plan = plan_file.MemoryPlan([options["ring"]] * len(tokens), chunks, options["ring"],
                                    options["n"], options["m"], options["sinks"],
                                    options["alpha_min"])
        tables = model_file.make_tables(silt.base, plan, options["n"], options["m"], device, dtype)
        _, seen = silt.forward(tokens, torch.zeros_like(tokens, dtype=torch.bool), tables, ratio,
                               keep=True)
        logits.append(torch.stack(seen["logit"]))
    return torch.cat(logits, 1)


def choose_shift(logits, ratio, quotas):
    """One shift for all heads that realises the ratio on these logits under quotas [layers, kv].

    Not more for heads that run into the cap, though a head forced to merge is blind for the rest of
    its chunk: tried, it takes force from 8 % of tokens to 0.3 % and costs 0.28 nats (RUNS.md)."""
    low, high = -8.0, 8.0
    for _ in range(24):
        shift = (low + high) / 2
        rate = sum(apply_rules(layer, shift, quota).float().mean().item()
                   for layer, quota in zip(logits, quotas)) / len(logits)
        low, high = (shift, high) if rate < 1 - 1 / ratio else (low, shift)
    return shift


def choose_quotas(mean, most, cap, room):
    """Quotas of heads, [layers, kv], from their appends a chunk in the mean and at most: that with
    headroom, or where these are more than `room` together as large a share of the way there from the
    mean as fits.  A head that never merges keeps its cap: less would merge the end of its every
    chunk."""
    wish = (most * HEADROOM).clamp(max=cap)
    low, high = 0.0, 1.0
    if wish.ceil().sum() <= room:
        low = 1.0
    for _ in range(24):
        share = (low + high) / 2
        fits = (mean + share * (wish - mean)).ceil().sum() <= room
        low, high = (share, high) if fits else (low, share)
    return (mean + low * (wish - mean)).ceil().clamp(1, cap)


def shift_rounds(silt, rows, options, index, count, tell):
    """Shifts a ratio's bias so many times, the quotas in force.  -> merges, [layers, C, n, kv]."""
    ratio, quotas = silt.parameters.ratios[index], silt.quotas[index]
    for turn in range(count + 1):
        logits = observe(silt, rows, ratio, options)
        merges = torch.stack([apply_rules(layer, 0, quota)
                              for layer, quota in zip(logits, quotas)])
        realised = 1 / (1 - merges.float().mean().item())
        forced = (merges & (logits <= 0))[:, :, 1:].float().mean().item()
        tell("calibrate %dx, round %d: realised %.3fx, %.1f %% of tokens forced"
             % (ratio, turn, realised, 100 * forced))
        if turn < count:
            silt.parameters.ratio_bias[index] += choose_shift(logits, ratio, quotas)
    return merges


@torch.no_grad()
def calibrate(silt, rows, options, rounds=3, tell=print, ratios=None, cap_sum=False):
    """Shifts silt.parameters.ratio_bias and sets silt.quotas in place."""
    n, parameters = options["n"], silt.parameters
    for index, ratio in enumerate(parameters.ratios):
        if ratios and ratio not in ratios:
            continue
        cap = n if cap_sum else min(n, 2 * n // ratio)
        silt.quotas[index] = cap
        appends = (~shift_rounds(silt, rows, options, index, rounds, tell)).sum(2)
        most = appends.max(1).values.float()                # of [layers, C, kv]
        quota = choose_quotas(appends.float().mean(1), most, cap,
                              min(n, 2 * n // ratio) * most.numel())
        silt.quotas[index] = quota.to(silt.quotas.dtype)
        if (quota < most).any():        # they merge by force: fewer merges of their own then
            appends = (~shift_rounds(silt, rows, options, index, 2, tell)).sum(2)
        mean = n / appends.float().mean(1)
        realised = n / appends.float().mean().item()
        if abs(realised / ratio - 1) > MISSED:
            tell("NOT AS ASKED: %dx came out at %.3fx" % (ratio, realised))
        tell("calibrated %dx: realised %.3fx; heads from %.1fx to %.1fx; quota %d to %d, mean %.1f"
             % (ratio, realised, mean.min(), mean.max(),
                silt.quotas[index].min(), silt.quotas[index].max(),
                silt.quotas[index].float().mean()))


def held_out_rows(maker, count):
    kinds = [kind for kind in KINDS if kind in maker.names] or maker.names
    return [maker.row("plain", kinds[i % len(kinds)])[0] for i in range(count)]
