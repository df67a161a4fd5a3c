"""Dropout's random bits inside a Triton kernel: y = x · keep / (1 - p), where each keep is 1 with probability 1 - p.

The mask is never stored. A sequential generator cannot serve thousands of programs at once, so the random bits of an
element are a function of where it stands (a counter-based generator; Salmon et al., 2011). The backward pass computes
the function again and has the same mask. The function is SplitMix's (Steele, Lea & Flood, 2014), with 32 bits: each row
has a stream, which counts in steps of the golden ratio, then mixes:

    stream(row)        = mix(mix(row + low half of seed) ⊕ high half of seed)
    bits(row, column)  = mix(stream(row) + column · 0x9E3779B9)        keep where bits >= p · 2³²

⊕ is exclusive or. The seed is a draw of 63 bits of PyTorch's generator for each call, made on the device: that two
calls share a mask is next to impossible, and nothing waits for the GPU. `dropout_seeds` draws those of a whole pass
through the encoder at once: one launch in place of 36 for BERT-base, which saves 0.08 ms of its step by the roofline of
`make launches`. Mixing takes 8 integer instructions an element where Philox, the usual choice, takes about 100 for
four; in attention that would outweigh the matrix products.
"""

from __future__ import annotations

import contextlib

import torch

from kernels.triton_tools import jit, tl

AT_ONCE = 64  # seeds of one draw
_drawn = None  # inside `dropout_seeds`: a list of those not handed out yet


@contextlib.contextmanager
def dropout_seeds():
    """Within it, `new_seed` hands out seeds of one draw.

    Seeds left over at the end are thrown away, so restoring the generator's state between passes restores the masks.
    """
    global _drawn
    before, _drawn = _drawn, []
    try:
        yield
    finally:
        _drawn = before


def new_seed(x, p):
    """What a kernel over x needs to drop out: a seed (1,) int64 on x's device, or None where p = 0."""
    if not p:
        return None
    if _drawn is None:
        return torch.randint(2**63 - 1, (1,), device=x.device)
    # Every second number, so that each seed starts at a multiple of 16 bytes: for another address Triton would compile
    # each kernel once more.
    if not _drawn:
        _drawn.extend(torch.randint(2**63 - 1, (AT_ONCE, 2), device=x.device)[:, :1].unbind(0))
    return _drawn.pop()


def threshold(p):
    """p as the kernels take it: how many of 2³² random words mean that an element is dropped."""
    return min(round(p * 2**32), 2**32 - 1)


@jit
def _mix(x):
    """A permutation of the 32-bit words after which every bit depends on every bit (Wellons' lowbias32)."""
    x = (x ^ (x >> 16)) * 0x7FEB352D
    x = (x ^ (x >> 15)) * 0x846CA68B
    return x ^ (x >> 16)


@jit
def dropout_stream(seed, row):
    """seed, a pointer to one int64; row, an integer or a block of them -> the streams of these rows, uint32."""
    word = tl.load(seed)
    return _mix(_mix(row.to(tl.uint32) + word.to(tl.uint32)) ^ (word >> 32).to(tl.uint32))


@jit
def dropout_keep(stream, column, threshold: tl.constexpr):
    """Streams and columns of shapes that broadcast -> True where an element is kept."""
    return _mix(stream + column.to(tl.uint32) * 0x9E3779B9) >= threshold
