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

Each step draws a batch of one task (`data.training_steps`). `--use_pals`, `--use_smart` and `--gradient_surgery` are
explained in `pals.py`, `smart.py` and `surgery.py`, training in several processes (torchrun) in `parallel.py`, and
`--cuda_graphs` in `graphs.py`.
"""

import collections
import itertools
import math
import time
from pathlib import Path
from statistics import mean

import torch
from torch import nn

import flags
import parallel
import runs
from adamw import AdamW, linear_schedule
from bert import Bert, BertConfig
from console import UserError, command, progress, table
from data import TASKS, fingerprint, joint_steps, load_data, training_steps
from evaluate import dev_score, majority, outputs, score, write_predictions
from graphs import GraphedStep
from kernels.dropout import dropout
from kernels.gelu import bias_gelu
from kernels.linear import linear
from kernels.loss import mean_loss
from pals import Pals
from smart import Smart
from surgery import Surgery
from tokenizer import Tokenizer
from weights import find_model, read_safetensors, write_safetensors


class Head(nn.Module):
    """(B, in) -> (B, out): dropout; `layers` times Linear, GELU, dropout; then Linear."""

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
    """One encoder, one head per task, and with `pal_size` one set of PALs per task."""

    def __init__(
        self, bert, pair_encoding="joint", classifier_layers=2, classifier_size=None, pal_size=None, pal_heads=12
    ):
        """Args: classifier_size, the width of the heads, None for the hidden size; pal_size, None for no PALs."""
        super().__init__()
        H, p = bert.config.hidden_size, bert.config.hidden_dropout_prob
        self.bert = bert
        self.options = {
            "pair_encoding": pair_encoding,
            "classifier_layers": classifier_layers,
            "classifier_size": classifier_size or H,
        }
        self.heads = nn.ModuleDict()
        for task in TASKS.values():
            size_in = 2 * H if self.siamese(task) else H
            size_out = task.classes if task.classes > 2 else 1
            self.heads[task.name] = Head(size_in, classifier_size or H, size_out, classifier_layers, p)
        self.pals = None
        if pal_size:
            self.options |= {"pal_size": pal_size, "pal_heads": pal_heads}
            self.pals = nn.ModuleDict({name: Pals(bert.config, pal_size, pal_heads) for name in TASKS})

    def siamese(self, task):
        return task.pair and self.options["pair_encoding"] == "siamese"

    def forward(self, task, batch):
        """The name of a task and a `Batch` of its B examples (`DataSet.batch`) -> logits (B, classes), or (B, 1)."""
        return self.classify(task, self.bert.embed(batch), batch)

    def classify(self, task, x, batch):
        """The rest of `forward`, from the embeddings x (T, H) on."""
        return self.heads[task](self.pooled(task, x, batch))

    def pooled(self, task, x, batch):
        """What the head of the task reads, from the embeddings x (T, H) on: (B, H), or (B, 2H) of a siamese pair."""
        side = None if self.pals is None else self.pals[task]
        h_cls = self.bert.encode(x, batch, side, rows=batch.cls_rows)  # (B, H), siamese (2B, H)
        pooled = self.bert.pool(h_cls)
        if self.siamese(TASKS[task]):
            pooled = torch.cat(pooled.chunk(2), 1)  # (B, 2H)
        return pooled

    def parameter_groups(self):
        """What steps together (see `adamw.py`): the encoder on every step, a task's head and PALs when it is drawn."""
        groups = {"shared": [(f"bert.{name}", p) for name, p in self.bert.named_parameters()]}
        for task, head in self.heads.items():
            groups[task] = [(f"heads.{task}.{name}", p) for name, p in head.named_parameters()]
            if self.pals is not None:
                groups[f"pals.{task}"] = [(f"pals.{task}.{name}", p) for name, p in self.pals[task].named_parameters()]
        return groups

    def save(self, folder, tokenizer):
        """A folder that `transformers` opens as a `BertModel`, with heads and PALs in files of their own beside it."""
        self.bert.save(folder)
        tokenizer.save(folder)
        write_safetensors(Path(folder) / "heads.safetensors", self.heads.state_dict())
        if self.pals is not None:
            write_safetensors(Path(folder) / "pals.safetensors", self.pals.state_dict())
        runs.write_json(Path(folder) / "multitask.json", self.options)

    @classmethod
    def load(cls, folder):
        """From a folder that `save` wrote. Returns (model, tokenizer)."""
        if not (Path(folder) / "multitask.json").exists():
            raise UserError(f"{folder} holds no trained model; name the folder of a run of multitask.py")
        bert = Bert.load(folder)
        model = cls(bert, **runs.read_json(Path(folder) / "multitask.json"))
        try:
            model.heads.load_state_dict(read_safetensors(Path(folder) / "heads.safetensors"))
            if model.pals is not None:
                model.pals.load_state_dict(read_safetensors(Path(folder) / "pals.safetensors"))
        except RuntimeError:
            raise UserError(f"the heads in {folder} are not those of the tasks of data.py; train again") from None
        return model, Tokenizer(folder, bert.config.max_position_embeddings, bert.config.vocab_size)


def logits_of(model, name, batch):
    """The model's logits of a batch, on a GPU computed in bfloat16. Args: name, the task's. Returns (B, C)."""
    device = batch.ids.device.type
    with torch.autocast(device, torch.bfloat16, enabled=device == "cuda"):
        return model(name, batch)


def task_loss(task, logits, labels):
    """The mean loss of a batch. Args: task, its row; logits (B, C); labels (B,) float. Returns a float32 scalar."""
    return mean_loss(logits, labels, task.classes)


# ----- training


def train(args, model, tokenizer, datasets):
    """Trains `model` and leaves the run in args.out; returns True, or False where Ctrl-C stopped it. See `runs.py`."""
    optimizer = AdamW(model.parameter_groups(), weight_decay=args.weight_decay, clip=args.clip)
    smart = Smart(model, optimizer, args) if args.use_smart else None
    surgery = Surgery(optimizer, args.seed) if args.gradient_surgery else None
    graphed = graphed_step(model, optimizer) if args.cuda_graphs else None
    if smart:
        print("SMART: {} forward and {} backward passes for each batch, in place of 1 and 1".format(*smart.passes()))
    averages = smart.state() if smart else {}
    steps = list(training_plan(args, {name: len(splits["train"]) for name, splits in datasets.items()}))
    data = {name: fingerprint(splits["train"].examples) for name, splits in datasets.items()}
    at = runs.load_state(args.out, model, optimizer, averages) or {"step": 0, "best": -math.inf, "data": data}
    if at["data"] != data:
        raise UserError(f"the training files are not those that {args.out} was started with; choose another --out")
    writer = parallel.rank() == 0

    pending = []  # (step, name, value), not read yet: reading a loss waits for the GPU
    sizes = [sum(map(len, batches.values())) for _, batches in steps]
    bar = progress(sum(sizes), sum(sizes[: at["step"]]), "examples", "training")
    with runs.Interrupt() as interrupt, bar:
        if writer:
            runs.rewind_metrics(args.out, at["step"])
        for step, (epoch, batches) in enumerate(steps[at["step"] :], at["step"] + 1):
            factor = linear_schedule(step - 1, len(steps), args.warmup)
            pending += training_step(args, step, factor, batches, model, optimizer, datasets, smart, surgery, graphed)
            bar.update(sizes[step - 1])

            stop = parallel.any_of(interrupt.asked)
            end_of_epoch = step == len(steps) or steps[step][0] > epoch
            save = end_of_epoch or stop or step % args.save_every == 0
            if save or step % 20 == 0:
                # the steps that the line stands for; with surgery only those of several tasks, which can conflict
                read = len({number for number, name, _ in pending if not surgery or name.startswith("conflict")})
                means = read_values(pending)
                bar.set_postfix_str(" ".join(f"{t} {v:.3f}" for t, v in means.items() if t in TASKS), refresh=False)
                if writer:
                    runs.append_metrics(args.out, kind="train", step=step, epoch=epoch, steps=read, **means)
            if end_of_epoch:
                metrics = {t: dev_metric(model, t, splits["dev"]) for t, splits in datasets.items()}
                dev = dev_score(metrics)
                bar.write(f"epoch {epoch}: " + ", ".join(f"{t} {v:.3f}" for t, v in (metrics | {"score": dev}).items()))
                if surgery and writer:
                    bar.write(f"epoch {epoch}: gradients in conflict: {conflict_shares(args.out, epoch)}")
                if writer:
                    runs.append_metrics(args.out, kind="dev", step=step, epoch=epoch, **metrics, score=dev)
                if writer and dev > at["best"]:
                    with runs.replacing_folder(Path(args.out) / "best") as folder:
                        model.save(folder, tokenizer)
                at["best"] = max(dev, at["best"])
            if save and writer:
                at["step"] = step
                runs.save_state(args.out, model, optimizer, averages, **at)
            if stop and step < len(steps):
                return False
    return True


def training_plan(args, sizes):
    """All steps of the run: (epoch, {task: example numbers}), of one task, or with gradient surgery of all."""
    extra = ("sst",) if args.extra_sst else ()
    if args.gradient_surgery:
        return joint_steps(sizes, args.batch_size, args.epochs, args.seed, extra)
    steps = training_steps(sizes, args.batch_size, args.epochs, args.sampling, args.seed, extra)
    return ((epoch, {name: numbers}) for epoch, name, numbers in steps)


def graphed_step(model, optimizer):
    """What runs the forward and backward pass of a step as a CUDA graph, see `graphs.py`."""
    return GraphedStep(
        next(model.parameters()).device,
        lambda name, batch: logits_of(model, name, batch),
        lambda name, logits, labels: task_loss(TASKS[name], logits, labels),
        optimizer.zero_grad,
    )


def training_step(args, step, factor, batches, model, optimizer, datasets, smart=None, surgery=None, graphed=None):
    """One step on `batches`, {task: example numbers}, at `factor` times the peak learning rates.

    Returns a list of (step, name, value): the losses, the norm of the gradient, what SMART and surgery have to report.
    """
    parallel.seed_step(args.seed, step)
    model.train()
    if not graphed:  # which does it itself
        optimizer.zero_grad()
    values = []
    for name, numbers in batches.items():
        values += backward(args, step, name, numbers, model, datasets[name]["train"], smart, graphed)
        if surgery:
            surgery.take(name)
    rates = {"shared": args.lr} | dict.fromkeys(batches, args.head_lr)
    if model.pals is not None:
        rates |= {f"pals.{name}": args.pal_lr for name in batches}
    parallel.sum_gradients(optimizer, [group for group in rates if group != "shared" or not surgery])
    if surgery:
        conflicts = surgery.combine(step).items()
        values += [(step, f"conflict {pair}", torch.tensor(float(found))) for pair, found in conflicts]
    norm = optimizer.step({group: rate * factor for group, rate in rates.items()})
    if smart:
        smart.after_step(step)
    return [*values, (step, "gradient norm", norm)]


def backward(args, step, name, numbers, model, dataset, smart=None, graphed=None):
    """Adds the gradient of one task's batch, or of this process's share of it, to that which stands in the parameters.

    Returns a list of (step, name, value): the loss, and SMART's penalties; tensors, weighted with the share.
    """
    if graphed:
        return [(step, name, graphed(name, dataset.batch(numbers), dataset.labels(numbers)))]
    task, device = TASKS[name], next(model.parameters()).device
    mine = parallel.share(numbers)
    weight = len(mine) / len(numbers)
    batch, labels = dataset.batch(mine).to(device), dataset.labels(mine).to(device, non_blocking=True)
    if smart:
        logits, smoothness, bregman = smart.forward(task, batch, step, parallel.first_of_share(len(numbers)))
        loss = task_loss(task, logits, labels)
        values = {name: loss, "smoothness": smoothness, "bregman": bregman}
        total = loss + args.lambda_s * smoothness + args.mu * bregman
    else:
        total = task_loss(task, logits_of(model, name, batch), labels)
        values = {name: total}
    (total * weight).backward()
    return [(step, key, value.detach() * weight) for key, value in values.items()]


def read_values(pending):
    """The mean of the pending (step, name, value) by name; leaves none pending. Sums losses over the processes.

    Raises UserError for a value that is not finite.
    """
    values = torch.stack([value.detach().float().cpu() for _, _, value in pending])
    of_loss = torch.tensor([not name.startswith(("gradient", "conflict")) for _, name, _ in pending])
    values[of_loss] = parallel.sum_(values[of_loss])  # the others are the same in every process
    by_name = collections.defaultdict(list)
    for (step, name, _), value in zip(pending, values.tolist(), strict=True):
        if not math.isfinite(value):
            what = f"the loss of {name}" if name in TASKS else f"the {name}"
            raise UserError(f"{what} became {value} at step {step}; start again with a lower --lr and another --out")
        by_name[name].append(value)
    pending.clear()
    return {name: mean(values) for name, values in by_name.items()}


def conflict_shares(out, epoch):
    """Text: in which share of the epoch's steps the gradients of each two tasks were in conflict (`surgery.py`)."""
    lines = [line for line in runs.read_metrics(out) if line["kind"] == "train" and line["epoch"] == epoch]
    total = sum(line["steps"] for line in lines)
    pairs = [name for name in lines[0] if name.startswith("conflict ")]
    shares = {pair: sum(line[pair] * line["steps"] for line in lines if line["steps"]) / total for pair in pairs}
    return ", ".join(f"{pair[9:]} {share:.0%}" for pair, share in shares.items())


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
                values = outputs(model, task, splits[split])  # all processes take part; one writes
                path = Path(args.out) / getattr(args, f"{name}_{split}_out")
                if parallel.rank() == 0:
                    write_predictions(path, task, splits[split].examples.ids, values)
                if split == "dev":
                    metrics[name] = score(task, values, splits["dev"].examples.labels)
        labels = splits["dev"].examples.labels
        rows.append([name, task.metric, len(labels), majority(task, labels), metrics[name]])
    rows.append(["dev score", "", "", dev_score({row[0]: row[3] for row in rows}), dev_score(metrics)])
    print(table(["task", "metric", "dev examples", "majority class", "best model"], rows))
    print(f"the best model is in {args.out}/best, its predictions for dev and test in {path.parent}")


# ----- the command line


@command
def main(argv=None):
    args = flags.parse(argv)
    device = flags.choose_device(args)
    flags.choose_products(args, device)
    parallel.start(args.batch_size)
    siamese = args.pair_encoding == "siamese"
    if args.eval_only:
        model, tokenizer = MultitaskBert.load(runs.best_folder(args.out))
        report(args, model.to(device), load_data(args, tokenizer, siamese, ("dev", "test")))
        parallel.stop()
        return
    with parallel.one_after_another():
        folder = find_model(args.bert)
    config = BertConfig.load(folder)
    tokenizer = Tokenizer(folder, config.max_position_embeddings, config.vocab_size)
    with parallel.one_voice():
        datasets = load_data(args, tokenizer, siamese)
    torch.manual_seed(args.seed)
    bert = Bert.load(folder, hidden_dropout_prob=args.hidden_dropout_prob)
    bert.requires_grad_(args.option == "finetune")
    pal_size = args.pal_size if args.use_pals else None
    heads = args.pair_encoding, args.classifier_layers, args.classifier_size
    model = MultitaskBert(bert, *heads, pal_size, args.pal_heads).to(device)
    if parallel.rank() == 0:
        runs.recover_folder(Path(args.out) / "best")
        runs.write_json(Path(args.out) / "config.json", vars(args))
    describe(model, datasets, device)
    started = time.perf_counter()
    if not train(args, model, tokenizer, datasets):
        print(f"stopped and saved; go on with: python multitask.py --resume --out {args.out}")
        parallel.stop()  # process 0 has saved
        raise SystemExit(130)
    print(f"trained in {time.perf_counter() - started:.0f} s")
    parallel.barrier()  # the best model is written
    model, _ = MultitaskBert.load(runs.best_folder(args.out))
    report(args, model.to(device), datasets)
    parallel.stop()


def describe(model, datasets, device):
    """Prints what is about to be trained, on what."""
    count = lambda module: f"{sum(p.numel() for p in module.parameters()):,}"  # noqa: E731
    pals = f", PALs {count(next(iter(model.pals.values())))} a task" if model.pals is not None else ""
    sizes = ", ".join(f"{name} {len(splits['train'])}" for name, splits in datasets.items())
    processes = f" in {parallel.world()} processes" if parallel.world() > 1 else ""
    print(f"encoder {count(model.bert)} parameters, heads {count(model.heads)}{pals}")
    print(f"training examples: {sizes}; on {device}{processes}")


if __name__ == "__main__":
    main()
