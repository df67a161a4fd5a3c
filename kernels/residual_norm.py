"""What closes both halves of a BERT layer: bias, dropout, residual and LayerNorm (Ba et al., 2016) in one call.

    z = residual + dropout(x + b) (+ extra)
    x̂ = (z - μ) r,   μ = mean(z),  r = 1 / √(var(z) + ε)
    y = γ x̂ + β

with mean and (biased) variance over the last dimension, H numbers. b is the bias of the linear layer that made x, γ and
β (H,) are learned, ε avoids a division by 0, and dropout multiplies with keep / (1 - p), a mask of ones and zeros.
`extra`, if there is one, is what an adapter such as PALs adds here (`bert.py`).

Backward. Let dy be the gradient of a scalar loss with respect to y, and dx̂ = dy γ. All H numbers of a row share one μ
and one r, so each z_i acts on every x̂_j:

    ∂x̂_j / ∂z_i = r (1[i = j] - 1/H - x̂_i x̂_j / H)          the 1/H is μ's doing, the last term is r's

    dz        = r (dx̂ - mean(dx̂) - x̂ mean(dx̂ x̂))           the product of dx̂ with this matrix, row by row
    dresidual = dextra = dz
    dx        = dz · keep / (1 - p)
    db = Σ_t dx          dγ = Σ_t dy x̂          dβ = Σ_t dy

As separate operations this reads and writes the (T, H) rows ten times, and that is all the time it takes: there is next
to no arithmetic. The Triton form reads x and the residual once and writes y once. It stores neither z nor the mask but
computes them again in the backward pass, from x, the residual, the seed, μ and r.
"""

from __future__ import annotations

import torch

from kernels.random_bits import dropout_keep, dropout_key, new_seed, threshold
from kernels.triton_tools import jit, tl, triton


@jit
def _row(x, bias, residual, extra, seed, row, column, inside, H: tl.constexpr, DROP: tl.constexpr):
    """z of one row, and the factor (BLOCK,) by which dropout multiplied x + b."""
    z = tl.load(x + row * H + column, mask=inside, other=0.0).to(tl.float32)
    z += tl.load(bias + column, mask=inside, other=0.0).to(tl.float32)
    factor = tl.full(column.shape, 1.0, tl.float32)
    if DROP:
        keep = dropout_keep(dropout_key(seed, row), column, DROP)
        factor = tl.where(keep, 1 / (1 - DROP / 4294967296), 0.0)
    z = z * factor + tl.load(residual + row * H + column, mask=inside, other=0.0).to(tl.float32)
    if extra is not None:
        z += tl.load(extra + row * H + column, mask=inside, other=0.0).to(tl.float32)
    return z, factor


@jit
def _forward(
    x,  # (T, H)
    bias,  # (H,)
    residual,  # (T, H)
    extra,  # (T, H) or None
    seed,  # (1,) int64, or None without dropout
    weight,  # (H,)
    beta,  # (H,)
    y,  # (T, H)
    mean,  # (T,) float32
    rstd,  # (T,) float32
    eps,
    H: tl.constexpr,
    BLOCK: tl.constexpr,  # the power of two that holds H
    DROP: tl.constexpr,
):
    """One program: one row."""
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK)
    inside = column < H
    z, _ = _row(x, bias, residual, extra, seed, row, column, inside, H, DROP)
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
    x,  # (T, H)
    bias,  # (H,)
    residual,  # (T, H)
    extra,  # (T, H) or None
    seed,  # (1,) int64, or None without dropout
    weight,  # (H,)
    mean,  # (T,) float32
    rstd,  # (T,) float32
    dy,  # (T, H)
    dx,  # (T, H)
    dz,  # (T, H)
    partial,  # (programs, 3, H) float32: each program's share of db, dγ and dβ
    T,
    ROWS,
    H: tl.constexpr,
    BLOCK: tl.constexpr,
    DROP: tl.constexpr,
):
    """One program: ROWS rows, one after the other; the sums over them stay in registers until the end."""
    first = tl.program_id(0).to(tl.int64) * ROWS
    column = tl.arange(0, BLOCK)
    inside = column < H
    gamma = tl.load(weight + column, mask=inside, other=0.0).to(tl.float32)
    dbias = tl.zeros([BLOCK], tl.float32)
    dgamma = tl.zeros([BLOCK], tl.float32)
    dbeta = tl.zeros([BLOCK], tl.float32)
    for n in range(0, tl.minimum(ROWS, T - first)):
        row = first + n
        z, factor = _row(x, bias, residual, extra, seed, row, column, inside, H, DROP)
        r = tl.load(rstd + row)
        x_hat = (z - tl.load(mean + row)) * r
        dy_row = tl.load(dy + row * H + column, mask=inside, other=0.0).to(tl.float32)
        dx_hat = dy_row * gamma
        dz_row = r * (dx_hat - tl.sum(dx_hat, 0) / H - x_hat * (tl.sum(dx_hat * x_hat, 0) / H))
        dx_row = dz_row * factor
        tl.store(dz + row * H + column, dz_row.to(dz.dtype.element_ty), mask=inside)
        tl.store(dx + row * H + column, dx_row.to(dx.dtype.element_ty), mask=inside)
        dbias += dx_row
        dgamma += dy_row * x_hat
        dbeta += dy_row
    partial += tl.program_id(0) * 3 * H
    tl.store(partial + column, dbias, mask=inside)
    tl.store(partial + H + column, dgamma, mask=inside)
    tl.store(partial + 2 * H + column, dbeta, mask=inside)


def launch_options(H):
    """The constexprs by name, and num_warps: 8 numbers of a row in each thread."""
    block = triton.next_power_of_2(H)
    return {"H": H, "BLOCK": block, "num_warps": min(8, max(1, block // 256))}


def rows_per_program(T):
    """Few enough for about 500 programs to keep the device busy, and at least 8, which keeps `partial` small."""
    return max(8, triton.cdiv(T, 512))


class _FusedAddNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, bias, residual, weight, beta, eps, p, extra):
        x, residual = x.contiguous(), residual.contiguous()
        extra = None if extra is None else extra.contiguous()
        T, H = x.shape
        seed = new_seed(x, p)
        y = torch.empty_like(x)
        mean, rstd = torch.empty(2, T, device=x.device)
        options = launch_options(H) | {"DROP": threshold(p)}
        _forward[(T,)](x, bias, residual, extra, seed, weight, beta, y, mean, rstd, eps, **options)
        ctx.options = options
        ctx.save_for_backward(x, bias, residual, extra, seed, weight, mean, rstd)
        return y

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, dy):
        x, bias, residual, extra, seed, weight, mean, rstd = ctx.saved_tensors
        T, H = x.shape
        rows = rows_per_program(T)
        programs = triton.cdiv(T, rows)
        dx, dz = torch.empty_like(x), torch.empty_like(residual)
        partial = torch.empty(programs, 3, H, device=x.device)
        _backward[(programs,)](
            x, bias, residual, extra, seed, weight, mean, rstd, dy.contiguous(), dx, dz, partial, T, rows, **ctx.options
        )
        dbias, dgamma, dbeta = partial.sum(0).to(weight.dtype)
        dextra = None if extra is None else dz.to(extra.dtype)
        return dx, dbias, dz, dgamma, dbeta, None, None, dextra


def add_norm(x, bias, residual, norm, p, extra=None):
    """The GPU's form of `plain.add_norm`. The result has the dtype of x."""
    return _FusedAddNorm.apply(x, bias, residual, norm.weight, norm.bias, norm.eps, p, extra)
