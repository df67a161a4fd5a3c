"""y = x Wᵀ + b, on the CPU through the faster of two libraries.

PyTorch sends float32 products on the CPU to Intel's MKL, which holds back its widest instructions on processors
that Intel did not make. oneDNN, which PyTorch also ships (and uses for bfloat16), asks the processor what it can
do instead: twice as fast on an AMD chip with AVX-512. On an Intel chip MKL is the faster one, by a sixth, and stays.
`python bench.py --linear` prints both for your machine.

A processor with bfloat16 instructions (Intel since Cooper Lake, AMD since Zen 4) multiplies faster still: numbers are
rounded to bfloat16 on their way into a product, and summed in float32 as before (`--bf16` of `multitask.py`; MiniLM's
whole step is 1.4 times as fast on a Xeon core with AMX, its evaluation 1.8 times). What is stored stays float32.

The backward pass is two more products of the same kind:

    dx = dy W          dW = dyᵀ x          db = Σ_t dy_t
"""

import contextlib
import os
import platform

import torch
import torch.nn.functional as F

# oneDNN keeps code and scratch memory for each shape that it met, up to 1,024, and T changes with every batch: without
# a lower limit that grows by gigabytes. A step has about 30 shapes. oneDNN reads the limit at its first product.
os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "64")


def _made_by_intel():
    """True where this processor says that Intel made it (asked where Linux and Windows keep that)."""
    with contextlib.suppress(OSError), open("/proc/cpuinfo") as file:
        return "GenuineIntel" in file.read(4096)
    return "GenuineIntel" in platform.processor()


_ONEDNN = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")
_CHOSEN = _ONEDNN and not _made_by_intel()
# oneDNN sums a row in one go, and the rounding error of a float32 sum grows with its length. The outputs, which are
# compared with those of `transformers`, are summed in parts; the gradients, which are noisier than that, are not.
PART = 768


def bfloat16_products():
    """True where this processor multiplies in bfloat16."""
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


def use_bfloat16_products(on=True):
    """From now on, products of float32 matrices on the CPU round their operands to bfloat16."""
    torch.backends.mkldnn.matmul.fp32_precision = "bf16" if on else "none"


def _product(a, b, bias=None):
    """a (M, K), b (N, K) -> a bᵀ + bias, (M, N). Both contiguous, or the transpose of what is: slices are very slow."""
    return torch.ops.mkldnn._linear_pointwise(a, b, bias, "none", [], "")


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, bias):
        x = x.contiguous()
        ctx.save_for_backward(x, weight)
        if x.shape[1] <= PART:
            return _product(x, weight, bias)
        y = None
        for x_part, weight_part in zip(x.split(PART, 1), weight.split(PART, 1), strict=True):
            part = _product(x_part.contiguous(), weight_part.contiguous(), bias if y is None else None)
            y = part if y is None else y.add_(part)
        return y

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, dy):
        x, weight = ctx.saved_tensors
        dy = dy.contiguous()
        dx = _product(dy, weight.t()) if ctx.needs_input_grad[0] else None
        dw = _product(dy.t(), x.t()) if ctx.needs_input_grad[1] else None
        db = dy.sum(0) if ctx.needs_input_grad[2] else None
        return dx, dw, db


def linear(x, weight, bias=None):
    """x (T, in), weight (out, in), bias (out,) or None -> (T, out). Any device and float dtype."""
    fast = _CHOSEN and x.device.type == "cpu" and x.dtype == weight.dtype == torch.float32 and x.numel()
    if not fast or torch.is_autocast_enabled("cpu"):
        return F.linear(x, weight, bias)
    return _Linear.apply(x, weight, bias)
