"""Linear layers on a GPU, and how the gradients of weights reach the place where the optimizer reads them.

    y = x Wᵀ + b            dx = dy W            dW = dyᵀ x            db = Σ_t dy_t

A GPU's tensor cores multiply 16-bit numbers and sum in float32 (`precision.py` says which cards have them). Weights and
their gradients stay float32. The usual way, autocast, pays for that per parameter in bytes that move through memory:

    cast of W in the forward pass                                       4 read,  2 written
    dW as a 16-bit product                                                       2 written
    its cast to float32                                                 2 read,  4 written
    its addition to the gradient that is there already                  8 read,  4 written

Here the optimizer's kernel writes the 16-bit copy of W when it writes W (`adamw_step.py`), 2 bytes, and one product
sums dyᵀ x in float32 straight into the gradient in `weight.grad`, 4 read and 4 written. That is 10 bytes a parameter in
place of 26, and dW is never rounded to 16 bits except where PyTorch has no such product (`sums_into_float32`).

So that autograd does not add a second time, these functions return no gradient for what they added in place.
`torch.autograd.grad` finds none there; use `backward`. Where no gradient stands, they return one as usual.

Vectors. Biases and LayerNorms have a gradient that sums over all rows. The programs of a backward kernel leave their
shares in `partial`; `add_sums` adds them up, always in the same order, and adds the sum to up to three gradients in one
launch, where a sum and three additions would be four. The encoder of BERT-base calls it 37 times a step: 24 add-norms
with three gradients, 12 GELUs with one, the embedding with two. That saves 86 launches, 0.2 ms by the roofline of
`make launches`.
"""

from __future__ import annotations

import functools

import torch

from kernels.precision import INTERPRET
from kernels.triton_tools import jit, tl, triton

ROWS, COLUMNS = 64, 32  # a tile of `partial`: 128 bytes of a row at a time


@jit(do_not_specialize=["programs"])
def _add_sums(
    partial,  # (programs, N, H) float32
    first,  # (H,): added to, as the next two
    second,
    third,
    programs,
    N: tl.constexpr,
    H: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """One program: COLUMNS numbers of one gradient."""
    which = tl.program_id(1)
    column = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    total = tl.zeros([ROWS, COLUMNS], tl.float32)
    for start in range(0, programs, ROWS):
        row = start + tl.arange(0, ROWS)
        inside = (row < programs)[:, None] & (column < H)[None, :]
        total += tl.load(partial + (row[:, None] * N + which) * H + column[None, :], mask=inside, other=0.0)
    target = first
    if which == 1:
        target = second
    if which == 2:
        target = third
    before = tl.load(target + column, mask=column < H, other=0.0).to(tl.float32)
    tl.store(target + column, (before + tl.sum(total, 0)).to(target.dtype.element_ty), mask=column < H)


def standing(parameters, needed):
    """Where the gradients of parameters are to be added, and what that leaves for autograd to add.

    Args: needed, a bool for each. Returns two lists with an entry for each:

        needed    .grad stands    where to add       left for autograd
        yes       yes             .grad              None
        yes       no              zeros              the same zeros
        no        either          zeros, unused      None
    """
    targets, left = [], []
    for p, need in zip(parameters, needed, strict=True):
        stands = need and p.grad is not None
        targets.append(p.grad if stands else torch.zeros_like(p))
        left.append(targets[-1] if need and not stands else None)
    return targets, left


def add_sums(partial, parameters, needed):
    """Adds Σ partial, over its programs, to the gradients of one to three parameters (H,).

    Args: partial (programs, N, H) float32, N at least the number of parameters; needed, a bool for each parameter.
    Returns what is left for autograd, see `standing`.
    """
    if not any(needed):
        return [None] * len(parameters)
    targets, left = standing(parameters, needed)
    programs, n, H = partial.shape
    grid = triton.cdiv(H, COLUMNS), len(parameters)
    pointers = (targets * 3)[:3]  # with fewer than three, the others are never looked at
    _add_sums[grid](partial, *pointers, programs, N=n, H=H, ROWS=ROWS, COLUMNS=COLUMNS, num_warps=4)
    return left


@functools.cache
def sums_into_float32(device):
    """True where `torch.addmm` takes 16-bit operands with a float32 sum.

    Its CPU form raises a RuntimeError, and so do its first versions (PyTorch 2.8 and 2.9); older ones, a TypeError.
    """
    a = torch.zeros(16, 16, dtype=torch.float16, device=device)
    try:
        torch.addmm(a.float(), a, a, out_dtype=torch.float32)
    except (RuntimeError, TypeError):
        return False
    return True


def _add_product(into, a, b):
    """into += a b, for a (out, T) and b (T, in) of one type, `into` (out, in) float32. In place."""
    if a.dtype == into.dtype:
        into.addmm_(a, b)
    elif INTERPRET:
        into.addmm_(a.to(into.dtype), b.to(into.dtype))
    elif sums_into_float32(a.device):
        torch.addmm(into, a, b, out_dtype=torch.float32, out=into)
    else:
        into.add_(torch.mm(a, b))


def keep_copies(parameters, copies):
    """Tells `rounded` that `copies`, 16-bit, hold the values that the parameters have now."""
    for p, copy in zip(parameters, copies, strict=True):
        p.copy_16, p.copied_at = copy, p._version


def rounded(weight, dtype):
    """The weight in `dtype`: the copy that the optimizer keeps, or where that is missing or out of date, a new one.

    `_version` counts PyTorch's writes to the weight, but not those to the flat tensor in which it lies: after these,
    call `FlatParameters.refresh_copy`. The optimizer's kernel, which writes there, too, renews the copy itself.
    """
    copy = getattr(weight, "copy_16", None)
    if copy is not None and copy.dtype == dtype and weight.copied_at == weight._version:
        return copy
    return weight.to(dtype)


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, bias, dtype):
        ctx.bias = bias  # only its `.grad` is needed, not its value
        x_16, w = x.to(dtype), rounded(weight, dtype)
        ctx.save_for_backward(x_16, w, weight)
        return torch.mm(x_16, w.t()) if bias is None else torch.addmm(rounded(bias, dtype), x_16, w.t())

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, dy):
        x, w, weight = ctx.saved_tensors
        dy, (needs_x, needs_weight, needs_bias, _) = dy.to(x.dtype), ctx.needs_input_grad
        dx = torch.mm(dy, w) if needs_x else None  # (T, in)
        dw = db = None
        if needs_weight:
            (target,), (dw,) = standing([weight], [True])
            _add_product(target, dy.t(), x)  # (out, in)
        if needs_bias:
            (target,), (db,) = standing([ctx.bias], [True])
            target.add_(dy.sum(0, dtype=target.dtype))  # (out,)
        return dx, dw, db, None


def linear(x, weight, bias=None):
    """The GPU's form of `plain.linear`. Under autocast the result has autocast's type, else that of x."""
    kind = x.device.type
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype
    return _Linear.apply(x, weight, bias, dtype)
