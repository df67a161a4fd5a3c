"""What the Triton kernels share, and how to read one.

    @jit
    def add(x, b, y, H: tl.constexpr, BLOCK: tl.constexpr):          y = x + b, row by row
        row = tl.program_id(0)                                        which of the programs this is
        column = tl.arange(0, BLOCK)                                  a block: 0, 1, ..., BLOCK - 1
        inside = column < H                                           BLOCK is a power of two, H need not be one
        value = tl.load(x + row * H + column, mask=inside, other=0.0)
        value += tl.load(b + column, mask=inside, other=0.0)
        tl.store(y + row * H + column, value.to(y.dtype.element_ty), mask=inside)

    add[(T,)](x, b, y, H=768, BLOCK=1024, num_warps=4)                T programs, one for each of the T rows

A kernel is a function that runs many times at once, on a grid of one or two dimensions; each run is a *program* and
knows its place in the grid. A program works on *blocks*, small arrays in registers whose sizes are powers of two (a
two-dimensional one is a *tile*). A torch tensor arrives as a pointer to its first element; `x += offset` moves it for
this program only. `tl.dot` multiplies tiles: in 16 bits on the tensor cores, in float32 and on Turing (sm_75) on the
ordinary units. `tl.constexpr` arguments are compiled in, so an `if` on one, or on a pointer that is None, is decided at
compile time. Nothing is said of threads: `num_warps` times 32 of them share the work of a program. With `num_stages` =
n the loads of the next n - 1 turns of a loop are under way during this turn. `maxnreg` limits the registers of a
thread, so that more programs fit.

Programs run in any order and cannot wait for each other. The launches of one stream run one after another, and that is
the only barrier there is. What sums over several programs is left in `partial`, one part for each program, and the next
launch adds it up, always in the same order (`weight_gradients.py`).

Triton compiles a kernel anew for each new set of constexprs, and also for numbers that are 1, and for numbers and
addresses that 16 divides. That lets it load 16 bytes at once where a row's length allows. T, the number of tokens,
changes with every batch, so specializing on it would only cause recompilation: `do_not_specialize` names such
arguments.

The sizes of blocks stand beside each kernel: in `launch_options`, or in a constant (LAUNCH, CHUNK, ROWS and COLUMNS).
`rows_per_program` and PROGRAMS say how many programs share the rows.

Every GPU time in these files comes from the roofline model of `make launches` (`results/gpu-model.md`). None was
measured on a GPU.
"""

import os

import torch
import triton
import triton.language as tl

from kernels.precision import INTERPRET

os.environ.setdefault("TRITON_DEFAULT_FP_FUSION", "1")  # multiply and add in one; Triton 3.10 splits them by default
jit = triton.jit


def matmul_dtype(dtype):
    """The type (a constexpr) in which a kernel multiplies tiles of a tensor's dtype: the same.

    The interpreter keeps bfloat16 as bare 16-bit integers and would multiply those, so there it is float32.
    """
    if INTERPRET:
        return tl.float32
    return {torch.bfloat16: tl.bfloat16, torch.float16: tl.float16}.get(dtype, tl.float32)


@jit
def load_tile(matrix, first, m, stride: tl.constexpr, D: tl.constexpr, D_PAD: tl.constexpr, BLOCK: tl.constexpr):
    """Rows first .. first + BLOCK - 1 of a matrix (m, D), as a tile (BLOCK, D_PAD) with zeros beyond its edges.

    Its rows lie `stride` numbers apart.
    """
    row, column = first + tl.arange(0, BLOCK), tl.arange(0, D_PAD)
    inside = (row < m)[:, None] & (column < D)[None, :]
    return tl.load(matrix + row[:, None] * stride + column[None, :], mask=inside, other=0.0)


@jit
def store_tile(matrix, x, first, m, stride: tl.constexpr, D: tl.constexpr, D_PAD: tl.constexpr, BLOCK: tl.constexpr):
    """The opposite of `load_tile`: writes what of the tile x (BLOCK, D_PAD) lies inside the matrix (m, D)."""
    row, column = first + tl.arange(0, BLOCK), tl.arange(0, D_PAD)
    inside = (row < m)[:, None] & (column < D)[None, :]
    tl.store(matrix + row[:, None] * stride + column[None, :], x.to(matrix.dtype.element_ty), mask=inside)
