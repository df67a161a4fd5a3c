"""The Triton kernels against the plain forms in float64.

On a machine with a GPU the tests run there. Without one Triton's interpreter runs the kernels on the CPU; the switch
for it has to be thrown before the kernels are imported, so one test runs this file again in a process of its own.
"""

import contextlib
import importlib.metadata
import itertools
import os
import random
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import tiny
import torch
import torch.nn.functional as F
from tiny import ROOT
from torch import nn

import kernels
from adamw import AdamW
from bench import gpu as bench_gpu
from bench import gpu_step
from bert import Bert
from kernels import INTERPRET, adamw, add_norm, attention, embed, linear_gelu, mean_loss, plain, precision
from kernels.plain import Update
from tokenizer import pack

TRITON = kernels.triton_backend() is not None
if TRITON:
    from kernels.bias_gelu import bias_gelu
    from kernels.random_bits import new_seed, threshold
    from kernels.weight_gradients import rounded, sums_into_float32

DEVICE = torch.device("cuda" if torch.cuda.is_available() and not INTERPRET else "cpu")
HERE = TRITON and (DEVICE.type == "cuda" or INTERPRET)  # the kernels run in this process
DTYPES = torch.float32, torch.bfloat16, torch.float16
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float16: 3e-3}

if INTERPRET:
    torch.set_num_threads(1)  # its operations are far too small to share out
runs_kernels = pytest.mark.skipif(not HERE, reason="runs in the interpreter's process")


def version_of(package):
    return tuple(map(int, importlib.metadata.version(package).split(".")[:2]))


@pytest.mark.skipif(not TRITON, reason="Triton is not installed")
@pytest.mark.skipif(HERE, reason="the kernels run in this process")
@pytest.mark.skipif(
    TRITON and version_of("triton") < (3, 7) and version_of("numpy") >= (2, 4),
    reason="the interpreter before Triton 3.7 needs numpy before 2.4",
)
def test_the_kernels_in_the_interpreter():
    command = [sys.executable, "-m", "pytest", "-x", __file__, str(ROOT / "tests/test_kernels.py")]
    env = os.environ | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout[-4000:]


@pytest.fixture(autouse=HERE)
def same_draws_and_unwritten_memory_is_nan():
    """torch.empty gives NaN, so an element that no program writes cannot look right by luck."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    assert torch.utils.deterministic.fill_uninitialized_memory
    torch.manual_seed(0)
    yield
    torch.use_deterministic_algorithms(False)


def assert_near(fast, exact, dtype):
    """The largest difference, as a share of the largest number, is within the tolerance of dtype."""
    assert fast.shape == exact.shape
    if fast.numel():
        error = (fast.double() - exact.double()).abs().max() / exact.abs().max().clamp(min=1)
        assert error <= TOLERANCE[dtype], f"error {error:.2e}"


def mask(seed, rows, columns, p):
    """The formula of `kernels/random_bits.py`, in 64-bit arithmetic cut to 32 bits: keep / (1 - p), (rows, columns)."""

    def mix(x):
        for shift, factor in ((16, 0x7FEB352D), (15, 0x846CA68B), (16, 1)):
            x = ((x ^ (x >> shift)) * factor) & 0xFFFFFFFF
        return x

    low, high = int(seed) & 0xFFFFFFFF, int(seed) >> 32
    stream = mix(mix((rows + low) & 0xFFFFFFFF) ^ high)
    bits = mix((stream[:, None] + columns[None, :] * 0x9E3779B9) & 0xFFFFFFFF)
    return (bits >= threshold(p)).double() / (1 - p)


def seed_of(number, p):
    """The seed that the next call will draw: PyTorch's generator is set, looked at, and set again."""
    torch.manual_seed(number)
    seed = new_seed(torch.empty(0, device=DEVICE), p)
    torch.manual_seed(number)
    return seed


def bounds_of(lengths):
    return torch.tensor([0, *itertools.accumulate(lengths)], dtype=torch.int32, device=DEVICE)


def attention_exact(qkv, lengths, heads, p, seed):
    """Softmax attention with the mask of `seed`, one sentence and one head after the other, in float64."""
    q, k, v = qkv.view(len(qkv), 3, heads, -1).unbind(1)  # each (T, heads, d)
    out, start = [], 0
    for m in lengths:
        token, place = torch.arange(start, start + m, device=DEVICE), torch.arange(m, device=DEVICE)
        of_heads = []
        for h in range(heads):
            probs = torch.softmax(q[token, h] @ k[token, h].t() / q.shape[-1] ** 0.5, -1)
            if p:
                probs = probs * mask(seed, token * heads + h, place, p)
            of_heads.append(probs @ v[token, h])
        out.append(torch.cat(of_heads, 1))
        start += m
    return torch.cat(out)


@runs_kernels
@pytest.mark.parametrize("number", range(36))
def test_attention_on_random_batches(number):
    rng = random.Random(number)
    d = (1, 16, 17, 32, 64, 80, 128)[number % 7]
    count, longest = rng.choice(((1, 200), (3, 60), (6, 24), (14, 10), (40, 3)))
    heads = rng.choice((1, 2, 3) if count == 6 else (1, 2) if count == 3 else (1,))
    lengths = [rng.randint(1, longest) for _ in range(count)]
    p, dtype = rng.choice((0.0, 0.1, 0.5)), DTYPES[number // 7 % 3]
    seed = seed_of(number, p)
    qkv = torch.randn(sum(lengths), 3 * heads * d, generator=torch.Generator().manual_seed(number)).to(DEVICE, dtype)
    qkv.requires_grad_()
    out = attention(qkv, bounds_of(lengths), max(lengths), heads, p)
    dout = torch.randn_like(out)
    out.backward(dout)
    exact = qkv.detach().double().requires_grad_()
    exact_out = attention_exact(exact, lengths, heads, p, seed)
    exact_out.backward(dout.double())
    assert out.dtype == qkv.grad.dtype == dtype
    assert_near(out, exact_out, dtype)
    assert_near(qkv.grad, exact.grad, dtype)


@runs_kernels
def test_attention_takes_strided_inputs_and_empty_sentences():
    lengths = [3, 0, 1, 20, 0]
    wide = torch.randn(sum(lengths), 2 * 3 * 2 * 16, device=DEVICE, requires_grad=True)
    qkv = wide[:, ::2]
    batch = bounds_of(lengths), 20
    out = attention(qkv, *batch, 2)
    exact = qkv.detach().double().requires_grad_()
    exact_out = plain.attention(exact, *batch, 2)
    assert_near(out, exact_out, torch.float32)
    dout = torch.randn(1, 1, device=DEVICE).expand_as(out)
    (fast,) = torch.autograd.grad(out, qkv, dout)
    (slow,) = torch.autograd.grad(exact_out, exact, dout.double())
    assert_near(fast, slow, torch.float32)


@runs_kernels
def test_attention_of_nothing_is_nothing():
    qkv = torch.randn(0, 3 * 32, device=DEVICE, requires_grad=True)
    out = attention(qkv, bounds_of([]), 0, 2, 0.1)
    out.sum().backward()
    assert out.shape == (0, 32) and qkv.grad.shape == (0, 96)


@runs_kernels
def test_attention_does_not_overflow_on_large_scores():
    lengths = [70, 2]
    qkv = (30 * torch.randn(72, 3 * 32, device=DEVICE)).requires_grad_()
    out = attention(qkv, bounds_of(lengths), 70, 2)
    out.sum().backward()
    exact = qkv.detach().double().requires_grad_()
    exact_out = attention_exact(exact, lengths, 2, 0, None)
    exact_out.sum().backward()
    assert_near(out, exact_out, torch.bfloat16)  # an exponential of thousands has few digits in float32
    assert torch.isfinite(qkv.grad).all()


@runs_kernels
def test_attention_backward_is_deterministic():
    qkv = torch.randn(60, 3 * 64, device=DEVICE, requires_grad=True)
    grads = []
    for _ in range(2):
        torch.manual_seed(3)
        out = attention(qkv, bounds_of([40, 20]), 40, 2, 0.1)
        grads.append(torch.autograd.grad(out, qkv, torch.ones_like(out))[0])
    assert torch.equal(*grads)


def drawn_masks(heads, m, p, calls=1):
    """Attention with equal scores and v = 1 gives out the mask itself: (calls, heads, m, m), 1 where kept."""
    qkv = torch.zeros(m, 3, heads, m, device=DEVICE)
    qkv[:, 2] = torch.eye(m, device=DEVICE)[:, None]
    qkv = qkv.view(m, -1).requires_grad_()
    batch, masks = (bounds_of([m]), m), []
    for _ in range(calls):
        out = attention(qkv, *batch, heads, p)
        (dqkv,) = torch.autograd.grad(out, qkv, qkv.detach().view(m, 3, -1)[:, 2])  # do = 1: dv is the mask transposed
        keep = out.view(m, heads, m).transpose(0, 1) * m * (1 - p)
        backward = dqkv.view(m, 3, heads, m)[:, 2].permute(1, 2, 0) * m * (1 - p)
        torch.testing.assert_close(keep, backward)
        masks.append(keep.round())
    return torch.stack(masks)


@runs_kernels
def test_attention_dropout_has_the_right_share_and_one_mask_forward_and_backward():
    torch.manual_seed(0)
    keep = drawn_masks(heads=2, m=64, p=0.3)
    assert set(keep.unique().tolist()) == {0.0, 1.0}
    assert abs(keep.mean() - 0.7) < 4 * (0.3 * 0.7 / keep.numel()) ** 0.5


@runs_kernels
def test_attention_dropout_differs_between_heads_calls_and_rows_and_replays():
    torch.manual_seed(0)
    keep = drawn_masks(heads=2, m=64, p=0.5, calls=2)
    for a, b in itertools.combinations(keep.flatten(0, 1), 2):  # two layers or two steps are two calls
        assert abs((a == b).float().mean() - 0.5) < 0.05
        assert abs((a[1:] == b[:-1]).float().mean() - 0.5) < 0.05
    assert abs((keep[..., 1:, :] == keep[..., :-1, :]).float().mean() - 0.5) < 0.05
    assert abs((keep[..., 1:] == keep[..., :-1]).float().mean() - 0.5) < 0.05
    torch.manual_seed(0)
    assert torch.equal(drawn_masks(heads=2, m=64, p=0.5, calls=2), keep)


def norm_of(H):
    norm = nn.LayerNorm(H, eps=1e-12, device=DEVICE)
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    return norm


@runs_kernels
@pytest.mark.parametrize("number", range(24))
def test_add_norm_on_random_rows(number):
    rng = random.Random(number)
    H = (6, 204, 384, 768, 1024)[number % 5]  # of 1 number a GPU, which fuses multiply and add, makes noise / √ε
    T, p, dtype = (
        rng.randint(1, 30),
        rng.choice((0.0, 0.1, 0.5)),
        DTYPES[number % 3],
    )
    torch.manual_seed(number)
    norm = norm_of(H)
    bias = torch.randn(H, device=DEVICE, requires_grad=True)
    rows = [torch.randn(T, H, device=DEVICE).to(dtype).requires_grad_() for _ in range(2 + number % 3 // 2)]
    if number % 4 == 1:  # what comes out of the embedding is float32 whatever the linear layers make
        rows[1] = rows[1].detach().float().requires_grad_()
    seed = seed_of(number, p)
    y = add_norm(rows[0], bias, rows[1], norm, p, *rows[2:])
    inputs = [rows[0], bias, rows[1], norm.weight, norm.bias, *rows[2:]]
    exact = [x.detach().double().requires_grad_() for x in inputs]
    x, b, residual, weight, shift, *extra = exact
    factor = mask(seed, torch.arange(T, device=DEVICE), torch.arange(H, device=DEVICE), p) if p else 1
    exact_y = F.layer_norm(residual + (x + b) * factor + sum(extra), (H,), weight, shift, norm.eps)
    dy = torch.randn_like(y)
    assert y.dtype == dtype
    assert_near(y, exact_y, dtype)
    wanted = torch.autograd.grad(exact_y, exact, dy.double())
    for given, grad, exact_grad in zip(inputs, torch.autograd.grad(y, inputs, dy), wanted, strict=True):
        assert grad.dtype == given.dtype
        assert_near(grad, exact_grad, dtype)


@runs_kernels
@pytest.mark.parametrize("number", range(16))
def test_bias_gelu_on_random_rows(number):
    rng = random.Random(number)
    width = (1, 204, 816, 1536, 3072)[number % 5]
    T, dtype = rng.randint(1, 50), DTYPES[number % 3]
    torch.manual_seed(number)
    x = (2 * torch.randn(width, T, device=DEVICE)).to(dtype).t().requires_grad_()  # columns lie next to each other
    bias = torch.randn(width, device=DEVICE, requires_grad=True)
    y = bias_gelu(x, bias)
    exact = [x.detach().double().requires_grad_(), bias.detach().double().requires_grad_()]
    exact_y = plain.gelu(exact[0] + exact[1])
    dy = torch.randn(1, width, device=DEVICE).to(dtype).expand(T, width)
    assert y.dtype == dtype
    assert_near(y, exact_y, dtype)
    wanted = torch.autograd.grad(exact_y, exact, dy.double())
    for grad, exact_grad in zip(torch.autograd.grad(y, (x, bias), dy), wanted, strict=True):
        assert_near(grad, exact_grad, dtype)


def tables_of(H, dtype, rows):
    return [torch.randn(n, H, device=DEVICE).to(dtype).requires_grad_() for n in rows]


@runs_kernels
@pytest.mark.parametrize("number", range(36))
def test_embed_on_random_tokens(number):
    rng = random.Random(number)
    H, dtype = (6, 17, 204, 384, 768)[number % 5], (torch.float32, torch.bfloat16)[number % 2]
    T, rows = rng.choice((1, 2, 9, 20, 40)), (rng.choice((1, 3, 40)), rng.choice((1, 20)), rng.choice((1, 2, 3)))
    torch.manual_seed(number)
    tables, norm = tables_of(H, dtype, rows), norm_of(H)
    places = [torch.randint(n, (T,), device=DEVICE) for n in rows]
    standing = [torch.randn_like(t) if number % 3 else None for t in tables]
    for table, grad in zip(tables, standing, strict=True):
        table.grad = None if grad is None else grad.clone()
    y = embed(*places, tables, norm)
    exact = [t.detach().double().requires_grad_() for t in (*tables, *norm.parameters())]
    z = sum(table[place] for table, place in zip(exact[:3], places, strict=True))
    exact_y = nn.functional.layer_norm(z, (H,), *exact[3:], norm.eps)
    dy = torch.randn_like(y)
    assert y.dtype == dtype
    assert_near(y, exact_y, dtype)
    y.backward(dy)
    exact_y.backward(dy.double())
    for x, e, before in zip((*tables, *norm.parameters()), exact, (*standing, None, None), strict=True):
        assert x.grad.dtype == x.dtype
        assert_near(x.grad, e.grad if before is None else e.grad + before.double(), dtype)


@runs_kernels
def test_embed_adds_to_the_standing_gradient_in_place_and_only_where_it_trains():
    tables, norm = tables_of(32, torch.float32, (9, 8, 2)), norm_of(32)
    places = [torch.tensor(p, device=DEVICE) for p in ([3, 3, 8, 3], [0, 1, 2, 0], [0, 0, 1, 0])]
    for table in tables:
        table.grad = torch.ones_like(table)
    stands = [table.grad for table in tables]
    tables[1].requires_grad_(False)
    embed(*places, tables, norm).square().sum().backward()
    assert all(table.grad is grad for table, grad in zip(tables, stands, strict=True))
    touched = (stands[0] != 1).any(1)
    assert touched.nonzero().flatten().tolist() == [3, 8] and (stands[1] == 1).all() and (stands[2] != 1).any()
    with torch.no_grad():
        assert not embed(*places, tables, norm).requires_grad


@runs_kernels
def test_embed_backward_is_deterministic():
    tables, norm = tables_of(64, torch.float32, (3, 9, 2)), norm_of(64)
    places = [torch.randint(len(t), (70,), device=DEVICE) for t in tables]
    dy, grads = torch.randn(70, 64, device=DEVICE), []
    for _ in range(2):
        for x in (*tables, *norm.parameters()):
            x.grad = None
        embed(*places, tables, norm).backward(dy)
        grads.append([x.grad for x in (*tables, *norm.parameters())])
    assert all(torch.equal(*pair) for pair in zip(*grads, strict=True))


@runs_kernels
@pytest.mark.parametrize("number", range(36))
def test_mean_loss_on_random_batches(number):
    rng = random.Random(number)
    classes, dtype = (5, 2, 0, 3)[number % 4], (torch.float32, torch.bfloat16)[number // 4 % 2]
    B, C, size = rng.choice((1, 2, 7, 32, 64, 300)), classes if classes > 2 else 1, rng.choice((1, 10, 100))
    torch.manual_seed(number)
    logits = (size * torch.randn(C, B, device=DEVICE)).to(dtype).t().requires_grad_()
    labels = torch.randint(classes, (B,), device=DEVICE).float() if classes else 5 * torch.rand(B, device=DEVICE)
    exact = logits.detach().double().requires_grad_()
    loss, exact_loss = mean_loss(logits, labels, classes), mean_loss(exact, labels.double(), classes)
    assert loss.dtype == torch.float32 and loss.shape == ()
    assert_near(loss, exact_loss, torch.float32)
    (0.7 * loss).backward()
    (0.7 * exact_loss).backward()
    assert logits.grad.dtype == dtype
    assert_near(logits.grad, exact.grad, dtype)


@runs_kernels
def test_the_mean_loss_of_what_is_not_a_number_is_not_a_number():
    for classes in (5, 2, 0):
        C = classes if classes > 2 else 1
        nothing = torch.zeros(0, C, device=DEVICE, requires_grad=True)
        with np.errstate(invalid="ignore"):
            loss = mean_loss(nothing, torch.zeros(0, device=DEVICE), classes)
            lost = mean_loss(torch.full((3, C), torch.nan, device=DEVICE), torch.ones(3, device=DEVICE), classes)
        loss.backward()
        assert loss.isnan() and lost.isnan() and nothing.grad.shape == (0, C)


@runs_kernels
def test_rows_of_nothing():
    norm, bias = norm_of(32), torch.randn(32, device=DEVICE, requires_grad=True)
    x = torch.randn(0, 32, device=DEVICE, requires_grad=True)
    for y in (add_norm(x, bias, x, norm, 0.1), bias_gelu(x, bias)):
        bias.grad = None
        y.sum().backward()
        assert y.shape == (0, 32) and not bias.grad.any()
    tables, none = tables_of(32, torch.float32, (9, 8, 2)), torch.zeros(0, dtype=torch.int64, device=DEVICE)
    y = embed(none, none, none, tables, norm)
    y.sum().backward()
    assert y.shape == (0, 32) and not any(table.grad.any() for table in tables)


@runs_kernels
def test_add_norm_dropout_share_and_differing_calls():
    norm, (T, H, p) = norm_of(256), (64, 256, 0.3)
    x = torch.ones(T, H, device=DEVICE, requires_grad=True)
    torch.manual_seed(0)
    kept = []
    for _ in range(2):
        y = add_norm(x, torch.zeros(H, device=DEVICE), torch.zeros(T, H, device=DEVICE), norm, p)
        (dx,) = torch.autograd.grad(y, x, torch.randn_like(y))
        forward = (y - norm.bias) / norm.weight > 0  # the row's larger value is what was kept
        assert torch.equal(forward, dx != 0)
        kept.append(forward)
    share = torch.stack(kept).float().mean()
    assert abs(share - 0.7) < 4 * (0.3 * 0.7 / (2 * T * H)) ** 0.5
    assert abs((kept[0] == kept[1]).float().mean() - (0.7**2 + 0.3**2)) < 0.02


@runs_kernels
def test_float64_takes_the_plain_form_and_passes_gradcheck():
    lengths, norm = [3, 1, 5], norm_of(6).double()
    batch = bounds_of(lengths), 5
    x, bias = torch.randn(9, 6, device=DEVICE).double(), torch.randn(6, device=DEVICE).double()
    qkv = torch.randn(9, 18, device=DEVICE).double()
    ids = torch.tensor([4, 0, 4, 1, 4, 2], device=DEVICE)
    for form, *inputs in (
        (lambda qkv: attention(qkv, *batch, 2), qkv),
        (lambda x, b: add_norm(x, b, x, norm, 0.0), x, bias),
        (linear_gelu, x, torch.randn(6, 6, device=DEVICE).double(), bias),
        (lambda *tables: embed(ids, ids % 2, ids % 2, tables, norm), *x.split((5, 2, 2))),
        (lambda z: mean_loss(z, ids[:3].double(), 6), x[:3]),
        (lambda z: mean_loss(z, (ids[:5] % 2).double(), 2), x[:5, :1]),
        (lambda z: mean_loss(z, x[5:, 0].detach(), 0), x[:4, :1]),
    ):
        assert torch.autograd.gradcheck(form, [tensor.detach().requires_grad_() for tensor in inputs])


@runs_kernels
@pytest.mark.parametrize("clip", (0.0, 1.0, 1e6))
def test_adamw_update_is_the_formula(clip):
    torch.manual_seed(0)
    fast = [torch.randn(4, n, device=DEVICE) for n in (1, 4095, 9000)]
    for x in fast:
        x[2:] = 0  # m and v, as training starts
    exact = [x.double() for x in fast]
    for step in range(3):
        numbers = (1e-3, 1e-9, 1 - 1e-3 * step)
        norm = adamw([Update(*x, *numbers) for x in fast], clip, (0.9, 0.999))
        exact_norm = plain.adamw([Update(*x, *numbers) for x in exact], clip, (0.9, 0.999))
        assert_near(norm, exact_norm, torch.float32)
    for x, y in zip(fast, exact, strict=True):
        assert_near(x, y, torch.float32)
        torch.testing.assert_close(x[3].double(), y[3], rtol=4e-6, atol=0)


@runs_kernels
def test_the_optimizer_equals_torch_adamw():
    torch.manual_seed(0)
    model, twin = (nn.Sequential(nn.Linear(40, 30), nn.Linear(30, 1)).to(DEVICE) for _ in range(2))
    twin.load_state_dict(model.state_dict())
    optimizer = AdamW({"all": list(model.named_parameters())}, weight_decay=0.1, clip=0.5)
    decayed = [p for p in twin.parameters() if p.dim() > 1]
    rest = [p for p in twin.parameters() if p.dim() < 2]
    theirs = torch.optim.AdamW([{"params": decayed}, {"params": rest, "weight_decay": 0.0}], 1e-3, weight_decay=0.1)
    x = torch.randn(8, 40, device=DEVICE)
    for _ in range(5):
        optimizer.zero_grad()
        theirs.zero_grad()
        model(x).square().mean().backward()
        twin(x).square().mean().backward()
        norm = optimizer.step({"all": 1e-3})
        torch.testing.assert_close(norm, nn.utils.clip_grad_norm_(twin.parameters(), 0.5))
        theirs.step()
    for p, q in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-5, atol=1e-6)


@runs_kernels
@pytest.mark.parametrize("number", range(12))
def test_linear_adds_its_gradients_to_those_that_stand(number):
    """x feeds a residual connection as well, or not; weights stand with a gradient, or not, or need none."""
    torch.manual_seed(number)
    T, size_in, size_out, kind = (1, 5, 40)[number % 3], 24, 17, number % 4
    x = torch.randn(T, size_in, device=DEVICE, requires_grad=True)
    weight = torch.randn(size_out, size_in, device=DEVICE, requires_grad=kind != 3)
    bias = torch.randn(size_out, device=DEVICE, requires_grad=True) if number % 2 else None
    parameters = [p for p in (weight, bias) if p is not None and p.requires_grad]
    before = [torch.randn_like(p) if kind else None for p in parameters]
    for p, grad in zip(parameters, before, strict=True):
        p.grad = None if grad is None else grad.clone()
    stood = [p.grad for p in parameters]
    y = kernels.linear(x, weight, bias)
    dy, dx = torch.randn_like(y), torch.randn_like(x)
    ((y * dy).sum() + (x * dx).sum() * (number > 5)).backward()
    assert_near(y, plain.linear(*(None if p is None else p.detach().double() for p in (x, weight, bias))), y.dtype)
    assert_near(x.grad, dy.double() @ weight.detach().double() + dx * (number > 5), x.dtype)
    wanted = {2: dy.double().t() @ x.detach().double(), 1: dy.double().sum(0)}
    for p, grad, stands in zip(parameters, before, stood, strict=True):
        assert_near(p.grad, wanted[p.dim()] + (0 if grad is None else grad), p.dtype)
        assert stands is None or p.grad is stands
    assert weight.requires_grad or weight.grad is None


@pytest.mark.skipif(not TRITON, reason="Triton is not installed")
@pytest.mark.parametrize("error", [TypeError, RuntimeError, NotImplementedError])
def test_a_product_that_knows_no_float32_sum_is_noticed(error, monkeypatch):
    def addmm(*_, **__):
        raise error("out_dtype")

    monkeypatch.setattr(torch, "addmm", addmm)
    assert not sums_into_float32.__wrapped__(torch.device("cpu"))


@runs_kernels
def test_the_optimizer_keeps_16_bit_copies_and_nobody_reads_an_old_one():
    model = nn.Linear(40, 30).to(DEVICE)
    with precision.pretend((9, 0)):
        optimizer = AdamW({"all": list(model.named_parameters())})
        for _ in range(2):
            copy = rounded(model.weight, torch.bfloat16)
            assert copy is model.weight.copy_16
            torch.testing.assert_close(copy.float(), model.weight.detach(), rtol=2**-7, atol=0)  # the interpreter cuts
            model.weight.grad.normal_()
            optimizer.step({"all": 1e-2})
        with torch.no_grad():
            model.weight.add_(1)  # by somebody else
        fresh = rounded(model.weight, torch.bfloat16)
        assert fresh is not copy and torch.equal(fresh, model.weight.to(torch.bfloat16))
        optimizer.resume(optimizer.steps)
        assert rounded(model.weight, torch.bfloat16).data_ptr() == optimizer.flat_parameters()[0].copy.data_ptr()
        assert torch.equal(rounded(model.weight, torch.bfloat16), model.weight.to(torch.bfloat16))
        assert rounded(model.weight, torch.float16).dtype == torch.float16


@runs_kernels
def test_seeds_of_one_pass_come_from_one_draw_and_differ(monkeypatch):
    x, draws, randint = torch.zeros(1, device=DEVICE), [], torch.randint
    monkeypatch.setattr(torch, "randint", lambda *a, **k: draws.append(a) or randint(*a, **k))
    found = []
    for _ in range(2):
        torch.manual_seed(1)
        with kernels.dropout_seeds(x):
            found.append([new_seed(x, 0.1) for _ in range(40)])
    assert len(draws) == 2 and all(seed.data_ptr() % 16 == 0 for seed in found[0])
    assert [int(seed) for seed in found[0]] == [int(seed) for seed in found[1]]
    assert len({int(seed) for seed in found[0]}) == 40
    new_seed(x, 0.1)
    assert len(draws) == 3  # nothing of a pass is left over


@pytest.mark.skipif(not INTERPRET, reason="orders the programs, which a GPU does itself")
def test_programs_in_any_order_give_the_same_bits(monkeypatch):
    from triton.runtime import interpreter

    def step():
        torch.manual_seed(0)
        return [p.grad.clone() for p in model_after_a_step()]

    wanted, rng, builder = step(), random.Random(0), interpreter.interpreter_builder
    usual, orders = builder.set_grid_idx, {}

    def elsewhere(*place):
        """Each place in the grid is taken once, in another order."""
        limits = tuple(builder.grid_dim)
        if limits not in orders or place == (0, 0, 0):
            orders[limits] = [rng.sample(range(n), n) for n in limits]
        usual(*(order[i] for order, i in zip(orders[limits], place, strict=True)))

    monkeypatch.setattr(builder, "set_grid_idx", elsewhere)
    assert all(torch.equal(a, b) for a, b in zip(wanted, step(), strict=True))
    assert orders


def model_after_a_step():
    """The parameters of a tiny encoder with dropout, with gradients, after a step of AdamW."""
    model = Bert(tiny.config(num_hidden_layers=1)).to(DEVICE).train()
    optimizer, rng = AdamW({"shared": list(model.named_parameters())}), random.Random(1)
    batch = pack([([rng.randrange(120) for _ in range(n)], n // 2) for n in (18, 3)]).to(DEVICE)
    _, pooled = model(batch)
    pooled.square().mean().backward()
    optimizer.step({"shared": 1e-3})
    for p in model.parameters():
        yield SimpleNamespace(grad=p.grad)
        yield SimpleNamespace(grad=p.detach())


def losses_of_a_training_run(steps=3, count=5, half=False):
    """A tiny encoder without dropout learns to give its [CLS] rows a fixed pooled vector.

    Args: half, whether products run in the device's 16-bit type.
    """
    torch.manual_seed(0)
    rng = random.Random(0)
    model = Bert(tiny.config(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)).to(DEVICE)
    target = torch.randn(count, 32, device=DEVICE)
    optimizer, losses = AdamW({"shared": list(model.named_parameters())}), []
    for _ in range(steps):
        lengths = [rng.randint(1, 14) for _ in range(count)]
        batch = pack([([rng.randrange(120) for _ in range(n)], n // 2) for n in lengths]).to(DEVICE)
        with precision.autocast(DEVICE) if half else contextlib.nullcontext():
            _, pooled = model(batch)
            loss = (pooled.float() - target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step({"shared": 1e-3})
        losses.append(loss.item())
    return losses


@runs_kernels
def test_whole_training_steps_give_the_losses_of_the_plain_path(monkeypatch):
    fast = losses_of_a_training_run()
    monkeypatch.setattr(kernels, "_choice", "plain")
    torch.testing.assert_close(fast, losses_of_a_training_run(), rtol=1e-5, atol=0)
    assert fast[-1] < fast[0]


@runs_kernels
@pytest.mark.parametrize(("capability", "dtype"), [((9, 0), torch.bfloat16), ((7, 5), torch.float16)])
def test_whole_training_steps_in_16_bits_give_nearly_the_losses_of_the_plain_path(capability, dtype, monkeypatch):
    with precision.pretend(capability):
        assert precision.half_dtype(DEVICE) == dtype
        fast = losses_of_a_training_run(2, 1, half=True)
    monkeypatch.setattr(kernels, "_choice", "plain")
    with precision.pretend((1, 0)):  # float32
        exact = losses_of_a_training_run(2, 1, half=True)
    torch.testing.assert_close(fast, exact, rtol=2e-2 if dtype == torch.bfloat16 else 3e-3, atol=0)
    assert fast != exact


@runs_kernels
def test_the_forms_of_attention_agree():
    lengths = [5, 40, 1, 17]
    qkv = torch.randn(sum(lengths), 3 * 34, device=DEVICE)
    batch = bounds_of(lengths), 40
    assert_near(attention(qkv, *batch, 2), plain.attention(qkv, *batch, 2), torch.float32)
    assert_near(
        kernels.cpu.attention(qkv.cpu(), batch[0].cpu(), 40, 2), plain.attention(qkv, *batch, 2).cpu(), torch.float32
    )


@pytest.mark.skipif(not INTERPRET, reason="the interpreter is what --toy is for")
def test_the_benchmark_runs_at_toy_size(capsys):
    assert not bench_gpu.main(["--kernels", "--toy"])
    rows = capsys.readouterr().out.splitlines()
    for kernel in ("attention sst", "attention quora", "add_norm", "gelu", "embed", "loss", "adamw"):
        assert any(row.startswith(f"| {kernel}") and "Triton" in row for row in rows)


@pytest.mark.skipif(not INTERPRET, reason="the interpreter is what --toy is for")
def test_a_form_that_fails_costs_the_benchmark_its_own_row_only(capsys, monkeypatch):
    def broken(*_):
        raise RuntimeError("no such instruction")

    monkeypatch.setattr(gpu_step, "packed_step", broken)
    assert bench_gpu.main(["--step", "--toy"])
    printed = capsys.readouterr()
    rows = [row for row in printed.out.splitlines() if "no such instruction" in row]
    assert len(rows) == 4 and all("this project" in row for row in rows)  # four kinds of lengths
    assert "transformers, SDPA, padded" in printed.out and "Traceback" in printed.err
