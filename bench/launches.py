"""The launches of a training step, counted without a GPU, and a roofline of them: `python -m bench.launches`.

The step runs on the CPU with nothing computed. A dispatch mode sees every operation of PyTorch, notes it and hands back
empty memory of the right shape; every Triton kernel goes through Triton's own argument binding, with a
driver that launches nothing. So the count is that of the code as it is, and so is the number of kernels to compile.

The time of a launch is the largest of three:

    bytes / bandwidth          each input read once, each output written once
    tiles / rate               of a matrix product: tiles of 128 x 128 results, in waves over all multiprocessors
    LEAST                      what the smallest kernel takes

and each launch adds the gap between two kernels of a CUDA graph. It shows where time goes, and what a change
saves, before anything is measured. `python -m bench.gpu` measures.
"""

import collections
import math
import sys
from typing import NamedTuple

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from adamw import AdamW
from bert import Bert, BertConfig
from kernels.binding import record
from kernels.weight_gradients import sums_into_float32
from model import MultitaskBert, logits_of, task_loss
from support.console import Parser, command, table
from tasks import TASKS
from tokenizer import pack

LEAST = 1.5  # µs
TILE = 128  # results of a matrix product on each side of a tile
MODELS = {"BERT-base": BertConfig(), "MiniLM": BertConfig(30522, 384, 6, 12, 1536)}


class Card(NamedTuple):
    """A GPU, as the roofline sees it: what large kernels reach, not the data sheet's peak."""

    capability: tuple
    bandwidth: float  # bytes per µs
    flop: float  # of matrix products per µs, when every multiprocessor has a tile
    multiprocessors: int
    gap: float  # µs between two kernels of a CUDA graph


CARDS = {
    "H100": Card((9, 0), 2.9e6, 585e6, 132, 0.9),
    "T4": Card((7, 5), 0.26e6, 28e6, 40, 1.5),
}
# The share of the bandwidth that a kernel reaches at these sizes: its loads wait for each other
SHARES = {"attention": 0.85, "add-norm": 0.75, "embedding": 0.75}
# What a launch belongs to, by the name of the operation or of the kernel's module
PARTS = {
    "matrix products": ("mm", "addmm"),
    "casts": ("_to_copy", "copy_"),
    "additions to gradients": ("add_",),
    "zeros": ("zero_", "zeros", "zeros_like", "new_zeros", "fill_"),
    "attention": ("flash_attention",),
    "GELU": ("bias_gelu",),
    "add-norm": ("residual_norm",),
    "AdamW and norm": ("adamw_step",),
    "embedding": ("embedding", "sort", "stack"),
    "sums of vectors": ("weight_gradients", "sum"),
}
PHASES = ("zero", "forward", "backward", "optimizer")
FREE = {"empty", "empty_like", "new_empty", "empty_strided", "new_empty_strided", "_unsafe_view", "_reshape_alias"}


class Launch(NamedTuple):
    """One kernel on a GPU."""

    phase: str
    name: str
    bytes: int
    product: tuple | None  # (M, N, K) of a matrix product

    def part(self):
        return next((part for part, names in PARTS.items() if self.name in names), "other")

    def microseconds(self, card):
        times = [LEAST, self.bytes / (card.bandwidth * SHARES.get(self.part(), 1.0))]
        if self.product:
            m, n, k = self.product
            waves = math.ceil(math.ceil(m / TILE) * math.ceil(n / TILE) / card.multiprocessors)
            times.append(waves * 2 * TILE * TILE * k * card.multiprocessors / card.flop)
        return max(times)


class Recorder(TorchDispatchMode):
    """Within it nothing is computed; `launches` lists what a GPU would run, `variants` the kernels to compile."""

    def __init__(self, capability=(9, 0)):
        super().__init__()
        self.launches, self.phase = [], "forward"
        self.triton = record(capability, self._triton)

    def __enter__(self):
        self.recorded = self.triton.__enter__()
        return super().__enter__()

    def __exit__(self, *error):
        super().__exit__(*error)
        self.triton.__exit__(*error)

    def _triton(self, variant, tensors):
        """Notes the launch of a Triton kernel, which reads or writes each of its tensors once, with two exceptions."""
        name, _, kernel = variant.name().partition(".")
        if name == "embedding":  # of a table it reads no more rows than there are tokens
            tensors = [x[: len(tensors[0])] for x in tensors]
        if kernel == "_update":  # it reads and writes the parameters, m and v
            tensors = [*tensors, tensors[0], tensors[2], tensors[3]]
        count = _bytes(tensors)
        self.launches.append(Launch(self.phase, name, count, None))

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs, name = kwargs or {}, func.overloadpacket.__name__
        if func.is_view or name in FREE or name in ("detach", "lift_fresh"):
            return func(*args, **kwargs)
        tensors = [x for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)]
        product = None
        if name in ("mm", "addmm"):
            a, b = [x for x in args if isinstance(x, torch.Tensor)][-2:]
            product = a.shape[0], b.shape[1], a.shape[1]
        changed = next((a.name for a in func._schema.arguments if a.alias_info and a.alias_info.is_write), None)
        if changed:
            out = kwargs[changed] if changed in kwargs else args[0]
            written = [out] if name != "zero_" else []
        elif product:  # a dtype among the arguments is that of the result
            kinds = [x for x in (*args, *kwargs.values()) if isinstance(x, torch.dtype)]
            out = torch.empty(*product[:2], dtype=(*kinds, a.dtype)[0])
            written = [out]
        else:
            meta = lambda x: x.to("meta") if isinstance(x, torch.Tensor) else x  # noqa: E731
            with torch._C._DisableTorchDispatch():
                shapes = func(*tree_map(meta, args), **(tree_map(meta, kwargs) | _on_meta(func)))
                out = tree_map(lambda x: torch.empty_like(x, device="cpu"), shapes)
            written = tree_leaves(out)
        self.launches.append(Launch(self.phase, name, _bytes([*tensors, *written]), product))
        return out


def _on_meta(func):
    """{"device": "meta"} for an operation that makes a tensor of nothing."""
    return {"device": torch.device("meta")} if any(a.name == "device" for a in func._schema.arguments) else {}


def _bytes(tensors):
    return sum(x.numel() * x.element_size() for x in tensors)


# ----- a training step


def batches_of(count, seed=0, sentences=64, longest=240):
    """Batches of Quora pairs: their lengths in tokens are log-normal, as in `bench/gpu.py`. A list of `Batch`."""
    generator, batches = torch.Generator().manual_seed(seed), []
    for _ in range(count):
        lengths = (3.36 + 0.36 * torch.randn(sentences, generator=generator)).exp().round().long().clamp(5, longest)
        batches.append(pack([(torch.zeros(n, dtype=torch.int32).numpy(), n // 2) for n in lengths.tolist()]))
    return batches


def record_steps(config, batches, capability=(9, 0), task="para"):
    """The `Recorder` of one training step on each of the batches."""
    model = MultitaskBert(Bert(config, initialized=False)).train()
    with Recorder(capability) as recorder:
        optimizer = AdamW(model.parameter_groups())
        sums_into_float32(torch.device("cpu"))
        recorder.launches.clear()  # the start is no step
        for batch in batches:
            labels = torch.ones(len(batch))
            recorder.phase = "zero"
            optimizer.zero_grad()
            recorder.phase = "forward"
            loss = task_loss(TASKS[task], logits_of(model, task, batch), labels)
            recorder.phase = "backward"
            loss.backward()
            recorder.phase = "optimizer"
            optimizer.step({"shared": 1e-5, task: 1e-4})
    return recorder


def step_table(launches, card):
    """Rows of (part, launches, µs) and the total with the gaps."""
    counts, times = collections.Counter(), collections.Counter()
    for launch in launches:
        counts[launch.part()] += 1
        times[launch.part()] += launch.microseconds(card)
    rows = [[part, counts[part], times[part]] for part in [*PARTS, "other"] if counts[part]]
    rows.append(["gaps in a graph", "", len(launches) * card.gap])
    rows.append(["whole step", len(launches), sum(row[2] for row in rows)])
    return rows


@command
def main(argv=None):
    parser = Parser(prog="python -m bench.launches", description="The launches of a training step, and their time.")
    parser.add_argument("--list", action="store_true", help="name each launch of a BERT-base step")
    args = parser.parse_args(argv)
    batch = batches_of(1)
    for name, config in MODELS.items():
        for card_name, card in CARDS.items():
            recorder = record_steps(config, batch, card.capability)
            if args.list:
                print(*(f"{launch.phase} {launch.name}" for launch in recorder.launches), sep="\n")
                return 0
            phases = collections.Counter(launch.phase for launch in recorder.launches)
            print(f"{name}, {card_name}, {len(batch[0])} Quora pairs, {len(batch[0].ids)} tokens: launches", end=" ")
            print(", ".join(f"{phase} {phases[phase]}" for phase in PHASES), end="; ")
            print(f"{len(recorder.launches) / config.num_hidden_layers:.0f} a layer")
            print(table(["part", "launches", "µs"], step_table(recorder.launches, card)), end="\n\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
