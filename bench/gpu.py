"""Speed on a GPU: each kernel, and the whole training step, beside its floor and beside what else one could use.

    python -m bench.gpu --kernels            each kernel of kernels/, forward and forward + backward
    python -m bench.gpu --step               one training step of BERT-base, batch 64, against `transformers`
    python -m bench.gpu --step --data DIR    ... at the lengths of the real task files, not of fitted distributions
    python -m bench.gpu --tune               a handful of launch options for each kernel, the best first
    TRITON_INTERPRET=1 python -m bench.gpu --kernels --step --toy       that it runs at all, without a GPU

The floor of a kernel is the larger of two times: its bytes (each input read once, each output written once) over the
bandwidth of a large copy, and its FLOP over the rate of a large matrix product, both measured here, on this device.
`floor` in the tables is floor / time: 100 % cannot be beaten. A training step's floor adds up the same two: the matrix
products of the encoder, forward and backward, and the optimizer's 32 bytes a parameter.

Lengths are in tokens with [CLS] and [SEP]; log-normal, fitted to the training files through BERT's vocabulary:

    sst      exp(N(3.12, 0.48²)) within 3 .. 66         quora pairs     exp(N(3.36, 0.36²)) within 5 .. 240

`time` is the median in milliseconds. Launches are included: where a row says 20 % of the floor at 2,000 tokens and 80 %
at 16,384, the difference is the price of launching. `on GPU` leaves them out: the calls replayed as a CUDA graph. Rows
are printed as they are measured, and a form that does not run here costs one row.
"""

import contextlib
import functools
import itertools
import platform
import statistics
import sys
import time
from datetime import date
from importlib.metadata import version
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

import kernels
from adamw import AdamW
from bert import Bert, BertConfig
from kernels import INTERPRET, add_norm, attention, cpu, embed, mean_loss, precision
from kernels.plain import Update
from support.console import Parser, UserError, command
from support.cuda_graphs import GraphedStep
from support.downloads import MINILM, find_model
from tasks import TASKS, DataSet, data_path, read_examples
from tokenizer import Tokenizer, pack, to_padded

LENGTHS = {"sst": (3.12, 0.48, 3, 66), "quora": (3.36, 0.36, 5, 240)}  # mean and deviation of the log, least, most


class Setting(NamedTuple):
    """What everything below depends on."""

    device: torch.device
    dtype: torch.dtype
    config: BertConfig
    batch: int  # sentences
    runs: int  # at least so many measurements a row
    lengths: dict  # name -> a list of batches, each a list of lengths
    rows: int  # of the memory-bound kernels
    compiled: bool  # measure torch.compile as well


def milliseconds(call, setting):
    """The median time of a call without arguments, after warming up (and, on a GPU, with a cold L2 cache)."""
    if setting.device.type == "cuda":
        import triton

        return triton.testing.do_bench(call, warmup=50, rep=200, return_mode="median")
    call()
    times = []
    for _ in range(setting.runs):
        start = time.perf_counter()
        call()
        times.append(1e3 * (time.perf_counter() - start))
    return statistics.median(times)


def on_gpu(call, setting):
    """The median time of a call without the host's share, from replays of a CUDA graph; None where it has none."""
    if setting.device.type != "cuda":
        return None
    import triton

    with contextlib.suppress(Exception):  # not everything can be recorded
        return triton.testing.do_bench_cudagraph(call, rep=50, return_mode="median")
    return None


class Table:
    """A table whose rows are printed as they come."""

    def __init__(self, widths):
        """Args: widths, {heading: characters}."""
        self.widths = list(widths.values())
        self.add(*widths)
        self.add(*("-" * width for width in self.widths))

    def add(self, *cells):
        texts = [f"{cell:.3f}" if isinstance(cell, float) else "" if cell is None else str(cell) for cell in cells]
        print("| " + " | ".join(f"{t:<{w}}" for t, w in zip(texts, self.widths, strict=True)) + " |", flush=True)


def why(error):
    """One short line: what went wrong."""
    return f"does not run here: {type(error).__name__}: {error}".splitlines()[0][:70]


def rates(setting):
    """Measured on this device: bytes per ms of a large copy (read and written), and FLOP per ms of a large product."""
    large = setting.device.type == "cuda"
    source = torch.empty(2**28 if large else 2**22, dtype=torch.uint8, device=setting.device)
    target = torch.empty_like(source)
    bandwidth = 2 * len(source) / milliseconds(lambda: target.copy_(source), setting)
    n = 8192 if large else 256
    a = torch.randn(n, n, device=setting.device, dtype=setting.dtype)
    return bandwidth, 2 * n**3 / milliseconds(lambda: a @ a, setting)


# ----- kernels


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
        forms(kernels.triton_forms().bias_gelu, plain_gelu, [new(T, wide), wide_bias]),
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
    """Prints the table of kernels."""
    bandwidth, flops = rates(setting)
    size = torch.finfo(setting.dtype).bits // 8
    heads, H = setting.config.num_attention_heads, setting.config.hidden_size
    rows = Table({"kernel": 48, "form": 48, "passes": 8, "time": 9, "on GPU": 9, "floor": 6})

    def measure(kernel, forms, floors, standing=False):
        for name, function, inputs in forms:
            try:
                calls = forward_backward(function, inputs, standing)
                times = [(milliseconds(call, setting), on_gpu(call, setting)) for call in calls]
            except Exception as error:
                if name.startswith("Triton"):
                    raise
                rows.add(kernel, f"{name}: {why(error)}", "", "", "", "")
                continue
            for passes, (ms, alone), floor in zip(("forward", "both"), times, floors, strict=True):
                rows.add(kernel, name, passes, ms, alone, f"{floor / ms:.0%}")

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
    for name, form in (("Triton", kernels.triton_forms().adamw), ("PyTorch, in blocks", cpu.adamw)):
        call = lambda form=form: form([update], 1.0, (0.9, 0.999))  # noqa: E731
        ms = milliseconds(call, setting)
        rows.add(f"adamw {n}", name, "step", ms, on_gpu(call, setting), f"{32 * n / bandwidth / ms:.0%}")


# ----- the whole step


def packed_step(setting, graphed):
    """A training step of this project, as CUDA graphs or not: a function of a `Batch` and labels (B,)."""
    model = Bert(setting.config).to(setting.device).train()
    head = nn.Linear(setting.config.hidden_size, 5, device=setting.device)
    named = [*model.named_parameters(), *((f"head.{name}", p) for name, p in head.named_parameters())]
    optimizer = AdamW({"all": named})

    def logits_of(task, batch):
        with torch.autocast(setting.device.type, setting.dtype, enabled=setting.dtype != torch.float32):
            return head(model.pool(model.encode(model.embed(batch), batch, cls_only=True)))

    def loss_of(task, logits, labels):
        return mean_loss(logits, labels, 5)

    def eager(task, batch, labels):
        optimizer.zero_grad()
        loss_of(task, logits_of(task, batch), labels).backward()

    passes = GraphedStep(setting.device, logits_of, loss_of, optimizer.zero_grad) if graphed else eager

    def step(batch, labels):
        passes("sst", batch, labels)
        optimizer.step({"all": 1e-5})

    return step


def padded_step(setting, compiled):
    """The same with `transformers`: SDPA, padded batches, PyTorch's fused AdamW."""
    try:
        import transformers
    except ImportError:
        raise UserError("transformers is not installed") from None
    config = transformers.BertConfig(**vars(setting.config), attn_implementation="sdpa")
    model = transformers.BertModel(config).to(setting.device).train()
    head = nn.Linear(config.hidden_size, 5, device=setting.device)
    parameters = [*model.parameters(), *head.parameters()]
    groups = [{"params": [p for p in parameters if p.dim() > 1]}]
    groups.append({"params": [p for p in parameters if p.dim() < 2], "weight_decay": 0.0})
    optimizer = torch.optim.AdamW(groups, lr=1e-5, weight_decay=0.01, fused=True)
    run = torch.compile(model, dynamic=True) if compiled else model

    def step(batch, labels):
        ids, mask = batch
        with torch.autocast(setting.device.type, setting.dtype, enabled=setting.dtype != torch.float32):
            logits = head(run(input_ids=ids, attention_mask=mask).pooler_output)
        optimizer.zero_grad()
        F.cross_entropy(logits.float(), labels).backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()

    return step


def step_floor(setting, batches, bandwidth, flops):
    """The least time of a step on average over batches of lengths, as said above, in ms. The last layer makes keys,
    queries and values of all tokens, and everything else of the [CLS] rows only.
    """
    config, n = setting.config, sum(p.numel() for p in Bert(setting.config, initialized=False).parameters())
    H, L = config.hidden_size, config.num_hidden_layers
    qkv, rest = 3 * H * H, H * H + 2 * H * config.intermediate_size
    tokens = statistics.mean(sum(lengths) for lengths in batches)
    squares = statistics.mean(sum(m * m for m in lengths) for lengths in batches)
    rows = (L * qkv + (L - 1) * rest) * tokens + rest * setting.batch
    return (6 * rows + 14 * L * squares * H) / flops + 32 * n / bandwidth


def bench_step(setting):
    """Prints the table of whole steps."""
    bandwidth, flops = rates(setting)
    forms = {"this project": (packed_step, False)}
    if setting.device.type == "cuda":
        forms["this project, CUDA graphs"] = packed_step, True
    forms["transformers, SDPA, padded"] = padded_step, False
    forms["transformers, SDPA, grouped by length"] = padded_step, False
    if setting.compiled:
        forms["transformers, compiled, padded"] = padded_step, True
        forms["transformers, compiled, grouped by length"] = padded_step, True
    rows = Table({"lengths": 10, "tokens": 8, "form": 42, "time": 9, "times ours": 10, "floor": 6})
    for name, batches in setting.lengths.items():
        together = sorted(itertools.chain.from_iterable(batches))
        grouped = [together[i : i + setting.batch] for i in range(0, len(together), setting.batch)]
        labels, first = torch.randint(5, (setting.batch,), device=setting.device), None
        for form, (make, flag) in forms.items():
            inputs = []
            for lengths in grouped if "grouped" in form else batches:
                ids = [(torch.randint(1000, setting.config.vocab_size, (m,)).numpy(), m) for m in lengths]
                batch = pack(ids).to(setting.device)
                inputs.append(batch if make is packed_step else to_padded(batch, batch.ids))
            tokens = statistics.mean(len(x.ids) if make is packed_step else x[0].numel() for x in inputs)
            try:
                step = make(setting, flag)
                for batch in inputs:  # compiles what each shape asks for
                    step(batch, labels)
                turn = itertools.cycle(inputs)
                ms = milliseconds(lambda step=step, turn=turn, labels=labels: step(next(turn), labels), setting)
            except Exception as error:
                if make is packed_step:
                    raise
                rows.add(name, round(tokens), f"{form}: {why(error)}", "", "", "")
                continue
            first = first or ms
            floor = step_floor(setting, batches, bandwidth, flops)
            rows.add(name, round(tokens), form, ms, ms / first, f"{floor / ms:.0%}")


# ----- launch options


def tunings(setting):
    """(kernel, the module and the name of what decides its launch options, a handful of changes, a call)."""
    from kernels import adamw_step, bias_gelu, flash_attention, row_norm

    heads, T = setting.config.num_attention_heads, setting.rows // 8
    lengths = setting.lengths["quora"][0]
    (_, call, inputs), *_ = attention_forms(setting, lengths, 0.1)
    some = [{"num_warps": w, "num_stages": s} for w in (2, 4) for s in (1, 2)] + [{"INNER": 16}, {"INNER": 32}]
    attention_call = forward_backward(call, inputs)[1]
    yield f"attention, {heads} heads, up to {max(lengths)}", flash_attention, "launch_options", some, attention_call
    (_, _, _, norm_forms), (_, _, _, gelu_forms) = row_forms(setting, T)
    warps = [{"num_warps": w} for w in (1, 2, 4, 8)]
    for kernel, module, name, forms, changes in (
        ("add_norm", row_norm, "launch_options", norm_forms, warps),
        ("gelu", bias_gelu, "LAUNCH", gelu_forms, [*warps, {"BLOCK_T": 2}, {"BLOCK_T": 8}, {"BLOCK_F": 256}]),
    ):
        _, form, inputs = next(iter(forms))
        yield f"{kernel}, {T} rows", module, name, changes, forward_backward(form, inputs)[1]
    update = Update(*torch.rand(4, 2**22, device=setting.device), 1e-5, 1e-8, 1.0)
    blocks = [{"BLOCK": n} for n in (1024, 2048, 4096)]
    yield "adamw", adamw_step, "LAUNCH", blocks, lambda: kernels.adamw([update], 1.0, (0.9, 0.999))


def tune(setting):
    """Prints what each change of a kernel's launch options does, in ms: to be copied with date and card."""
    from kernels import residual_norm

    rows = Table({"kernel": 34, "changed": 44, "time": 9})
    for kernel, module, name, changes, call in tunings(setting):
        usual, found = getattr(module, name), []
        for change in [{}, *changes]:
            changed = usual | change if isinstance(usual, dict) else lambda *a, u=usual, c=change: u(*a) | c
            try:
                setattr(module, name, changed)
                if module.__name__.endswith("row_norm"):
                    residual_norm.launch_options = changed
                found.append((milliseconds(call, setting), str(change) if change else "as it is"))
            except Exception as error:
                rows.add(kernel, f"{change}: {why(error)}"[:60], "")
            finally:
                setattr(module, name, usual)
                if module.__name__.endswith("row_norm"):
                    residual_norm.launch_options = usual
        for ms, text in sorted(found):
            rows.add(kernel, text, ms)


# ----- the command line


def draw_lengths(args, batch, batches, longest):
    """Batches of lengths by name. Args: longest, what no sentence may exceed."""
    generator, lengths = torch.Generator().manual_seed(0), {}
    tokenizer = Tokenizer(find_model(MINILM)) if args.data else None
    for name, (mean, deviation, low, high) in LENGTHS.items():
        if args.data:
            task = TASKS["para" if name == "quora" else name]
            examples = read_examples(data_path(args.data, task, "train"), task).sample(20000)
            all_lengths = torch.tensor([len(ids) for ids, _ in DataSet(examples, tokenizer).encoded[0]])
            drawn = all_lengths[torch.randint(len(all_lengths), (batches, batch), generator=generator)]
        else:
            normal = torch.randn(batches, batch, generator=generator)
            drawn = (mean + deviation * normal).exp().round().long().clamp(low, high)
        lengths[name] = drawn.clamp(max=longest).tolist()
    for m in (128, 512):
        lengths[f"all {m}"] = [[min(m, longest)] * batch]
    return lengths


@command
def main(argv=None):
    parser = Parser(prog="python -m bench.gpu", description="Speed of the kernels and of a training step.")
    parser.add_argument("--kernels", action="store_true", help="each kernel alone")
    parser.add_argument("--step", action="store_true", help="whole training steps")
    parser.add_argument("--tune", action="store_true", help="launch options of the kernels")
    parser.add_argument("--data", default=None, metavar="DIR", help="take lengths from these task files")
    parser.add_argument("--toy", action="store_true", help="tiny shapes, float32 on the CPU: does it run?")
    parser.add_argument("--no_compile", action="store_true", help="leave torch.compile out")
    args = parser.parse_args(argv)
    if args.toy:
        if (args.kernels or args.tune) and not INTERPRET:
            raise UserError("--toy runs the kernels in the interpreter; set TRITON_INTERPRET=1 in the environment")
        config = BertConfig(1200, 32, 1, 2, 64)
        lengths = draw_lengths(args, 3, 2, 12)
        setting = Setting(torch.device("cpu"), torch.float32, config, 3, 1, lengths, 16, False)
    else:
        if kernels.triton_forms() is None or not torch.cuda.is_available():
            raise UserError("no GPU with Triton is at hand; --toy runs everything at toy size without one")
        device = torch.device("cuda")
        lengths = draw_lengths(args, 64, 16, 512)
        dtype = precision.half_dtype(device) or torch.float32
        setting = Setting(device, dtype, BertConfig(), 64, 20, lengths, 16384, not args.no_compile)
    name = platform.processor() if setting.device.type == "cpu" else torch.cuda.get_device_name()
    print(f"{date.today()}, {name}, torch {torch.__version__}, triton {version('triton')}")
    print(f"command: python -m bench.gpu {' '.join(sys.argv[1:] if argv is None else argv)}\n")
    for wanted, bench in ((args.kernels, bench_kernels), (args.step, bench_step), (args.tune, tune)):
        if wanted:
            bench(setting)
            print()


if __name__ == "__main__":
    main()
