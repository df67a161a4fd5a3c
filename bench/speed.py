"""Speed and memory beside the best that a user could pick instead, in one run.

    python -m bench.speed                       training and evaluation on sst and para, batch 32
    python -m bench.speed --data DIR --task sst --batch_size 64 --threads 4
    python -m bench.speed --linear              matrix products: ours against torch.nn.functional.linear

Three opponents:

    padded      a training loop on `transformers` as its documentation shows it: `BertModel` with SDPA attention,
                shuffled batches padded to their longest sentence, `torch.optim.AdamW(fused=True)`, gradients clipped
    grouped     the same with batches of similar length, as `Trainer` makes them with `group_by_length`: shuffled parts
                of 50 batches, each sorted by length. Little is padding then, but batches are not drawn at random
    encode      `sentence-transformers`, embedding all sentences with its own `encode`, which sorts by length, too

All sides have the same weights, texts, batch size, threads, precision, dropout, head and loss, and start from token ids
(`encode` from text). They take turns, A B C A B C, batch by batch in one process, so that a machine that speeds up or
slows down does so for all. A side's speed is that of all its `--steps` batches, its memory the peak of a process of
its own. `make bench` installs the opponents; nothing else needs them.
"""

import functools
import multiprocessing
import statistics
import time
from argparse import Namespace
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool

import numpy as np
import torch
from torch import nn

import kernels
from adamw import AdamW
from bench.measure import largest_memory
from bert import Bert
from kernels.cpu.libraries import choice, processor
from model import MultitaskBert, task_loss
from simcse import SentenceEncoder, embeddings
from support.console import Parser, UserError, command, table
from support.downloads import MINILM, find_model
from support.flag_types import BATCH, THREADS, place, positive
from support.flags import add_device, choose_device, choose_kernels
from tasks import TASKS, DataSet, data_path, read_examples
from tokenizer import MAX_TOKENS, Tokenizer


class Ours:
    """A training step and an evaluation step of this project."""

    def __init__(self, args, task):
        self.task, self.device = task, choose_device(args)
        folder = find_model(args.bert)
        self.model = MultitaskBert(Bert.load(folder)).to(self.device)
        self.optimizer = AdamW(self.model.parameter_groups())
        self.dataset = load(args, task)

    def logits(self, numbers):
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.device.type == "cuda"):
            return self.model(self.task.name, self.dataset.batch(numbers).to(self.device))

    def train(self, numbers):
        self.model.train()
        loss = task_loss(self.task, self.logits(numbers), self.dataset.labels(numbers).to(self.device))
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step({"shared": 1e-5, self.task.name: 1e-5})
        return loss.item()

    def evaluate(self, numbers):
        self.model.eval()
        with torch.inference_mode():
            return self.logits(numbers).float().cpu()


class Padded:
    """The same with `transformers`."""

    def __init__(self, args, task):
        try:
            import transformers
        except ImportError:
            raise UserError("transformers is not installed; run `make bench`, which installs it") from None
        transformers.logging.set_verbosity_error()
        transformers.logging.disable_progress_bar()
        self.task, self.device = task, choose_device(args)
        folder = find_model(args.bert)
        self.bert = transformers.BertModel.from_pretrained(folder, attn_implementation="sdpa")
        H, p = self.bert.config.hidden_size, self.bert.config.hidden_dropout_prob
        layers = [nn.Dropout(p)]
        for _ in range(2):
            layers += [nn.Linear(H, H), nn.GELU(), nn.Dropout(p)]
        layers.append(nn.Linear(H, task.classes if task.classes > 2 else 1))
        self.model = nn.ModuleDict({"bert": self.bert, "head": nn.Sequential(*layers)}).to(self.device)
        parameters = list(self.model.parameters())
        groups = [
            {"params": [p for p in parameters if p.dim() > 1], "weight_decay": 0.01},
            {"params": [p for p in parameters if p.dim() == 1], "weight_decay": 0.0},
        ]
        self.optimizer = torch.optim.AdamW(groups, lr=1e-5, fused=True)
        self.dataset = load(args, task)

    def logits(self, numbers):
        encoded = [self.dataset.encoded[0][i] for i in numbers]
        longest = max(len(ids) for ids, _ in encoded)
        ids, mask, segments = (torch.zeros(len(encoded), longest, dtype=torch.int64) for _ in range(3))
        for row, (sentence, first) in enumerate(encoded):
            ids[row, : len(sentence)] = torch.from_numpy(sentence)
            mask[row, : len(sentence)] = 1
            segments[row, first : len(sentence)] = 1
        ids, mask, segments = (t.to(self.device) for t in (ids, mask, segments))
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.device.type == "cuda"):
            out = self.bert(input_ids=ids, attention_mask=mask, token_type_ids=segments)
            return self.model["head"](out.pooler_output)

    def train(self, numbers):
        self.model.train()
        loss = task_loss(self.task, self.logits(numbers), self.dataset.labels(numbers).to(self.device))
        self.optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        return loss.item()

    def evaluate(self, numbers):
        self.model.eval()
        with torch.inference_mode():
            return self.logits(numbers).float().cpu()


class Grouped(Padded):
    """The same on batches of similar length."""


def batches_of(side, batch_size):
    """The batches of a pass, lists of example numbers, each example once but for what fills no batch."""
    lengths = [len(ids) for ids, _ in side.dataset.encoded[0]]
    order = np.random.default_rng(0).permutation(len(lengths)).tolist()
    if isinstance(side, Grouped):
        parts = [order[i : i + 50 * batch_size] for i in range(0, len(order), 50 * batch_size)]
        order = [i for part in parts for i in sorted(part, key=lengths.__getitem__, reverse=True)]
    batches = [order[i : i + batch_size] for i in range(0, len(order) - batch_size + 1, batch_size)]
    return np.random.default_rng(1).permutation(batches).tolist()  # a few of them are not the longest sentences then


def load(args, task):
    """The texts: 40 batches of the task's training file."""
    examples = read_examples(data_path(args.data, task, "train"), task).sample(40 * args.batch_size)
    if len(examples) < args.batch_size:
        raise UserError(f"the {task.name} file has {len(examples)} examples; choose a smaller --batch_size")
    return DataSet(examples, Tokenizer(find_model(args.bert)))


def take_turns(calls, steps):
    """The total seconds of each side. Args: calls, a list of functions of the step's number; three steps warm up."""
    totals = [0.0] * len(calls)
    for i in range(-3, steps):
        for k, call in enumerate(calls):
            start = time.perf_counter()
            call(i)
            totals[k] += (i >= 0) * (time.perf_counter() - start)
    return totals


def compare(args, task):
    """Rows of the table for a task: training and evaluation."""
    sides = [side(args, task) for side in (Ours, Padded, Grouped)]
    batches = [batches_of(side, args.batch_size) for side in sides]
    rows = []
    for kind in ("train", "evaluate"):
        calls = [functools.partial(step_of, side, kind, own) for side, own in zip(sides, batches, strict=True)]
        speeds = [args.steps * args.batch_size / seconds for seconds in take_turns(calls, args.steps)]
        rows.append(row_of(f"{task.name}, {kind}", *speeds))
    return rows


def step_of(side, kind, batches, i):
    """One step of a side on the i-th of its batches. Args: kind, "train" or "evaluate"."""
    getattr(side, kind)(batches[i % len(batches)])


def row_of(what, ours, *theirs):
    """A row of the table: the speeds in examples/s, and ours as a multiple of each of theirs."""
    return [what, f"{ours:.0f}", *(f"{speed:.0f}" for speed in theirs), *(f"{ours / speed:.2f}" for speed in theirs)]


def compare_encoding(args, task):
    """One row: all first sentences of a task to mean embeddings, from text on, against `sentence-transformers`."""
    try:
        from sentence_transformers import SentenceTransformer
        from sentence_transformers.sentence_transformer import modules
    except ImportError:
        raise UserError("sentence-transformers is not installed; run `make bench`, which installs it") from None
    folder = str(find_model(args.bert))
    transformer = modules.Transformer(folder, max_seq_length=MAX_TOKENS)
    pooling = modules.Pooling(transformer.get_embedding_dimension(), "mean")
    theirs = SentenceTransformer(modules=[transformer, pooling], device="cpu")
    ours, tokenizer = SentenceEncoder(Bert.load(folder), "mean"), Tokenizer(folder)
    sentences = load(args, task).examples.sentences
    calls = [
        lambda i: embeddings(ours, tokenizer, sentences, MAX_TOKENS, args.batch_size),
        lambda i: theirs.encode(sentences, batch_size=args.batch_size, show_progress_bar=False),
    ]
    difference = np.abs(calls[0](0) - calls[1](0)).max()
    if difference > 1e-4:
        raise UserError(f"the embeddings differ by {difference:.1e}: the two sides do not compute the same")
    steps = max(1, args.steps // 10)
    speeds = [steps * len(sentences) / seconds for seconds in take_turns(calls, steps)]
    return [f"{task.name}, encode", *(f"{speed:.0f}" for speed in speeds), f"{speeds[0] / speeds[1]:.2f}"]


def peak_memory(args, task, side):
    """The peak memory in MB of a process that does nothing but 20 training steps of one side."""
    torch.set_num_threads(args.threads)
    runner = side(args, TASKS[task])
    batches = batches_of(runner, args.batch_size)
    for i in range(20):
        runner.train(batches[i % len(batches)])
    return largest_memory()


def in_own_process(call, *args):
    """What a call returns or raises in a process of its own. Raises UserError where something kills that process."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        try:
            return pool.submit(call, *args).result()
        except BrokenProcessPool:
            said = "the process that measures memory was killed, for want of it perhaps"
            raise UserError(f"{said}; choose a smaller --batch_size, or close other programs") from None


def processor_text():
    """The processor's name, and the instructions that decide the speed of its products."""
    name, flags = processor()
    has = [word for word in ("avx2", "avx512f", "avx512_bf16", "amx_tile") if word in flags.split()]
    return f"{name} ({', '.join(has)})"


def linear_table():
    """The products of a MiniLM layer at 700 tokens: this project's `linear` against PyTorch's, forward."""
    rows = []
    for size_in, size_out in ((384, 1152), (384, 384), (384, 1536), (1536, 384)):
        x, w, b = torch.randn(700, size_in), torch.randn(size_out, size_in), torch.randn(size_out)
        times = ([], [])
        for _ in range(50):
            for run, record in zip((kernels.linear, nn.functional.linear), times, strict=True):
                start = time.perf_counter()
                run(x, w, b)
                record.append(time.perf_counter() - start)
        ours, theirs = (2 * 700 * size_in * size_out / statistics.median(t[5:]) / 1e9 for t in times)
        rows.append([f"{size_in} -> {size_out}", f"{ours:.0f}", f"{theirs:.0f}", f"{ours / theirs:.2f}"])
    return table(["product", "kernels.linear, GFLOP/s", "torch, GFLOP/s", "ratio"], rows)


@command
def main(argv=None):
    parser = Parser(prog="python -m bench.speed", description="Speed and memory against the best alternatives.")
    add = parser.add_argument
    add("--data", type=place, default="data/sample", metavar="DIR", help="folder of task files")
    add("--bert", default=MINILM, help="the weights of all sides")
    add("--task", choices=list(TASKS), default=None, help="default: sst and para")
    add("--batch_size", type=positive(int, most=BATCH), default=32)
    add("--steps", type=positive(int), default=40, help="how many timed steps of each side")
    add("--threads", type=positive(int, most=THREADS), default=torch.get_num_threads())
    add("--kernels", choices=kernels.CHOICES, default="auto", help="our operations: the fast ones, or kernels/plain.py")
    add_device(parser, "cpu")
    add("--linear", action="store_true", help="matrix products only")
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    choose_kernels(Namespace(kernels=args.kernels, bf16=False), choose_device(args))
    if args.linear:
        print(linear_table())
        return
    names, memory, speed, encoding = [args.task] if args.task else ["sst", "para"], [], [], []
    if choose_device(args).type == "cpu":  # first: a new process inherits the high-water mark of the one that starts it
        for name in names:
            peaks = [in_own_process(peak_memory, args, name, side) for side in (Ours, Padded, Grouped)]
            memory.append([name, *(f"{mb:.0f}" for mb in peaks), *(f"{peaks[0] / mb:.2f}" for mb in peaks[1:])])
    for name in names:
        speed += compare(args, TASKS[name])
        encoding.append(compare_encoding(args, TASKS[name]))
    print(f"products: {choice()}")
    print(
        f"batch {args.batch_size}, {args.threads} threads, {processor_text()}, torch {torch.__version__}, examples/s\n"
    )
    against = ["ours", "transformers, padded", "transformers, grouped", "ours / padded", "ours / grouped"]
    print(table(["what", *against], speed))
    print()
    print(table(["what", "ours", "sentence-transformers", "times as fast"], encoding))
    if memory:
        print("\n" + table(["peak MB", *against], memory))


if __name__ == "__main__":
    main()
