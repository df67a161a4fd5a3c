"""The operations that the model spends its time in: one name each, and the switch between their three forms.

    plain    plain.py    the definition, a few lines of PyTorch each: read these; `--kernels plain` runs them
    cpu      cpu/        the same numbers on a CPU, faster
    gpu      fused.py    the same numbers on a GPU: fused Triton kernels, a file each

`backend_of(x)` chooses by where the tensor x lives. The rest of this file is the list of names, and what
only a GPU needs (`dropout_seeds`, `copy_for_products`, `keep_copies`). `plain.py` says what each operation takes and
returns.
"""

import contextlib
import functools
import importlib

import torch

from kernels import cpu, plain
from kernels.precision import INTERPRET, half_dtype, runs_triton

CHOICES = ("auto", "plain")
_choice = "auto"


def use(choice):
    """From now on operations take their plain form ("plain"), or the fastest that there is ("auto")."""
    global _choice
    assert choice in CHOICES
    _choice = choice


def backend_of(x):
    """The module whose forms take the tensor x. float64, which checks gradients, never goes to Triton."""
    if _choice == "plain":
        return plain
    if (INTERPRET or runs_triton(x.device)) and x.dtype != torch.float64 and triton_backend():
        return triton_backend()
    return cpu if x.device.type == "cpu" else plain


@functools.cache
def triton_backend():
    """The module `fused.py`, or None where Triton is not installed. Imported when a tensor first asks for it."""
    try:
        return importlib.import_module("kernels.fused")
    except ImportError:
        return None


def dropout_seeds(x):
    """The context of a pass through the layers: on a GPU one draw of seeds serves all of their dropout masks."""
    forms = backend_of(x)
    return contextlib.nullcontext() if forms in (plain, cpu) else forms.dropout_seeds()


def copy_for_products(param):
    """A tensor like param (n,), in the type of the device's matrix products; None where products take param itself.

    On a GPU products run in 16 bits. `adamw` writes its new parameters in that type, too, so that `linear` need not
    round them at each call.
    """
    dtype = half_dtype(param.device)
    return torch.empty_like(param, dtype=dtype) if dtype and backend_of(param) not in (plain, cpu) else None


def keep_copies(parameters, copies):
    """From now on `linear` takes the copies in place of the parameters. Args: two lists of tensors of equal shapes."""
    triton_backend().keep_copies(parameters, copies)


def linear(x, weight, bias=None):
    return backend_of(x).linear(x, weight, bias)


def linear_gelu(x, weight, bias):
    return backend_of(x).linear_gelu(x, weight, bias)


def feed_forward(x, up, bias, down):
    return backend_of(x).feed_forward(x, up, bias, down)


def dropout(x, p):
    return backend_of(x).dropout(x, p)


def layer_norm(z, gamma, beta, eps):
    return backend_of(z).layer_norm(z, gamma, beta, eps)


def embed(ids, positions, segments, tables, norm):
    return backend_of(tables[0]).embed(ids, positions, segments, tables, norm)


def attention(qkv, cu_seqlens, max_seqlen, heads, p=0.0):
    return backend_of(qkv).attention(qkv, cu_seqlens, max_seqlen, heads, p)


def cls_attention(h, weight, bias, cu_seqlens, max_seqlen, heads, p=0.0):
    return backend_of(h).cls_attention(h, weight, bias, cu_seqlens, max_seqlen, heads, p)


def add_norm(x, bias, residual, norm, p, extra=None):
    return backend_of(x).add_norm(x, bias, residual, norm, p, extra)


def mean_loss(logits, labels, classes):
    return backend_of(logits).mean_loss(logits, labels, classes)


def adamw(updates, clip, betas):
    return backend_of(updates[0].param).adamw(updates, clip, betas)
