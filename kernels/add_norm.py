"""What closes both halves of a BERT layer: bias, dropout, residual and LayerNorm (Ba et al., 2016) in one call.

    z = residual + dropout(x + b) (+ side)
    y = γ (z - mean(z)) / √(var(z) + ε) + β

with mean and (biased) variance over the last dimension.
"""

import torch.nn.functional as F

from kernels.dropout import dropout


def add_norm(x, bias, residual, norm, p, side=None):
    """x, residual and side (T, H), bias (H,), norm an nn.LayerNorm, p the dropout probability -> (T, H)."""
    z = residual + dropout(x + bias, p)
    if side is not None:
        z = z + side
    return F.layer_norm(z, norm.normalized_shape, norm.weight, norm.bias, norm.eps)
