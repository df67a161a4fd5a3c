"""Every operation of the model in plain PyTorch: what it means, before anything makes it fast.

The model calls these operations by name (`from kernels import attention`), and `kernels/__init__.py` chooses the form
that runs: this one, the CPU's (`cpu/`) or a GPU's (`fused.py`). All forms give the same numbers to rounding, and the
tests compare each of them with this file; only dropout draws its masks differently in each. `--kernels plain` runs the
whole project on it. There is no backward pass to read: autograd derives it.

Letters: a packed batch has T tokens, of B sequences (a sentence, or a pair of them in one sequence). Each token has H
numbers, and F inside the feed-forward layer (usually 4 H). V is the size of the vocabulary, C the number of logits
of an example.
"""

from typing import NamedTuple

import torch
from torch.nn.functional import softplus


def linear(x, weight, bias=None):
    """x (T, in), weight (out, in), bias (out,) or None -> x Wᵀ + b, (T, out)."""
    y = x @ weight.t()  # (T, out)
    return y if bias is None else y + bias


def gelu(x):
    """x, any shape -> x Φ(x), Φ the normal distribution function (Hendrycks & Gimpel, 2016; the exact form)."""
    return x * (1 + torch.erf(x / 2**0.5)) / 2


def linear_gelu(x, weight, bias):
    """x (T, in), weight (F, in), bias (F,) -> GELU(x Wᵀ + b), (T, F)."""
    return gelu(linear(x, weight, bias))


def feed_forward(x, up, bias, down):
    """x (T, H), up (F, H), bias (F,), down (H, F) -> GELU(x upᵀ + b) downᵀ, (T, H), without the bias of `down`."""
    return linear(linear_gelu(x, up, bias), down)


def dropout(x, p):
    """x, any shape -> x · keep / (1 - p), each keep 1 with probability 1 - p, otherwise 0 (Srivastava et al., 2014)."""
    if p == 0:
        return x
    keep = torch.rand_like(x, dtype=torch.float32) >= p
    return x * keep / (1 - p)


def layer_norm(z, gamma, beta, eps):
    """z (T, H), gamma and beta (H,) -> γ (z - μ) / √(σ² + ε) + β with μ, σ² of each row (Ba et al., 2016), (T, H)."""
    mean = z.mean(1, keepdim=True)  # (T, 1)
    variance = ((z - mean) ** 2).mean(1, keepdim=True)  # (T, 1)
    return gamma * (z - mean) / torch.sqrt(variance + eps) + beta


def embed(ids, positions, segments, tables, norm):
    """ids, positions, segments (T,) int64; tables, of words (V, H), positions and segments; norm, its `LayerNorm`.

    -> LN(word[ids] + position[positions] + segment[segments]), (T, H).
    """
    word, position, segment = tables
    return layer_norm(word[ids] + position[positions] + segment[segments], norm.weight, norm.bias, norm.eps)


def attention(qkv, cu_seqlens, max_seqlen, heads, p=0.0):
    """Self-attention (Vaswani et al., 2017, section 3.2), each token to the tokens of its own sequence.

    Args: qkv (T, 3H), query, key and value of each token side by side, the heads side by side in each; cu_seqlens,
    (B + 1,), where each sequence starts, and T; max_seqlen, tokens of the longest (only other forms need it); p, the
    dropout probability. Returns (T, H): in each head, softmax(q kᵀ / √d) v.
    """
    T, H = len(qkv), qkv.shape[1] // 3
    d = H // heads  # numbers of a head
    out = []
    for sequence in qkv.split(cu_seqlens.diff().tolist()):  # (m, 3H), m tokens
        q, k, v = sequence.view(-1, 3, heads, d).permute(1, 2, 0, 3)  # (heads, m, d) each
        scores = q @ k.transpose(1, 2) / d**0.5  # (heads, m, m): each query with each key
        probs = dropout(torch.softmax(scores, -1), p)  # (heads, m, m): each row sums to 1 before dropout
        out.append((probs @ v).transpose(0, 1).reshape(-1, H))  # (m, H): the heads side by side again
    return torch.cat(out) if out else qkv.new_zeros(T, H)


def cls_attention(h, weight, bias, cu_seqlens, max_seqlen, heads, p=0.0):
    """The rows of `attention` for each sequence's first token, [CLS]. Takes h: the map to q, k and v happens here.

    Args: h (T, H), of sequences with at least one token each; weight (3H, H) and bias (3H,). Returns (B, H).
    """
    qkv = linear(h, weight, bias)  # (T, 3H)
    return attention(qkv, cu_seqlens, max_seqlen, heads, p)[cu_seqlens[:-1].long()]


def add_norm(x, bias, residual, norm, p, extra=None):
    """What closes both halves of a layer: LN(residual + dropout(x + b) + extra), (T, H).

    Args: x (T, H), a product that still lacks its bias (H,); residual (T, H); norm, a `LayerNorm`; extra (T, H) or
    None.
    """
    z = residual + dropout(x + bias, p)
    if extra is not None:
        z = z + extra
    return layer_norm(z, norm.weight, norm.bias, norm.eps)


def mean_loss(logits, labels, classes):
    """The mean loss of a batch.

    Args: logits (B, C), C = 1 for two classes and for a real number; labels (B,) float, whole where there are classes.
    `classes` > 2: cross-entropy; 2: binary cross-entropy of one logit; 0: squared error. Returns a scalar, float32 (or
    float64 where the logits are).
    """
    z = logits if logits.dtype == torch.float64 else logits.float()
    if classes > 2:
        return -torch.log_softmax(z, 1).gather(1, labels.long()[:, None]).mean()
    if classes == 2:  # log(1 + e^z) is -log(1 - σ(z)), and log(1 + e^-z) is -log σ(z)
        return softplus(z[:, 0] * (1 - 2 * labels)).mean()
    return ((z[:, 0] - labels) ** 2).mean()


class Update(NamedTuple):
    """One flat tensor's part of an AdamW step.

    A flat tensor holds many parameters, laid end to end (`adamw.py`). The first four tensors are (n,) float32; t is the
    number of the step, θ the parameters (`param`), the other letters as in `adamw.py`.
    """

    param: torch.Tensor
    grad: torch.Tensor
    m: torch.Tensor
    v: torch.Tensor
    step_size: float  # lr √(1 - β₂ᵗ) / (1 - β₁ᵗ)
    eps: float  # ε √(1 - β₂ᵗ)
    decay: float  # 1 - lr · weight decay
    copy: torch.Tensor | None = None  # (n,) 16-bit: takes the new parameters, rounded (`kernels/weight_gradients.py`)


def adamw(updates, clip, betas):
    """One step of AdamW in place (Loshchilov & Hutter, 2019, algorithm 2), g scaled down where its norm exceeds `clip`:

        m ← β₁ m + (1 - β₁) g        v ← β₂ v + (1 - β₂) g²        θ ← decay · θ - step_size · m / (√v + eps)

    `adamw.py` shows that this is the textbook's step: its bias corrections are in step_size and eps. Args: updates, a
    list of `Update`; clip, the largest norm of all their gradients together, 0 for no limit; betas, (β₁, β₂). Returns
    that norm before clipping, ().
    """
    norm = torch.sqrt(sum((u.grad**2).sum() for u in updates))
    scale = torch.clamp(clip / (norm + 1e-6), max=1.0) if clip else 1.0
    for u in updates:
        g = u.grad * scale
        u.m.copy_(betas[0] * u.m + (1 - betas[0]) * g)
        u.v.copy_(betas[1] * u.v + (1 - betas[1]) * g**2)
        u.param.copy_(u.decay * u.param - u.step_size * u.m / (torch.sqrt(u.v) + u.eps))
        if u.copy is not None:
            u.copy.copy_(u.param)
    return norm
