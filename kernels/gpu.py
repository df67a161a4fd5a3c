"""The GPU's forms, under the names of `plain.py`: fused Triton kernels, each a lesson in a file of its own.

With TRITON_INTERPRET=1 in the environment Triton's interpreter runs the kernels on the CPU instead, block by block in
NumPy: far too slow to train with, and exactly right for tests and for a debugger.
"""

import torch.nn.functional as F

from kernels.adamw_step import adamw
from kernels.bias_gelu import bias_gelu, feed_forward, linear_gelu
from kernels.embedding import embed
from kernels.flash_attention import attention
from kernels.losses import mean_loss
from kernels.residual_norm import add_norm

__all__ = ["adamw", "add_norm", "attention", "bias_gelu", "embed", "feed_forward", "linear_gelu", "mean_loss"]


def linear(x, weight, bias=None):
    """The GPU's form of `plain.linear`: cuBLAS."""
    return F.linear(x, weight, bias)


def layer_norm(z, gamma, beta, eps):
    """The GPU's form of `plain.layer_norm`, where it stands alone: PyTorch's own."""
    return F.layer_norm(z, gamma.shape, gamma, beta, eps)


def dropout(x, p):
    """The GPU's form of `plain.dropout`."""
    return F.dropout(x, p) if p else x


def cls_attention(h, weight, bias, cu_seqlens, max_seqlen, heads, p=0.0):
    """The GPU's form of `plain.cls_attention`: the fused kernel pads nothing, so the whole result costs little more."""
    out = attention(linear(h, weight, bias), cu_seqlens, max_seqlen, heads, p)
    return out.index_select(0, cu_seqlens[:-1].long())
