"""Losses of tokens, and what they say: by stream, by place in the chunk, by what a token repeats."""
import numpy as np
import torch
import torch.nn.functional as F

PLACES = 8              # parts of a chunk by which loss is told


@torch.no_grad()
def nll(hidden, head, tokens, chunk=4096):
    """hidden [B, N, d], tokens [B, N] -> [B, N] with entry i = -log p(token i); entry 0 is zero."""
    rows, length = tokens.shape
    out = torch.zeros(rows, length, device=hidden.device)
    for row in range(rows):
        for at in range(0, length - 1, chunk):
            end = min(length - 1, at + chunk)
            logits = (hidden[row, at:end] @ head.t()).float()
            out[row, at + 1:end + 1] = F.cross_entropy(logits, tokens[row, at + 1:end + 1],
                                                       reduction="none")
    return out


def summary(values, n=256):
    """Mean NLL of streams [B, N], its quarters, every stream's, and by place in the chunk; the first
    token has no prediction, and places are told once two chunks are behind."""
    values = torch.as_tensor(values).float().cpu()
    scored = values[:, 1:]
    places = values[:, 2 * n:].unflatten(1, (-1, PLACES, n // PLACES)).mean((0, 1, 3))

    def short(part):
        return [round(item, 4) for item in part.tolist()]

    return {"nll": round(scored.mean().item(), 4),
            "quarters": [round(part.mean().item(), 4) for part in scored.chunk(4, 1)],
            "streams": short(scored.mean(1)), "places": short(places)}


def last_seen(tokens):
    """How many tokens ago each pair (token before, token) last came; 0: never."""
    out = np.zeros(tokens.shape, np.int64)
    for row, line in enumerate(tokens.astype(np.int64)):
        last = {}
        pairs = (line[:-1] << 17 | line[1:]).tolist()
        for at, pair in enumerate(pairs, 1):
            out[row, at] = at - last[pair] if pair in last else 0
            last[pair] = at
    return out


def by_repetition(tokens, runs):
    """Loss of tokens whose pair came within 256 tokens, 512 to 8,192 tokens ago, and never: the
    first are in every window, the second in full context and silt's memory alone."""
    ago = last_seen(tokens)
    ago[:, :1024] = -1          # a stream's beginning has no far past
    groups = {"near": (ago > 0) & (ago <= 256), "far": (ago > 512) & (ago <= 8192),
              "new": ago == 0}
    out = {}
    for name, mask in groups.items():
        out[name] = {"share": round(float(mask.sum() / max(1, (ago >= 0).sum())), 4)}
        for run, values in runs.items():
            out[name][run] = round(float(values[mask].mean()), 4) if mask.any() else None
    return out
