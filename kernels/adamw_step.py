"""The AdamW update of flat tensors (Loshchilov & Hutter, 2019, algorithm 2), its share in clipping included.

    g ← g · min(1, clip / (‖g‖ + 1e-6))          ‖g‖ of all flat tensors of the step; not where clip = 0
    m ← β₁ m + (1 - β₁) g
    v ← β₂ v + (1 - β₂) g²
    θ ← decay · θ - step_size · m / (√v + ε')

A flat tensor holds many parameters, laid end to end. θ are the parameters, g their gradient, m and v its running mean
and that of its square, decay = 1 - lr · wd with the learning rate lr and the weight decay wd. step_size and ε' carry
the bias correction; the optimizer in the root's `adamw.py` works them out. The 1e-6 is that of
`torch.nn.utils.clip_grad_norm_`.

Memory traffic sets the least time: the update reads four numbers of a parameter and writes three, 28 bytes, and the
norm reads one, 4 bytes. While a new parameter is at hand, the kernel also writes it in 16 bits for the matrix products
of the next step (`weight_gradients.py`): 2 bytes more, where a cast in each forward pass would move 6 bytes in a launch
of its own. For the 110 million parameters of BERT-base the roofline of `make launches` says 1.3 ms on an H100, 0.2 ms
less than with those casts.

Clipping needs the norm of everything before the first update. A first kernel leaves one partial sum of squares per
program. They are complete when the second kernel starts, since launches run one after another. Each of its programs
adds all of them up for itself, always in the same order. That costs it at most 2 KB out of the cache for each flat
tensor, of which a step has four (matrices and vectors, of the encoder and of the task's head). It saves a launch, and
the CPU never waits for the norm.
"""

from __future__ import annotations

import torch

from kernels.triton_tools import jit, tl, triton

PROGRAMS = 512  # at most so many partial sums of squares per flat tensor
LAUNCH = {"BLOCK": 2048, "num_warps": 8}  # elements of a block, and the warps that share them


@jit
def _squares(
    grad,  # (n,)
    partial,  # (programs,)
    n,
    BLOCK: tl.constexpr,
):
    """One program, number i: the sum of squares over the blocks i, i + programs, i + 2 · programs, ..."""
    total = tl.zeros([BLOCK], tl.float32)
    for first in range(tl.program_id(0) * BLOCK, n, tl.num_programs(0) * BLOCK):
        place = first + tl.arange(0, BLOCK)
        g = tl.load(grad + place, mask=place < n, other=0.0)
        total += g * g
    tl.store(partial + tl.program_id(0), tl.sum(total, 0))


@jit(do_not_specialize=["parts"])  # parts depends on which flat tensors step together
def _update(
    param,  # (n,)
    grad,  # (n,)
    m,  # (n,)
    v,  # (n,)
    copy,  # (n,) 16-bit, or None: the new parameters once more, for products
    partial,  # (parts,): sums of squares of all the step's gradients, of all flat tensors
    norm,  # (): the norm of them all; program 0 of every launch writes it, the same value
    n,
    parts,
    clip,  # 0 for no limit
    step_size,
    eps,
    decay,
    beta1,
    beta2,
    gain1,  # 1 - β₁ and 1 - β₂, computed in float64: in float32, 1 - 0.999 is off by 1e-5 of itself
    gain2,
    PARTS_PAD: tl.constexpr,  # the power of two that holds `parts`
    BLOCK: tl.constexpr,
):
    """One program: one block of parameters."""
    place = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = place < n
    p = tl.load(param + place, mask=inside, other=0.0)
    g = tl.load(grad + place, mask=inside, other=0.0)
    m_old = tl.load(m + place, mask=inside, other=0.0)
    v_old = tl.load(v + place, mask=inside, other=0.0)

    # the norm of all gradients: every program adds up all partial sums for itself
    part = tl.arange(0, PARTS_PAD)
    total = tl.sqrt(tl.sum(tl.load(partial + part, mask=part < parts, other=0.0), 0))
    if tl.program_id(0) == 0:
        tl.store(norm, total)
    # a norm that is NaN makes every parameter NaN, as in plain.py; by default the minimum would be 1
    scale = tl.minimum(1.0, clip / (total + 1e-6), propagate_nan=tl.PropagateNan.ALL)
    g *= tl.where(clip > 0, scale, 1.0)

    m_new = beta1 * m_old + gain1 * g
    v_new = beta2 * v_old + gain2 * g * g
    p_new = decay * p - step_size * m_new / (tl.sqrt(v_new) + eps)
    tl.store(m + place, m_new, mask=inside)
    tl.store(v + place, v_new, mask=inside)
    tl.store(param + place, p_new, mask=inside)
    if copy is not None:
        tl.store(copy + place, p_new.to(copy.dtype.element_ty), mask=inside)


def adamw(updates, clip, betas):
    """The GPU's form of `plain.adamw`: two launches for each flat tensor."""
    device, block = updates[0].param.device, LAUNCH["BLOCK"]
    # the partial sums of each flat tensor: a multiple of 4, so that those of the next start at a multiple of 16 bytes
    counts = [min(PROGRAMS, 4 * triton.cdiv(u.grad.numel(), 4 * block)) for u in updates]
    partial = torch.empty(sum(counts), device=device)
    for u, sums in zip(updates, partial.split(counts), strict=True):
        _squares[(len(sums),)](u.grad, sums, u.grad.numel(), **LAUNCH)

    norm = torch.empty((), device=device)
    beta1, beta2 = betas
    for u in updates:
        n = u.param.numel()
        tensors = u.param, u.grad, u.m, u.v, u.copy, partial, norm
        numbers = float(clip), u.step_size, u.eps, u.decay, beta1, beta2, 1 - beta1, 1 - beta2
        parts_pad = triton.next_power_of_2(len(partial))
        _update[(triton.cdiv(n, block),)](*tensors, n, len(partial), *numbers, PARTS_PAD=parts_pad, **LAUNCH)
    return norm
