"""Which form of an operation runs: its Triton kernel, or plain PyTorch.

The kernels run on a CUDA device where Triton is installed. With TRITON_INTERPRET=1 in the environment Triton's
interpreter runs them on the CPU instead, block by block in NumPy: far too slow to train with, and exactly right for
tests and for a debugger. float64 always takes the plain form, which is what numerical gradient checks need.
"""

import os

import torch

try:
    import triton
    import triton.language as tl

    jit = triton.jit
except ImportError:  # Triton has no build for macOS
    triton = tl = None

    def jit(kernel):
        return kernel


INTERPRET = os.environ.get("TRITON_INTERPRET") == "1"


def use_triton(x):
    """True where a Triton kernel takes the tensor x."""
    return triton is not None and x.dtype != torch.float64 and (x.is_cuda or INTERPRET)


def matmul_dtype(dtype):
    """The type (a constexpr) in which a kernel multiplies tiles of a tensor's dtype: the same.

    The interpreter keeps bfloat16 as bare 16-bit integers and would multiply those, so there it is float32.
    """
    return tl.bfloat16 if dtype == torch.bfloat16 and not INTERPRET else tl.float32
