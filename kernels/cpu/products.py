"""y = x Wᵀ + b, on the CPU through the faster of two libraries.

PyTorch sends float32 products on the CPU to Intel's MKL, which holds back its widest instructions on processors
that Intel did not make. oneDNN, which PyTorch also ships (and uses for bfloat16), asks the processor what it can
do instead: twice as fast on an AMD chip with AVX-512. On an Intel chip MKL is the faster one, by a sixth, and stays.
`python -m bench.speed --linear` prints both for your machine.

A processor with bfloat16 instructions (Intel since Cooper Lake, AMD since Zen 4) multiplies faster still: numbers are
rounded to bfloat16 on their way into a product, and summed in float32 as before (`--bf16` of `multitask.py`; MiniLM's
whole step is 1.4 times as fast on a Xeon core with AMX, its evaluation 1.8 times). What the model keeps and hands on
stays float32. Where the processor has AMX (Intel's unit for small matrix products), oneDNN rounds inside every product;
elsewhere it would leave float32 as it is, so there `linear` alone rounds its operands itself, keeps them so for the
backward pass, and its result has been rounded as well.

Backward. With dy (T, out) the gradient of a scalar loss with respect to y, and t counting rows:

    dx = dy W (T, in)          dW = dyᵀ x (out, in)          db = Σ_t dy_t (out,)
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
# oneDNN sums a row in one go, and the rounding error of a float32 sum grows with its length. Outputs outside training,
# which are compared with those of `transformers`, are summed in parts where a row is long (`feed_forward`).
PART = 768
_operands = torch.float32  # what `_Linear` rounds its operands to


def bfloat16_products():
    """True where this processor multiplies in bfloat16."""
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


def use_bfloat16_products(on=True):
    """From now on, products of float32 matrices on the CPU round their operands to bfloat16."""
    global _operands
    amx = torch.cpu._is_amx_tile_supported()
    torch.backends.mkldnn.matmul.fp32_precision = "bf16" if on and amx else "none"
    _operands = torch.bfloat16 if on and not amx else torch.float32


def _product(a, b, bias=None, then="none"):
    """a (M, K), b (N, K) -> a bᵀ + bias, (M, N). Both contiguous, or the transpose of what is: slices are very slow.

    Args: then, "gelu" for GELU (the exact form) of that.
    """
    return torch.ops.mkldnn._linear_pointwise(a, b, bias, then, [], "none")


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, bias):
        x, weight = x.contiguous().to(_operands), weight.to(_operands)
        ctx.save_for_backward(x, weight)
        if x.dtype == torch.bfloat16:
            y = _product(x, weight).float()
            return y if bias is None else y.add_(bias)
        return _product(x, weight, bias)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, dy):
        x, weight = ctx.saved_tensors
        db = dy.sum(0) if ctx.needs_input_grad[2] else None
        dy = dy.contiguous().to(x.dtype)
        dx = _product(dy, weight.t()).float() if ctx.needs_input_grad[0] else None
        dw = _gradient(dy, x).float() if ctx.needs_input_grad[1] else None
        return dx, dw, db


def _gradient(dy, x):
    """dyᵀ x of dy (T, out) and x (T, in): (out, in).

    `_product` first copies dyᵀ, slowly: it is the faster one only where dy is narrow. `torch.mm` takes dyᵀ as it is.
    """
    return torch.mm(dy.t(), x) if dy.shape[1] >= x.shape[1] else _product(dy.t(), x.t())


def _fast(x, weight):
    """Whether `_Linear` takes this product."""
    chosen = _CHOSEN or (_ONEDNN and _operands == torch.bfloat16)
    float32 = x.dtype == weight.dtype == torch.float32 and not torch.is_autocast_enabled("cpu")
    return chosen and x.device.type == "cpu" and float32 and x.numel() > 0


def linear(x, weight, bias=None):
    """The CPU's form of `plain.linear`, for any float dtype."""
    return _Linear.apply(x, weight, bias) if _fast(x, weight) else F.linear(x, weight, bias)


def _fused(x, weight):
    """Whether one call does product and GELU: outside training, which needs the product for its backward pass."""
    return _fast(x, weight) and not torch.is_grad_enabled() and _operands == torch.float32


def linear_gelu(x, weight, bias):
    """The CPU's form of `plain.linear_gelu`."""
    return _product(x.contiguous(), weight, bias, "gelu") if _fused(x, weight) else F.gelu(linear(x, weight, bias))


def feed_forward(x, up, bias, down):
    """The CPU's form of `plain.feed_forward`.

    Outside training as a sum over parts of the F rows of `up` and columns of `down`, PART in each.
    """
    if not _fused(x, up):
        return linear(linear_gelu(x, up, bias), down)
    x, y = x.contiguous(), None
    for up_part, bias_part, down_part in zip(up.split(PART), bias.split(PART), down.split(PART, 1), strict=True):
        part = _product(_product(x, up_part, bias_part, "gelu"), down_part.contiguous())  # (T, H)
        y = part if y is None else y.add_(part)
    return y
