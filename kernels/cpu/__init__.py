"""The CPU's forms, under the names of `plain.py`. Each file says what it buys.

The times are of `python -m bench.forms`: forward and backward, MiniLM's shapes, 32 sentences of 6 to 44 tokens, two
cores of an AMD EPYC (Zen 5).
"""

import torch
import torch.nn.functional as F

from kernels.cpu.attention import attention
from kernels.cpu.cls_attention import cls_attention
from kernels.cpu.dropout import add_norm, dropout
from kernels.cpu.optimizer import adamw
from kernels.cpu.products import feed_forward, linear, linear_gelu
from kernels.cpu.sparse_embedding import embed

__all__ = [
    "adamw",
    "add_norm",
    "attention",
    "cls_attention",
    "dropout",
    "embed",
    "feed_forward",
    "layer_norm",
    "linear",
    "linear_gelu",
    "mean_loss",
]


def layer_norm(z, gamma, beta, eps):
    """The CPU's form of `plain.layer_norm`, by PyTorch's own."""
    return F.layer_norm(z, gamma.shape, gamma, beta, eps)


def mean_loss(logits, labels, classes):
    """The CPU's form of `plain.mean_loss`, by PyTorch's own losses. float64 stays float64."""
    z = logits if logits.dtype == torch.float64 else logits.float()
    if classes > 2:
        return F.cross_entropy(z, labels.long())
    if classes == 2:
        return F.binary_cross_entropy_with_logits(z.squeeze(1), labels.to(z.dtype))
    return F.mse_loss(z.squeeze(1), labels)
