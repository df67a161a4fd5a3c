"""The embedding: the vectors of a token's word, position and segment, summed and normalized, in one call.

    z = word[ids] + position[positions] + segment[segments]                 (T, H)
    y = LN(z) = γ x̂ + β                                                      see `row_norm.py`

T is the number of tokens, H the hidden size; γ and β are learned.

Backward. `row_norm.py` derives dz, dγ and dβ from dy, the gradient of a scalar loss with respect to y. A row of a
table stands in z once for each token that looked it up, so its gradient sums over these:

    dword[i] = Σ_t dz_t 1[ids_t = i]                              dposition and dsegment likewise

1[...] is 1 where the condition holds, else 0.

Which tokens share a row is known only when the batch is there. Programs that each took a token and added its dz to the
row would need atomic additions, in an order that changes from run to run. Instead the ids are sorted, those of equal
value in the order in which they came: then the tokens of a row stand next to each other,

    ids       7 3 9 3 7 3        sorted ids    3 3 3 7 7 9        tokens    1 3 5 0 4 2

and the program at the first place of each value sums up that row alone, always in the same order. Positions are sorted
beside the ids, in one call. So there are two passes: `_backward` makes dz, then `_add_rows` makes these sums. There are
only two segments, each with many tokens: a program of `_backward` takes the rows of one segment, and leaves its share
of that sum beside those of dγ and dβ.

The table of words has 30,522 rows and a batch touches a few hundred. Where a dense gradient already stands in the
parameter (`adamw.py` keeps one), the kernel adds to just those rows, in place, and tells autograd that nothing is left
to add; a gradient of its own would be 94 MB of zeros for BERT-base, made and added in every step: 0.13 ms. (So
`torch.autograd.grad` finds no gradient of such a table: use `backward`.)

The encoder goes on with dropout of y and its cast to 16 bits. These stay PyTorch's, four launches forward and backward:
20 µs of BERT-base's step and 12 of MiniLM's by the roofline of `make launches`, 0.4 and 0.8 %. SMART (`smart.py`) needs
y before dropout, in float32.
"""

from __future__ import annotations

import torch

from kernels.row_norm import (
    launch_options,
    load_row,
    normalize_row,
    normalize_row_backward,
    rows_per_program,
    store_row,
    store_sums,
)
from kernels.triton_tools import jit, tl, triton
from kernels.weight_gradients import add_sums, standing

CHUNK = 8  # tokens of a table's row that are summed at a time


@jit
def _row(ids, positions, segments, word, position, segment, row, column, H: tl.constexpr):
    """z of one row."""
    z = load_row(word + tl.load(ids + row) * H, column, H)
    z += load_row(position + tl.load(positions + row) * H, column, H)
    return z + load_row(segment + tl.load(segments + row) * H, column, H)


@jit
def _forward(
    ids,  # (T,) int64
    positions,  # (T,) int64
    segments,  # (T,) int64
    word,  # (V, H)
    position,  # (P, H)
    segment,  # (S, H)
    gamma,  # (H,)
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
    z = _row(ids, positions, segments, word, position, segment, row, column, H)
    gamma_row, beta_row = load_row(gamma, column, H), load_row(beta, column, H)
    normalize_row(z, gamma_row, beta_row, eps, y, mean, rstd, row, column, H)


@jit(do_not_specialize=["T", "ROWS"])
def _backward(
    ids,  # (T,) int64
    positions,  # (T,) int64
    segments,  # (T,) int64
    word,  # (V, H)
    position,  # (P, H)
    segment,  # (S, H)
    gamma,  # (H,)
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
    first, own_segment = tl.program_id(0).to(tl.int64) * ROWS, tl.program_id(1)
    column = tl.arange(0, BLOCK)
    gamma_row = load_row(gamma, column, H)
    dgamma = tl.zeros([BLOCK], tl.float32)
    dbeta = tl.zeros([BLOCK], tl.float32)
    dsegment = tl.zeros([BLOCK], tl.float32)
    for n in range(0, tl.minimum(ROWS, T - first)):
        row = first + n
        if tl.load(segments + row) == own_segment:
            z = _row(ids, positions, segments, word, position, segment, row, column, H)
            dz_row, dgamma_share, dbeta_share = normalize_row_backward(z, gamma_row, dy, mean, rstd, row, column, H)
            store_row(dz + row * H, dz_row, column, H)
            dgamma += dgamma_share
            dbeta += dbeta_share
            dsegment += dz_row
    store_sums(partial, tl.program_id(0) * tl.num_programs(1) + own_segment, dgamma, dbeta, dsegment, column, H)


@jit(do_not_specialize=["T"])
def _add_rows(
    dz,  # (T, H) float32
    values,  # (2, T) int64: the ids, sorted, and the positions, sorted
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
    values += tl.program_id(1) * T
    tokens += tl.program_id(1) * T
    value = tl.load(values + first)
    if tl.load(values + first - 1, mask=first > 0, other=-1) == value:
        return
    column = tl.arange(0, BLOCK)
    inside = column < H
    total = tl.zeros([BLOCK], tl.float32)
    place = first + tl.arange(0, CHUNK)
    same = tl.load(values + place, mask=place < T, other=-1) == value
    while tl.max(same.to(tl.int32), 0) > 0:
        row = tl.load(tokens + place, mask=same, other=0)
        block = dz + row[:, None] * H + column[None, :]
        total += tl.sum(tl.load(block, mask=same[:, None] & inside[None, :], other=0.0), 0)
        place += CHUNK
        same = tl.load(values + place, mask=place < T, other=-1) == value
    table = dword if tl.program_id(1) == 0 else dposition
    target = table + value * H + column
    before = tl.load(target, mask=inside, other=0.0).to(tl.float32)
    tl.store(target, (before + total).to(table.dtype.element_ty), mask=inside)


class _FusedEmbed(torch.autograd.Function):
    @staticmethod
    def forward(ctx, ids, positions, segments, word, position, segment, gamma, beta, eps):
        T, H = len(ids), word.shape[1]
        y = torch.empty(T, H, dtype=word.dtype, device=word.device)
        mean, rstd = torch.empty(T, device=word.device), torch.empty(T, device=word.device)
        where = (ids, positions, segments, word, position, segment, gamma)
        _forward[(T,)](*where, beta, y, mean, rstd, eps, **launch_options(H))
        ctx.beta = beta  # only its `.grad` is needed, not its value
        ctx.save_for_backward(*where, mean, rstd)
        return y

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, dy):
        ids, positions, _, word, position, segment, gamma, *_ = ctx.saved_tensors
        (T, H), S = dy.shape, len(segment)
        rows = rows_per_program(T)
        programs = triton.cdiv(T, rows)
        dz = torch.empty(T, H, device=dy.device)
        partial = torch.empty(programs, S, 3, H, device=dy.device)
        options = launch_options(H)
        _backward[(programs, S)](*ctx.saved_tensors, dy.contiguous(), dz, partial, T, rows, **options)
        dgamma, dbeta = add_sums(partial.view(-1, 3, H), (gamma, ctx.beta), ctx.needs_input_grad[6:8])
        dsegment = partial[:, :, 2].sum(0).to(segment.dtype)  # (S, H)
        values, tokens = torch.stack((ids, positions)).sort(dim=1, stable=True)
        targets, left = standing((word, position), ctx.needs_input_grad[3:5])
        _add_rows[(T, 2)](dz, values, tokens, *targets, T, CHUNK=CHUNK, **options)
        return None, None, None, *left, dsegment, dgamma, dbeta, None


def embed(ids, positions, segments, tables, norm):
    """The GPU's form of `plain.embed`, in the dtype of the tables. ids, positions, segments, tables: contiguous."""
    return _FusedEmbed.apply(ids, positions, segments, *tables, norm.weight, norm.bias, norm.eps)
