"""The chunk attention of model.attend as a Triton kernel: no score ever reaches memory.

Scores of a chunk are [heads, n+m, about 4n]; writing them out and back is most of the plain
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

LAG = 32                # model.BLOCK

if TRITON:
    @triton.jit
    def _scores(q, k, column, rows, cols, own_start, low, high, S, N: tl.constexpr,
                E: tl.constexpr, L: tl.constexpr, scale):
        """Scaled scores plus the column term; what a row does not see is -1e30.  Keys count from
        low to high."""
        own = cols[None, :] - own_start
        s = tl.dot(q, tl.trans(k)) * scale
        hidden = (own > rows[:, None]) | (cols[None, :] < low) | (cols[None, :] >= high)
        if E > 0:
            merged = tl.minimum(rows, N) // L * L - L - 1
            entry = own + E
            is_entry = (entry >= 0) & (own < 0)
            hidden = hidden | ((own >= 0) & (own <= merged[:, None])) \
                | (is_entry & (entry > merged[:, None]))
            s += tl.where(is_entry & (entry == merged[:, None]), 0.0, column[None, :])
        else:
            s += column[None, :]
        return tl.where(hidden, -1.0e30, s)

    @triton.jit
    def _key_tiles(block, own_start, S, N: tl.constexpr, E: tl.constexpr, L: tl.constexpr,
                   BM: tl.constexpr, BN: tl.constexpr):
        """A query block's keys: `far` tiles from 0 up to the end `far_end`, then tiles from
        `raw_start` up to `end`."""
        end = own_start + tl.minimum(S, (block + 1) * BM)
        far_end = own_start
        raw_start = own_start
        if E > 0:
            newest = tl.minimum((block + 1) * BM - 1, N) // L * L - L - 1
            oldest = tl.minimum(block * BM, N) // L * L - L - 1
            far_end = own_start - E + tl.maximum(newest + 1, 0)
            raw_start = own_start + tl.maximum(oldest + 1, 0)
        far = (far_end + BN - 1) // BN
        return far, far_end, raw_start, end

    @triton.jit
    def _forward(Q, K_, V, COLUMN, OUT, LSE, S, K, H: tl.constexpr, G: tl.constexpr,
                 D: tl.constexpr, N: tl.constexpr, E: tl.constexpr, L: tl.constexpr, scale,
                 BM: tl.constexpr, BN: tl.constexpr):
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
        far, far_end, raw_start, end = _key_tiles(block, own_start, S, N, E, L, BM, BN)
        for tile in range(0, far + (end - raw_start + BN - 1) // BN):
            low = tl.where(tile < far, 0, raw_start)
            high = tl.where(tile < far, far_end, end)
            cols = tl.where(tile < far, tile * BN, raw_start + (tile - far) * BN) \
                + tl.arange(0, BN)
            k_at = ((chunk * K + cols[:, None]) * kv + head // G) * D + dims[None, :]
            k = tl.load(K_ + k_at, mask=cols[:, None] < K, other=0.0)
            v = tl.load(V + k_at, mask=cols[:, None] < K, other=0.0)
            column = tl.load(COLUMN + (chunk * kv + head // G) * K + cols, mask=cols < K, other=0.0)
            s = _scores(q, k, column, rows, cols, own_start, low, high, S, N, E, L, scale)
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
                       G: tl.constexpr, D: tl.constexpr, N: tl.constexpr, E: tl.constexpr,
                       L: tl.constexpr, scale, BM: tl.constexpr, BN: tl.constexpr):
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
        # Queries that see none of these keys are left out: those before a raw row, those two blocks
        # and more after it, those before an entry was merged.
        first, last = 0, S
        if block * BN >= own_start:
            first = (block * BN - own_start) // BM * BM
            if E > 0 and (block + 1) * BN - own_start + L <= N:
                last = tl.minimum(S, (block + 1) * BN - own_start + 2 * L)
        elif E > 0 and block * BN >= own_start - E and (block + 1) * BN <= own_start:
            first = (block * BN - own_start + E) // BM * BM
        for member in range(G):
            head = group * G + member
            for start in range(first, last, BM):
                rows = start + tl.arange(0, BM)
                q_at = ((chunk * S + rows[:, None]) * H + head) * D + dims[None, :]
                q = tl.load(Q + q_at, mask=rows[:, None] < S, other=0.0)
                do = tl.load(DO + q_at, mask=rows[:, None] < S, other=0.0)
                line = (chunk * H + head) * S + rows
                lse = tl.load(LSE + line, mask=rows < S, other=1.0e30)
                delta = tl.load(DELTA + line, mask=rows < S, other=0.0)
                s = _scores(q, k, column, rows, cols, own_start, 0, K, S, N, E, L, scale)
                p = tl.exp(s - lse[:, None])
                dv += tl.dot(tl.trans(p.to(do.dtype)), do)
                ds = p * (tl.dot(do, tl.trans(v)) - delta[:, None])
                dk += tl.dot(tl.trans(ds.to(q.dtype)), q)
                if E > 0:
                    merged = tl.minimum(rows, N) // L * L - L - 1
                    spared = (cols[None, :] - own_start + E == merged[:, None]) \
                        & (merged >= 0)[:, None]
                    dcolumn += tl.sum(tl.where(spared, 0.0, ds), 0)
        tl.store(DK + k_at, (dk * scale).to(DK.dtype.element_ty), mask=cols[:, None] < K)
        tl.store(DV + k_at, dv.to(DV.dtype.element_ty), mask=cols[:, None] < K)
        tl.store(DCOLUMN + (chunk * kv + group) * K + cols, dcolumn, mask=cols < K)

    @triton.jit
    def _backward_queries(Q, K_, V, COLUMN, DO, LSE, DELTA, DQ, S, K, H: tl.constexpr,
                          G: tl.constexpr, D: tl.constexpr, N: tl.constexpr, E: tl.constexpr,
                          L: tl.constexpr, scale, BM: tl.constexpr, BN: tl.constexpr):
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
        far, far_end, raw_start, end = _key_tiles(block, own_start, S, N, E, L, BM, BN)
        for tile in range(0, far + (end - raw_start + BN - 1) // BN):
            low = tl.where(tile < far, 0, raw_start)
            high = tl.where(tile < far, far_end, end)
            cols = tl.where(tile < far, tile * BN, raw_start + (tile - far) * BN) \
                + tl.arange(0, BN)
            k_at = ((chunk * K + cols[:, None]) * kv + head // G) * D + dims[None, :]
            k = tl.load(K_ + k_at, mask=cols[:, None] < K, other=0.0)
            v = tl.load(V + k_at, mask=cols[:, None] < K, other=0.0)
            column = tl.load(COLUMN + (chunk * kv + head // G) * K + cols, mask=cols < K, other=0.0)
            s = _scores(q, k, column, rows, cols, own_start, low, high, S, N, E, L, scale)
            p = tl.exp(s - lse[:, None])
            ds = p * (tl.dot(do, tl.trans(v)) - delta[:, None])
            dq += tl.dot(ds.to(k.dtype), k)
        tl.store(DQ + q_at, (dq * scale).to(DQ.dtype.element_ty), mask=rows[:, None] < S)

    BLOCK = 64

    def _grid(count, heads, chunks):
        return (triton.cdiv(count, BLOCK), heads, chunks)

    @torch.library.custom_op("silt::chunk_attention", mutates_args=())
    def chunk_attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, column: torch.Tensor,
                        n: int, entries: int) -> tuple[torch.Tensor, torch.Tensor]:
        C, S, H, D = q.shape
        K, kv = k.shape[1], k.shape[2]
        q, k, v, column = (part.contiguous() for part in (q, k, v, column))
        out = torch.empty_like(q)
        lse = torch.empty(C, H, S, device=q.device, dtype=torch.float32)
        _forward[_grid(S, H, C)](q, k, v, column, out, lse, S, K, H, H // kv, D,
                                 n, entries, LAG, 1 / math.sqrt(D), BM=BLOCK, BN=BLOCK, num_warps=4)
        return out, lse

    @chunk_attention.register_fake
    def _(q, k, v, column, n, entries):
        C, S, H, _ = q.shape
        return (torch.empty_like(q, memory_format=torch.contiguous_format),
                q.new_empty(C, H, S, dtype=torch.float32))

    @torch.library.custom_op("silt::chunk_attention_backward", mutates_args=())
    def chunk_attention_backward(
            grad: torch.Tensor, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor,
            column: torch.Tensor, out: torch.Tensor, lse: torch.Tensor, n: int, entries: int
            ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        C, S, H, D = q.shape
        K, kv = k.shape[1], k.shape[2]
        grad, q, k, v, column = (part.contiguous() for part in (grad, q, k, v, column))
        delta = (grad.float() * out.float()).sum(-1).transpose(1, 2).contiguous()
        dq, dk, dv = torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)
        dcolumn = torch.empty_like(column)
        scale = 1 / math.sqrt(D)
        _backward_keys[_grid(K, kv, C)](q, k, v, column, grad, lse, delta, dk, dv, dcolumn, S, K,
                                        H, H // kv, D, n, entries, LAG, scale, BM=BLOCK, BN=BLOCK,
                                        num_warps=4)
        _backward_queries[_grid(S, H, C)](q, k, v, column, grad, lse, delta, dq, S, K, H, H // kv,
                                          D, n, entries, LAG, scale, BM=BLOCK, BN=BLOCK, num_warps=4)
        return dq, dk, dv, dcolumn

    @chunk_attention_backward.register_fake
    def _(grad, q, k, v, column, out, lse, n, entries):
        return tuple(torch.empty_like(part, memory_format=torch.contiguous_format)
                     for part in (q, k, v, column))

    def _setup(ctx, inputs, output):
        ctx.save_for_backward(*inputs[:4], *output)
        ctx.shape = inputs[4:]

    def _backward(ctx, grad, _):
        parts = torch.ops.silt.chunk_attention_backward(grad, *ctx.saved_tensors, *ctx.shape)
        return parts + (None, None)

    chunk_attention.register_autograd(_backward, setup_context=_setup)


def attend(q, keys, values, column, n, entries):
    """Same meaning as model.attend."""
    return torch.ops.silt.chunk_attention(q, keys, values, column, n, entries)[0].flatten(2)


def difference(plain, device, dtype, entries, chunks=3, n=256, comp=16, far=300, heads=6,
               kv_heads=2, dim=64):
    """The largest relative error of output and gradients against the plain version."""
    torch.manual_seed(1)
    rows, count = n + comp, far + entries + n + comp
    shapes = [(chunks, rows, heads, dim), (chunks, count, kv_heads, dim),
              (chunks, count, kv_heads, dim), (chunks, kv_heads, count)]
    inputs = [torch.randn(*shape, device=device) for shape in shapes]
    inputs[3] = -inputs[3].abs() * 3
    inputs[3][:, :, :70] = -1e9
    inputs[3][:, :, far + entries:] = 0
    inputs = [part.to(dtype) for part in inputs[:3]] + inputs[3:]
    probe = torch.randn(chunks, rows, heads * dim, device=device)
    results = []
    for function, wide in ((attend, False), (plain, True)):
        leaves = [(part.float() if wide else part).detach().requires_grad_() for part in inputs]
        out = function(*leaves, n, entries)
        (out.float() * probe).sum().backward()
        grads = [leaf.grad for leaf in leaves]
        # Raw rows have no column; without entries nothing in it is trained.
        grads[3] = grads[3][:, :, :far + entries] if entries else grads[0]
        results.append([out] + grads)
    return max(((a.float() - b.float()).norm() / b.float().norm()).item()
               for a, b in zip(*results))


def usable(plain, device, dtype, n=256, **shape):
    """True where Triton runs and agrees on rows of that shape (as for difference): it takes head
    sizes that are powers of two alone; says why not otherwise."""
    if not TRITON or device == "cpu":
        return False
    try:
        error = max(difference(plain, device, dtype, entries, n=n, **shape)
                    for entries in sorted({0, max(0, n - LAG)}))
    except Exception as problem:         # a kernel that will not build must not stop a training
        print("attention kernel not used: %s" % str(problem).split("\n")[0][:200])
        return False
    print("attention kernel: relative error %.1e" % error)
    return error < 0.02
