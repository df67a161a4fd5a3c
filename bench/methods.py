"""What each method costs: the median time of a training step, relative to the plain one, all in one run.

    python -m bench.methods                          MiniLM on data/sample
    python -m bench.methods --bert DIR --steps 50

The methods take turns, step by step, so that a machine that gets slower or faster meanwhile does so for all. A step is
one batch of one task; gradient surgery has a batch of each task in a step, and is shown per batch. The last
table shows what SMART's two projections do to the same batches (see `smart.py`), beside what dropout does.
"""

import time
from statistics import median

import torch

from bert import Bert
from model import MultitaskBert
from multitask import Trainer, training_plan
from sampling import SAMPLINGS
from smart import PRESETS, Smart, divergence, normal_noise
from support import flags
from support.console import Parser, command, table
from support.downloads import MINILM, find_model
from tasks import SPLITS, TASKS, load_data
from tokenizer import Tokenizer

TABLES = TASKS, SPLITS, SAMPLINGS, PRESETS  # what the flags of multitask.py depend on

METHODS = {
    "baseline": "",
    "means of hidden states": "--use_means",
    "PALs": "--use_pals",
    "SMART": "--use_smart",
    "gradient surgery": "--gradient_surgery",
    "frozen encoder": "--option pretrain",
    "frozen encoder, PALs": "--option pretrain --use_pals",
}


def timed_steps(options, tokenizer, folder):
    """Takes one training step each time it is asked for the next item, and yields its seconds per batch."""
    args = flags.parse_multitask([*options, "--out", "runs/bench"], *TABLES)
    torch.manual_seed(0)
    bert = Bert.load(folder).requires_grad_(args.option == "finetune")
    pal_size = args.pal_size if args.use_pals else None
    model = MultitaskBert(bert, use_means=args.use_means, pal_size=pal_size).to(flags.choose_device(args))
    datasets = load_data(args, tokenizer, splits=("train",))
    trainer = Trainer(args, model, datasets)
    for step, (_, batches) in enumerate(training_plan(args, datasets).steps(), 1):
        start = time.perf_counter()
        trainer.step(step, 0.1, batches)["norm"].item()  # waits for a GPU
        yield (time.perf_counter() - start) / len(batches)


def projections(datasets, folder, steps=60):
    """Rows of the second table, of a model after `steps` plain training steps; 32 examples of each task."""
    args = flags.parse_multitask(["--use_smart", "--mu", "0", "--out", "runs/bench"], *TABLES)
    torch.manual_seed(0)
    model = MultitaskBert(Bert.load(folder))
    plain = flags.parse_multitask(["--out", "runs/bench"], *TABLES)
    trainer = Trainer(plain, model, datasets)
    for step, (_, batches) in zip(range(1, steps + 1), training_plan(plain, datasets).steps(), strict=False):
        trainer.step(step, 1.0, batches)
    smart, rows = Smart(model, trainer.optimizer, args), []
    for name, task in TASKS.items():
        batch = datasets[name]["train"].batch(range(32))
        with torch.no_grad():
            x = model.bert.embed(batch)
            masks = torch.get_rng_state(), None
            logits = model.classify(name, x, batch)
            rows.append(
                [name, "none, other dropout", "", "", f"{divergence(task, model(name, batch), logits).mean():.1e}"]
            )
        noise = args.sigma * normal_noise(batch, x.shape[1], [args.seed, 1], 0, 32)
        for args.smart_projection in ("unit", "ball"):
            delta = smart.perturbation(task, batch, x, logits, noise, masks)
            torch.set_rng_state(masks[0])
            with torch.no_grad():
                penalty = divergence(task, model.classify(name, x + delta, batch), logits).mean()
            largest = delta.abs().amax(1).mean()
            cosine = torch.cosine_similarity(delta, noise).mean().item()
            rows.append([name, args.smart_projection, f"{largest:.1e}", cosine, f"{penalty:.1e}"])
    return rows


@command
def main(argv=None):
    parser = Parser(prog="-m bench.methods", description="What each method costs, relative to the plain step.")
    parser.add_argument("--bert", default=MINILM, help="pretrained encoder: a folder or a name")
    parser.add_argument("--steps", type=flags.positive(int, 2), default=20)
    args = parser.parse_args(argv)
    folder = find_model(args.bert)
    tokenizer = Tokenizer(folder)
    datasets = load_data(flags.multitask_parser(*TABLES).parse_args([]), tokenizer, splits=("train",))
    runners = {name: timed_steps(options.split(), tokenizer, folder) for name, options in METHODS.items()}
    times = {name: [] for name in METHODS}
    for i in range(args.steps + 2):
        for name, steps in runners.items():
            seconds = next(steps)
            if i >= 2:  # the first ones allocate
                times[name].append(seconds)
    plain = median(times["baseline"])
    rows = [
        [name, 1000 * median(t), median(t) / plain, median(a / b for a, b in zip(t, times["baseline"], strict=True))]
        for name, t in times.items()
    ]
    print(table(["method", "ms per batch of 32", "relative", "relative, step by step"], rows))
    print(table(["task", "perturbation", "mean ∞-norm", "cosine with ν", "R_s"], projections(datasets, folder)))


if __name__ == "__main__":
    main()
