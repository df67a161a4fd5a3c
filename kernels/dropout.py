"""Dropout (Srivastava et al., 2014): y = x · keep / (1 - p), where each keep is 1 with probability 1 - p.

On the CPU, PyTorch draws one random number of its sequential generator for each element, and that draw is most of
the operation's cost. Here one 64-bit draw serves four elements, 16 bits each: p is met to within 1/131072, and the
draws cost a quarter. The mask holds keep / (1 - p) as floats, so that it takes one product forward and one backward.
The draws come from PyTorch's own generator, so `torch.manual_seed` governs them, and setting the generator back
replays the same masks (`smart.py` needs that).

Inside a Triton kernel the mask is never stored at all. A sequential generator cannot serve thousands of programs at
once, so the random bits of an element are a function of where it stands (a counter-based generator; Salmon et al.,
2011). The backward pass computes the function again and has the same mask. The function is SplitMix's (Steele, Lea &
Flood, 2014), with 32 bits: count in steps of the golden ratio, then mix:

    key(row)           = mix(mix(row + low half of seed) ⊕ high half of seed)
    bits(row, column)  = mix(key(row) + column · 0x9E3779B9)           keep where bits >= p · 2³²

⊕ is exclusive or. The seed is one draw of 63 bits of PyTorch's generator per call, made on the device: that two calls
share a mask is next to impossible, and nothing waits for the GPU. Mixing takes 8 integer instructions an element where
Philox, the usual choice, takes about 100 for four; in attention that would outweigh the matrix products.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from kernels.dispatch import jit, tl


def dropout_mask(shape, p, like):
    """A tensor of `shape` with the dtype and device of `like`: 1 / (1 - p) with probability 1 - p, otherwise 0.

    Args: p in [0, 1), met to 1/131072.
    """
    if like.device.type != "cpu":
        return F.dropout(like.new_ones(shape), p)
    mask = like.new_empty(shape)
    words = torch.empty((mask.numel() + 3) // 4, dtype=torch.int64).random_(-(2**63), None)
    bits = words.view(torch.int16)[: mask.numel()].view(mask.shape)  # uniform in [-32768, 32768)
    return torch.ge(bits, round(p * 65536) - 32768, out=mask).mul_(1 / (1 - p))


def dropout(x, p):
    """x of any shape and float dtype, p in [0, 1) -> the same shape. p = 0 returns x itself."""
    return x * dropout_mask(x.shape, p, x) if p else x


# ----- inside Triton kernels


def new_seed(x, p):
    """What a kernel over x needs to drop out: a seed (1,) int64 on x's device, or None where p = 0."""
    return torch.randint(2**63 - 1, (1,), device=x.device) if p else None


def threshold(p):
    """p as the kernels take it: how many of 2³² random words mean that an element is dropped."""
    return round(p * 2**32)


@jit
def _mix(x):
    """A permutation of the 32-bit words after which every bit depends on every bit (Wellons' lowbias32)."""
    x = (x ^ (x >> 16)) * 0x7FEB352D
    x = (x ^ (x >> 15)) * 0x846CA68B
    return x ^ (x >> 16)


@jit
def dropout_key(seed, row):
    """seed, a pointer to one int64; row, an integer or a block of them -> the keys of these rows, uint32."""
    word = tl.load(seed)
    return _mix(_mix(row.to(tl.uint32) + word.to(tl.uint32)) ^ (word >> 32).to(tl.uint32))


@jit
def dropout_keep(key, column, threshold: tl.constexpr):
    """Keys and columns of shapes that broadcast -> True where an element is kept."""
    return _mix(key + column.to(tl.uint32) * 0x9E3779B9) >= threshold
