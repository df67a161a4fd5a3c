"""Each Triton kernel against its floor and against what else one could use: `python -m bench.gpu --kernels`."""

import functools
import itertools

import torch
import torch.nn.functional as F
from torch import nn

import kernels
from bench.measure import Table, milliseconds, on_gpu, rates
from bert import Bert
from kernels import add_norm, attention, cpu, embed, mean_loss
from kernels.plain import Update

# What is recorded as a CUDA graph. Others might wait for the host, and one recording that fails spoils the process:
# PyTorch 2.11 then draws no random numbers and records no more
RECORDED = ("Triton", "PyTorch", "SDPA, padded")


def forward_backward(call, inputs, standing=False):
    """call(*inputs) -> two functions without arguments: the forward pass, and both passes.

    Args: standing, True to add the gradients to those that stand in the inputs, as training does.
    """
    dy = torch.randn_like(call(*inputs))
    for x in inputs:
        x.grad = torch.zeros_like(x) if standing else None

    def forward():
        with torch.no_grad():
            call(*inputs)

    def both():
        y = call(*inputs)
        y.backward(dy) if standing else torch.autograd.grad(y, inputs, dy)

    return forward, both


def attention_forms(setting, lengths, p):
    """Attention on one batch: (name, function, its inputs), ours first."""
    heads, H = setting.config.num_attention_heads, setting.config.hidden_size
    d, B, longest = H // heads, len(lengths), max(lengths)
    bounds = torch.tensor([0, *itertools.accumulate(lengths)], dtype=torch.int32, device=setting.device)
    new = lambda *shape: torch.randn(*shape, device=setting.device, dtype=setting.dtype).requires_grad_()  # noqa: E731
    qkv = new(sum(lengths), 3 * H)
    yield "Triton, packed", lambda x: attention(x, bounds, longest, heads, p), [qkv]

    place = torch.arange(longest, device=setting.device)
    mask = (place < bounds.diff()[:, None])[:, None, None, :]  # (B, 1, 1, longest)

    def padded(x):
        q, k, v = x.view(B, longest, 3, heads, d).permute(2, 0, 3, 1, 4)
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=p)

    yield "SDPA, padded", padded, [new(B, longest, 3 * H)]
    if setting.compiled:
        yield "SDPA, padded, compiled", torch.compile(padded), [new(B, longest, 3 * H)]

    def nested(x):
        jagged = functools.partial(
            torch.nested.nested_tensor_from_jagged, offsets=bounds.long(), min_seqlen=min(lengths), max_seqlen=longest
        )
        q, k, v = (jagged(part.contiguous()).transpose(1, 2) for part in x.view(-1, 3, heads, d).unbind(1))
        return F.scaled_dot_product_attention(q, k, v, dropout_p=p).transpose(1, 2).values()

    yield "SDPA, nested tensor", nested, [qkv]

    def varlen(x):  # FlashAttention-2 inside PyTorch; it has no dropout
        from torch.nn.attention.varlen import varlen_attn

        q, k, v = x.view(-1, 3, heads, d).unbind(1)
        return varlen_attn(q.contiguous(), k.contiguous(), v.contiguous(), bounds, bounds, longest, longest)

    yield "FlashAttention-2 of PyTorch, varlen, no dropout", varlen, [qkv]

    def aten(x):
        q, k, v = (part.contiguous() for part in x.view(-1, 3, heads, d).unbind(1))
        flash = torch.ops.aten._flash_attention_forward
        return flash(q, k, v, bounds, bounds, longest, longest, p, False, False)[0]

    yield "FlashAttention-2 of PyTorch, aten, varlen", aten, [qkv]

    def flash(x):
        from flash_attn import flash_attn_varlen_qkvpacked_func

        return flash_attn_varlen_qkvpacked_func(x.view(-1, 3, heads, d), bounds, longest, dropout_p=p)

    yield "flash-attn, varlen", flash, [qkv]


def row_forms(setting, T):
    """The memory-bound kernels: (kernel, values read and written forward, and in both passes, its forms)."""
    from kernels.bias_gelu import bias_gelu  # needs Triton

    H, wide, p = setting.config.hidden_size, setting.config.intermediate_size, 0.1
    new = lambda *shape: torch.randn(*shape, device=setting.device, dtype=setting.dtype).requires_grad_()  # noqa: E731
    norm = nn.LayerNorm(H, device=setting.device)
    bias, wide_bias = (torch.randn(n, device=setting.device, requires_grad=True) for n in (H, wide))
    rows, weights = [new(T, H), bias, new(T, H)], [norm.weight, norm.bias]

    def fused(x, b, r, *_):
        return add_norm(x, b, r, norm, p)

    def plain(x, b, r, weight, shift):
        return F.layer_norm(
            r + F.dropout(x + b.to(x.dtype), p), weight.shape, weight.to(x.dtype), shift.to(x.dtype), norm.eps
        )

    def plain_gelu(x, b):
        return F.gelu(x + b.to(x.dtype))

    def forms(ours, theirs, inputs):
        yield "Triton", ours, inputs
        yield "PyTorch", theirs, inputs
        if setting.compiled:
            yield "PyTorch, compiled", torch.compile(theirs), inputs

    yield f"add_norm {T} x {H}", 3 * T * H, 8 * T * H, forms(fused, plain, rows + weights)
    yield (
        f"gelu {T} x {wide}",
        2 * T * wide,
        5 * T * wide,
        forms(bias_gelu, plain_gelu, [new(T, wide), wide_bias]),
    )


def embed_forms(setting, T):
    """The embedding in float32: (kernel, bytes forward, and in both passes, its forms)."""
    config, device = setting.config, setting.device
    H, V, longest = config.hidden_size, config.vocab_size, min(32, config.max_position_embeddings)
    ids = (V ** torch.rand(T, device=device)).long().clamp(max=V - 1)  # Zipf's law: the n-th word has a share ~ 1/n
    positions = torch.arange(T, device=device) % longest
    places = ids, positions, (positions >= longest // 2).long()
    tables = [torch.randn(n, H, device=device, requires_grad=True) for n in (V, config.max_position_embeddings, 2)]
    norm = nn.LayerNorm(H, device=device)

    def fused(word, position, segment, *_):
        return embed(*places, (word, position, segment), norm)

    def plain(word, position, segment, weight, bias):
        x = F.embedding(ids, word) + F.embedding(places[1], position) + F.embedding(places[2], segment)
        return F.layer_norm(x, weight.shape, weight, bias, norm.eps)

    def forms():
        yield "Triton", fused, [*tables, norm.weight, norm.bias]
        yield "PyTorch", plain, [*tables, norm.weight, norm.bias]
        if setting.compiled:
            yield "PyTorch, compiled", torch.compile(plain), [*tables, norm.weight, norm.bias]

    distinct = len(ids.unique())
    return f"embed {T} x {H}, {distinct} words", 8 * T * H, (16 * T + 8 * distinct) * H, forms()


def loss_forms(setting):
    """The mean loss of a batch of five classes: (kernel, bytes forward, and in both passes, its forms)."""
    logits = torch.randn(setting.batch, 5, device=setting.device, dtype=setting.dtype).requires_grad_()
    labels = torch.randint(5, (setting.batch,), device=setting.device).float()
    forms = [("Triton", lambda z: mean_loss(z, labels, 5), [logits])]
    forms.append(("PyTorch", lambda z: F.cross_entropy(z.float(), labels.long()), [logits]))
    size = logits.numel() * logits.element_size()
    return f"loss {setting.batch} x 5", size, 2 * size, forms


def bench_kernels(setting):
    """Prints the table of kernels. Returns the names of our forms that failed."""
    bandwidth, flops = rates(setting)
    size = torch.finfo(setting.dtype).bits // 8
    heads, H = setting.config.num_attention_heads, setting.config.hidden_size
    rows = Table({"kernel": 48, "form": 48, "passes": 8, "time": 9, "on GPU": 9, "floor": 6})

    def measure(kernel, forms, floors, standing=False):
        for name, function, inputs in forms:
            try:
                calls = forward_backward(function, inputs, standing)
                alone = on_gpu if name.startswith(RECORDED) else lambda *_: None
                times = [(milliseconds(call, setting), alone(call, setting)) for call in calls]
            except Exception as error:
                rows.add_failure([kernel, name], error, ours=name.startswith("Triton"))
                continue
            for passes, (ms, graphed), floor in zip(("forward", "both"), times, floors, strict=True):
                rows.add(kernel, name, passes, ms, graphed, f"{floor / ms:.0%}")

    for name, batches in setting.lengths.items():
        lengths = batches[0]
        T, squares = sum(lengths), sum(m * m for m in lengths)
        floors = [max(n * T * H * size / bandwidth, k * squares * H / flops) for n, k in ((4, 4), (12, 14))]
        kernel = f"attention {name}, {len(lengths)} x {max(lengths)}, T {T}, {heads} heads"
        measure(kernel, attention_forms(setting, lengths, 0.1), floors)
    for T in (sum(setting.lengths["quora"][0]), setting.rows):
        for kernel, forward, both, forms in row_forms(setting, T):
            measure(kernel, forms, [forward * size / bandwidth, both * size / bandwidth])
        kernel, forward, both, forms = embed_forms(setting, T)
        measure(kernel, forms, [forward / bandwidth, both / bandwidth], standing=True)
    kernel, forward, both, forms = loss_forms(setting)
    measure(kernel, forms, [forward / bandwidth, both / bandwidth])
    n = sum(p.numel() for p in Bert(setting.config).parameters())
    update = Update(*torch.rand(4, n, device=setting.device), 1e-5, 1e-8, 1.0)
    for name, form in (("Triton", kernels.triton_backend().adamw), ("PyTorch, in blocks", cpu.adamw)):
        call = lambda form=form: form([update], 1.0, (0.9, 0.999))  # noqa: E731
        ms = milliseconds(call, setting)
        rows.add(f"adamw {n}", name, "step", ms, on_gpu(call, setting), f"{32 * n / bandwidth / ms:.0%}")
    return rows.broken
