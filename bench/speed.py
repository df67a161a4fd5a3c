"""Speed and memory, side by side with what a user would pick instead: a plain training loop on `transformers`.

    python -m bench.speed                       training and evaluation on SST and Quora lengths, batch 32
    python -m bench.speed --data DIR --task sst --batch_size 64 --threads 4
    python -m bench.speed --linear             matrix products: ours against torch.nn.functional.linear

Both sides have the same weights, texts, batches in the same order, batch size, threads, precision, dropout, head and
loss, and both start from token ids. Theirs is what its documentation shows: `BertModel` with SDPA attention, padded to
the longest sentence of each batch, `torch.optim.AdamW(fused=True)`, gradients clipped. The two run in turn, A B A B, in
one process, so that a machine that speeds up or slows down does so for both; the table has the medians. Peak memory
is that of a process of its own for each side. `make bench` installs `transformers`; nothing else needs it.
"""

import multiprocessing
import resource
import statistics
import time

import torch
from torch import nn

from adamw import AdamW
from bert import Bert
from model import MultitaskBert, task_loss
from support.console import Parser, UserError, command, table
from support.downloads import MINILM, find_model
from support.flags import add_device, choose_device, positive
from tasks import TASKS, DataSet, data_path, read_examples
from tokenizer import Tokenizer


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


class Theirs:
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


def load(args, task):
    """The texts: 40 batches of the task's training file."""
    examples = read_examples(data_path(args.data, task, "train"), task).sample(40 * args.batch_size)
    if len(examples) < args.batch_size:
        raise UserError(f"the {task.name} file has {len(examples)} examples; choose a smaller --batch_size")
    return DataSet(examples, Tokenizer(find_model(args.bert)))


def compare(args, task):
    """Rows of the table for a task: training and evaluation."""
    sides = [Ours(args, task), Theirs(args, task)]
    numbers = list(range(len(sides[0].dataset) // args.batch_size * args.batch_size))
    batches = [numbers[i : i + args.batch_size] for i in range(0, len(numbers), args.batch_size)]
    rows = []
    for kind in ("train", "evaluate"):
        times = ([], [])
        for i in range(args.steps + 3):
            for side, record in zip(sides, times, strict=True):
                start = time.perf_counter()
                getattr(side, kind)(batches[i % len(batches)])
                record.append(time.perf_counter() - start)
        ours, theirs = (args.batch_size / statistics.median(t[3:]) for t in times)  # the first three warm up
        ratio = statistics.median(b / a for a, b in zip(*(t[3:] for t in times), strict=True))
        rows.append([task.name, kind, f"{ours:.0f}", f"{theirs:.0f}", f"{ratio:.2f}"])
    return rows


def peak_memory(args, task, side, queue):
    """Runs 20 training steps of one side, and puts the process's peak memory in MB on the queue."""
    torch.set_num_threads(args.threads)
    try:
        runner = side(args, TASKS[task])
    except UserError as error:
        queue.put(error)
        return
    numbers = list(range(len(runner.dataset)))
    for i in range(20):
        runner.train(numbers[i * args.batch_size : (i + 1) * args.batch_size] or numbers[: args.batch_size])
    queue.put(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)


def in_own_process(args, task, side):
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    process = context.Process(target=peak_memory, args=(args, task, side, queue))
    process.start()
    value = queue.get(timeout=600)
    process.join()
    if isinstance(value, UserError):
        raise value
    return value


def linear_table():
    """The products of a MiniLM layer at 700 tokens: this project's `linear` against PyTorch's, forward."""
    from kernels import linear

    rows = []
    for size_in, size_out in ((384, 1152), (384, 384), (384, 1536), (1536, 384)):
        x, w, b = torch.randn(700, size_in), torch.randn(size_out, size_in), torch.randn(size_out)
        times = ([], [])
        for _ in range(50):
            for run, record in zip((linear, nn.functional.linear), times, strict=True):
                start = time.perf_counter()
                run(x, w, b)
                record.append(time.perf_counter() - start)
        ours, theirs = (2 * 700 * size_in * size_out / statistics.median(t[5:]) / 1e9 for t in times)
        rows.append([f"{size_in} -> {size_out}", f"{ours:.0f}", f"{theirs:.0f}", f"{ours / theirs:.2f}"])
    return table(["product", "kernels.linear, GFLOP/s", "torch, GFLOP/s", "ratio"], rows)


@command
def main(argv=None):
    parser = Parser(prog="python -m bench.speed", description="Speed and memory against `transformers`.")
    add = parser.add_argument
    add("--data", default="data/sample", metavar="DIR", help="folder of the task files (default: data/sample)")
    add("--bert", default=MINILM, help="the weights of both sides")
    add("--task", choices=list(TASKS), default=None, help="default: sst and para")
    add("--batch_size", type=positive(int), default=32)
    add("--steps", type=positive(int), default=40, help="how many timed steps of each side")
    add("--threads", type=positive(int), default=torch.get_num_threads())
    add_device(parser, "cpu")
    add("--linear", action="store_true", help="matrix products only")
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    if args.linear:
        print(linear_table())
        return
    names, memory, speed = [args.task] if args.task else ["sst", "para"], [], []
    if choose_device(args).type == "cpu":  # first: a new process inherits the high-water mark of the one that starts it
        for name in names:
            ours, theirs = (in_own_process(args, name, side) for side in (Ours, Theirs))
            memory.append([name, f"{ours:.0f}", f"{theirs:.0f}", f"{ours / theirs:.2f}"])
    for name in names:
        speed += compare(args, TASKS[name])
    print(f"batch {args.batch_size}, {args.threads} threads, {choose_device(args)}, torch {torch.__version__}\n")
    print(table(["task", "what", "ours, examples/s", "transformers, examples/s", "times as fast"], speed))
    if memory:
        print()
        print(table(["task", "ours, peak MB", "transformers, peak MB", "ours / theirs"], memory))


if __name__ == "__main__":
    main()
