"""Dropout (Srivastava et al., 2014): y = x · keep / (1 - p), where each keep is 1 with probability 1 - p.

On the CPU, PyTorch draws one random number of its sequential generator for each element, and that draw is most of
the operation's cost. Here one 64-bit draw serves four elements, 16 bits each: p is met to within 1/131072, and the
masks cost a quarter. The draws come from PyTorch's own generator, so `torch.manual_seed` governs them, and setting
the generator back replays the same masks (`smart.py` needs that).
"""

import torch
import torch.nn.functional as F


def keep_mask(shape, p):
    """A bool tensor of `shape` on the CPU, True with probability 1 - p (p in [0, 1), met to 1/131072)."""
    count = torch.Size(shape).numel()
    bits = torch.empty((count + 3) // 4, dtype=torch.int64).random_(-(2**63), None)
    return (bits.view(torch.int16)[:count] >= round(p * 65536) - 32768).view(shape)


class _Dropout(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, p):
        keep = keep_mask(x.shape, p)
        ctx.save_for_backward(keep)
        ctx.scale = 1 / (1 - p)
        return torch.ops.aten.native_dropout_backward(x, keep, ctx.scale)  # x * keep * scale, in one pass

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, dy):
        (keep,) = ctx.saved_tensors
        return torch.ops.aten.native_dropout_backward(dy.contiguous(), keep, ctx.scale), None


def dropout(x, p):
    """x of any shape and float dtype, p in [0, 1) -> the same shape. p = 0 returns x itself."""
    if p == 0:
        return x
    return _Dropout.apply(x, p) if x.device.type == "cpu" else F.dropout(x, p)
