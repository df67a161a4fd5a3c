"""The mean loss of a batch and its gradient, for the three kinds of task.

    classes > 2     cross-entropy           ℓ = -log p_y,  p = softmax(z)                       dz = p - e_y
    classes = 2     binary cross-entropy    ℓ = -log σ(z) if y = 1, -log(1 - σ(z)) if 0         dz = σ(z) - y
    classes = 0     squared error           ℓ = (z - y)²                                        dz = 2 (z - y)

with z the logits of an example (one number in the last two rows), y its label and e_y a row with 1 at place y. All
gradients take one line each: with p_j = exp(z_j) / Σ_k exp(z_k),

    ∂(-log p_y) / ∂z_j = ∂(log Σ_k exp(z_k) - z_y) / ∂z_j = p_j - 1[j = y]

and binary cross-entropy is the case of two classes with logits (0, z). It is computed as max(z, 0) - z y +
log(1 + exp(-|z|)), which is the same number without an overflow. The batch's loss is the mean over its B examples, so
each dz is divided by B.

There is next to nothing to compute, 160 numbers in a batch of 32, but PyTorch takes about eight launches for it,
forward and backward: the conversion to float32, the softmax, the mean of what it picks, the gradients of all three.
Each takes 2.4 µs of a step, with the gap before the next launch, and the host longer. The Triton form is one program
that leaves the loss and dz at once; the backward pass multiplies dz with the gradient that comes in.
"""

from __future__ import annotations

import torch

from kernels.triton_tools import jit, tl, triton


@jit(do_not_specialize=["B"])
def _loss(
    logits,  # (B, C)
    labels,  # (B,)
    loss,  # () float32
    dlogits,  # (B, C) float32
    B,
    C: tl.constexpr,
    C_PAD: tl.constexpr,  # the power of two that holds C
    BLOCK: tl.constexpr,
    CLASSES: tl.constexpr,
):
    """The only program: all examples, BLOCK at a time."""
    column = tl.arange(0, C_PAD)[None, :]
    total = tl.zeros([BLOCK, 1], tl.float32)
    for first in range(0, B, BLOCK):
        row = first + tl.arange(0, BLOCK)[:, None]
        inside = (row < B) & (column < C)
        y = tl.load(labels + row, mask=row < B, other=0.0).to(tl.float32)  # (BLOCK, 1)
        z = tl.load(logits + row * C + column, mask=inside, other=0.0).to(tl.float32)  # (BLOCK, C_PAD)
        if CLASSES > 2:
            chosen = column == y.to(tl.int32)
            z = tl.where(column < C, z, -float("inf"))
            top = tl.max(z, 1)[:, None]
            e = tl.exp(z - top)
            whole = tl.sum(e, 1)[:, None]
            each = top + tl.log(whole) - tl.sum(tl.where(chosen, z, 0.0), 1)[:, None]
            dz = e / whole - tl.where(chosen, 1.0, 0.0)
        elif CLASSES == 2:
            e = tl.exp(-tl.abs(z))
            each = tl.maximum(z, 0.0) - z * y + tl.log(1 + e)
            dz = tl.where(z < 0, e, 1.0) / (1 + e) - y  # σ(z) - y, and again no overflow
        else:
            each = (z - y) * (z - y)
            dz = 2 * (z - y)
        total += tl.where(row < B, each, 0.0)
        tl.store(dlogits + row * C + column, dz / B, mask=inside)
    tl.store(loss, tl.sum(tl.sum(total, 1), 0) / B)


def launch_options(B, C, classes):
    """The constexprs by name, and num_warps."""
    block = min(256, max(16, triton.next_power_of_2(B)))
    return {"C": C, "C_PAD": triton.next_power_of_2(C), "BLOCK": block, "CLASSES": classes, "num_warps": 4}


class _FusedMeanLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx, logits, labels, classes):
        logits = logits.contiguous()
        B, C = logits.shape
        loss = torch.empty((), device=logits.device)
        dlogits = torch.empty(B, C, device=logits.device)
        _loss[(1,)](logits, labels.contiguous(), loss, dlogits, B, **launch_options(B, C, classes))
        ctx.dtype = logits.dtype
        ctx.save_for_backward(dlogits)
        return loss

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, dloss):
        (dlogits,) = ctx.saved_tensors
        return torch.mul(dlogits, dloss, out=torch.empty_like(dlogits, dtype=ctx.dtype)), None, None


def mean_loss(logits, labels, classes):
    """The GPU's form of `plain.mean_loss`, in float32."""
    return _FusedMeanLoss.apply(logits, labels, classes)
