"""The embedding: the vectors of a token's word, position and segment, summed and normalized, in one call.

    z = word[ids] + position[positions] + segment[segments]                 (T, H)
    y = γ x̂ + β,   x̂ = (z - μ) r,   μ = mean(z),   r = 1 / √(var(z) + ε)    LayerNorm, as in `residual_norm.py`

T is the number of tokens, H the hidden size; γ and β are learnt.

Backward. Let dy be the gradient of a scalar loss with respect to y, and dx̂ = dy γ. LayerNorm's backward pass is
derived in `residual_norm.py`. A row of a table stands in z once for each token that looked it up, so its gradient sums
over these:

    dz           = r (dx̂ - mean(dx̂) - x̂ mean(dx̂ x̂))                  dγ = Σ_t dy x̂          dβ = Σ_t dy
    dword[i]     = Σ_t dz_t [ids_t = i]                               dposition and dsegment likewise

Which tokens share a row is known only when the batch is there. Programs that each took a token and added its dz to the
row would need atomic additions, in an order that changes from run to run. Instead the ids are sorted, those of equal
value in the order in which they came: then the tokens of a row stand next to each other,

    ids       7 3 9 3 7 3        sorted ids    3 3 3 7 7 9        tokens    1 3 5 0 4 2

and the program at the first place of each value sums up that row alone, always in the same order. Positions are sorted
beside the ids, in one call. There are only two segments, each with many tokens: each program of the first pass takes
the rows of one segment, and leaves its share of that sum beside those of dγ and dβ.

The table of words has 30,522 rows and a batch touches a few hundred. Where a dense gradient already stands in the
parameter (`adamw.py` keeps one), the kernel adds to just those rows, in place, and tells autograd that nothing is left
to add; a gradient of its own would be 94 MB of zeros for BERT-base, made and added in every step. (So
`torch.autograd.grad` finds no gradient of such a table: use `backward`.)
"""

from __future__ import annotations

import torch

from kernels.residual_norm import launch_options, rows_per_program
from kernels.triton_tools import jit, tl, triton

CHUNK = 8  # tokens of a table's row that are summed at a time


@jit
def _row(ids, positions, segments, word, position, segment, row, column, inside, H: tl.constexpr):
    """z of one row."""
    z = tl.load(word + tl.load(ids + row) * H + column, mask=inside, other=0.0).to(tl.float32)
    z += tl.load(position + tl.load(positions + row) * H + column, mask=inside, other=0.0).to(tl.float32)
    return z + tl.load(segment + tl.load(segments + row) * H + column, mask=inside, other=0.0).to(tl.float32)


@jit
def _forward(
    ids,  # (T,) int64
    positions,  # (T,) int64
    segments,  # (T,) int64
    word,  # (V, H)
    position,  # (P, H)
    segment,  # (S, H)
    weight,  # (H,)
    beta,  # (H,)
    y,  # (T, H)
    mean,  # (T,) float32
    rstd,  # (T,) float32
    eps,
    H: tl.constexpr,
    BLOCK: tl.constexpr,  # the power of two that holds H
):
    """One program: one row."""
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK)
    inside = column < H
    z = _row(ids, positions, segments, word, position, segment, row, column, inside, H)
    mu = tl.sum(z, 0) / H
    centred = tl.where(inside, z - mu, 0.0)
    r = 1 / tl.sqrt(tl.sum(centred * centred, 0) / H + eps)
    gamma = tl.load(weight + column, mask=inside, other=0.0).to(tl.float32)
    shift = tl.load(beta + column, mask=inside, other=0.0).to(tl.float32)
    tl.store(y + row * H + column, (centred * r * gamma + shift).to(y.dtype.element_ty), mask=inside)
    tl.store(mean + row, mu)
    tl.store(rstd + row, r)


@jit
def _backward(
    ids,  # (T,) int64
    positions,  # (T,) int64
    segments,  # (T,) int64
    word,  # (V, H)
    position,  # (P, H)
    segment,  # (S, H)
    weight,  # (H,)
    mean,  # (T,) float32
    rstd,  # (T,) float32
    dy,  # (T, H)
    dz,  # (T, H) float32
    partial,  # (programs, S, 3, H) float32: each program's share of dγ, dβ and a row of dsegment
    T,
    ROWS,
    H: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One program: of ROWS rows those of one segment, in order; the sums over them stay in registers until the end."""
    first = tl.program_id(0).to(tl.int64) * ROWS
    column = tl.arange(0, BLOCK)
    inside = column < H
    gamma = tl.load(weight + column, mask=inside, other=0.0).to(tl.float32)
    dgamma = tl.zeros([BLOCK], tl.float32)
    dbeta = tl.zeros([BLOCK], tl.float32)
    dsegment = tl.zeros([BLOCK], tl.float32)
    for n in range(0, tl.minimum(ROWS, T - first)):
        row = first + n
        if tl.load(segments + row) == tl.program_id(1):
            z = _row(ids, positions, segments, word, position, segment, row, column, inside, H)
            r = tl.load(rstd + row)
            x_hat = (z - tl.load(mean + row)) * r
            dy_row = tl.load(dy + row * H + column, mask=inside, other=0.0).to(tl.float32)
            dx_hat = dy_row * gamma
            dz_row = r * (dx_hat - tl.sum(dx_hat, 0) / H - x_hat * (tl.sum(dx_hat * x_hat, 0) / H))
            tl.store(dz + row * H + column, dz_row, mask=inside)
            dgamma += dy_row * x_hat
            dbeta += dy_row
            dsegment += dz_row
    partial += (tl.program_id(0) * tl.num_programs(1) + tl.program_id(1)) * 3 * H
    tl.store(partial + column, dgamma, mask=inside)
    tl.store(partial + H + column, dbeta, mask=inside)
    tl.store(partial + 2 * H + column, dsegment, mask=inside)


@jit
def _add_rows(
    dz,  # (T, H) float32
    keys,  # (2, T) int64: the ids, sorted, and the positions, sorted
    tokens,  # (2, T) int64: where each stood before
    dword,  # (V, H): added to
    dposition,  # (P, H): added to
    T,
    H: tl.constexpr,
    BLOCK: tl.constexpr,
    CHUNK: tl.constexpr,
):
    """One program: one place among the sorted ids (or positions). Where a new value starts there, all its tokens."""
    first = tl.program_id(0)
    keys += tl.program_id(1) * T
    tokens += tl.program_id(1) * T
    key = tl.load(keys + first)
    if tl.load(keys + first - 1, mask=first > 0, other=-1) == key:
        return
    column = tl.arange(0, BLOCK)
    inside = column < H
    total = tl.zeros([BLOCK], tl.float32)
    place = first + tl.arange(0, CHUNK)
    same = tl.load(keys + place, mask=place < T, other=-1) == key
    while tl.max(same.to(tl.int32), 0) > 0:
        row = tl.load(tokens + place, mask=same, other=0)
        block = dz + row[:, None] * H + column[None, :]
        total += tl.sum(tl.load(block, mask=same[:, None] & inside[None, :], other=0.0), 0)
        place += CHUNK
        same = tl.load(keys + place, mask=place < T, other=-1) == key
    table = dword if tl.program_id(1) == 0 else dposition
    target = table + key * H + column
    before = tl.load(target, mask=inside, other=0.0).to(tl.float32)
    tl.store(target, (before + total).to(table.dtype.element_ty), mask=inside)


class _FusedEmbed(torch.autograd.Function):
    @staticmethod
    def forward(ctx, ids, positions, segments, word, position, segment, weight, beta, eps):
        T, H = len(ids), word.shape[1]
        y = torch.empty(T, H, dtype=word.dtype, device=word.device)
        mean, rstd = torch.empty(2, T, device=word.device)
        where = (ids, positions, segments, word, position, segment, weight)
        _forward[(T,)](*where, beta, y, mean, rstd, eps, **launch_options(H))
        ctx.save_for_backward(*where, mean, rstd)
        return y

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, dy):
        ids, positions, _, word, position, segment, weight, *_ = ctx.saved_tensors
        (T, H), S = dy.shape, len(segment)
        rows = rows_per_program(T)
        programs = triton.cdiv(T, rows)
        dz = torch.empty(T, H, device=dy.device)
        partial = torch.empty(programs, S, 3, H, device=dy.device)
        options = launch_options(H)
        _backward[(programs, S)](*ctx.saved_tensors, dy.contiguous(), dz, partial, T, rows, **options)
        sums = partial.sum(0)  # (S, 3, H)
        keys, tokens = torch.stack((ids, positions)).sort(dim=1, stable=True)
        targets, left = [], []  # what the tables' gradients are added to, and what that leaves for autograd to add
        for table, needed in zip((word, position), ctx.needs_input_grad[3:5], strict=True):
            standing = table.grad if needed else None
            targets.append(torch.zeros_like(table) if standing is None else standing)
            left.append(targets[-1] if standing is None else None)
        _add_rows[(T, 2)](dz, keys, tokens, *targets, T, CHUNK=CHUNK, **options)
        dgamma, dbeta = sums[:, :2].sum(0).to(weight.dtype)
        return None, None, None, *left, sums[:, 2].to(segment.dtype), dgamma, dbeta, None


def embed(ids, positions, segments, tables, norm):
    """The GPU's form of `plain.embed`. The result has the dtype of the tables."""
    return _FusedEmbed.apply(ids, positions, segments, *tables, norm.weight, norm.bias, norm.eps)
