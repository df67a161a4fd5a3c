"""The operations that the model spends its time in: one name each, and the switch between their three forms.

    plain    plain.py    the definition, a few lines of PyTorch each: read these; `--kernels plain` runs them
    cpu      cpu/        the same numbers on a CPU, faster
    gpu      fused.py    the same numbers on a GPU: fused Triton kernels, a file each

`forms_of(x)` chooses by where the tensor x lives. Everything else in this file is the list of names. `plain.py` says
what each operation takes and returns.
"""

import contextlib
import functools
import importlib
import os

import torch

from kernels import cpu, plain
from kernels.precision import half_dtype, runs_triton

INTERPRET = os.environ.get("TRITON_INTERPRET") == "1"  # tests run the GPU's kernels in Triton's interpreter
CHOICES = ("auto", "plain")
_choice = "auto"


def use(choice):
    """From now on operations take their plain form ("plain"), or the fastest that there is ("auto")."""
    global _choice
    assert choice in CHOICES
    _choice = choice


def forms_of(x):
    """The module whose forms take the tensor x. float64, which checks gradients, never goes to Triton."""
    if _choice == "plain":
        return plain
    if (INTERPRET or runs_triton(x.device)) and x.dtype != torch.float64 and triton_forms():
        return triton_forms()
    return cpu if x.device.type == "cpu" else plain


@functools.cache
def triton_forms():
    """The module `fused.py`, or None where Triton is not installed. Imported when a tensor first asks for it."""
    try:
        return importlib.import_module("kernels.fused")
    except ImportError:
        return None


def dropout_seeds(x):
    """The context of one pass through the encoder: on a GPU all its dropout masks come from one draw of seeds."""
    forms = forms_of(x)
    return contextlib.nullcontext() if forms in (plain, cpu) else forms.dropout_seeds()


def copy_for_products(param):
    """A tensor like param (n,), in the type of the device's matrix products; None where products take param itself.

    `adamw` fills it at each step; `keep_copies` tells `linear` which parameters it holds.
    """
    dtype = half_dtype(param.device)
    return torch.empty_like(param, dtype=dtype) if dtype and forms_of(param) not in (plain, cpu) else None


def keep_copies(parameters, copies):
    triton_forms().keep_copies(parameters, copies)


def linear(x, weight, bias=None):
    return forms_of(x).linear(x, weight, bias)


def linear_gelu(x, weight, bias):
    return forms_of(x).linear_gelu(x, weight, bias)


def feed_forward(x, up, bias, down):
    return forms_of(x).feed_forward(x, up, bias, down)


def linear_and_input(x, weight, bias=None):
    """`linear`, and x once more for a residual connection: a GPU adds the two gradients of x in one product."""
    forms = forms_of(x)
    return (forms.linear(x, weight, bias), x) if forms in (plain, cpu) else forms.linear_and_input(x, weight, bias)


def feed_forward_and_input(x, up, bias, down):
    """`feed_forward`, and x once more, see `linear_and_input`."""
    forms, arguments = forms_of(x), (x, up, bias, down)
    return (forms.feed_forward(*arguments), x) if forms in (plain, cpu) else forms.feed_forward_and_input(*arguments)


def dropout(x, p):
    return forms_of(x).dropout(x, p)


def layer_norm(z, gamma, beta, eps):
    return forms_of(z).layer_norm(z, gamma, beta, eps)


def embed(ids, positions, segments, tables, norm):
    return forms_of(tables[0]).embed(ids, positions, segments, tables, norm)


def attention(qkv, cu_seqlens, max_seqlen, heads, p=0.0):
    return forms_of(qkv).attention(qkv, cu_seqlens, max_seqlen, heads, p)


def cls_attention(h, weight, bias, cu_seqlens, max_seqlen, heads, p=0.0):
    return forms_of(h).cls_attention(h, weight, bias, cu_seqlens, max_seqlen, heads, p)


def add_norm(x, bias, residual, norm, p, extra=None):
    return forms_of(x).add_norm(x, bias, residual, norm, p, extra)


def mean_loss(logits, labels, classes):
    return forms_of(logits).mean_loss(logits, labels, classes)


def adamw(updates, clip, betas):
    return forms_of(updates[0].param).adamw(updates, clip, betas)
