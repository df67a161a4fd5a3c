"""The whole training step against `transformers`: `python -m bench.gpu --step`."""

import itertools
import statistics

import torch
import torch.nn.functional as F
from torch import nn

from adamw import AdamW
from bench.measure import Table, milliseconds, rates
from bert import Bert
from kernels import mean_loss
from support.console import UserError
from support.cuda_graphs import GraphedStep
from tokenizer import pack, to_padded


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
    """The least time of a step on average over batches of lengths, as `bench/gpu.py` says, in ms. The last layer makes
    keys, queries and values of all tokens, and everything else of the [CLS] rows only.
    """
    config, n = setting.config, sum(p.numel() for p in Bert(setting.config, initialized=False).parameters())
    H, L = config.hidden_size, config.num_hidden_layers
    qkv, rest = 3 * H * H, H * H + 2 * H * config.intermediate_size
    tokens = statistics.mean(sum(lengths) for lengths in batches)
    squares = statistics.mean(sum(m * m for m in lengths) for lengths in batches)
    rows = (L * qkv + (L - 1) * rest) * tokens + rest * setting.batch
    return (6 * rows + 14 * L * squares * H) / flops + 32 * n / bandwidth


def bench_step(setting):
    """Prints the table of whole steps. Returns the names of our forms that failed."""
    bandwidth, flops = rates(setting)
    forms = {"this project": (packed_step, False)}
    if setting.device.type == "cuda":
        forms["this project, CUDA graphs"] = packed_step, True
    forms["transformers, SDPA, padded"] = padded_step, False
    forms["transformers, SDPA, grouped by length"] = padded_step, False
    if setting.compiled:
        forms["transformers, compiled, padded"] = padded_step, True
        forms["transformers, compiled, grouped by length"] = padded_step, True
    pairs = list(itertools.product(setting.lengths, forms))
    pairs.sort(key=lambda pair: "compiled" in pair[1])  # last, as they take minutes to compile
    rows, ours = Table({"lengths": 10, "tokens": 8, "form": 42, "time": 9, "times ours": 10, "floor": 6}), {}
    labels = torch.randint(5, (setting.batch,), device=setting.device)
    for name, form in pairs:
        (make, flag), batches = forms[form], setting.lengths[name]
        inputs = inputs_of(setting, batches, padded=make is padded_step, grouped="grouped" in form)
        tokens = statistics.mean(len(x.ids) if make is packed_step else x[0].numel() for x in inputs)
        try:
            step = make(setting, flag)
            for batch in inputs:  # compiles what each shape asks for
                step(batch, labels)
            turn = itertools.cycle(inputs)
            ms = milliseconds(lambda step=step, turn=turn: step(next(turn), labels), setting)
        except Exception as error:
            rows.add_failure([name, round(tokens), form], error, ours=make is packed_step)
            continue
        if make is packed_step:
            ours.setdefault(name, ms)
        floor = step_floor(setting, batches, bandwidth, flops)
        rows.add(name, round(tokens), form, ms, ms / ours[name] if name in ours else None, f"{floor / ms:.0%}")
    return rows.broken


def inputs_of(setting, batches, padded, grouped):
    """Random words in batches of these lengths: a list of `Batch`, or padded, of (ids, mask).

    Args: batches, lists of lengths; grouped, True to sort all sentences by length and cut them into batches anew.
    """
    if grouped:
        together = sorted(itertools.chain.from_iterable(batches))
        batches = [together[i : i + setting.batch] for i in range(0, len(together), setting.batch)]
    inputs = []
    for lengths in batches:
        ids = [(torch.randint(1000, setting.config.vocab_size, (m,)).numpy(), m) for m in lengths]
        batch = pack(ids).to(setting.device)
        inputs.append(to_padded(batch, batch.ids) if padded else batch)
    return inputs
