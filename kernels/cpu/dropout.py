"""Dropout on a CPU, its masks from 16 random bits an element, and the add-norm that takes them.

PyTorch draws one random number of its sequential generator for each element, and that draw is most of what dropout
costs. Here one 64-bit draw serves four elements, 16 bits each: p is met to within 1/65536, and the draws cost a third
(dropout 0.4 ms in place of 1.0, add-norm 0.7 in place of 1.9). The mask holds keep / (1 - p) as floats, so that it
takes one product forward and one backward. The draws come from PyTorch's own generator, so `torch.manual_seed` governs
them, and setting the generator back replays the same masks (`smart.py` needs that).
"""

import torch
import torch.nn.functional as F


def dropout_mask(shape, p, like):
    """A tensor of `shape` with the dtype of `like`: 1 / (1 - p) with probability 1 - p, otherwise 0. p in [0, 1)."""
    mask = like.new_empty(shape)
    words = torch.empty((mask.numel() + 3) // 4, dtype=torch.int64).random_(-(2**63), None)
    bits = words.view(torch.int16)[: mask.numel()].view(mask.shape)  # uniform in [-32768, 32768)
    dropped = min(round(p * 65536), 65535)  # of 65,536 words; all of them is no 16-bit number
    return torch.ge(bits, dropped - 32768, out=mask).mul_(1 / (1 - p))


def dropout(x, p):
    """The CPU's form of `plain.dropout`; p = 0 returns x itself."""
    return x * dropout_mask(x.shape, p, x) if p else x


def add_norm(x, bias, residual, norm, p, extra=None):
    """The CPU's form of `plain.add_norm`: mask and residual in one pass, PyTorch's own LayerNorm."""
    x = x + bias
    z = torch.addcmul(residual, x, dropout_mask(x.shape, p, x)) if p else residual + x
    if extra is not None:
        z = z + extra
    return F.layer_norm(z, norm.weight.shape, norm.weight, norm.bias, norm.eps)
