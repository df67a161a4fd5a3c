"""y = x Wᵀ + b and what stands around it, through the library that `libraries.py` measured to be the faster one.

A feed-forward layer so takes 18 ms in place of 41, the product to queries, keys and values 8 in place of 12.

A processor with bfloat16 instructions (Intel since Sapphire Rapids, AMD since Zen 4) multiplies faster still. With
`--bf16` numbers are rounded to bfloat16 on their way into a product, and summed in float32 as before (MiniLM's whole
step is 1.4 times as fast on a Xeon core with AMX, its evaluation 1.8 times). Tensors stay float32. Where the processor
has AMX (Intel's unit for small matrix products), oneDNN rounds inside every product; PyTorch then takes oneDNN for its
own products as well, also where `libraries.py` chose MKL. Elsewhere oneDNN would leave float32 as it is, so `linear`
rounds its operands itself and keeps them so for the backward pass, and its results come rounded, too.

Backward. With dy (T, out) the gradient of a scalar loss with respect to y, and t counting rows:

    dx = dy W (T, in)          dW = dyᵀ x (out, in)          db = Σ_t dy_t (out,)
"""

import torch
import torch.nn.functional as F

from kernels.cpu import libraries
from kernels.cpu.libraries import library, multiply, multiply_gelu, onednn

# oneDNN sums a row in one go, and the rounding error of a float32 sum grows with its length. Outputs outside training,
# which are compared with those of `transformers`, are summed in parts where a row is long (`feed_forward`).
PART = 768
_operands = torch.float32  # what `_Linear` rounds its operands to


def bfloat16_products():
    """True where this processor multiplies in bfloat16."""
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


def use_bfloat16_products(on=True):
    """From now on `linear` rounds float32 operands to bfloat16; with AMX every product on the CPU does."""
    global _operands
    amx = torch.cpu._is_amx_tile_supported()
    torch.backends.mkldnn.matmul.fp32_precision = "bf16" if on and amx else "none"
    _operands = torch.bfloat16 if on and not amx else torch.float32


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, bias):
        x, weight = x.contiguous().to(_operands), weight.to(_operands)
        ctx.save_for_backward(x, weight)
        if x.dtype == torch.bfloat16:
            y = multiply("forward", x, weight).float()
            return y if bias is None else y.add_(bias)
        return multiply("forward", x, weight, bias)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, dy):
        x, weight = ctx.saved_tensors
        db = dy.sum(0) if ctx.needs_input_grad[2] else None
        dy = dy.contiguous().to(x.dtype)
        dx = multiply("dx", dy, weight).float() if ctx.needs_input_grad[0] else None
        dw = multiply("dw", dy, x).float() if ctx.needs_input_grad[1] else None
        return dx, dw, db


def _fast(x, weight):
    """Whether `_Linear` takes this product."""
    float32 = x.dtype == weight.dtype == torch.float32 and not torch.is_autocast_enabled("cpu")
    return libraries.AVAILABLE and x.device.type == "cpu" and float32 and x.numel() > 0


def linear(x, weight, bias=None):
    """The CPU's form of `plain.linear`, for any float dtype."""
    return _Linear.apply(x, weight, bias) if _fast(x, weight) else F.linear(x, weight, bias)


def _may_fuse(x, weight):
    """Whether `multiply_gelu` may take product and GELU together: no gradient, no bfloat16, and `_fast`."""
    return not torch.is_grad_enabled() and _operands == torch.float32 and _fast(x, weight)


def linear_gelu(x, weight, bias):
    """The CPU's form of `plain.linear_gelu`."""
    if _may_fuse(x, weight):
        return multiply_gelu(x.contiguous(), weight, bias)
    return F.gelu(linear(x, weight, bias))


def feed_forward(x, up, bias, down):
    """The CPU's form of `plain.feed_forward`.

    Outside training, where oneDNN takes `down`: as a sum over parts of the F rows of `up` and columns of `down`, with
    PART in each.
    """
    if not _may_fuse(x, up) or library("forward", down.shape[1], down.shape[0]) == "mkl":
        return linear(linear_gelu(x, up, bias), down)
    x, y = x.contiguous(), None
    for up_part, bias_part, down_part in zip(up.split(PART), bias.split(PART), down.split(PART, 1), strict=True):
        part = onednn(multiply_gelu(x, up_part, bias_part), down_part.contiguous())  # (T, H)
        y = part if y is None else y.add_(part)
    return y
