"""Fine-tune one BERT on all tasks at once: the training loop, the command line.

    python multitask.py --option finetune                     trains everything, on data/sample
    python multitask.py --option pretrain                     trains the heads, the encoder stays as it is
    python multitask.py --option finetune --data DIR --epochs 3 --out runs/mine
    python multitask.py --resume --out runs/mine              goes on where the run stopped
    python multitask.py --eval_only --out runs/mine           scores its best model again, writes predictions

A step takes a batch of one task (`sampling.py`), computes the gradient of its loss (`model.py`), and moves the weights
by AdamW (`adamw.py`). Without PALs and other methods, in one process, `Trainer.step` is

    optimizer.zero_grad()
    loss = task_loss(task, model(name, batch), labels)
    loss.backward()
    optimizer.step({"shared": lr, name: head_lr})        the encoder's rate, and that of the task's head

After each epoch the model is scored on the dev files, and the best one so far is kept.

A run may be killed at any instant. After each epoch, and every `--save_every` steps, it writes its state to `last/`:
weights, AdamW's m and v, the number of steps, the random state, and what a method keeps. `--resume` loads that. No
more is needed: the batches of a step are a function of its number (`sampling.py`).

`pals.py`, `smart.py`, `surgery.py` and `distill.py` explain `--use_pals`, `--use_smart`, `--gradient_surgery` and
`--teacher`. Machinery stands apart: `support/training_run.py` resumes, records and saves, `support/distributed.py`
trains in several processes (torchrun), and `support/cuda_graphs.py` replays recorded steps (`--cuda_graphs`).
"""

import support.interrupt  # noqa: F401, from here on Ctrl-C prints one line

import time
from pathlib import Path

import torch

import kernels
from adamw import AdamW, linear_schedule
from bert import Bert, BertConfig
from distill import Teachers, check_inputs
from evaluate import dev_metrics, dev_score, majority, model_outputs, score, write_predictions
from kernels import precision
from model import MultitaskBert, logits_of, task_loss
from sampling import SAMPLINGS, Plan
from smart import PRESETS, Smart
from support import distributed, fingerprints, flags, run_folder
from support.console import UserError, command, table, typed
from support.cuda_graphs import GraphedStep
from support.downloads import find_model
from support.loss_scaling import scaler_for
from support.training_run import TrainingRun
from surgery import Surgery
from tasks import SPLITS, TASKS, load_data
from tokenizer import Tokenizer


def train(args, model, tokenizer, datasets):
    """Trains `model` and leaves the run in args.out. Returns True, or False where Ctrl-C stopped it."""
    trainer, plan = Trainer(args, model, datasets), training_plan(args, datasets)
    rates = {"--lr": args.option == "finetune", "--pal_lr": args.use_pals, "--head_lr": True}
    lower = " or ".join(flag for flag, used in rates.items() if used)  # what to lower if training diverges
    run = TrainingRun(
        args, plan, model, trainer.optimizer, extra=trainer.state(), data=trainer.fingerprints(),
        save_model=lambda folder: model.save(folder, tokenizer), rate_flags=lower,
    )  # fmt: skip
    if trainer.smart:
        passes = trainer.smart.passes()
        print("SMART: {} forward and {} backward passes for each batch, in place of 1 and 1".format(*passes))
    dev = {name: splits["dev"] for name, splits in datasets.items()}
    with run:
        for step, _, batches in run.steps():
            factor = linear_schedule(step - 1, len(plan), args.warmup)
            run.record(trainer.step(step, factor, batches))
            if run.epoch_ends:
                metrics = dev_metrics(model, dev)
                run.evaluated(metrics, dev_score(metrics))
    return run.finished


def training_plan(args, datasets):
    """The run's `Plan`: which examples of which tasks each step takes."""
    sizes = {name: len(splits["train"]) for name, splits in datasets.items()}
    if args.batch_size > max(1024, sum(sizes.values())):
        raise UserError(f"--batch_size {args.batch_size} is more than all training examples together; give less")
    extra = ("sst",) if args.extra_sst else ()
    return Plan(sizes, args.batch_size, args.epochs, args.sampling, args.seed, extra, all_tasks=args.gradient_surgery)


class Trainer:
    """What a training step needs: the model, its optimizer, the data, and the methods around them."""

    def __init__(self, args, model, datasets):
        """Args: args, the flags; datasets, {task: {"train": DataSet, ...}}."""
        self.args, self.model, self.datasets = args, model, datasets
        self.device = next(model.parameters()).device
        self.optimizer = AdamW(model.parameter_groups(), weight_decay=args.weight_decay, clip=args.clip)
        self.smart = Smart(model, self.optimizer, args) if args.use_smart else None
        self.surgery = Surgery(self.optimizer, args.seed) if args.gradient_surgery else None
        self.scaler = scaler_for(self.device)
        self.graphed = graphed_step(model, self.optimizer, self.scaler) if args.cuda_graphs else None
        self.teachers = Teachers(args, datasets, training_plan(args, datasets), self.device) if args.teacher else None

    def step(self, step, factor, batches):
        """One training step on `batches`, {task: list of example indices}.

        Args: step, its number from 1; factor, of the peak learning rates. Returns what `TrainingRun.record` takes.
        """
        args, losses, penalties = self.args, {}, []
        distributed.seed_step(args.seed, step)
        self.model.train()
        if not self.graphed:  # a recorded step clears them itself
            self.optimizer.zero_grad()
        for name, indices in batches.items():
            losses[name], found = self.backward(step, name, indices)
            penalties += found.items()
            if self.surgery:
                self.surgery.take(name)
        rates = {"shared": args.lr} | dict.fromkeys(batches, args.head_lr)
        if self.model.pals is not None:
            rates |= {f"pals.{name}": args.pal_lr for name in batches}
        # surgery has summed the shared gradients over the processes already
        distributed.sum_gradients(self.optimizer, [group for group in rates if group != "shared" or not self.surgery])
        conflicts = {"conflicts": self.surgery.combine(step)} if self.surgery else {}
        values = {"losses": losses, "penalties": penalties} | conflicts
        if not self.scaler.unscale(self.optimizer.flat_parameters(rates)):
            return values  # a gradient beyond float16: the step is skipped
        values["norm"] = self.optimizer.step({group: rate * factor for group, rate in rates.items()})
        if self.smart:
            self.smart.after_step(step)
        return values

    def state(self):
        """The tensors beside model and optimizer that a resumed run needs, by name."""
        return (self.smart.state() if self.smart else {}) | self.scaler.state()

    def fingerprints(self):
        """Texts that change with the examples, their tokens, the kind of encoder and the teachers, by name."""
        return fingerprints.of_run(self.datasets, self.model.bert) | (self.teachers.digests if self.teachers else {})

    def backward(self, step, name, indices):
        """Adds the gradient of one task's batch, or of this process's shard of it, to the parameters' gradients.

        Returns the loss, and SMART's penalties by name, {} without it: tensors (), as the shard's part of the batch.
        """
        task, dataset = TASKS[name], self.datasets[name]["train"]
        if self.graphed:
            return self.graphed(name, dataset.batch(indices), dataset.labels(indices)), {}
        shard = distributed.shard(indices)
        weight = len(shard) / len(indices)
        batch, labels = dataset.batch(shard).to(self.device), dataset.labels(shard).to(self.device, non_blocking=True)
        loss_of = self.teachers.loss_of(step, shard) if self.teachers else task_loss
        if self.smart:
            logits, smoothness, bregman = self.smart.forward(task, batch, step, distributed.shard_start(len(indices)))
            loss = loss_of(task, logits, labels)
            penalties = {"smoothness": smoothness, "bregman": bregman}
            total = loss + self.args.lambda_s * smoothness + self.args.mu * bregman
        else:
            total = loss = loss_of(task, logits_of(self.model, name, batch), labels)
            penalties = {}
        self.scaler.scaled(total * weight).backward()
        return loss.detach() * weight, {key: value.detach() * weight for key, value in penalties.items()}


def graphed_step(model, optimizer, scaler=None):
    """What runs the forward and backward pass of a step as a CUDA graph, see `support/cuda_graphs.py`."""
    return GraphedStep(
        next(model.parameters()).device,
        lambda name, batch: logits_of(model, name, batch),
        lambda name, logits, labels: task_loss(TASKS[name], logits, labels),
        optimizer.zero_grad,
        scaler.scaled if scaler else None,
    )


def report(args, model, datasets):
    """Scores the model on dev, writes the prediction files, and prints the final table."""
    rows, metrics, places = [], {}, set()
    for name, splits in datasets.items():
        task, labels = TASKS[name], splits["dev"].examples.labels
        for split in ("dev", "test"):
            if split in splits:
                values = model_outputs(model, task, splits[split])  # all processes take part; one writes
                path = Path(args.out) / getattr(args, f"{name}_{split}_out")
                places.add(str(path.parent))
                if distributed.rank() == 0:
                    write_predictions(path, task, splits[split].examples.ids, values)
                if split == "dev":
                    metrics[name] = score(task, values, labels)
        rows.append([name, task.metric, len(labels), majority(task, labels), metrics[name]])
    rows.append(["dev score", "", "", dev_score({row[0]: row[3] for row in rows}), dev_score(metrics)])
    print(table(["task", "metric", "dev examples", "majority class", "best model"], rows))
    print(f"the best model is in {args.out}/best, its predictions in {', '.join(sorted(places))}")


# ----- the command line


@command
def main(argv=None):
    args = flags.parse_multitask(argv, TASKS, SPLITS, SAMPLINGS, PRESETS)
    check_inputs(args)
    device = flags.choose_device(args)
    flags.choose_kernels(args, device)
    distributed.start(args.batch_size)
    if args.eval_only:
        model, tokenizer = MultitaskBert.load(run_folder.best_folder(args.out))
        report(args, model.to(device), load_data(args, tokenizer, ("dev", "test")))
        distributed.stop()
        return
    with distributed.rank_0_first():
        folder = find_model(args.bert)
    config = BertConfig.load(folder)
    tokenizer = Tokenizer(folder, config.max_position_embeddings, config.vocab_size)
    with distributed.only_rank_0_warns():
        datasets = load_data(args, tokenizer)
    torch.manual_seed(args.seed if args.init_seed is None else args.init_seed)
    bert = Bert.load(folder, hidden_dropout_prob=args.hidden_dropout_prob)
    bert.requires_grad_(args.option == "finetune")
    heads = args.pair_encoding, args.use_means, args.classifier_layers, args.classifier_size
    model = MultitaskBert(bert, *heads, args.pal_size if args.use_pals else None, args.pal_heads).to(device)
    if args.init_seed is not None:
        torch.manual_seed(args.seed)  # for dropout
    describe(args, model, datasets, device)
    started = time.perf_counter()
    if not train(args, model, tokenizer, datasets):
        print(f"stopped and saved; go on with: {typed('multitask.py', '--resume', '--out', args.out)}")
        distributed.stop()  # process 0 has saved
        raise SystemExit(130)
    print(f"trained in {time.perf_counter() - started:.0f} s")
    distributed.barrier()  # the best model is written
    model, _ = MultitaskBert.load(run_folder.best_folder(args.out))
    report(args, model.to(device), datasets)
    distributed.stop()


def describe(args, model, datasets, device):
    """Prints what is about to be trained, on what."""
    count = lambda module: f"{sum(p.numel() for p in module.parameters()):,}"  # noqa: E731
    pals = f", PALs {count(next(iter(model.pals.values())))} a task" if model.pals is not None else ""
    sizes = ", ".join(f"{name} {len(splits['train'])}" for name, splits in datasets.items())
    processes = f" in {distributed.world()} processes" if distributed.world() > 1 else ""
    print(f"encoder {count(model.bert)} parameters, heads {count(model.heads)}{pals}")
    print(f"training examples: {sizes}; on {device}{processes}{', with TRITON_INTERPRET=1' * kernels.INTERPRET}")
    if device.type == "cuda":
        refused = flags.no_graphs(args) or "--cuda_graphs off"
        graphs = "CUDA graphs" if args.cuda_graphs else f"no CUDA graphs ({refused})"
        form = "plain forms" if args.kernels == "plain" or not kernels.runs_triton(device) else "Triton kernels"
        print(f"products in {precision.describe(device)}; {form}; {graphs}")


if __name__ == "__main__":
    main()
