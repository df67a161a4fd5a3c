"""What the Triton kernels share, and how to read one.

A kernel is a function that runs many times at once, on a grid of one or two dimensions; each run is a
*program* and knows its place in the grid, `tl.program_id(0)`. A program works on *blocks*, small arrays whose sizes are
powers of two (a two-dimensional one is a *tile*), which live in registers. Tensors come as pointers to their first
element: `tl.load(x + places, mask=...)` fetches a block from memory, `tl.store` writes one, and the mask leaves out
what lies beyond the edge. `tl.constexpr` arguments are compiled in. Nothing is said of threads: `num_warps` times 32 of
them share the work of a program. Programs run in any order and cannot wait for each other, so what sums over several
of them is left in `partial`, one share a program, and added up afterwards, always in the same order.
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
    return tl.bfloat16 if dtype == torch.bfloat16 and not INTERPRET else tl.float32
