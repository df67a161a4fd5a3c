"""What each method costs: the time of its training steps, relative to the plain ones, all in one run.

    python -m bench.methods                          MiniLM on data/sample
    python -m bench.methods --bert DIR --steps 50

The methods take turns, step by step, so that a machine that gets slower or faster meanwhile does so for all. A step is
one batch of one task, the same for all methods, and a method's cost is its time for all steps. Gradient surgery has a
batch of each task in a step, and is shown per batch. The last table shows what SMART's perturbations do to the same
batches (see `smart.py`), beside what dropout does.
"""

import time

import torch

from adamw import linear_schedule
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
    "SMART, noise alone": "--use_smart --T_x 0 --sigma 0.33",
    "gradient surgery": "--gradient_surgery",
    "frozen encoder": "--option pretrain",
    "frozen encoder, PALs": "--option pretrain --use_pals",
}
PERTURBATIONS = {
    "unit": "",
    "ball": "--smart_projection ball",
    "noise alone": "--T_x 0 --sigma 0.33",
    "ball, steered": "--smart_projection ball --epsilon 0.02 --sigma 0.01 --eta 1e6",
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


def perturbations(tokenizer, folder, steps=120):
    """Rows of the second table, of a model after `steps` plain training steps; 32 examples of each task."""
    torch.manual_seed(0)
    model = MultitaskBert(Bert.load(folder), use_means=True)
    plain = flags.parse_multitask(["--use_means", "--out", "runs/bench"], *TABLES)
    datasets = load_data(plain, tokenizer, splits=("train",))
    trainer = Trainer(plain, model, datasets)
    for step, (_, batches) in zip(range(1, steps + 1), training_plan(plain, datasets).steps(), strict=False):
        trainer.step(step, linear_schedule(step - 1, steps, 0.1), batches)
    rows = []
    for name, task in TASKS.items():
        batch = datasets[name]["train"].batch(range(32))
        with torch.no_grad():
            x = model.bert.embed(batch)
            masks = torch.get_rng_state(), None
            logits = model.classify(name, x, batch)
            rows.append(
                [name, "none, other dropout", "", "", f"{divergence(task, model(name, batch), logits).mean():.1e}"]
            )
        for label, options in PERTURBATIONS.items():
            argv = f"--use_means --use_smart --mu 0 --out runs/bench {options}".split()
            args = flags.parse_multitask(argv, *TABLES)
            smart = Smart(model, trainer.optimizer, args)
            noise = args.sigma * normal_noise(batch, x.shape[1], [args.seed, 1], 0, 32)
            delta = smart.perturbation(task, batch, x, logits, noise, masks)
            torch.set_rng_state(masks[0])
            with torch.no_grad():
                penalty = divergence(task, model.classify(name, x + delta, batch), logits).mean()
            largest = delta.abs().amax(1).mean()
            cosine = torch.cosine_similarity(delta, noise).mean().item()
            rows.append([name, label, f"{largest:.1e}", cosine, f"{penalty:.1e}"])
    return rows


@command
def main(argv=None):
    parser = Parser(prog="-m bench.methods", description="What each method costs, relative to the plain step.")
    parser.add_argument("--bert", default=MINILM, help="pretrained encoder: a folder or a name")
    parser.add_argument("--steps", type=flags.positive(int, 2), default=20)
    args = parser.parse_args(argv)
    folder = find_model(args.bert)
    tokenizer = Tokenizer(folder)
    runners = {name: timed_steps(options.split(), tokenizer, folder) for name, options in METHODS.items()}
    times = {name: [] for name in METHODS}
    for i in range(args.steps + 2):
        for name, steps in runners.items():
            seconds = next(steps)
            if i >= 2:  # the first ones allocate
                times[name].append(seconds)
    rows = [[name, 1000 * sum(t) / len(t), sum(t) / sum(times["baseline"])] for name, t in times.items()]
    print(table(["method", "ms per batch of 32", "relative"], rows))
    print(table(["task", "perturbation", "mean ∞-norm", "cosine with ν", "R_s"], perturbations(tokenizer, folder)))


if __name__ == "__main__":
    main()
