"""Where a step's time goes, ours beside that of `bench.speed`'s opponents: what bounds a ratio of speeds.

    python -m bench.shares --data DIR --task sst       batch 32

PyTorch's profiler gives each operation the time that it spends in itself. The operations fall into four groups:

    products      matrices of tokens times weights, forward and backward
    attention     batched products of queries, keys and values, softmax
    optimizer     AdamW and the norm of the gradient, whatever they consist of
    the rest      GELU, dropout, LayerNorm, residuals, embeddings, copies, PyTorch's own bookkeeping
"""

import collections
from argparse import Namespace

import torch
from torch.profiler import ProfilerActivity, profile, record_function

from bench.speed import Grouped, Ours, Padded, batches_of, processor_text
from support.console import Parser, command, table
from support.downloads import MINILM
from support.flag_types import BATCH, THREADS, place, positive
from support.flags import choose_kernels
from tasks import TASKS

PRODUCTS = ("aten::mm", "aten::addmm", "mkldnn::_linear_pointwise")
ATTENTION = ("aten::bmm", "aten::baddbmm", "aten::_softmax", "aten::_softmax_backward_data", "scaled_dot_product")
GROUPS = ("products", "attention", "optimizer", "the rest")


def group_of(event):
    """The group of an event of the profiler."""
    above = event
    while above is not None:
        if above.name == "optimizer":
            return "optimizer"
        above = above.cpu_parent
    if event.name in PRODUCTS:
        return "products"
    return "attention" if any(name in event.name for name in ATTENTION) else "the rest"


def shares(side, kind, batch_size, steps):
    """Milliseconds a step by group. Args: kind, "train" or "evaluate"; steps, how many are measured, after 3 more."""
    batches = batches_of(side, batch_size)
    call, step = getattr(side, kind), side.optimizer.step

    def marked(*args):
        with record_function("optimizer"):
            return step(*args)

    side.optimizer.step = marked
    for i in range(3):
        call(batches[i % len(batches)])
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        for i in range(3, 3 + steps):
            call(batches[i % len(batches)])
    side.optimizer.step = step
    total = collections.Counter()
    for event in profiler.events():
        total[group_of(event)] += event.self_cpu_time_total / 1e3 / steps
    return [total[group] for group in GROUPS]


@command
def main(argv=None):
    parser = Parser(prog="python -m bench.shares", description="Where a step's time goes, ours and others'.")
    add = parser.add_argument
    add("--data", type=place, default="data/sample", metavar="DIR", help="folder of task files")
    add("--bert", default=MINILM, help="the weights of all sides")
    add("--task", choices=list(TASKS), default="sst")
    add("--batch_size", type=positive(int, most=BATCH), default=32)
    add("--steps", type=positive(int), default=20, help="how many measured steps of each side")
    add("--threads", type=positive(int, most=THREADS), default=torch.get_num_threads())
    args = parser.parse_args(argv)
    args.device = "cpu"
    torch.set_num_threads(args.threads)
    choose_kernels(Namespace(kernels="auto", bf16=False), torch.device("cpu"))
    sides = {"ours": Ours, "transformers, padded": Padded, "transformers, grouped": Grouped}
    rows = []
    for name, kind in sides.items():
        side = kind(args, TASKS[args.task])
        for what in ("train", "evaluate"):
            times = shares(side, what, args.batch_size, args.steps)
            rows.append([f"{name}, {what}", *(f"{ms:.0f}" for ms in times), f"{sum(times):.0f}"])
    print(f"ms a step of {args.batch_size} {args.task} examples, {args.threads} threads, {processor_text()}\n")
    print(table(["what", *GROUPS, "together"], rows))


if __name__ == "__main__":
    main()
