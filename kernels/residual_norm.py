"""What closes both halves of a BERT layer: bias, dropout, residual and LayerNorm (Ba et al., 2016) in one call.

    z = residual + dropout(x + b) (+ extra)
    y = LN(z) = γ x̂ + β,   x̂ = (z - mean(z)) / √(var(z) + ε)          see `row_norm.py`

b is the bias of the linear layer that made x, dropout multiplies with keep / (1 - p), and keep is a mask of 1 and 0.
`extra`, if there is one, is what an adapter such as PALs adds here (`bert.py`).

Backward. `row_norm.py` derives dz, dγ and dβ from dy, the gradient of a scalar loss with respect to y. z is a sum, so

    dresidual = dextra = dz
    dx        = dz · keep / (1 - p)
    db        = Σ_t dx

There is next to no arithmetic, so the time is that of reading and writing the (T, H) rows. As separate operations the
forward pass goes over them nine times (x + b two, dropout two, the sum with the residual three, LayerNorm two), and
over dropout's mask of a byte an element. The Triton form goes over them three times: it reads x and the residual and
writes y. It stores neither z nor the mask: the backward pass computes both again from x, b, the residual and the seed,
and x̂ from z with the μ and r that it kept. That takes five passes: it reads x, the residual and dy, and writes dx and
dz. The 24 calls in a BERT-base step of 2,048 tokens take 0.29 ms, both passes, by the roofline of `make launches` for
an H100.
"""

from __future__ import annotations

import torch

from kernels.random_bits import dropout_keep, dropout_stream, new_seed, threshold
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
from kernels.weight_gradients import add_sums


@jit
def _row(x, bias, residual, extra, seed, row, column, H: tl.constexpr, DROP: tl.constexpr):
    """z of one row, and the factor (BLOCK,) by which dropout multiplied x + b."""
    z = load_row(x + row * H, column, H) + load_row(bias, column, H)
    factor = tl.full(column.shape, 1.0, tl.float32)
    if DROP:
        keep = dropout_keep(dropout_stream(seed, row), column, DROP)
        factor = tl.where(keep, 1 / (1 - DROP / 4294967296), 0.0)
    z = z * factor + load_row(residual + row * H, column, H)
    if extra is not None:
        z += load_row(extra + row * H, column, H)
    return z, factor


@jit
def _forward(
    x,  # (T, H)
    bias,  # (H,)
    residual,  # (T, H)
    extra,  # (T, H) or None
    seed,  # (1,) int64, or None without dropout
    gamma,  # (H,)
    beta,  # (H,)
    y,  # (T, H)
    mean,  # (T,) float32
    rstd,  # (T,) float32
    eps,
    H: tl.constexpr,
    BLOCK: tl.constexpr,  # the power of two that holds H
    DROP: tl.constexpr,  # p · 2³², see `random_bits.py`; 0 for no dropout
):
    """One program: one row."""
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK)
    z, _ = _row(x, bias, residual, extra, seed, row, column, H, DROP)
    gamma_row, beta_row = load_row(gamma, column, H), load_row(beta, column, H)
    normalize_row(z, gamma_row, beta_row, eps, y, mean, rstd, row, column, H)


@jit(do_not_specialize=["T", "ROWS"])
def _backward(
    x,  # (T, H)
    bias,  # (H,)
    residual,  # (T, H)
    extra,  # (T, H) or None
    seed,  # (1,) int64, or None without dropout
    gamma,  # (H,)
    mean,  # (T,) float32
    rstd,  # (T,) float32
    dy,  # (T, H)
    dx,  # (T, H)
    dz,  # (T, H)
    partial,  # (programs, 3, H) float32: each program's share of db, dγ and dβ
    T,
    ROWS,  # rows of a program, a number at run time
    H: tl.constexpr,
    BLOCK: tl.constexpr,
    DROP: tl.constexpr,
):
    """One program: ROWS rows, one after the other; the sums over them stay in registers until the end."""
    first = tl.program_id(0).to(tl.int64) * ROWS
    column = tl.arange(0, BLOCK)
    gamma_row = load_row(gamma, column, H)
    dbias = tl.zeros([BLOCK], tl.float32)
    dgamma = tl.zeros([BLOCK], tl.float32)
    dbeta = tl.zeros([BLOCK], tl.float32)
    for n in tl.range(0, tl.minimum(ROWS, T - first), num_stages=3):  # from sm_80 on it loads two rows ahead
        row = first + n
        z, factor = _row(x, bias, residual, extra, seed, row, column, H, DROP)
        dz_row, dgamma_share, dbeta_share = normalize_row_backward(z, gamma_row, dy, mean, rstd, row, column, H)
        dx_row = dz_row * factor
        store_row(dz + row * H, dz_row, column, H)
        store_row(dx + row * H, dx_row, column, H)
        dbias += dx_row
        dgamma += dgamma_share
        dbeta += dbeta_share
    store_sums(partial, tl.program_id(0), dbias, dgamma, dbeta, column, H)


class _FusedAddNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, bias, residual, gamma, beta, eps, p, extra):
        x, residual = x.contiguous(), residual.contiguous()
        extra = None if extra is None else extra.contiguous()
        T, H = x.shape
        seed = new_seed(x, p)
        y = torch.empty_like(x)
        mean, rstd = torch.empty(T, device=x.device), torch.empty(T, device=x.device)
        options = launch_options(H) | {"DROP": threshold(p)}
        _forward[(T,)](x, bias, residual, extra, seed, gamma, beta, y, mean, rstd, eps, **options)
        # A parameter comes out of `saved_tensors` as itself, `.grad` included. Of beta only `.grad` is needed.
        ctx.options, ctx.beta = options, beta
        ctx.save_for_backward(x, bias, residual, extra, seed, gamma, mean, rstd)
        return y

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, dy):
        x, bias, residual, extra, seed, gamma, mean, rstd = ctx.saved_tensors
        T, H = x.shape
        rows = rows_per_program(T)
        programs = triton.cdiv(T, rows)
        dx, dz = torch.empty_like(x), torch.empty_like(residual)
        partial = torch.empty(programs, 3, H, device=x.device)
        _backward[(programs,)](
            x, bias, residual, extra, seed, gamma, mean, rstd, dy.contiguous(), dx, dz, partial, T, rows, **ctx.options
        )
        needed = [ctx.needs_input_grad[i] for i in (1, 3, 4)]
        # adds them to the gradients that stand, and then returns None; in training all stand
        dbias, dgamma, dbeta = add_sums(partial, (bias, gamma, ctx.beta), needed)
        dextra = None if extra is None else dz.to(extra.dtype)
        return dx, dbias, dz, dgamma, dbeta, None, None, dextra


def add_norm(x, bias, residual, norm, p, extra=None):
    """The GPU's form of `plain.add_norm`. The result has the dtype of x."""
    return _FusedAddNorm.apply(x, bias, residual, norm.weight, norm.bias, norm.eps, p, extra)
