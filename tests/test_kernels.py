"""Every operation's plain form in float64 against the CPU's and the GPU's, forward and backward, through one switch.

The GPU's forms need a GPU, or Triton's interpreter: `test_kernels_gpu.py` runs this file again in its process.
"""

import inspect
import math

import pytest
import torch
from torch import nn

import kernels
from kernels import INTERPRET, cpu, plain
from kernels.plain import Update

DEVICE = torch.device("cuda" if torch.cuda.is_available() and not INTERPRET else "cpu")
FAST = [pytest.param(cpu, id="cpu")]
if (DEVICE.type == "cuda" or INTERPRET) and kernels.triton_backend():
    FAST = [pytest.param(kernels.triton_backend(), id="gpu")] + FAST * INTERPRET
LENGTHS, HEADS, H = (3, 1, 9, 4), 2, 24
OPERATIONS = [
    "linear",
    "linear_gelu",
    "feed_forward",
    "dropout",
    "layer_norm",
    "embed",
    "attention",
    "cls_attention",
    "add_norm",
    "mean_loss",
    "adamw",
]


def tensors(*shapes):
    torch.manual_seed(0)
    return [torch.randn(shape).to(DEVICE) for shape in shapes]


def norm_of(weight, bias):
    """What the operations read of a LayerNorm."""
    norm = nn.Module()
    norm.weight, norm.bias, norm.eps = weight, bias, 0.1
    return norm


def cases():
    """name -> (function of the forms and of the inputs, the inputs)."""
    T, B = sum(LENGTHS), len(LENGTHS)
    cu_seqlens = torch.tensor([0, *LENGTHS]).cumsum(0).int().to(DEVICE)
    batch = cu_seqlens, max(LENGTHS), HEADS
    ids = torch.arange(T).to(DEVICE) % 5
    labels = (torch.arange(B) % 2).float().to(DEVICE)
    wide = tensors((T, H), (4 * H, H), (4 * H,), (H, 4 * H))
    rows = tensors((T, H), (H,), (T, H), (H,), (H,), (T, H))
    tables = tensors((5, H), (5, H), (5, H), (H,), (H,))
    return {
        "linear": (lambda f, x, w, b: f.linear(x, w, b), tensors((T, H), (7, H), (7,))),
        "linear without bias": (lambda f, x, w: f.linear(x, w), tensors((T, H), (7, H))),
        "linear_gelu": (lambda f, x, w, b: f.linear_gelu(x, w, b), wide[:3]),
        "feed_forward": (lambda f, *inputs: f.feed_forward(*inputs), wide),
        "layer_norm": (lambda f, x, g, b: f.layer_norm(x, g, b, 0.1), tensors((T, H), (H,), (H,))),
        "dropout": (lambda f, x: f.dropout(x, 0.0), wide[:1]),
        "embed": (lambda f, a, b, c, g, s: f.embed(ids, ids % 3, ids % 2, (a, b, c), norm_of(g, s)), tables),
        "attention": (lambda f, qkv: f.attention(qkv, *batch), tensors((T, 3 * H))),
        "cls_attention": (lambda f, *inputs: f.cls_attention(*inputs, *batch), tensors((T, H), (3 * H, H), (3 * H,))),
        "add_norm": (lambda f, x, b, r, g, s, _: f.add_norm(x, b, r, norm_of(g, s), 0.0), rows),
        "add_norm with an adapter": (lambda f, x, b, r, g, s, e: f.add_norm(x, b, r, norm_of(g, s), 0.0, e), rows),
        "mean_loss of 5 classes": (lambda f, z: f.mean_loss(z, 2 * labels, 5), tensors((B, 5))),
        "mean_loss of 2 classes": (lambda f, z: f.mean_loss(z, labels, 2), tensors((B, 1))),
        "mean_loss of a number": (lambda f, z: f.mean_loss(z, labels, 0), tensors((B, 1))),
    }


@pytest.mark.parametrize("name", cases())
@pytest.mark.parametrize("forms", FAST)
def test_a_fast_form_is_the_plain_one_forward_and_backward(forms, name):
    operation, inputs = cases()[name]
    fast = [x.clone().requires_grad_() for x in inputs]
    exact = [x.double().requires_grad_() for x in inputs]
    y, wanted = operation(forms, *fast), operation(plain, *exact)
    torch.testing.assert_close(y.double(), wanted, rtol=1e-5, atol=2e-5)
    dy = torch.randn_like(y)
    y.backward(dy)
    wanted.backward(dy.double())
    for ours, slow in zip(fast, exact, strict=True):
        if slow.grad is not None:
            torch.testing.assert_close(ours.grad.to_dense().double(), slow.grad, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("clip", [0.0, 1.0])
@pytest.mark.parametrize("forms", FAST)
def test_a_fast_adamw_is_the_plain_one(forms, clip):
    fast = tensors((4, 5), (4, 300_000))
    for x in fast:
        x[2:] = 0  # m and v, as training starts
    exact = [x.double() for x in fast]
    for step in range(3):
        numbers = 1e-3, 1e-9, 1 - 1e-4 * step
        norm = forms.adamw([Update(*x, *numbers) for x in fast], clip, (0.9, 0.999))
        wanted = plain.adamw([Update(*x, *numbers) for x in exact], clip, (0.9, 0.999))
        torch.testing.assert_close(norm.double(), wanted, rtol=2e-6, atol=0)
    for x, y in zip(fast, exact, strict=True):
        torch.testing.assert_close(x.double(), y, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("clip", [0.0, 1.0])
@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("forms", FAST)
def test_a_gradient_that_is_no_number_reaches_the_same_parameters_as_in_the_plain_form(forms, bad, clip):
    """With clipping a NaN norm makes every parameter NaN; without, only the parameter of that gradient is lost."""
    fast = tensors((4, 5), (4, 5000))
    for x in fast:
        x[2:] = 0
    fast[1][1, 17] = bad
    exact = [x.double() for x in fast]
    numbers = 1e-3, 1e-9, 1.0
    norm = forms.adamw([Update(*x, *numbers) for x in fast], clip, (0.9, 0.999))
    wanted = plain.adamw([Update(*x, *numbers) for x in exact], clip, (0.9, 0.999))
    torch.testing.assert_close(norm.double(), wanted, equal_nan=True)
    for x, y in zip(fast, exact, strict=True):
        torch.testing.assert_close(x.double(), y, rtol=1e-5, atol=1e-6, equal_nan=True)
    lost = sum(int(x[0].isnan().sum()) for x in fast)
    assert lost == (5005 if clip and math.isnan(bad) else 1)


@pytest.mark.parametrize("forms", [*FAST, pytest.param(plain, id="plain")])
def test_dropout_keeps_the_right_share_scales_it_and_follows_the_seed(forms):
    x, p = torch.ones(400, 500, device=DEVICE), 0.3
    torch.manual_seed(1)
    y = forms.dropout(x, p)
    kept = (y != 0).double().mean().item()
    assert abs(kept - (1 - p)) < 4 * math.sqrt(p * (1 - p) / x.numel()) + 1e-5
    assert torch.allclose(y[y != 0], torch.tensor(1 / (1 - p), device=DEVICE))
    torch.manual_seed(1)
    assert torch.equal(forms.dropout(x, p), y)


def test_all_forms_have_the_same_names_and_arguments():
    for name in OPERATIONS:
        wanted = list(inspect.signature(getattr(plain, name)).parameters)
        assert list(inspect.signature(getattr(kernels, name)).parameters) == wanted
        for param in FAST:
            assert list(inspect.signature(getattr(param.values[0], name)).parameters) == wanted, name
            assert name in param.values[0].__all__


def test_the_switch_chooses_plain_where_it_is_told_to(monkeypatch):
    x = torch.randn(3, 4)
    assert kernels.backend_of(x) in (cpu, kernels.triton_backend())
    monkeypatch.setattr(kernels, "_choice", "auto")  # set back after the test
    kernels.use("plain")
    assert kernels.backend_of(x) is plain
    kernels.use("auto")
    assert kernels.backend_of(x.double()) is cpu


@pytest.mark.parametrize("p", [1 - 1 / 131_072, 1 - 2**-20, 1 - 2**-34])
@pytest.mark.parametrize("forms", [*FAST, pytest.param(plain, id="plain")])
def test_dropout_of_nearly_everything_drops_nearly_everything(forms, p):
    assert (forms.dropout(torch.ones(300, 100, device=DEVICE), p) != 0).sum() < 20
