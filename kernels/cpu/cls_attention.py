"""Self-attention of each sentence's first token, [CLS], alone: the last layer of a model that reads nothing else.

`kernels/plain.py` has the formula and the letters: in one head, q, k and v (m, d), P = softmax(q kᵀ / √d), M = P with
dropout, o = M v. With one query q (d,), P and M have one row, with an entry for each of the sentence's m tokens. The
keys and values are linear in the hidden states h_j (H,) of the tokens j = 1 .. m,

    k_j = W_k h_j + b_k          v_j = W_v h_j + b_v          W_k and W_v (d, H)

so no key and no value of any token is ever computed:

    q · k_j     = (W_kᵀ q) · h_j + q · b_k            the same q · b_k for all j: softmax does not see it
    Σ_j M_j v_j = W_v (Σ_j M_j h_j) + (Σ_j M_j) b_v   Σ_j M_j is 1 only without dropout

The matrices act on one vector for each sentence and head instead of one for each token; in return the h_j, which have H
numbers where keys and values have d, stand in both sums of every head. A sentence so takes 2 H² + 2 m heads H
multiplications in place of the 2 m H² of its keys and values: for MiniLM (H = 384, 12 heads) and 24 tokens one in
fourteen, and 2.9 ms in place of 19 with the product before it. The backward pass is autograd's: every step above is an
operation of PyTorch.
"""

import torch

from kernels.cpu.attention import groups_of, rows_of
from kernels.cpu.dropout import dropout
from kernels.cpu.products import linear


def cls_attention(h, weight, bias, cu_seqlens, max_seqlen, heads, p=0.0):
    """The CPU's form of `plain.cls_attention`. Sentences may be empty here; their rows mean nothing."""
    starts = cu_seqlens[:-1].long()  # (B,)
    groups, H = groups_of(cu_seqlens), h.shape[1]
    d = H // heads
    (w_q, w_k, w_v), (b_q, _, b_v) = weight.chunk(3), bias.chunk(3)  # (H, H), (H,)
    q = linear(h.index_select(0, starts[groups.sentences]), w_q, b_q).view(-1, heads, d)  # (B, heads, d), by group
    q = torch.einsum("bhd,hdc->bhc", q, w_k.view(heads, d, H))  # W_kᵀ q, (B, heads, H)
    tokens = groups.token.split([n * m for n, m in groups.shapes])
    parts = q.split([n for n, _ in groups.shapes]), tokens, rows_of(groups, heads).biases, groups.shapes
    sums, totals = [], []
    for q_part, token, minus_inf, (n, m) in zip(*parts, strict=True):
        x = h.index_select(0, token).view(n, m, H).to(q.dtype)
        scores = torch.baddbmm(minus_inf.view(n, heads, m).to(q.dtype), q_part, x.mT, alpha=d**-0.5)  # (n, heads, m)
        probs = dropout(torch.softmax(scores, -1), p).to(q.dtype)  # the rows M
        sums.append(torch.bmm(probs, x))  # Σ_j M_j h_j, (n, heads, H)
        totals.append(probs.sum(-1, keepdim=True))  # Σ_j M_j, (n, heads, 1)
    out = torch.einsum("bhc,hdc->bhd", torch.cat(sums), w_v.view(heads, d, H))
    out = (out + torch.cat(totals) * b_v.view(heads, d)).flatten(1)  # (B, H), by group
    return out.new_zeros(len(starts), H).index_copy(0, groups.sentences, out)
