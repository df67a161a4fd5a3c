"""What the Triton kernels share, and how to read one.

A kernel is a function that runs many times at once, on a grid of one or two dimensions; each run is a
*program* and knows its place in the grid, `tl.program_id(0)`. A program works on *blocks*, small arrays whose sizes are
powers of two (a two-dimensional one is a *tile*), which live in registers. Tensors come as pointers to their first
element: `tl.load(x + places, mask=...)` fetches a block from memory, `tl.store` writes one, and the mask leaves out
what lies beyond the edge. `tl.constexpr` arguments are compiled in. Nothing is said of threads: `num_warps` times 32 of
them share the work of a program. Programs run in any order and cannot wait for each other, so what sums over several
of them is left in `partial`, one share a program, and added up afterwards, always in the same order
(`weight_gradients.py`).

Triton compiles a kernel anew for each new set of constexprs, and also for numbers that are 1 or divisible by 16. That
lets it load 16 bytes at once where a row's length allows. Of T, the number of tokens, nothing of that sort helps, and T
changes with every batch: `do_not_specialize` names such arguments.
"""

import os

import torch
import triton
import triton.language as tl

jit = triton.jit


INTERPRET = os.environ.get("TRITON_INTERPRET") == "1"


def matmul_dtype(dtype):
    """The type (a constexpr) in which a kernel multiplies tiles of a tensor's dtype: the same.

    The interpreter keeps bfloat16 as bare 16-bit integers and would multiply those, so there it is float32.
    """
    if INTERPRET:
        return tl.float32
    return {torch.bfloat16: tl.bfloat16, torch.float16: tl.float16}.get(dtype, tl.float32)


@jit
def load_tile(matrix, first, m, stride: tl.constexpr, D: tl.constexpr, D_PAD: tl.constexpr, BLOCK: tl.constexpr):
    """Rows first .. first + BLOCK of a matrix (m, D), as a tile (BLOCK, D_PAD) with zeros beyond its edges."""
    row, column = first + tl.arange(0, BLOCK), tl.arange(0, D_PAD)
    inside = (row < m)[:, None] & (column < D)[None, :]
    return tl.load(matrix + row[:, None] * stride + column[None, :], mask=inside, other=0.0)


@jit
def store_tile(matrix, x, first, m, stride: tl.constexpr, D: tl.constexpr, D_PAD: tl.constexpr, BLOCK: tl.constexpr):
    """The opposite of `load_tile`: writes what of the tile x (BLOCK, D_PAD) lies inside the matrix (m, D)."""
    row, column = first + tl.arange(0, BLOCK), tl.arange(0, D_PAD)
    inside = (row < m)[:, None] & (column < D)[None, :]
    tl.store(matrix + row[:, None] * stride + column[None, :], x.to(matrix.dtype.element_ty), mask=inside)
