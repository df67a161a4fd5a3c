"""Self-attention over a packed batch (Vaswani et al., 2017, section 3.2), forward and backward.

A packed batch is one long row of T tokens; sequence b owns the tokens cu_seqlens[b] .. cu_seqlens[b + 1] - 1. Each
token attends to the tokens of its own sequence, in each of `heads` heads of size d separately:

    S = q kᵀ / √d        P = softmax(S), row by row        o = M v,   M = P ⊙ keep / (1 - p)

where q, k and v (m, d) are the queries, keys and values of the sequence's m tokens in one head, three linear maps of
the hidden states which the caller has computed, S (m, m) are the scores of each query with each key, and keep is
dropout's mask of ones and zeros, each 0 with probability p. ⊙ is the element-wise product and a · between two rows
their dot product; i counts queries, j and n keys; 1[...] is 1 where the condition holds, else 0.

Backward. Given do, the gradient of a scalar loss with respect to o, the chain rule gives, line by line:

    dv = Mᵀ do           o = M v is linear in v
    dM = do vᵀ           ... and in M
    dP = dM ⊙ keep / (1 - p)                         dropout is an element-wise product
    dS = P ⊙ (dP - δ),   δ_i = Σ_j P_ij dP_ij        softmax: ∂P_ij / ∂S_in = P_ij (1[j = n] - P_in)
    dq = dS k / √d       dk = dSᵀ q / √d             S is linear in q and in k

On a GPU, S and P would be written to memory and read back several times, and that traffic takes longer than the
arithmetic. The Triton kernels keep them on the chip (FlashAttention; Dao et al., 2022). Each program takes one
sequence, one head and a tile of rows (`triton_tools.py` says what programs and tiles are); it finds them by cu_seqlens
and by strides, so nothing is copied or padded.

Forward. A program holds a tile of queries and walks over the keys, a tile at a time. Softmax needs the whole row, but
its sum can be kept up to date (the online softmax; Milakov & Gimelshein, 2018). For one query, with scores s_j = S_ij
and t the largest of those so far,

    l = Σ_j exp(s_j - t)        a = Σ_j exp(s_j - t) v_j        over the keys seen so far, so o_i = a / l at the end

and when a tile brings a larger score t', both sums are corrected by the one factor exp(t - t'). Dropout multiplies the
terms of a, not of l: it comes after the softmax. What the backward pass needs of a row is one number, the logarithm of
the sum of its exponentials, lse_i = t + log l, from which P_ij = exp(S_ij - lse_i) comes back at once.

Backward. dv and dk of a key sum over all queries, dq of a query over all keys. Programs that added to each other's
sums would need atomic additions, in an order that changes from run to run; instead each program owns a tile of rows
and walks twice: first these rows are keys, and dk and dv grow as queries pass by; then they are queries, and dq grows.
The scores are computed twice, the result is the same bits every time. A sequence that fits one tile (most do) needs
only the first walk, because there all keys of its queries are at hand. And δ needs no row of P: since
P_ij dP_ij = P_ij dM_ij keep_ij / (1 - p) = M_ij dM_ij, and dM_ij = do_i · v_j,

    δ_i = Σ_j P_ij dP_ij = Σ_j M_ij (do_i · v_j) = do_i · Σ_j M_ij v_j = do_i · o_i
"""

from __future__ import annotations

import math

import torch

from kernels import precision
from kernels.random_bits import dropout_keep, dropout_stream, new_seed, threshold
from kernels.triton_tools import jit, load_tile, matmul_dtype, store_tile, tl, triton


@jit
def _load_keys(
    qkv, first, m, HEADS: tl.constexpr, D: tl.constexpr, D_PAD: tl.constexpr, ROWS: tl.constexpr, MATMUL: tl.constexpr
):
    """k and v of rows first .. first + ROWS - 1, (ROWS, D_PAD) each. qkv points at this sequence and head already."""
    k = load_tile(qkv + HEADS * D, first, m, 3 * HEADS * D, D, D_PAD, ROWS)
    v = load_tile(qkv + 2 * HEADS * D, first, m, 3 * HEADS * D, D, D_PAD, ROWS)
    return k.to(MATMUL), v.to(MATMUL)


@jit
def _load_queries(
    qkv,
    out,
    dout,
    lse,
    first,
    m,
    HEADS: tl.constexpr,
    D: tl.constexpr,
    D_PAD: tl.constexpr,
    ROWS: tl.constexpr,
    MATMUL: tl.constexpr,
):
    """What the backward pass needs of queries: q and do (ROWS, D_PAD), δ and lse (ROWS,).

    qkv, out, dout and lse point at this sequence and head already.
    """
    q = load_tile(qkv, first, m, 3 * HEADS * D, D, D_PAD, ROWS)
    o = load_tile(out, first, m, HEADS * D, D, D_PAD, ROWS)
    do = load_tile(dout, first, m, HEADS * D, D, D_PAD, ROWS)
    delta = tl.sum(o.to(tl.float32) * do.to(tl.float32), 1)
    i = first + tl.arange(0, ROWS)
    return q.to(MATMUL), do.to(MATMUL), delta, tl.load(lse + i * HEADS, mask=i < m, other=0.0)


@jit
def _forward(
    qkv,  # (T, 3, HEADS, D)
    cu_seqlens,  # (B + 1,) int32
    seed,  # (1,) int64, or None without dropout
    out,  # (T, HEADS, D)
    lse,  # (T, HEADS) float32: log₂ Σ_j 2^s_ij with s = S log₂(e), which is log₂(e) times the lse of the text
    scale,  # log₂(e) / √d: exponentials are taken to base 2, which is what the hardware computes
    HEADS: tl.constexpr,
    D: tl.constexpr,
    D_PAD: tl.constexpr,  # the power of two that holds D
    BLOCK: tl.constexpr,  # rows of a program
    INNER: tl.constexpr,  # rows that it takes at a time on its walk
    DROP: tl.constexpr,  # p · 2³², see `random_bits.py`; 0 for no dropout
    MATMUL: tl.constexpr,  # the type of the operands of matrix products
    PRECISION: tl.constexpr,  # of products of float32
):
    """One program: one sequence, one head, BLOCK queries; it walks over the keys, INNER at a time."""
    sequence, head, first = tl.program_id(0) // HEADS, tl.program_id(0) % HEADS, tl.program_id(1) * BLOCK
    start = tl.load(cu_seqlens + sequence)
    m = tl.load(cu_seqlens + sequence + 1) - start
    if first >= m:
        return
    qkv += start.to(tl.int64) * (3 * HEADS * D) + head * D
    out += start.to(tl.int64) * (HEADS * D) + head * D
    i = first + tl.arange(0, BLOCK)
    if DROP:
        stream = dropout_stream(seed, (start + i) * HEADS + head)

    q = load_tile(qkv, first, m, 3 * HEADS * D, D, D_PAD, BLOCK).to(MATMUL)
    top = tl.full([BLOCK], -float("inf"), tl.float32)  # the largest score of each row so far
    total = tl.zeros([BLOCK], tl.float32)  # Σ 2^(s - top) so far
    acc = tl.zeros([BLOCK, D_PAD], tl.float32)  # Σ 2^(s - top) v so far
    for other in range(0, m, INNER):
        j = other + tl.arange(0, INNER)
        k, v = _load_keys(qkv, other, m, HEADS, D, D_PAD, INNER, MATMUL)
        s = tl.dot(q, tl.trans(k), input_precision=PRECISION) * scale  # (BLOCK, INNER)
        s = tl.where((j < m)[None, :], s, -float("inf"))
        new_top = tl.maximum(top, tl.max(s, 1))
        shrink = tl.exp2(top - new_top)  # what was summed against the old top counts this much against the new
        e = tl.exp2(s - new_top[:, None])
        total = total * shrink + tl.sum(e, 1)
        if DROP:
            e = tl.where(dropout_keep(stream[:, None], j[None, :], DROP), e, 0.0)
        acc = acc * shrink[:, None] + tl.dot(e.to(MATMUL), v, input_precision=PRECISION)
        top = new_top
    acc = acc / (total * (1 - DROP / 4294967296))[:, None]  # o = a / l, and dropout's 1 / (1 - p) once, here
    store_tile(out, acc, first, m, HEADS * D, D, D_PAD, BLOCK)
    tl.store(lse + (start + i) * HEADS + head, top + tl.log2(total), mask=i < m)


@jit
def _backward(
    qkv,  # (T, 3, HEADS, D)
    cu_seqlens,  # (B + 1,) int32
    seed,  # (1,) int64, or None without dropout
    out,  # (T, HEADS, D)
    lse,  # (T, HEADS) float32
    dout,  # (T, HEADS, D)
    dqkv,  # (T, 3, HEADS, D)
    scale,  # log₂(e) / √d
    HEADS: tl.constexpr,
    D: tl.constexpr,
    D_PAD: tl.constexpr,
    BLOCK: tl.constexpr,
    INNER: tl.constexpr,
    DROP: tl.constexpr,
    MATMUL: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """One program: one sequence, one head, BLOCK rows; first dk and dv of these rows as keys, then dq as queries."""
    sequence, head, first = tl.program_id(0) // HEADS, tl.program_id(0) % HEADS, tl.program_id(1) * BLOCK
    start = tl.load(cu_seqlens + sequence)
    m = tl.load(cu_seqlens + sequence + 1) - start
    if first >= m:
        return
    qkv += start.to(tl.int64) * (3 * HEADS * D) + head * D
    dqkv += start.to(tl.int64) * (3 * HEADS * D) + head * D
    out += start.to(tl.int64) * (HEADS * D) + head * D
    dout += start.to(tl.int64) * (HEADS * D) + head * D
    lse += start * HEADS + head
    rescale = 1 / (1 - DROP / 4294967296)  # 1 / (1 - p)
    root = scale * 0.6931471805599453  # 1 / √d

    # These rows are keys. Scores stand transposed, (BLOCK keys, INNER queries), as dv and dk want them.
    k, v = _load_keys(qkv, first, m, HEADS, D, D_PAD, BLOCK, MATMUL)
    j = first + tl.arange(0, BLOCK)
    dk = tl.zeros([BLOCK, D_PAD], tl.float32)
    dv = tl.zeros([BLOCK, D_PAD], tl.float32)
    for other in range(0, m, INNER):
        q, do, delta, row_lse = _load_queries(qkv, out, dout, lse, other, m, HEADS, D, D_PAD, INNER, MATMUL)
        i = other + tl.arange(0, INNER)
        s = tl.dot(k, tl.trans(q), input_precision=PRECISION) * scale  # Sᵀ log₂(e), (BLOCK, INNER)
        # A key beyond m would have s = 0. There 2^(0 - lse) may overflow, so dS too, and dS · k = inf · 0 = NaN would
        # reach dq. A query beyond m does not overflow: 0 was loaded for its lse. Its q, do and δ are 0: it adds 0.
        s = tl.where((j < m)[:, None], s, -float("inf"))
        prob = tl.exp2(s - row_lse[None, :])  # Pᵀ
        dprob = tl.dot(v, tl.trans(do), input_precision=PRECISION)  # dMᵀ, (BLOCK, INNER)
        dropped = prob  # Mᵀ without dropout
        if DROP:
            stream = dropout_stream(seed, (start + i) * HEADS + head)
            keep = dropout_keep(stream[None, :], j[:, None], DROP)
            dropped = tl.where(keep, prob * rescale, 0.0)  # Mᵀ
            dprob = tl.where(keep, dprob * rescale, 0.0)  # dPᵀ
        dv += tl.dot(dropped.to(MATMUL), do, input_precision=PRECISION)  # (BLOCK, D_PAD)
        ds = (prob * (dprob - delta[None, :])).to(MATMUL)  # dSᵀ, (BLOCK, INNER)
        dk += tl.dot(ds, q, input_precision=PRECISION)  # (BLOCK, D_PAD)
        if m <= BLOCK:  # these are all keys of a short sequence, so dq of the queries at hand is complete
            dq = tl.dot(tl.trans(ds), k, input_precision=PRECISION)  # (INNER, D_PAD)
            store_tile(dqkv, dq * root, other, m, 3 * HEADS * D, D, D_PAD, INNER)
    store_tile(dqkv + HEADS * D, dk * root, first, m, 3 * HEADS * D, D, D_PAD, BLOCK)
    store_tile(dqkv + 2 * HEADS * D, dv, first, m, 3 * HEADS * D, D, D_PAD, BLOCK)
    if m <= BLOCK:
        return

    # The same rows are queries. Scores are (BLOCK queries, INNER keys).
    q, do, delta, row_lse = _load_queries(qkv, out, dout, lse, first, m, HEADS, D, D_PAD, BLOCK, MATMUL)
    i = first + tl.arange(0, BLOCK)
    if DROP:
        stream = dropout_stream(seed, (start + i) * HEADS + head)
    dq = tl.zeros([BLOCK, D_PAD], tl.float32)
    for other in range(0, m, INNER):
        k_other, v_other = _load_keys(qkv, other, m, HEADS, D, D_PAD, INNER, MATMUL)
        j_other = other + tl.arange(0, INNER)
        s = tl.dot(q, tl.trans(k_other), input_precision=PRECISION) * scale  # S log₂(e), (BLOCK, INNER)
        s = tl.where((j_other < m)[None, :], s, -float("inf"))  # or a key beyond m might overflow, as above
        prob = tl.exp2(s - row_lse[:, None])  # P
        dprob = tl.dot(do, tl.trans(v_other), input_precision=PRECISION)  # dM, (BLOCK, INNER)
        if DROP:
            dprob = tl.where(dropout_keep(stream[:, None], j_other[None, :], DROP), dprob * rescale, 0.0)  # dP
        ds = (prob * (dprob - delta[:, None])).to(MATMUL)  # dS, (BLOCK, INNER)
        dq += tl.dot(ds, k_other, input_precision=PRECISION)  # (BLOCK, D_PAD)
    store_tile(dqkv, dq * root, first, m, 3 * HEADS * D, D, D_PAD, BLOCK)


def launch_options(d, max_seqlen, dtype, capability, backward=False):
    """How the kernels are cut for heads of size d: their constexprs by name, num_warps, num_stages and maxnreg.

    BLOCK       The longest sequence rounded up to a power of two, from 16 to what registers hold: 64 rows in 16 bits,
                32 in float32, half of that for d > 64. A batch of short sequences is heads times sequences small
                programs, several on a multiprocessor. On Turing (sm_75) the backward pass of heads of 64 spills
                registers with any number but 32, so it is 32, and 16 where d > 64, which spills all the same.
    INNER       32. It is 16 in float32, whose tiles are twice as large. It is 16 on Turing. And it is 16 backward, so
                that three programs run at once (in 16 bits, from sm_80 on, d up to 64).
    num_stages  2: the next tile is loaded during the products of this one. 1 backward, where other programs fill that
                time; 1 where all sequences fit one block (two turns at most); 1 on Turing, which cannot load ahead.
    maxnreg     Backward only: a limit on the registers of a thread, which can have 255. With a limit, even one above
                its own choice, ptxas (which assigns registers) chooses anew. The values are found by compiling, not
                derived: no 16-bit variant of `make kernels` (d 17, 32, 64) spills. 168, for blocks of 64 on the cards
                in the list, lets three programs run at once (65,536 registers / 384 threads = 170, in eights); ptxas
                alone takes 224 on sm_80, and spills on sm_100. 255 is for d not a multiple of 16 where BLOCK > 16.
    """
    is_16_bit, turing = dtype != torch.float32, capability == (7, 5)
    least, largest = (32, 32) if turing else (16, 64) if is_16_bit else (16, 32)
    if d > 64:
        largest //= 2
    block = min(largest, max(least, triton.next_power_of_2(max_seqlen)))
    inner = 16 if backward or turing or not is_16_bit else 32
    options = {
        "D": d,
        "D_PAD": max(16, triton.next_power_of_2(d)),  # 16 is the least inner size of tl.dot in 16 bits
        "BLOCK": block,
        "INNER": min(block, inner),
        "MATMUL": matmul_dtype(dtype),
        "PRECISION": "ieee",  # not the 11-bit products (TF32) that tensor cores make of float32
        "num_warps": 4,
        "num_stages": 1 if backward or turing or max_seqlen <= block else 2,
    }
    if backward and block > 16 and d % 16:
        options["maxnreg"] = 255
    elif backward and block == 64 and capability in ((8, 0), (9, 0), (10, 0), (10, 3), (12, 0)):
        options["maxnreg"] = 168
    return options


def _launch(kernel, tensors, cu_seqlens, max_seqlen, heads, p):
    """tensors: qkv (T, 3H), seed, then the kernel's other pointers in its order; cu_seqlens goes in second."""
    qkv, seed, *others = tensors
    d = qkv.shape[1] // 3 // heads
    options = launch_options(d, max_seqlen, qkv.dtype, precision.capability(qkv.device), kernel is _backward)
    grid = ((len(cu_seqlens) - 1) * heads, triton.cdiv(max_seqlen, options["BLOCK"]))
    scale = math.log2(math.e) / math.sqrt(d)
    kernel[grid](qkv, cu_seqlens, seed, *others, scale, HEADS=heads, DROP=threshold(p), **options)


class _FusedAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx, qkv, cu_seqlens, max_seqlen, heads, p):
        qkv = qkv.contiguous()
        seed = new_seed(qkv, p)
        out = torch.empty(len(qkv), qkv.shape[1] // 3, dtype=qkv.dtype, device=qkv.device)
        lse = torch.empty(len(qkv), heads, device=qkv.device)
        _launch(_forward, (qkv, seed, out, lse), cu_seqlens, max_seqlen, heads, p)
        ctx.batch = cu_seqlens, max_seqlen, heads, p
        ctx.save_for_backward(qkv, seed, out, lse)
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, dout):
        dqkv = torch.empty_like(ctx.saved_tensors[0])
        _launch(_backward, (*ctx.saved_tensors, dout.contiguous(), dqkv), *ctx.batch)
        return dqkv, None, None, None, None


def attention(qkv, cu_seqlens, max_seqlen, heads, p=0.0):
    """The GPU's form of `plain.attention`, in qkv's dtype. Heads of over 128 numbers may raise OutOfResources."""
    return _FusedAttention.apply(qkv, cu_seqlens, max_seqlen, heads, p)
