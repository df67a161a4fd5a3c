"""Fine-tune one BERT on all tasks at once: the training loop, the command line.

    python multitask.py --option finetune                     trains everything, on data/sample
    python multitask.py --option pretrain                     trains the heads, the encoder stays as it is
    python multitask.py --option finetune --data DIR --epochs 3 --out runs/mine
    python multitask.py --resume --out runs/mine              goes on where the run stopped
    python multitask.py --eval_only --out runs/mine           scores its best model again, writes predictions

`model.py` has the model and its losses. Each step draws a batch of one task (`sampling.py`). `--use_pals`,
`--use_smart` and `--gradient_surgery` are explained in `pals.py`, `smart.py` and `surgery.py`, training in several
processes (torchrun) in `support/distributed.py`, and `--cuda_graphs` in `support/cuda_graphs.py`.
"""

import collections
import math
import time
from pathlib import Path
from statistics import mean

import torch

from adamw import AdamW, linear_schedule
from bert import Bert, BertConfig
from evaluate import dev_score, majority, outputs, score, write_predictions
from model import MultitaskBert, logits_of, task_loss
from sampling import joint_steps, training_steps
from smart import Smart
from support import distributed, files, flags, run_folder
from support.console import UserError, command, progress, table
from support.cuda_graphs import GraphedStep
from support.downloads import find_model
from surgery import Surgery
from tasks import TASKS, fingerprint, load_data
from tokenizer import Tokenizer


def train(args, model, tokenizer, datasets):
    """Trains `model` and leaves the run in args.out; returns True, or False where Ctrl-C stopped it."""
    optimizer = AdamW(model.parameter_groups(), weight_decay=args.weight_decay, clip=args.clip)
    smart = Smart(model, optimizer, args) if args.use_smart else None
    surgery = Surgery(optimizer, args.seed) if args.gradient_surgery else None
    graphed = graphed_step(model, optimizer) if args.cuda_graphs else None
    if smart:
        print("SMART: {} forward and {} backward passes for each batch, in place of 1 and 1".format(*smart.passes()))
    averages = smart.state() if smart else {}
    steps = list(training_plan(args, {name: len(splits["train"]) for name, splits in datasets.items()}))
    data = {name: fingerprint(splits["train"].examples) for name, splits in datasets.items()}
    # where the run stands: steps done, the best dev score so far, and which training files it was started with
    at = run_folder.load_state(args.out, model, optimizer, averages) or {"step": 0, "best": -math.inf, "data": data}
    if at["data"] != data:
        raise UserError(f"the training files are not those that {args.out} was started with; choose another --out")
    writer = distributed.rank() == 0

    pending = []  # (step, name, value), not read yet: reading a loss waits for the GPU
    sizes = [sum(map(len, batches.values())) for _, batches in steps]
    bar = progress(sum(sizes), sum(sizes[: at["step"]]), "examples", "training")
    with run_folder.Interrupt() as interrupt, bar:
        if writer:
            run_folder.rewind_metrics(args.out, at["step"])
        for step, (epoch, batches) in enumerate(steps[at["step"] :], at["step"] + 1):
            factor = linear_schedule(step - 1, len(steps), args.warmup)
            pending += training_step(args, step, factor, batches, model, optimizer, datasets, smart, surgery, graphed)
            bar.update(sizes[step - 1])

            stop = distributed.any_of(interrupt.asked)
            end_of_epoch = step == len(steps) or steps[step][0] > epoch
            save = end_of_epoch or stop or step % args.save_every == 0
            if save or step % 20 == 0:
                # the steps that the line stands for; with surgery only those of several tasks, which can conflict
                read = len({number for number, name, _ in pending if not surgery or name.startswith("conflict")})
                means = read_values(pending)
                bar.set_postfix_str(" ".join(f"{t} {v:.3f}" for t, v in means.items() if t in TASKS), refresh=False)
                if writer:
                    run_folder.append_metrics(args.out, kind="train", step=step, epoch=epoch, steps=read, **means)
            if end_of_epoch:
                metrics = {t: dev_metric(model, t, splits["dev"]) for t, splits in datasets.items()}
                dev = dev_score(metrics)
                bar.write(f"epoch {epoch}: " + ", ".join(f"{t} {v:.3f}" for t, v in (metrics | {"score": dev}).items()))
                if surgery and writer:
                    bar.write(f"epoch {epoch}: gradients in conflict: {conflict_shares(args.out, epoch)}")
                if writer:
                    run_folder.append_metrics(args.out, kind="dev", step=step, epoch=epoch, **metrics, score=dev)
                if writer and dev > at["best"]:
                    with files.replacing_folder(Path(args.out) / "best") as folder:
                        model.save(folder, tokenizer)
                at["best"] = max(dev, at["best"])
            if save and writer:
                at["step"] = step
                run_folder.save_state(args.out, model, optimizer, averages, **at)
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
    """What runs the forward and backward pass of a step as a CUDA graph, see `support/cuda_graphs.py`."""
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
    distributed.seed_step(args.seed, step)
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
    distributed.sum_gradients(optimizer, [group for group in rates if group != "shared" or not surgery])
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
    mine = distributed.share(numbers)
    weight = len(mine) / len(numbers)
    batch, labels = dataset.batch(mine).to(device), dataset.labels(mine).to(device, non_blocking=True)
    if smart:
        logits, smoothness, bregman = smart.forward(task, batch, step, distributed.first_of_share(len(numbers)))
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
    values[of_loss] = distributed.sum_(values[of_loss])  # the others are the same in every process
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
    lines = [line for line in run_folder.read_metrics(out) if line["kind"] == "train" and line["epoch"] == epoch]
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
                if distributed.rank() == 0:
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
    distributed.start(args.batch_size)
    if args.eval_only:
        model, tokenizer = MultitaskBert.load(run_folder.best_folder(args.out))
        report(args, model.to(device), load_data(args, tokenizer, ("dev", "test")))
        distributed.stop()
        return
    with distributed.one_after_another():
        folder = find_model(args.bert)
    config = BertConfig.load(folder)
    tokenizer = Tokenizer(folder, config.max_position_embeddings, config.vocab_size)
    with distributed.one_voice():
        datasets = load_data(args, tokenizer)
    torch.manual_seed(args.seed)
    bert = Bert.load(folder, hidden_dropout_prob=args.hidden_dropout_prob)
    bert.requires_grad_(args.option == "finetune")
    pal_size = args.pal_size if args.use_pals else None
    heads = args.pair_encoding, args.use_means, args.classifier_layers, args.classifier_size
    model = MultitaskBert(bert, *heads, pal_size, args.pal_heads).to(device)
    if distributed.rank() == 0:
        files.recover_folder(Path(args.out) / "best")
        files.write_json(Path(args.out) / "config.json", vars(args))
    describe(model, datasets, device)
    started = time.perf_counter()
    if not train(args, model, tokenizer, datasets):
        print(f"stopped and saved; go on with: python multitask.py --resume --out {args.out}")
        distributed.stop()  # process 0 has saved
        raise SystemExit(130)
    print(f"trained in {time.perf_counter() - started:.0f} s")
    distributed.barrier()  # the best model is written
    model, _ = MultitaskBert.load(run_folder.best_folder(args.out))
    report(args, model.to(device), datasets)
    distributed.stop()


def describe(model, datasets, device):
    """Prints what is about to be trained, on what."""
    count = lambda module: f"{sum(p.numel() for p in module.parameters()):,}"  # noqa: E731
    pals = f", PALs {count(next(iter(model.pals.values())))} a task" if model.pals is not None else ""
    sizes = ", ".join(f"{name} {len(splits['train'])}" for name, splits in datasets.items())
    processes = f" in {distributed.world()} processes" if distributed.world() > 1 else ""
    print(f"encoder {count(model.bert)} parameters, heads {count(model.heads)}{pals}")
    print(f"training examples: {sizes}; on {device}{processes}")


if __name__ == "__main__":
    main()
