"""Fine-tune one BERT on all tasks at once: heads, losses, the training loop, the command line.

    python multitask.py --option finetune                     trains everything, on data/sample
    python multitask.py --option pretrain                     trains the heads, the encoder stays as it is
    python multitask.py --option finetune --data DIR --epochs 3 --out runs/mine
    python multitask.py --resume --out runs/mine              goes on where the run stopped
    python multitask.py --eval_only --out runs/mine           scores its best model again, writes predictions

A sentence is encoded to the pooled [CLS] vector. A pair goes through the encoder in one sequence [CLS] a [SEP] b [SEP]
(`--pair_encoding joint`), or each sentence alone, the two vectors then side by side (`siamese`). A head per task (two
feed-forward layers with GELU and dropout, then a linear layer) makes of it

    sst      5 logits z       cross-entropy           -log softmax(z)[label]
    para     1 logit z        binary cross-entropy    -log σ(z) if label = 1, -log(1 - σ(z)) if 0
    sts      1 number z       squared error           (z - label)²

Each step draws a batch of one task (`data.training_steps`).
"""

import argparse
import collections
import itertools
import math
import sys
import time
from pathlib import Path
from statistics import mean

import torch
import torch.nn.functional as F
from torch import nn

import runs
from adamw import AdamW, linear_schedule
from bert import Bert
from console import Parser, UserError, command, progress, table
from data import SAMPLINGS, SPLITS, TASKS, DataSet, data_path, read_examples, training_steps
from evaluate import dev_score, majority, outputs, score, write_predictions
from kernels.dropout import dropout
from kernels.gelu import bias_gelu
from kernels.linear import linear
from tokenizer import Tokenizer
from weights import MINILM, find_model, read_safetensors, write_safetensors


class Head(nn.Module):
    """(B, in) -> (B, out): `layers` times Linear, GELU, dropout; then Linear."""

    def __init__(self, size_in, size, size_out, layers, p):
        super().__init__()
        sizes = [size_in] + [size] * layers
        self.hidden = nn.ModuleList(nn.Linear(a, b) for a, b in itertools.pairwise(sizes))
        self.output = nn.Linear(sizes[-1], size_out)
        self.p = p
        for layer in self.hidden:  # He et al. (2015): the signal keeps its size through the layers
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
            nn.init.zeros_(layer.bias)
        nn.init.normal_(self.output.weight, std=0.02)
        nn.init.zeros_(self.output.bias)

    def forward(self, x):
        p = self.p if self.training else 0.0
        x = dropout(x, p)
        for layer in self.hidden:
            x = dropout(bias_gelu(linear(x, layer.weight), layer.bias), p)
        return linear(x, self.output.weight, self.output.bias)


class MultitaskBert(nn.Module):
    """One encoder, one head per task."""

    def __init__(self, bert, pair_encoding="joint", classifier_layers=2, classifier_size=None):
        """Args: classifier_size, the width of the heads, None for the encoder's hidden size."""
        super().__init__()
        H, p = bert.config.hidden_size, bert.config.hidden_dropout_prob
        self.bert = bert
        self.shape = {
            "pair_encoding": pair_encoding,
            "classifier_layers": classifier_layers,
            "classifier_size": classifier_size or H,
        }
        self.heads = nn.ModuleDict()
        for task in TASKS.values():
            size_in = 2 * H if self.siamese(task) else H
            size_out = task.classes if task.classes > 2 else 1
            self.heads[task.name] = Head(size_in, classifier_size or H, size_out, classifier_layers, p)

    def siamese(self, task):
        return task.pair and self.shape["pair_encoding"] == "siamese"

    def forward(self, task, batch):
        """The name of a task and a `Batch` of its B examples (`DataSet.batch`) -> logits (B, classes), or (B, 1)."""
        x = self.bert.embed(batch)
        h_cls = self.bert.encode(x, batch, rows=batch.cls_rows)  # (B, H), siamese (2B, H)
        pooled = self.bert.pool(h_cls)
        if self.siamese(TASKS[task]):
            pooled = torch.cat(pooled.chunk(2), 1)  # (B, 2H)
        return self.heads[task](pooled)

    def parameter_groups(self):
        """What steps together (see `adamw.py`): the encoder on every step, a head when its task is drawn."""
        groups = {"shared": [(f"bert.{name}", p) for name, p in self.bert.named_parameters()]}
        for task, head in self.heads.items():
            groups[task] = [(f"heads.{task}.{name}", p) for name, p in head.named_parameters()]
        return groups

    def save(self, folder, tokenizer):
        """A folder that `transformers` opens as a `BertModel`, with the heads in a file of their own beside it."""
        self.bert.save(folder)
        tokenizer.save(folder)
        write_safetensors(Path(folder) / "heads.safetensors", self.heads.state_dict())
        runs.write_json(Path(folder) / "multitask.json", self.shape)

    @classmethod
    def load(cls, folder):
        """From a folder that `save` wrote. Returns (model, tokenizer)."""
        if not (Path(folder) / "multitask.json").exists():
            raise UserError(f"{folder} holds no trained model; name the folder of a run of multitask.py")
        model = cls(Bert.load(folder), **runs.read_json(Path(folder) / "multitask.json"))
        try:
            model.heads.load_state_dict(read_safetensors(Path(folder) / "heads.safetensors"))
        except RuntimeError:
            raise UserError(f"the heads in {folder} are not those of the tasks of data.py; train again") from None
        return model, Tokenizer(folder)


def task_loss(task, logits, labels):
    """The mean loss of a batch. Args: task, its row; logits (B, C); labels (B,) float. Returns a float32 scalar."""
    logits = logits.float()
    if not task.classes:
        return F.mse_loss(logits.squeeze(1), labels)
    if task.classes == 2:
        return F.binary_cross_entropy_with_logits(logits.squeeze(1), labels)
    return F.cross_entropy(logits, labels.long())


# ----- training


def train(args, model, tokenizer, datasets):
    """Trains `model` and leaves the run in args.out; returns True, or False where Ctrl-C stopped it. See `runs.py`."""
    device = next(model.parameters()).device
    optimizer = AdamW(model.parameter_groups(), weight_decay=args.weight_decay, clip=args.clip)
    sizes = {name: len(splits["train"]) for name, splits in datasets.items()}
    extra = ("sst",) if args.extra_sst else ()
    plan = list(training_steps(sizes, args.batch_size, args.epochs, args.sampling, args.seed, extra))
    position = runs.load_state(args.out, model, optimizer) or {"step": 0, "best": -math.inf, "losses": {}}
    losses = collections.defaultdict(list)  # of the epoch so far, by task
    losses.update(position["losses"])
    pending = []  # (step, task, loss), not read yet: reading a loss waits for the GPU
    bar = progress(len(plan) * args.batch_size, position["step"] * args.batch_size, "sentences", "training")
    with runs.Interrupt() as interrupt, bar:
        runs.rewind_metrics(args.out, position["step"])
        for step in range(position["step"] + 1, len(plan) + 1):
            epoch, name, numbers = plan[step - 1]
            dataset = datasets[name]["train"]
            model.train()
            with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
                logits = model(name, dataset.batch(numbers).to(device))
            loss = task_loss(TASKS[name], logits, dataset.labels(numbers).to(device))
            optimizer.zero_grad()
            loss.backward()
            factor = linear_schedule(step - 1, len(plan), args.warmup)
            optimizer.step({"shared": args.lr * factor, name: args.head_lr * factor})
            pending.append((step, name, loss.detach()))
            bar.update(len(numbers))

            end_of_epoch = step == len(plan) or plan[step][0] > epoch
            save = end_of_epoch or interrupt.asked or step % args.save_every == 0
            if save or len(pending) == 20:
                read_losses(pending, losses)
                bar.set_postfix_str(" ".join(f"{t} {mean(v[-20:]):.3f}" for t, v in losses.items()))
            if end_of_epoch:
                loss = {t: mean(v) for t, v in losses.items()}
                runs.append_metrics(args.out, kind="train", step=step, epoch=epoch, loss=loss)
                losses.clear()
                metrics = {t: dev_metric(model, t, splits["dev"]) for t, splits in datasets.items()}
                dev = dev_score(metrics)
                runs.append_metrics(args.out, kind="dev", step=step, epoch=epoch, **metrics, score=dev)
                bar.write(
                    f"epoch {epoch}: " + ", ".join(f"{t} {v:.3f}" for t, v in metrics.items()) + f", score {dev:.3f}"
                )
                if dev > position["best"]:
                    position["best"] = dev
                    with runs.replacing_folder(Path(args.out) / "best") as folder:
                        model.save(folder, tokenizer)
            if save:
                position |= {"step": step, "losses": losses}
                runs.save_state(args.out, model, optimizer, **position)
            if interrupt.asked and step < len(plan):
                return False
    return True


def read_losses(pending, losses):
    """Moves the pending (step, task, loss) into `losses`, by task. Raises UserError for one that is not finite."""
    for step, name, loss in pending:
        value = loss.item()
        if not math.isfinite(value):
            raise UserError(f"the loss of {name} became {value} at step {step}; the last state is kept: lower --lr")
        losses[name].append(value)
    pending.clear()


def dev_metric(model, name, dataset):
    """The metric of a task on a labelled data set."""
    return score(TASKS[name], outputs(model, TASKS[name], dataset), dataset.examples.labels)


def report(args, model, datasets):
    """Scores the model on dev, writes the prediction files, and prints the final table."""
    rows, metrics = [], {}
    for name, splits in datasets.items():
        task = TASKS[name]
        for split in ("dev", "test"):
            if split in splits:
                values = outputs(model, task, splits[split])
                path = Path(args.out) / getattr(args, f"{name}_{split}_out")
                write_predictions(path, task, splits[split].examples.ids, values)
                if split == "dev":
                    metrics[name] = score(task, values, splits["dev"].examples.labels)
        labels = splits["dev"].examples.labels
        rows.append([name, task.metric, len(labels), majority(task, labels), metrics[name]])
    rows.append(["dev score", "", "", dev_score({row[0]: row[3] for row in rows}), dev_score(metrics)])
    print(table(["task", "metric", "dev examples", "majority class", "best model"], rows))
    print(f"the best model is in {args.out}/best, its predictions are in {args.out}/predictions")


# ----- the command line


def arguments():
    parser = Parser(prog="multitask.py", description="Fine-tune one BERT on all tasks.")
    add = parser.add_argument
    add("--option", choices=("finetune", "pretrain"), default="finetune", help="train all, or only the heads")
    add("--bert", default=MINILM, help="pretrained encoder: a folder or a name")
    add("--out", default=None, help="folder of the run (default: runs/OPTION)")
    add("--resume", action="store_true", help="go on with the run in --out, if there is one")
    add("--eval_only", action="store_true", help="score the best model of the run in --out, write its predictions")
    add("--save_every", type=positive(int), default=1000, metavar="N", help="save every N steps, besides epoch ends")

    add("--pair_encoding", choices=("joint", "siamese"), default="joint", help="sentences of a pair together or alone")
    add("--classifier_layers", type=positive(int, 0), default=2, help="feed-forward layers in a head")
    add("--classifier_size", type=positive(int), default=None, help="their width (default: the hidden size)")
    add("--hidden_dropout_prob", type=share, default=0.1, help="dropout in the encoder and the heads")

    add("--epochs", type=positive(int), default=3)
    add("--batch_size", type=positive(int), default=32)
    add("--lr", type=positive(float), default=1e-4, help="peak learning rate of the encoder")
    add("--head_lr", type=positive(float), default=1e-3, help="peak learning rate of what starts untrained: the heads")
    add("--weight_decay", type=positive(float, 0), default=0.01)
    add("--warmup", type=share, default=0.1, help="share of the steps over which the learning rate rises")
    add("--clip", type=positive(float, 0), default=1.0, help="largest norm of the gradient, 0 for no limit")
    add("--sampling", choices=SAMPLINGS, default="proportional", help="how often each task is drawn")
    add("--extra_sst", action="store_true", help="one more pass over SST at the end of each epoch")
    add("--seed", type=positive(int, 0), default=11711)
    add("--device", choices=("auto", "cpu", "cuda"), default="auto")
    add("--use_gpu", action="store_true", help="the same as --device cuda")

    add("--data", default="data/sample", metavar="DIR", help="folder of the task files")
    add(
        "--max_examples",
        type=positive(int),
        default=None,
        metavar="N",
        help="only N examples of each file, drawn evenly",
    )
    for task in TASKS.values():
        for split in SPLITS:
            add(
                f"--{task.name}_{split}",
                default=None,
                metavar="FILE",
                help=f"(default: {data_path('DATA', task, split)})",
            )
        for split in ("dev", "test"):
            add(f"--{task.name}_{split}_out", default=f"predictions/{task.name}-{split}-output.csv", metavar="FILE",
                help="where predictions go, relative to --out")  # fmt: skip
    return parser


def positive(kind, low=None):
    """An argparse type: a finite number greater than 0, or at least `low`."""

    def parse(text):
        try:
            value = kind(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text!r} is not a number") from None
        if not math.isfinite(value) or value < (low or 0) or (low is None and value == 0):
            bound = "greater than 0" if low is None else f"at least {low}"
            raise argparse.ArgumentTypeError(f"{text} is not {bound}")
        return value

    return parse


def share(text):
    """An argparse type: a number in [0, 1)."""
    value = positive(float, 0)(text)
    if value >= 1:
        raise argparse.ArgumentTypeError(f"{text} is not below 1")
    return value


def choose_device(args):
    wanted = "cuda" if args.use_gpu else args.device
    if wanted == "cuda" and not torch.cuda.is_available():
        raise UserError("no CUDA device is available; leave out --use_gpu and --device cuda to run on the CPU")
    return torch.device("cuda" if wanted != "cpu" and torch.cuda.is_available() else "cpu")


def load_data(args, tokenizer, siamese, splits=SPLITS):
    """The data sets of the run: {task: {split: DataSet}}. A task without a test file has no "test"."""
    datasets = {}
    for task in TASKS.values():
        datasets[task.name] = {}
        for split in splits:
            given = getattr(args, f"{task.name}_{split}")
            path = Path(given or data_path(args.data, task, split))
            if split == "test" and not given and not path.exists():
                print(f"{path} does not exist: no test predictions for {task.name}", file=sys.stderr)
                continue
            examples = read_examples(path, task, labelled=split != "test")
            datasets[task.name][split] = DataSet(examples.sample(args.max_examples), tokenizer, siamese)
    return datasets


@command
def main(argv=None):
    parser = arguments()
    args = parser.parse_args(argv)
    parser.set_defaults(out=f"runs/{args.option}")
    args = runs.parse_flags(parser, argv)
    device = choose_device(args)
    best = runs.recover_folder(Path(args.out) / "best")
    siamese = args.pair_encoding == "siamese"
    if args.eval_only:
        model, tokenizer = MultitaskBert.load(best)
        report(args, model.to(device), load_data(args, tokenizer, siamese, splits=("dev", "test")))
        return
    folder = find_model(args.bert)
    tokenizer = Tokenizer(folder)
    datasets = load_data(args, tokenizer, siamese)
    torch.manual_seed(args.seed)
    bert = Bert.load(folder, hidden_dropout_prob=args.hidden_dropout_prob)
    bert.requires_grad_(args.option == "finetune")
    model = MultitaskBert(bert, args.pair_encoding, args.classifier_layers, args.classifier_size).to(device)
    runs.write_json(Path(args.out) / "config.json", vars(args))
    counts = [sum(p.numel() for p in part.parameters()) for part in (model.bert, model.heads)]
    sizes = ", ".join(f"{name} {len(splits['train'])}" for name, splits in datasets.items())
    print(f"encoder {counts[0]:,} parameters, heads {counts[1]:,}; training examples: {sizes}; on {device}")
    started = time.perf_counter()
    if not train(args, model, tokenizer, datasets):
        print(f"stopped and saved; go on with: python multitask.py --resume --out {args.out}")
        raise SystemExit(130)
    print(f"trained in {time.perf_counter() - started:.0f} s")
    model, _ = MultitaskBert.load(best)
    report(args, model.to(device), datasets)


if __name__ == "__main__":
    main()
