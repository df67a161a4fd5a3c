"""The GPU's forms, under the names of `plain.py`: fused Triton kernels, each a lesson in a file of its own.

With TRITON_INTERPRET=1 in the environment Triton's interpreter runs the kernels on the CPU instead, block by block in
NumPy: far too slow to train with, and exactly right for tests and for a debugger.
"""

import torch
import torch.nn.functional as F

from kernels.adamw_step import adamw
from kernels.bias_gelu import feed_forward, linear_gelu
from kernels.embedding import embed
from kernels.flash_attention import attention
from kernels.losses import mean_loss
from kernels.random_bits import dropout_seeds
from kernels.residual_norm import add_norm
from kernels.weight_gradients import keep_copies, linear

__all__ = [
    "adamw",
    "add_norm",
    "attention",
    "cls_attention",
    "dropout",
    "dropout_seeds",
    "embed",
    "feed_forward",
    "keep_copies",
    "layer_norm",
    "linear",
    "linear_gelu",
    "mean_loss",
]


def layer_norm(z, gamma, beta, eps):
    """The GPU's form of `plain.layer_norm`, where it stands alone: PyTorch's own."""
    return F.layer_norm(z, gamma.shape, gamma, beta, eps)


def dropout(x, p):
    """The GPU's form of `plain.dropout`: PyTorch's, one launch."""
    return torch.native_dropout(x, p, True)[0] if p else x


def cls_attention(h, weight, bias, cu_seqlens, max_seqlen, heads, p=0.0):
    """The GPU's form of `plain.cls_attention`, which computes all rows, as that does, and keeps the first ones."""
    out = attention(linear(h, weight, bias), cu_seqlens, max_seqlen, heads, p)
    return out.index_select(0, cu_seqlens[:-1].long())
