"""y = x Wᵀ + b on the CPU through oneDNN.

PyTorch sends float32 products on the CPU to Intel's MKL, which holds back its widest instructions on processors
that Intel did not make. oneDNN, which PyTorch also ships (and uses for bfloat16), asks the processor what it can
do instead. `bench.py --linear` prints what that buys on your machine; on an Intel chip expect no difference.

The backward pass is two more products of the same kind:

    dx = dy W          dW = dyᵀ x          db = Σ_t dy_t
"""

import torch
import torch.nn.functional as F

_ONEDNN = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")


def _product(a, b):
    """a (M, K), b (N, K) -> a bᵀ (M, N)."""
    return torch.ops.mkldnn._linear_pointwise(a, b, None, "none", [], "")


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, bias):
        ctx.save_for_backward(x, weight)
        return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")

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
    fast = _ONEDNN and x.device.type == "cpu" and x.dtype == weight.dtype == torch.float32 and x.numel()
    if not fast or torch.is_autocast_enabled("cpu"):
        return F.linear(x, weight, bias)
    return _Linear.apply(x, weight, bias)
