"""Self-attention on a CPU: sentences of similar length as one batched matrix product.

`plain.py` takes one sequence after the other, two products each, too small to fill a processor. Here sentences of
similar length are gathered into a group and padded to the longest of the group, so that a batch of 32 sentences makes 2
to 5 groups, two products each: 4.0 ms in place of 9.8. Nothing else of the model is padded. The backward pass is
written out, which saves autograd's copies:

    M = P ⊙ keep / (1 - p)     o = M v      P = softmax(q kᵀ / √d), keep dropout's mask
    dv = Mᵀ do     dM = do vᵀ     dP = dM ⊙ keep / (1 - p)     dS = P ⊙ (dP - Σ_j P_ij dP_ij)
    dq = dS k / √d                dk = dSᵀ q / √d

(`flash_attention.py` derives it.)
"""

import functools
import math
from typing import NamedTuple

import torch

from kernels.cpu.dropout import dropout_mask

aten = torch.ops.aten


class Groups(NamedTuple):
    """Sentences of similar length, padded to the longest of their group.

    A group of n sentences with up to m tokens has n · m places, numbered sentence by sentence, one group after the
    other: P places in all. Each head of each place has a row of its own, d numbers, in the order that makes every
    head of every sentence a matrix (m, d): a group's rows are (n · heads, m, d). Two sentences of 3 and 2 tokens make
    one group, n = 2, m = 3, of 6 places: token 0 1 2 3 4 0, the last one padding; place 0 1 2 3 4.
    """

    shapes: list  # of (n, m), one a group
    sentences: torch.Tensor  # int64: which sentences these are, group by group; empty ones are in none
    token: torch.Tensor  # (P,) int64: which token stands at a place; padding repeats token 0
    start: torch.Tensor  # (P,) int64: the first place of the same sentence
    length: torch.Tensor  # (P,) int64: the m of its group
    place: torch.Tensor  # (T,) int64: where a token stands
    padding: torch.Tensor  # (P,) bool
    rows: dict  # what `rows_of` made of these, by the number of heads: every layer asks for the same


class Rows(NamedTuple):
    """Where the rows of q, k and v come from and where those of the result go. R = heads · P rows."""

    take: torch.Tensor  # (R,) int64: the row of a (T · heads, d) matrix that stands at each row
    take_qkv: torch.Tensor  # (3 R,) int64: the same from the fused (T · 3 · heads, d), all of q, then k, then v
    put: torch.Tensor  # (T · heads,) int64: where these rows stand
    put_qkv: torch.Tensor  # (T · 3 · heads,) int64
    padding: torch.Tensor  # the rows that are padding, int64
    biases: list  # of (n · heads, 1, m) float, added to a group's scores: 0 for a token, -inf for padding


def groups_of(cu_seqlens):
    """The `Groups` of a batch: every layer asks for the same."""
    return _groups(tuple(cu_seqlens.tolist()))


@functools.lru_cache(maxsize=4)
@torch.inference_mode(False)  # what stays in the cache may be saved for a backward pass later
def _groups(bounds, similar=0.6):
    """`Groups` of sentences at least `similar` times as long as their group's longest. Args: bounds, cu_seqlens."""
    order = sorted(range(len(bounds) - 1), key=lambda b: bounds[b] - bounds[b + 1])  # longest first
    order = [b for b in order if bounds[b + 1] > bounds[b]]
    shapes, longest = [], []  # longest: the m of each sentence, in this order
    for b in order:
        size = bounds[b + 1] - bounds[b]
        if not shapes or size < similar * shapes[-1][1]:
            shapes.append((0, size))
        shapes[-1] = (shapes[-1][0] + 1, shapes[-1][1])
        longest.append(shapes[-1][1])
    longest = torch.tensor(longest, dtype=torch.int64)
    begin = torch.tensor([bounds[b] for b in order], dtype=torch.int64).repeat_interleave(longest)  # (P,)
    end = torch.tensor([bounds[b + 1] for b in order], dtype=torch.int64).repeat_interleave(longest)
    start = (longest.cumsum(0) - longest).repeat_interleave(longest)
    token = begin + torch.arange(len(start)) - start
    padding = token >= end
    place = torch.empty(bounds[-1], dtype=torch.int64)
    place[token[~padding]] = torch.arange(len(start))[~padding]
    order = torch.tensor(order, dtype=torch.int64)
    tensors = order, token.masked_fill(padding, 0), start, longest.repeat_interleave(longest), place, padding
    return Groups(shapes, *tensors, {})


def rows_of(groups, heads):
    """The `Rows` of a batch for so many heads."""
    if heads not in groups.rows:
        head = torch.arange(heads, device=groups.token.device)
        offset = torch.arange(len(groups.token), device=head.device) - groups.start
        row = (heads * groups.start + offset)[:, None] + head * groups.length[:, None]  # (P, heads)
        take = torch.empty_like(row).flatten()
        take[row.flatten()] = (groups.token[:, None] * heads + head).flatten()
        put = row[groups.place]  # (T, heads)
        part = torch.arange(3, device=head.device)[:, None]
        take_qkv = take + take // heads * (2 * heads) + part * heads  # token · 3 heads + part · heads + head, (3, R)
        put_qkv = put[:, None] + part * row.numel()  # (T, 3, heads)
        bias = torch.zeros(len(groups.token), device=head.device).masked_fill(groups.padding, -torch.inf)
        biases = bias.split([n * m for n, m in groups.shapes])
        biases = [b.view(n, 1, m).repeat_interleave(heads, 0) for b, (n, m) in zip(biases, groups.shapes, strict=True)]
        indices = take, take_qkv.flatten(), put.flatten(), put_qkv.flatten(), row[groups.padding].flatten()
        groups.rows[heads] = Rows(*indices, biases)
    return groups.rows[heads]


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(ctx, qkv, groups, heads, p):
        ctx.groups, ctx.heads = groups, heads
        rows, d = rows_of(groups, heads), qkv.shape[1] // 3 // heads
        qkv = qkv.reshape(-1, d).index_select(0, rows.take_qkv).view(3, -1, d)  # (3, R, d)
        out = torch.empty_like(qkv[0])
        masks, saved = _masks(groups, heads, p, qkv), [qkv]
        parts = _split(qkv, groups, heads), _split(out[None], groups, heads)
        for (q, k, v), (o,), bias, mask in zip(*parts, rows.biases, masks, strict=True):
            scores = torch.baddbmm(bias.to(q.dtype), q, k.mT, alpha=d**-0.5)  # (n · heads, m, m)
            probs = torch.softmax(scores, -1).to(q.dtype)  # autocast gives float32
            torch.bmm(probs if mask is None else probs * mask, v, out=o)
            saved += [probs, mask]
        ctx.save_for_backward(*saved)
        return out.index_select(0, rows.put).view(-1, heads * d)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, dout):
        qkv, *saved = ctx.saved_tensors
        groups, heads, d = ctx.groups, ctx.heads, qkv.shape[-1]
        rows = rows_of(groups, heads)
        dout = dout.reshape(-1, d).index_select(0, rows.take).index_fill_(0, rows.padding, 0)  # (R, d)
        dqkv = torch.empty_like(qkv)
        parts = (_split(x, groups, heads) for x in (qkv, dout[None], dqkv))
        for (q, k, v), (do,), (dq, dk, dv), probs, mask in zip(*parts, saved[::2], saved[1::2], strict=True):
            torch.bmm((probs if mask is None else probs * mask).mT, do, out=dv)
            dprobs = torch.bmm(do, v.mT)
            dprobs = dprobs if mask is None else dprobs.mul_(mask)
            dscores = aten._softmax_backward_data(dprobs, probs, -1, probs.dtype)
            torch.baddbmm(dq, dscores, k, beta=0, alpha=d**-0.5, out=dq)
            torch.baddbmm(dk, dscores.mT, q, beta=0, alpha=d**-0.5, out=dk)
        return dqkv.view(-1, d).index_select(0, rows.put_qkv).view(-1, 3 * heads * d), None, None, None


def _split(x, groups, heads):
    """x (parts, R, d) -> a list with the `parts` matrices (n · heads, m, d) of each group, all views."""
    of_groups = x.split([n * heads * m for n, m in groups.shapes], 1)
    return [part.view(len(x), n * heads, m, -1) for part, (n, m) in zip(of_groups, groups.shapes, strict=True)]


def _masks(groups, heads, p, like):
    """The dropout masks of all probabilities, (n · heads, m, m) for each group; None for each where p = 0."""
    if p == 0:
        return [None] * len(groups.shapes)
    shapes = [(n * heads, m, m) for n, m in groups.shapes]
    sizes = [math.prod(shape) for shape in shapes]
    masks = dropout_mask(sum(sizes), p, like).split(sizes)
    return [mask.view(shape) for mask, shape in zip(masks, shapes, strict=True)]


def attention(qkv, cu_seqlens, max_seqlen, heads, p=0.0):
    """The CPU's form of `plain.attention`."""
    return _Attention.apply(qkv, groups_of(cu_seqlens), heads, p)
