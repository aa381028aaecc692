"""Next-token loss and KL to the teacher without ever holding all logits.

The head is frozen, so the gradient that matters is the one of the hidden states: it is computed
chunk by chunk in the forward pass and kept (2 bytes a number), the logits are thrown away.
"""
import torch
import torch.nn.functional as F


def head_chunk(hidden, teacher, head, targets, weight, kl_share):
    """Sums over a chunk: weighted loss, weighted CE, weighted KL; and d(loss)/d(hidden)."""
    log_p = F.log_softmax((hidden @ head.t()).float(), -1)
    ce = -log_p.gather(1, targets[:, None])[:, 0]
    p = log_p.exp()
    gradient = p * 1.0
    if teacher is not None:
        log_t = F.log_softmax((teacher @ head.t()).float(), -1)
        t = log_t.exp()
        kl = (t * (log_t - log_p)).sum(-1)
        gradient = gradient - kl_share * t
        loss = (1 - kl_share) * ce + kl_share * kl
        share = 1 - kl_share
    else:
        kl, loss, share = torch.zeros_like(ce), ce, 1.0
    order = torch.arange(gradient.shape[1], device=hidden.device)
    gradient = gradient - share * (order[None, :] == targets[:, None]).float()
    gradient = ((gradient * weight[:, None]).to(hidden.dtype)) @ head
    return (loss * weight).sum(), (ce * weight).sum(), (kl * weight).sum(), gradient


class HeadLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx, hidden, teacher, head, targets, weight, kl_share, chunk, function):
        gradients, sums = [], torch.zeros(3, device=hidden.device)
        for at in range(0, hidden.shape[0], chunk):
            part = slice(at, at + chunk)
            loss, ce, kl, gradient = function(
                hidden[part], None if teacher is None else teacher[part], head, targets[part],
                weight[part], kl_share)
            sums = sums + torch.stack([loss, ce, kl])
            gradients.append(gradient)
        ctx.save_for_backward(torch.cat(gradients))
        return sums[0], sums.detach()

    @staticmethod
    def backward(ctx, scale, _):
        return (ctx.saved_tensors[0] * scale.to(ctx.saved_tensors[0].dtype),) + (None,) * 7


def head_loss(hidden, teacher, head, tokens, weight, kl_share, function=head_chunk, chunk=8192):
    """hidden, teacher [B, N, d]; tokens, weight [B, N].  Position i predicts token i+1; the last
    position of a row predicts nothing.  Returns the mean loss and detached means of CE and KL."""
    targets = torch.roll(tokens, -1, 1).flatten()
    mass = torch.roll(weight, -1, 1)
    mass[:, -1] = 0
    total = mass.sum().clamp(min=1)
    loss, sums = HeadLoss.apply(hidden.flatten(0, 1),
                                None if teacher is None else teacher.flatten(0, 1), head, targets,
                                (mass / total).flatten(), kl_share, chunk, function)
    return loss, sums[1], sums[2]
