"""The plain forms against the formulas element by element, and the CPU's forms against the plain ones in float64."""

import itertools

import pytest
import torch
import torch.nn.functional as F
from torch.autograd import gradcheck

from kernels import add_norm, attention, cls_attention, dropout, feed_forward, linear, linear_gelu, plain
from kernels.cpu import libraries
from kernels.cpu.dropout import dropout_mask
from kernels.cpu.products import _Linear, bfloat16_products, use_bfloat16_products


def bounds(lengths):
    """cu_seqlens and max_seqlen."""
    return torch.tensor([0, *lengths]).cumsum(0).int(), max(lengths, default=0)


def attention_by_element(qkv, lengths, heads):
    """The formula, one sentence, head and query after the other: qkv (T, 3H) -> (T, H)."""
    q, k, v = qkv.view(len(qkv), 3, heads, qkv.shape[1] // 3 // heads).unbind(1)  # each (T, heads, d)
    out, ends = torch.zeros_like(q), list(itertools.accumulate(lengths))
    for start, end in zip([0, *ends], ends, strict=False):
        for i, h in itertools.product(range(start, end), range(heads)):
            e = torch.stack([torch.exp(q[i, h] @ k[j, h] / q.shape[-1] ** 0.5) for j in range(start, end)])
            out[i, h] = sum(e[j - start] / e.sum() * v[j, h] for j in range(start, end))
    return out.flatten(1)


@pytest.mark.parametrize("lengths", [[1], [5, 3, 9, 1], [4, 0, 2], []])
def test_plain_attention_is_the_formula(lengths):
    torch.manual_seed(0)
    qkv = torch.randn(sum(lengths), 3 * 2 * 5, dtype=torch.float64)
    assert torch.allclose(plain.attention(qkv, *bounds(lengths), 2), attention_by_element(qkv, lengths, 2))


@pytest.mark.parametrize(("heads", "d"), [(1, 1), (2, 17), (12, 32)])
@pytest.mark.parametrize("lengths", [[1], [5, 3, 9, 1, 40, 2, 11], [7] * 4, [200, 1, 1], []])
def test_attention_is_the_formula_forward_and_backward(heads, d, lengths):
    torch.manual_seed(0)
    fast = torch.randn(sum(lengths), 3 * heads * d, requires_grad=True)
    slow = fast.detach().double().requires_grad_()
    weights = torch.randn(sum(lengths), heads * d)
    out, expected = attention(fast, *bounds(lengths), heads), plain.attention(slow, *bounds(lengths), heads)
    assert torch.allclose(out.double(), expected, atol=1e-5)
    if lengths:
        (out * weights).sum().backward()
        (expected * weights).sum().backward()
        assert torch.allclose(fast.grad.double(), slow.grad, atol=1e-5)


def test_attention_s_gradient_is_that_of_finite_differences_with_dropout_on():
    batch = bounds([3, 1, 4])
    qkv = torch.randn(8, 3 * 6, dtype=torch.float64, requires_grad=True)

    def same_masks(x):
        torch.manual_seed(5)
        return attention(x, *batch, 2, 0.3)

    assert gradcheck(same_masks, (qkv,))


def test_a_batch_that_was_evaluated_trains():
    batch = bounds([6, 3, 5])  # its groups are kept
    inputs = [torch.randn(shape, requires_grad=True) for shape in ((14, 8), (24, 8), (24,))]
    with torch.inference_mode():
        cls_attention(*inputs, *batch, 2)
    cls_attention(*inputs, *batch, 2).sum().backward()
    assert inputs[0].grad.any()


def test_attention_of_one_sentence_does_not_see_the_others():
    torch.manual_seed(0)
    batch = bounds([6, 4])
    qkv = torch.randn(10, 24)
    out = attention(qkv, *batch, 2)
    qkv[6:] = torch.nan
    assert torch.equal(attention(qkv, *batch, 2)[:6], out[:6])


@pytest.mark.parametrize("lengths", [[1], [5, 3, 9, 1, 40, 2, 11], [4, 0, 7, 0]])
@pytest.mark.parametrize(("heads", "d"), [(1, 1), (2, 17)])
def test_cls_attention_is_the_first_row_of_the_formula_forward_and_backward(heads, d, lengths):
    torch.manual_seed(0)
    batch = bounds(lengths)
    H, starts = heads * d, [b for b, m in zip(batch[0].tolist(), lengths, strict=False) if m]
    fast = [torch.randn(shape, requires_grad=True) for shape in ((sum(lengths), H), (3 * H, H), (3 * H,))]
    slow = [t.detach().double().requires_grad_() for t in fast]
    weights = torch.randn(len(starts), H)
    out = cls_attention(*fast, *batch, heads)[torch.tensor(lengths) > 0]
    expected = plain.attention(F.linear(*slow), *batch, heads)[starts]
    assert torch.allclose(out.double(), expected, atol=1e-5)
    (out * weights).sum().backward()
    (expected * weights).sum().backward()
    for ours, theirs in zip(fast, slow, strict=True):
        assert torch.allclose(ours.grad.double(), theirs.grad, atol=1e-4)


def test_cls_attention_drops_probabilities_out_after_the_softmax():
    torch.manual_seed(0)
    batch = bounds([4, 4])  # of one length: one group, in the order of the batch
    h, weight, bias = torch.randn(8, 6).double(), torch.randn(18, 6).double(), torch.randn(18).double()
    torch.manual_seed(5)
    out = cls_attention(h, weight, bias, *batch, 2, 0.3)
    torch.manual_seed(5)
    masks = dropout_mask((2, 2, 4), 0.3, h)  # (sentences, heads, tokens)
    for b in range(2):
        q, k, v = F.linear(h[4 * b : 4 * b + 4], weight, bias).view(4, 3, 2, 3).unbind(1)  # each (4, heads, d)
        for i in range(2):
            probs = torch.softmax(k[:, i] @ q[0, i] / 3**0.5, 0) * masks[b, i]
            assert torch.allclose(out[b].view(2, 3)[i], probs @ v[:, i])


def test_cls_attention_s_gradient_is_that_of_finite_differences_with_dropout_on():
    batch = bounds([3, 1, 4])
    inputs = [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in ((8, 6), (18, 6), (18,))]

    def same_masks(*tensors):
        torch.manual_seed(5)
        return cls_attention(*tensors, *batch, 2, 0.3)

    assert gradcheck(same_masks, inputs)


@pytest.fixture
def library_of_all():
    """`library_of_all(name, gelu)`: this library takes all products until the test ends, GELU is fused or apart."""
    before = libraries.choice()
    yield lambda library, gelu="fused": libraries.use(dict.fromkeys(libraries.PRODUCTS, library) | {"gelu": gelu})
    libraries.use(before)


@pytest.mark.parametrize("library", libraries.LIBRARIES)
@pytest.mark.parametrize("shape", [(700, 384, 1536), (33, 1536, 384), (5, 3072, 7), (1, 1, 1)])
@pytest.mark.parametrize("product", [linear, _Linear.apply])
def test_linear_is_the_product_and_its_gradients(shape, product, library, library_of_all):
    library_of_all(library)
    torch.manual_seed(0)
    T, size_in, size_out = shape
    x, w = torch.randn(T, size_in, requires_grad=True), torch.randn(size_out, size_in, requires_grad=True)
    b = torch.randn(size_out, requires_grad=True)
    slow = [t.detach().double().requires_grad_() for t in (x, w, b)]
    weights = torch.randn(T, size_out)
    y, expected = product(x, w, b), F.linear(*slow)
    assert torch.allclose(y.double(), expected, atol=1e-3 if size_in > 1000 else 2e-4)
    (y * weights).sum().backward()
    (expected * weights).sum().backward()
    for ours, theirs in zip((x, w, b), slow, strict=True):
        assert torch.allclose(ours.grad.double(), theirs.grad, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("gelu", libraries.WAYS["gelu"])
@pytest.mark.parametrize("library", libraries.LIBRARIES)
def test_a_product_and_its_gelu_are_the_same_in_one_call_as_in_two(library, gelu, library_of_all):
    library_of_all(library, gelu)
    torch.manual_seed(0)
    x, w, b = torch.randn(33, 384), torch.randn(70, 384) / 20, torch.randn(70)
    z = F.linear(x.double(), w.double(), b.double())
    expected = z * (1 + torch.erf(z / 2**0.5)) / 2
    with torch.no_grad():
        assert torch.allclose(linear_gelu(x, w, b).double(), expected, atol=1e-5)
    assert torch.allclose(linear_gelu(x, w, b).double(), expected, atol=1e-5)


@pytest.mark.parametrize("width", [100, 768, 1536, 2000])  # those above PART go in parts
@pytest.mark.parametrize("gelu", ["apart", "fused", "one each"])
@pytest.mark.parametrize("library", libraries.LIBRARIES)
def test_feed_forward_is_the_formula_in_training_and_outside(width, library, gelu, library_of_all):
    library_of_all(library, gelu)
    if gelu == "one each":
        libraries.use({"forward 384 to 1536": "mkl"})  # up's
    torch.manual_seed(0)
    x, up, bias, down = torch.randn(33, 60), torch.randn(width, 60) / 8, torch.randn(width), torch.randn(60, width) / 8
    z = x.double() @ up.double().T + bias.double()
    expected = (z * (1 + torch.erf(z / 2**0.5)) / 2) @ down.double().T
    with torch.no_grad():
        assert torch.allclose(feed_forward(x, up, bias, down).double(), expected, atol=1e-4)
    up.requires_grad_()
    y = feed_forward(x, up, bias, down)
    assert torch.allclose(y.double(), expected, atol=1e-4)
    assert y.requires_grad


def test_linear_takes_a_slice_an_empty_batch_and_frozen_weights():
    wide, w = torch.randn(6, 20), torch.randn(4, 10)
    assert torch.allclose(linear(wide[:, :10], w), wide[:, :10] @ w.T, atol=1e-5)
    assert linear(torch.randn(0, 10), w).shape == (0, 4)
    x = torch.randn(3, 10, requires_grad=True)
    linear(x, w).sum().backward()
    assert torch.allclose(x.grad, w.sum(0).expand(3, 10), atol=1e-5)


@pytest.mark.skipif(not bfloat16_products(), reason="this processor has no bfloat16 products")
def test_bfloat16_products_round_the_operands_and_sum_in_float32():
    torch.manual_seed(0)
    x, w = torch.randn(64, 512, requires_grad=True), torch.randn(128, 512, requires_grad=True)
    b, dy = torch.randn(128, requires_grad=True), torch.randn(64, 128)
    rounded_x, rounded_w, rounded_dy = (t.detach().bfloat16().double() for t in (x, w, dy))
    use_bfloat16_products()
    try:
        y = linear(x, w)
        linear(x, w, b).backward(dy)
    finally:
        use_bfloat16_products(False)
    close = (
        {"atol": 1e-3} if torch.cpu._is_amx_tile_supported() else {"atol": 1e-3, "rtol": 2**-8}
    )  # see the text there
    rounded = rounded_x @ rounded_w.T
    assert torch.allclose(y.double(), rounded, **close)
    assert torch.allclose(x.grad.double(), rounded_dy @ rounded_w, **close)
    assert torch.allclose(w.grad.double(), rounded_dy.T @ rounded_x, **close)
    assert torch.allclose(b.grad, dy.sum(0), atol=1e-4)
    assert x.grad.dtype == w.grad.dtype == torch.float32
    assert not torch.allclose(y, linear(x, w), atol=1e-2)


def test_the_plain_forms_drop_out_probabilities_and_the_product_with_its_bias(monkeypatch):
    torch.manual_seed(0)
    mask = torch.rand(6, 6).double()  # of all that is dropped out here
    monkeypatch.setattr(plain, "dropout", lambda x, p: x * mask[: x.shape[-2], : x.shape[-1]] if p == 0.3 else None)
    q, k, v = torch.randn(3, 6, 6, dtype=torch.float64)
    probs = torch.softmax(q @ k.T / 6**0.5, 1) * mask
    assert torch.allclose(plain.attention(torch.cat((q, k, v), 1), *bounds([6]), 1, 0.3), probs @ v)
    norm = torch.nn.LayerNorm(6, dtype=torch.float64)
    x, b, residual = q, k[0], v
    assert torch.allclose(plain.add_norm(x, b, residual, norm, 0.3), norm(residual + (x + b) * mask))


def test_add_norm_drops_out_the_product_with_its_bias():
    x, b, residual = torch.randn(5, 8), torch.randn(8), torch.randn(5, 8)
    norm = torch.nn.LayerNorm(8)
    torch.manual_seed(3)
    z = add_norm(x, b, residual, norm, 0.3)
    torch.manual_seed(3)
    assert torch.allclose(z, norm(residual + (x + b) * dropout_mask((5, 8), 0.3, x)), atol=1e-6)


@pytest.mark.parametrize("p", [0.1, 0.3, 0.5])
def test_dropout_keeps_the_right_share_and_scales_it(p):
    torch.manual_seed(0)
    x = torch.ones(1000, 1001)
    y = dropout(x, p)
    kept = (y != 0).double().mean().item()
    assert abs(kept - (1 - p)) < 4 * (p * (1 - p) / x.numel()) ** 0.5 + 1e-5
    assert torch.allclose(y[y != 0], torch.tensor(1 / (1 - p)))
    neighbours = (y[:, 1:] != 0).double() * (y[:, :-1] != 0)  # four numbers come from one draw: are they independent?
    assert abs(neighbours.mean().item() - (1 - p) ** 2) < 2e-3


def test_dropout_follows_the_seed_and_uses_the_same_mask_backward():
    x = torch.randn(50, 7, requires_grad=True)
    torch.manual_seed(3)
    y = dropout(x, 0.4)
    torch.manual_seed(3)
    assert torch.equal(dropout(x, 0.4), y)
    assert not torch.equal(dropout(x, 0.4), y)
    y.sum().backward()
    assert torch.allclose(x.grad, (y != 0) / 0.6)
    assert dropout(x, 0) is x
    assert dropout_mask((0, 3), 0.1, x).shape == (0, 3)


def test_gelu_and_add_norm_are_their_formulas():
    torch.manual_seed(0)
    x, b, r, extra = (torch.randn(s, dtype=torch.float64) for s in ((6, 8), (8,), (6, 8), (6, 8)))
    z = x + b
    assert torch.allclose(plain.linear_gelu(x, torch.eye(8).double(), b), z * (1 + torch.erf(z / 2**0.5)) / 2)
    norm = torch.nn.LayerNorm(8, eps=1e-12, dtype=torch.float64)
    torch.nn.init.normal_(norm.weight)
    torch.nn.init.normal_(norm.bias)
    for s in (None, extra):
        z = r + x + b + (0 if s is None else s)
        expected = (z - z.mean(1, keepdim=True)) / z.var(
            1, keepdim=True, unbiased=False
        ).sqrt() * norm.weight + norm.bias
        for form in (add_norm, plain.add_norm):
            assert torch.allclose(form(x, b, r, norm, 0.0, s), expected)
