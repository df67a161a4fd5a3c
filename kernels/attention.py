"""Self-attention over a packed batch (Vaswani et al., 2017, section 3.2), forward and backward.

A packed batch is one long row of T tokens; sentence b owns the tokens cu_seqlens[b] .. cu_seqlens[b + 1] - 1. Each
token attends to the tokens of its own sentence, in each of `heads` heads of size d separately:

    S = q kᵀ / √d        P = softmax(S), row by row        o = D v,   D = dropout(P)

Backward. Given do, the gradient of a scalar loss with respect to o, the chain rule gives, line by line:

    dv = Dᵀ do           o = D v is linear in v
    dD = do vᵀ           ... and in D
    dP = dD · keep / (1 - p)                         dropout is an element-wise product
    dS = P (dP - δ),     δ_i = Σ_j P_ij dP_ij        softmax: ∂P_ij / ∂S_ik = P_ij (1[j = k] - P_ik)
    dq = dS k / √d       dk = dSᵀ q / √d

On the CPU, sentences of similar length are gathered into a group, padded to the longest of the group, and treated
as one batched matrix product. Nothing but attention is ever padded, and attention is cheap: for 20 tokens it is 1 %
of a layer's arithmetic.
"""

import itertools
from typing import NamedTuple

import torch

from kernels.dropout import keep_mask

aten = torch.ops.aten


class Group(NamedTuple):
    """Sentences of similar length, n of them, the longest with m tokens."""

    take: torch.Tensor  # (n, m) int64: which token stands at [sentence, place]; padding points at token 0
    put: torch.Tensor  # (n, m) int64: the same, but padding points at row T, which is thrown away
    valid: torch.Tensor  # (n, 1, m, 1) float: 1 for a token, 0 for padding
    bias: torch.Tensor  # (n, 1, 1, m) float: what is added to the scores: 0 for a token, -inf for padding


class Plan(NamedTuple):
    """What attention needs to know of a batch."""

    cu_seqlens: torch.Tensor  # (B + 1,) int32, where each sentence starts, and T
    max_seqlen: int  # tokens of the longest sentence
    groups: list  # of `Group`


def plan(cu_seqlens, max_seqlen):
    """The `Plan` of a batch, made once and used by every layer. Args: as the fields of `Plan`, on any device."""
    return Plan(cu_seqlens, max_seqlen, _groups(cu_seqlens))


def _groups(cu_seqlens, similar=0.6):
    """Groups of sentences at least `similar` times as long as their group's longest."""
    bounds = cu_seqlens.tolist()
    order = sorted(range(len(bounds) - 1), key=lambda b: bounds[b] - bounds[b + 1])  # longest first
    sizes = [bounds[b + 1] - bounds[b] for b in order]
    groups, first = [], 0
    while first < len(order) and sizes[first] > 0:
        last = first
        while last < len(order) and sizes[last] > 0 and sizes[last] >= similar * sizes[first]:
            last += 1
        starts = torch.tensor([bounds[b] for b in order[first:last]])[:, None]
        place = torch.arange(sizes[first])
        valid = place < torch.tensor(sizes[first:last])[:, None]
        index = starts + place
        group = Group(
            torch.where(valid, index, 0),
            torch.where(valid, index, bounds[-1]),
            valid[:, None, :, None].float(),
            torch.zeros(valid.shape).masked_fill(~valid, -torch.inf)[:, None, None, :],
        )
        groups.append(Group(*(t.to(cu_seqlens.device) for t in group)))
        first = last
    return groups


def attention_reference(qkv, cu_seqlens, heads):
    """The formula with no dropout, one sentence and one head after the other: what the fast forms are tested against.

    qkv (T, 3H), cu_seqlens (B + 1,) -> (T, H). Any float dtype; differentiable by autograd.
    """
    q, k, v = qkv.view(len(qkv), 3, heads, qkv.shape[1] // 3 // heads).unbind(1)  # each (T, heads, d)
    bounds, out = cu_seqlens.tolist(), []
    for start, end in itertools.pairwise(bounds):
        rows = slice(start, end)
        of_heads = []
        for h in range(heads):
            scores = q[rows, h] @ k[rows, h].t() / q.shape[-1] ** 0.5  # (m, m)
            of_heads.append(torch.softmax(scores, -1) @ v[rows, h])  # (m, d)
        out.append(torch.cat(of_heads, 1))
    return torch.cat(out) if out else qkv.new_zeros(0, qkv.shape[1] // 3)


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(ctx, qkv, groups, heads, p):
        ctx.groups, ctx.heads, ctx.p = groups, heads, p
        saved = [qkv]
        out = qkv.new_empty(len(qkv) + 1, heads, qkv.shape[1] // 3 // heads)  # the last row is for padding
        for group in groups:
            q, k, v = _gather(qkv, group, 3, heads)
            scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)  # (n, heads, m, m)
            probs = torch.softmax(scores.add_(group.bias.to(scores.dtype)), -1)
            keep = _keep(probs, p)
            out[group.put] = (_dropout(probs, keep, p) @ v).transpose(1, 2)
            saved += [probs, keep]
        ctx.save_for_backward(*saved)
        return out[:-1].flatten(1)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, dout):
        qkv, *saved = ctx.saved_tensors
        heads, p = ctx.heads, ctx.p
        dqkv = qkv.new_empty(len(qkv) + 1, 3, heads, qkv.shape[1] // 3 // heads)
        for group, probs, keep in zip(ctx.groups, saved[::2], saved[1::2], strict=True):
            q, k, v = _gather(qkv, group, 3, heads)
            (do,) = _gather(dout, group, 1, heads)
            do = do * group.valid.to(do.dtype)
            dv = _dropout(probs, keep, p).transpose(-1, -2) @ do
            dprobs = _dropout(do @ v.transpose(-1, -2), keep, p)
            dscores = aten._softmax_backward_data(dprobs, probs, -1, probs.dtype).mul_(q.shape[-1] ** -0.5)
            grads = torch.stack((dscores @ k, dscores.transpose(-1, -2) @ q, dv))  # (3, n, heads, m, d)
            dqkv[group.put] = grads.permute(1, 3, 0, 2, 4)
        return dqkv[:-1].flatten(1), None, None, None


def _gather(rows, group, parts, heads):
    """rows (T, parts · heads · d) -> the group's `parts` tensors (n, heads, m, d)."""
    rows = rows.view(len(rows), parts, heads, rows.shape[1] // parts // heads)
    return rows[group.take].permute(2, 0, 3, 1, 4).unbind(0)


def _dropout(x, keep, p):
    """x · keep / (1 - p), in one pass; x itself where there is no mask."""
    return x if keep is None else aten.native_dropout_backward(x, keep, 1 / (1 - p))


def _keep(probs, p):
    """The dropout mask of the probabilities, or None where p = 0."""
    if p == 0:
        return None
    return keep_mask(probs.shape, p) if probs.device.type == "cpu" else torch.rand_like(probs) >= p


def attention(qkv, plan, heads, p=0.0):
    """Self-attention over a packed batch.

    Args: qkv (T, 3H) with q, k, v side by side and the heads side by side in each; plan, the batch's `Plan`; heads, a
    divisor of H; p, the dropout probability. Returns (T, H) in qkv's dtype.
    """
    return _Attention.apply(qkv, plan.groups, heads, p)
