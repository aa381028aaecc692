"""The chunk attention of model.attend as a Triton kernel: no score ever reaches memory.

Scores of a chunk are [heads, n+m, about 3n]; writing them out and back is most of the plain
version's time.  One forward and two backward kernels, deterministic (no atomics): a key block's
program sums over the query heads of its group, so the column gradient comes out whole.
Used on a GPU when usable() finds it equal to the plain version, left alone otherwise.
"""
import math

import torch

try:
    import triton
    import triton.language as tl
    TRITON = hasattr(torch.library, "custom_op")
except ImportError:
    TRITON = False

if TRITON:
    @triton.jit
    def _scores(q, k, column, rows, cols, own_start, S, K, scale):
        """Scaled scores plus the column term, which a row's own entry is spared."""
        own = cols[None, :] - own_start
        s = tl.dot(q, tl.trans(k)) * scale
        s += tl.where(own == rows[:, None], 0.0, column[None, :])
        return tl.where((own > rows[:, None]) | (cols[None, :] >= K), -1.0e30, s)

    @triton.jit
    def _forward(Q, K_, V, COLUMN, OUT, LSE, S, K, H: tl.constexpr, G: tl.constexpr,
                 D: tl.constexpr, scale, BM: tl.constexpr, BN: tl.constexpr):
        block, head, chunk = tl.program_id(0), tl.program_id(1), tl.program_id(2).to(tl.int64)
        kv: tl.constexpr = H // G
        rows = block * BM + tl.arange(0, BM)
        dims = tl.arange(0, D)
        q_at = ((chunk * S + rows[:, None]) * H + head) * D + dims[None, :]
        q = tl.load(Q + q_at, mask=rows[:, None] < S, other=0.0)
        own_start = K - S
        best = tl.full([BM], -1.0e30, tl.float32)
        total = tl.zeros([BM], tl.float32)
        out = tl.zeros([BM, D], tl.float32)
        for start in range(0, min(K, own_start + (block + 1) * BM), BN):
            cols = start + tl.arange(0, BN)
            k_at = ((chunk * K + cols[:, None]) * kv + head // G) * D + dims[None, :]
            k = tl.load(K_ + k_at, mask=cols[:, None] < K, other=0.0)
            v = tl.load(V + k_at, mask=cols[:, None] < K, other=0.0)
            column = tl.load(COLUMN + (chunk * kv + head // G) * K + cols, mask=cols < K, other=0.0)
            s = _scores(q, k, column, rows, cols, own_start, S, K, scale)
            higher = tl.maximum(best, tl.max(s, 1))
            p = tl.exp(s - higher[:, None])
            fade = tl.exp(best - higher)
            total = total * fade + tl.sum(p, 1)
            out = out * fade[:, None] + tl.dot(p.to(v.dtype), v)
            best = higher
        tl.store(OUT + q_at, (out / total[:, None]).to(OUT.dtype.element_ty),
                 mask=rows[:, None] < S)
        tl.store(LSE + (chunk * H + head) * S + rows, best + tl.log(total), mask=rows < S)

    @triton.jit
    def _backward_keys(Q, K_, V, COLUMN, DO, LSE, DELTA, DK, DV, DCOLUMN, S, K, H: tl.constexpr,
                       G: tl.constexpr, D: tl.constexpr, scale, BM: tl.constexpr,
                       BN: tl.constexpr):
        block, group, chunk = tl.program_id(0), tl.program_id(1), tl.program_id(2).to(tl.int64)
        kv: tl.constexpr = H // G
        cols = block * BN + tl.arange(0, BN)
        dims = tl.arange(0, D)
        k_at = ((chunk * K + cols[:, None]) * kv + group) * D + dims[None, :]
        k = tl.load(K_ + k_at, mask=cols[:, None] < K, other=0.0)
        v = tl.load(V + k_at, mask=cols[:, None] < K, other=0.0)
        column = tl.load(COLUMN + (chunk * kv + group) * K + cols, mask=cols < K, other=0.0)
        own_start = K - S
        dk = tl.zeros([BN, D], tl.float32)
        dv = tl.zeros([BN, D], tl.float32)
        dcolumn = tl.zeros([BN], tl.float32)
        # Queries before the block's first own entry do not see it.
        first = max(0, block * BN - own_start) // BM * BM
        for member in range(G):
            head = group * G + member
            for start in range(first, S, BM):
                rows = start + tl.arange(0, BM)
                q_at = ((chunk * S + rows[:, None]) * H + head) * D + dims[None, :]
                q = tl.load(Q + q_at, mask=rows[:, None] < S, other=0.0)
                do = tl.load(DO + q_at, mask=rows[:, None] < S, other=0.0)
                line = (chunk * H + head) * S + rows
                lse = tl.load(LSE + line, mask=rows < S, other=1.0e30)
                delta = tl.load(DELTA + line, mask=rows < S, other=0.0)
                s = _scores(q, k, column, rows, cols, own_start, S, K, scale)
                p = tl.exp(s - lse[:, None])
                dv += tl.dot(tl.trans(p.to(do.dtype)), do)
                ds = p * (tl.dot(do, tl.trans(v)) - delta[:, None])
                dk += tl.dot(tl.trans(ds.to(q.dtype)), q)
                dcolumn += tl.sum(tl.where(cols[None, :] - own_start == rows[:, None], 0.0, ds), 0)
        tl.store(DK + k_at, (dk * scale).to(DK.dtype.element_ty), mask=cols[:, None] < K)
        tl.store(DV + k_at, dv.to(DV.dtype.element_ty), mask=cols[:, None] < K)
        tl.store(DCOLUMN + (chunk * kv + group) * K + cols, dcolumn, mask=cols < K)

    @triton.jit
    def _backward_queries(Q, K_, V, COLUMN, DO, LSE, DELTA, DQ, S, K, H: tl.constexpr,
                          G: tl.constexpr, D: tl.constexpr, scale, BM: tl.constexpr,
                          BN: tl.constexpr):
        block, head, chunk = tl.program_id(0), tl.program_id(1), tl.program_id(2).to(tl.int64)
        kv: tl.constexpr = H // G
        rows = block * BM + tl.arange(0, BM)
        dims = tl.arange(0, D)
        q_at = ((chunk * S + rows[:, None]) * H + head) * D + dims[None, :]
        q = tl.load(Q + q_at, mask=rows[:, None] < S, other=0.0)
        do = tl.load(DO + q_at, mask=rows[:, None] < S, other=0.0)
        line = (chunk * H + head) * S + rows
        lse = tl.load(LSE + line, mask=rows < S, other=1.0e30)
        delta = tl.load(DELTA + line, mask=rows < S, other=0.0)
        own_start = K - S
        dq = tl.zeros([BM, D], tl.float32)
        for start in range(0, min(K, own_start + (block + 1) * BM), BN):
            cols = start + tl.arange(0, BN)
            k_at = ((chunk * K + cols[:, None]) * kv + head // G) * D + dims[None, :]
            k = tl.load(K_ + k_at, mask=cols[:, None] < K, other=0.0)
            v = tl.load(V + k_at, mask=cols[:, None] < K, other=0.0)
            column = tl.load(COLUMN + (chunk * kv + head // G) * K + cols, mask=cols < K, other=0.0)
            s = _scores(q, k, column, rows, cols, own_start, S, K, scale)
            p = tl.exp(s - lse[:, None])
            ds = p * (tl.dot(do, tl.trans(v)) - delta[:, None])
            dq += tl.dot(ds.to(k.dtype), k)
        tl.store(DQ + q_at, (dq * scale).to(DQ.dtype.element_ty), mask=rows[:, None] < S)

    BLOCK = 64

    def _grid(count, heads, chunks):
        return (triton.cdiv(count, BLOCK), heads, chunks)

    @torch.library.custom_op("silt::chunk_attention", mutates_args=())
    def chunk_attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor,
                        column: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        C, S, H, D = q.shape
        K, kv = k.shape[1], k.shape[2]
        q, k, v, column = (part.contiguous() for part in (q, k, v, column))
        out = torch.empty_like(q)
        lse = torch.empty(C, H, S, device=q.device, dtype=torch.float32)
        _forward[_grid(S, H, C)](q, k, v, column, out, lse, S, K, H, H // kv, D,
                                 1 / math.sqrt(D), BM=BLOCK, BN=BLOCK, num_warps=4)
        return out, lse

    @chunk_attention.register_fake
    def _(q, k, v, column):
        C, S, H, _ = q.shape
        return (torch.empty_like(q, memory_format=torch.contiguous_format),
                q.new_empty(C, H, S, dtype=torch.float32))

    @torch.library.custom_op("silt::chunk_attention_backward", mutates_args=())
    def chunk_attention_backward(
            grad: torch.Tensor, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor,
            column: torch.Tensor, out: torch.Tensor, lse: torch.Tensor
            ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        C, S, H, D = q.shape
        K, kv = k.shape[1], k.shape[2]
        grad, q, k, v, column = (part.contiguous() for part in (grad, q, k, v, column))
        delta = (grad.float() * out.float()).sum(-1).transpose(1, 2).contiguous()
        dq, dk, dv = torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)
        dcolumn = torch.empty_like(column)
        scale = 1 / math.sqrt(D)
        _backward_keys[_grid(K, kv, C)](q, k, v, column, grad, lse, delta, dk, dv, dcolumn, S, K,
                                        H, H // kv, D, scale, BM=BLOCK, BN=BLOCK, num_warps=4)
        _backward_queries[_grid(S, H, C)](q, k, v, column, grad, lse, delta, dq, S, K, H, H // kv,
                                          D, scale, BM=BLOCK, BN=BLOCK, num_warps=4)
        return dq, dk, dv, dcolumn

    @chunk_attention_backward.register_fake
    def _(grad, q, k, v, column, out, lse):
        return tuple(torch.empty_like(part, memory_format=torch.contiguous_format)
                     for part in (q, k, v, column))

    def _setup(ctx, inputs, output):
        ctx.save_for_backward(*inputs, *output)

    def _backward(ctx, grad, _):
        return torch.ops.silt.chunk_attention_backward(grad, *ctx.saved_tensors)

    chunk_attention.register_autograd(_backward, setup_context=_setup)


def attend(q, keys, values, column):
    """Same meaning as model.attend."""
    return torch.ops.silt.chunk_attention(q, keys, values, column)[0].flatten(2)


def difference(plain, device, dtype, chunks=3, rows=80, count=200, heads=6, kv_heads=2, dim=64):
    """The largest relative error of output and gradients against the plain version."""
    torch.manual_seed(1)
    shapes = [(chunks, rows, heads, dim), (chunks, count, kv_heads, dim),
              (chunks, count, kv_heads, dim), (chunks, kv_heads, count)]
    inputs = [torch.randn(*shape, device=device) for shape in shapes]
    inputs[3] = -inputs[3].abs() * 3
    inputs[3][:, :, :70] = -1e9
    inputs = [part.to(dtype) for part in inputs[:3]] + inputs[3:]
    probe = torch.randn(chunks, rows, heads * dim, device=device)
    results = []
    for function, wide in ((attend, False), (plain, True)):
        leaves = [(part.float() if wide else part).detach().requires_grad_() for part in inputs]
        out = function(*leaves)
        (out.float() * probe).sum().backward()
        results.append([out] + [leaf.grad for leaf in leaves])
    return max(((a.float() - b.float()).norm() / b.float().norm()).item()
               for a, b in zip(*results))


def usable(plain, device, dtype):
    """True where Triton runs and agrees; says why not otherwise."""
    if not TRITON or device == "cpu":
        return False
    try:
        error = difference(plain, device, dtype)
    except Exception as problem:         # a kernel that will not build must not stop a training
        print("attention kernel not used: %s" % str(problem).split("\n")[0][:200])
        return False
    print("attention kernel: relative error %.1e" % error)
    return error < 0.02
