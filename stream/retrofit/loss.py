"""Next-token loss and KL to the teacher without ever holding all logits.

The head is frozen, so the gradient that matters is the one of the hidden states: it is computed
chunk by chunk in the forward pass and kept (2 bytes a number), the logits are thrown away.

Tokens that the far context makes likelier weigh more (LongCE, arXiv 2410.23771): with `short`, each
token's loss after a short context, the weight is exp(short - loss of the teacher) within 1 and
LONG_MAX.
"""
import math

import torch
import torch.nn.functional as F


LONG_MAX = 5.0
HUGE_LOW = -1e9


def head_nll(hidden, head, targets):
    """[N] loss of each target."""
    return F.cross_entropy((hidden @ head.t()).float(), targets, reduction="none")


def head_chunk(hidden, teacher, head, targets, weight, kl_share, short=None):
    """Sums over a chunk: weighted loss, weighted CE, weighted KL, weight; and d(loss)/d(hidden)."""
    log_p = F.log_softmax((hidden @ head.t()).float(), -1)
    ce = -log_p.gather(1, targets[:, None])[:, 0]
    p = log_p.exp()
    gradient = p * 1.0
    if teacher is not None:
        log_t = F.log_softmax((teacher @ head.t()).float(), -1)
        t = log_t.exp()
        kl = (t * (log_t - log_p)).sum(-1)
        if short is not None:
            gain = short + log_t.gather(1, targets[:, None])[:, 0]
            weight = weight * gain.clamp(0.0, math.log(LONG_MAX)).exp()
        gradient = gradient - kl_share * t
        loss = (1 - kl_share) * ce + kl_share * kl
        share = 1 - kl_share
    else:
        kl, loss, share = torch.zeros_like(ce), ce, 1.0
    order = torch.arange(gradient.shape[1], device=hidden.device)
    gradient = gradient - share * (order[None, :] == targets[:, None]).float()
    gradient = ((gradient * weight[:, None]).to(hidden.dtype)) @ head
    return (loss * weight).sum(), (ce * weight).sum(), (kl * weight).sum(), weight.sum(), gradient


class HeadLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx, hidden, teacher, head, targets, weight, kl_share, chunk, function, short):
        gradients, sums = [], torch.zeros(4, device=hidden.device)
        for at in range(0, hidden.shape[0], chunk):
            part = slice(at, at + chunk)
            *values, gradient = function(
                hidden[part], None if teacher is None else teacher[part], head, targets[part],
                weight[part], kl_share, None if short is None else short[part])
            sums = sums + torch.stack(values)
            gradients.append(gradient)
        mass = sums[3].clamp(min=1e-6)
        ctx.save_for_backward(torch.cat(gradients), mass)
        return sums[0] / mass, (sums / mass).detach()

    @staticmethod
    def backward(ctx, scale, _):
        gradient, mass = ctx.saved_tensors
        return (gradient * (scale / mass).to(gradient.dtype),) + (None,) * 8


def head_loss(hidden, teacher, head, tokens, weight, kl_share, function=head_chunk, chunk=8192,
              short=None):
    """hidden, teacher [B, N, d]; tokens, weight, short [B, N].  Position i predicts token i+1; the
    last position of a row predicts nothing.  short at i is the loss of token i after a short
    context; a token without one has HUGE_LOW and weighs as it is.
    Returns the mean loss and detached means of CE and KL."""
    targets = torch.roll(tokens, -1, 1).flatten()
    mass = torch.roll(weight, -1, 1)
    mass[:, -1] = 0
    if short is not None:
        short = torch.roll(short, -1, 1).flatten()
    loss, sums = HeadLoss.apply(hidden.flatten(0, 1),
                                None if teacher is None else teacher.flatten(0, 1), head, targets,
                                mass.flatten(), kl_share, chunk, function, short)
    return loss, sums[1], sums[2]


def asked_loss(hidden, head, tokens, places, weights, function=head_chunk, teacher=None,
               kl_share=0.0):
    """One row's loss at some places: hidden, teacher [N, d], tokens [N]; the token behind each of
    places [P] counts with its weight [P].  -> the loss, and the detached mean of CE."""
    loss, sums = HeadLoss.apply(
        hidden.index_select(0, places),
        None if teacher is None else teacher.index_select(0, places), head, tokens[places + 1],
        weights, kl_share, len(places), function, None)
    return loss, sums[1]


@torch.no_grad()
def short_losses(plain, head, tokens, span, skip, shift, function=head_nll, chunk=8192):
    """[B, N] losses after a short context: rows, rolled by `shift`, are cut into spans, whose first
    `skip` tokens count as HUGE_LOW (no weight of theirs).  plain: a PlainModel; N is a multiple of
    span.  What a span that runs over a row's end sees is wrong by little: the start of a row has no
    far context to gain from."""
    pieces = torch.roll(tokens, -shift, 1).reshape(-1, span)
    hidden = plain.forward(pieces).flatten(0, 1)
    targets = torch.roll(pieces, -1, 1).flatten()
    losses = torch.cat([function(hidden[at:at + chunk], head, targets[at:at + chunk])
                        for at in range(0, len(targets), chunk)]).view(-1, span)
    losses = torch.roll(losses, 1, 1)
    losses[:, :skip] = HUGE_LOW
    return torch.roll(losses.view_as(tokens), shift, 1)
