"""LayerNorm of one row inside a Triton kernel (Ba et al., 2016): what `residual_norm.py` and `embedding.py` share.

    x̂ = (z - μ) r,   μ = mean(z),  r = 1 / √(var(z) + ε)          y = γ x̂ + β

with mean and (biased) variance over the H numbers of a row z. γ and β (H,) are learned, and ε avoids a division by 0.

Backward. Let dy be the gradient of a scalar loss with respect to y, and dx̂ = dy γ. All H numbers of a row share one μ
and one r, so each z_i acts on every x̂_j. 1[i = j] is 1 where i = j, else 0.

    ∂μ / ∂z_i   = 1/H          ∂r / ∂z_i = -r² x̂_i / H
    ∂x̂_j / ∂z_i = r (1[i = j] - 1/H - x̂_i x̂_j / H)          the 1/H comes from μ, the last term from r

    dz = r (dx̂ - mean(dx̂) - x̂ mean(dx̂ x̂))                    the product of dx̂ with this matrix, row by row
    dγ = Σ_t dy x̂          dβ = Σ_t dy                        over all rows t

A program takes whole rows, so it needs nobody else's sums. The forward pass keeps μ and r, two numbers a row; the
backward pass makes x̂ from them again.
"""

from __future__ import annotations

from kernels.triton_tools import jit, tl, triton


@jit
def load_row(x, column, H: tl.constexpr):
    """The row (H,) at the pointer x as float32, a block (BLOCK,) with zeros beyond H."""
    return tl.load(x + column, mask=column < H, other=0.0).to(tl.float32)


@jit
def store_row(x, values, column, H: tl.constexpr):
    """The opposite of `load_row`: writes the block of values at the pointer x, in the type that stands there."""
    tl.store(x + column, values.to(x.dtype.element_ty), mask=column < H)


@jit
def normalize_row(z, gamma_row, beta_row, eps, y, mean, rstd, row, column, H: tl.constexpr):
    """Forward, of row number `row`: z (BLOCK,) -> y, μ and r, written into y (T, H), mean and rstd (T,)."""
    mu = tl.sum(z, 0) / H
    centred = tl.where(column < H, z - mu, 0.0)
    r = 1 / tl.sqrt(tl.sum(centred * centred, 0) / H + eps)
    store_row(y + row * H, centred * r * gamma_row + beta_row, column, H)
    tl.store(mean + row, mu)
    tl.store(rstd + row, r)


@jit
def normalize_row_backward(z, gamma_row, dy, mean, rstd, row, column, H: tl.constexpr):
    """Backward, of row number `row`: z (BLOCK,) again -> dz and this row's shares of dγ and dβ, (BLOCK,) each.

    Beyond H, where dy and γ are 0, dz means nothing.
    """
    r = tl.load(rstd + row)
    x_hat = (z - tl.load(mean + row)) * r
    dy_row = load_row(dy + row * H, column, H)
    dx_hat = dy_row * gamma_row
    dz = r * (dx_hat - tl.sum(dx_hat, 0) / H - x_hat * (tl.sum(dx_hat * x_hat, 0) / H))
    return dz, dy_row * x_hat, dy_row


@jit
def store_sums(partial, program, first, second, third, column, H: tl.constexpr):
    """Writes three sums over a program's rows, (BLOCK,) each, into its part of partial (programs, 3, H).

    In `residual_norm.py` they are db, dγ and dβ, in `embedding.py` dγ, dβ and a row of dsegment.
    """
    store_row(partial + (3 * program) * H, first, column, H)
    store_row(partial + (3 * program + 1) * H, second, column, H)
    store_row(partial + (3 * program + 2) * H, third, column, H)


def launch_options(H):
    """The constexprs by name, and num_warps: 8 numbers of a row in each thread for H from 129 to 2,048."""
    block = triton.next_power_of_2(H)
    return {"H": H, "BLOCK": block, "num_warps": min(8, max(1, block // 256))}


def rows_per_program(T):
    """Few enough for about 500 programs to keep the device busy, and at least 8, which keeps `partial` small."""
    return max(8, triton.cdiv(T, 512))
