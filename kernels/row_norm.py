"""LayerNorm of one row inside a Triton kernel (Ba et al., 2016): what `residual_norm.py` and `embedding.py` share.

    x̂ = (z - μ) r,   μ = mean(z),  r = 1 / √(var(z) + ε)          y = γ x̂ + β

with mean and (biased) variance over the H numbers of a row z. γ and β (H,) are learned, and ε avoids a division by 0.

Backward. Let dy be the gradient of a scalar loss with respect to y, and dx̂ = dy γ. All H numbers of a row share one μ
and one r, so each z_i acts on every x̂_j:

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
def store_row(x, row, column, H: tl.constexpr):
    """The opposite of `load_row`: writes the block `row` at the pointer x, in the type that stands there."""
    tl.store(x + column, row.to(x.dtype.element_ty), mask=column < H)


@jit
def normalize(z, gamma, beta, eps, column, H: tl.constexpr):
    """One row z (BLOCK,) -> y (BLOCK,), and its μ and r."""
    mean = tl.sum(z, 0) / H
    centred = tl.where(column < H, z - mean, 0.0)
    rstd = 1 / tl.sqrt(tl.sum(centred * centred, 0) / H + eps)
    return centred * rstd * gamma + beta, mean, rstd


@jit
def normalize_backward(z, mean, rstd, dy, gamma, H: tl.constexpr):
    """One row z, its μ and r, and dy -> dz and x̂. Beyond H, where dy and γ are 0, dz means nothing."""
    x_hat = (z - mean) * rstd
    dx_hat = dy * gamma
    return rstd * (dx_hat - tl.sum(dx_hat, 0) / H - x_hat * (tl.sum(dx_hat * x_hat, 0) / H)), x_hat


def launch_options(H):
    """The constexprs by name, and num_warps: 8 numbers of a row in each thread."""
    block = triton.next_power_of_2(H)
    return {"H": H, "BLOCK": block, "num_warps": min(8, max(1, block // 256))}


def rows_per_program(T):
    """Few enough for about 500 programs to keep the device busy, and at least 8, which keeps `partial` small."""
    return max(8, triton.cdiv(T, 512))
