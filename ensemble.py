"""Ensembles of finished runs: weighted average, majority vote, greedy selection, tuned weights.

    python ensemble.py runs/a runs/b runs/c                             the average of their outputs, scored on dev
    python ensemble.py runs/a runs/b runs/c --method vote --priors 2 1 1
    python ensemble.py runs/a runs/b runs/c --greedy --split test       chosen on dev, predictions for test
    python ensemble.py runs/a runs/b runs/c --method soup --out runs/soup

Model i, with the parameters θ_i, says f(x; θ_i) of x: the probability f_c of each class c, or a number. It has a
weight W_i, by default 1. [A] is 1 where A holds, else 0.

    average    f(x) = Σ W_i f(x; θ_i) / Σ W_i
    vote       argmax_c V_c  where  V_c = Σ W_i [argmax f(x; θ_i) = c];  of equal V_c, the largest Σ W_i f_c(x; θ_i).
               A number has no vote: the weighted median, with as much weight below it as above it
    soup       f(x; Σ W_i θ_i / Σ W_i): one model, of runs with the same --seed (`soup.py` says why)

Average and vote take runs of any kinds, each with its own tokenizer. With `--greedy`, each task has its own members
(but a soup has one set for all tasks): the best model on dev, and then, from good to bad, each one with which the
ensemble's metric grows. Choices are always made on dev, so the scores there are a little too good. Every model is
evaluated once: what it says is kept in its run, in `outputs/`, until the model or the data change.
"""

import sys
from argparse import Namespace
from pathlib import Path

import numpy as np

from evaluate import METRICS, decide, dev_score, score, write_predictions
from sampling import SAMPLINGS
from smart import PRESETS
from soup import check_alike, choose_soup, save_soup, soup
from support import files, flags
from support.console import Parser, UserError, command, table
from support.output_cache import cached_outputs, metrics_of, model_folder
from tasks import SPLITS, TASKS, data_path, load_examples

GRID = (0.0, 0.5, 1.0, 2.0, 4.0)  # the weights that --tune_priors tries
TIE = 1e-9  # sums of weights, as shares of Σ W_i, that differ by less are equal: 0.1 + 0.2 and 0.3 are


# ----- what each model says


def data_flags(run):
    """Which data a run was trained on: a Namespace of --data, --max_examples, and a --TASK_SPLIT for each file."""
    saved = files.read_json(Path(run) / "config.json")
    names = ["data", "max_examples", *(f"{task}_{split}" for task in TASKS for split in SPLITS)]
    if not isinstance(saved, dict) or any(name not in saved for name in names):
        raise UserError(f"{run} is no run of multitask.py on the tasks {', '.join(TASKS)}; leave it out")
    return Namespace(**{name: saved[name] for name in names})


def outputs_of(run, data_args, split, device):
    """What a run's best model says of dev or test: {task: (Examples, values)}, without tasks that have no test file.

    Args: data_args, as from `data_flags`. The values are those of `evaluate.outputs`: float32, (n, classes) or (n,).
    """
    return cached_outputs(run, of_split(load_examples(data_args, (split,)), split), split, device)


def of_split(examples, split):
    """{task: {split: Examples}} -> {task: Examples}, of the tasks that have this split."""
    return {name: files[split] for name, files in examples.items() if split in files}


# ----- several models as one


def combine(task, values, weights, method):
    """The outputs of an ensemble, float32, in the shape of one model's, for `evaluate.decide` and `evaluate.score`.

    Args: task, its row in `TASKS`; values, each model's, (n, classes) or (n,); weights, one a model, not negative, not
    all 0; method, "average" or "vote". A vote gives each class's share of the votes, and 1e-6 more to the winner, which
    settles ties; where probabilities are equal too, the first class wins. The weighted median is the value at which the
    weights, summed up from the smallest value, pass half of their total; where they meet the half exactly, the mean of
    the two values on either side. A model of weight 0 has no part in anything.
    """
    members = [i for i, w in enumerate(weights) if w > 0]
    values = [values[i].astype(np.float64) for i in members]
    shares = [weights[i] / sum(weights) for i in members]
    mean = sum(w * v for w, v in zip(shares, values, strict=True))
    if method == "average":
        return mean.astype(np.float32)
    if task.classes:
        votes = sum(w * np.eye(task.classes)[v.argmax(1)] for w, v in zip(shares, values, strict=True))
        likeliest = np.where(votes > votes.max(1, keepdims=True) - TIE, mean, -1)
        winner = (likeliest > likeliest.max(1, keepdims=True) - TIE).argmax(1)
        votes[np.arange(len(votes)), winner] += 1e-6
        return votes.astype(np.float32)
    order = np.argsort(values, 0)  # (models, n)
    ascending = np.take_along_axis(np.stack(values), order, 0)
    summed = np.array(shares)[order].cumsum(0)
    lower, upper = (summed < 0.5 - TIE).sum(0), (summed <= 0.5 + TIE).sum(0)  # (n,): two places in the order, or one
    examples = np.arange(len(mean))
    return ((ascending[lower, examples] + ascending[upper, examples]) / 2).astype(np.float32)


def metric_of(task, values, labels, weights, method):
    """The metric of an ensemble. Arguments as for `combine`, and labels (n,)."""
    return METRICS[task.metric](decide(task, combine(task, values, weights, method)), labels)


def choose(task, values, labels, weights, method):
    """Greedy selection: the numbers of the models to keep, best first. Arguments as for `metric_of`, weights positive.

    Starts with the model of the best metric, takes the others in that order (of equal ones the earlier first), keeps
    each with which the ensemble's metric grows. So the ensemble is never worse, on these examples, than the best model.
    In a vote of two, the larger weight decides alone: a greedy vote grows only from a pair of equal weights.
    """
    alone = [metric_of(task, [v], labels, [1], method) for v in values]
    first, *rest = sorted(range(len(values)), key=lambda i: -alone[i])
    kept, best = [first], alone[first]
    for i in rest:
        trial = [*kept, i]
        metric = metric_of(task, [values[j] for j in trial], labels, [weights[j] for j in trial], method)
        if metric > best:
            kept, best = trial, metric
    return kept


def tune(task, values, labels, method):
    """Weights from `GRID`, by coordinate ascent from equal ones on one half of the examples, judged on the other half.

    Returns (weights, their metric on the other half, that of equal weights there, whether to use them). Yes if they are
    better there, and not worse on all examples: Pearson's r can fall on the whole though it rises on each half.
    """
    if len(labels) < 2:
        raise UserError(f"{task.name} has one dev example, which has no two halves; leave out --tune_priors")
    searched, held_out = np.array_split(np.random.default_rng(0).permutation(len(labels)), 2)
    on = lambda rows, w: metric_of(task, [v[rows] for v in values], labels[rows], w, method)  # noqa: E731
    equal = [1.0] * len(values)
    weights, best, improved = equal, on(searched, equal), True
    while improved:
        improved = False
        for i in range(len(values)):
            for w in GRID:
                trial = [*weights[:i], w, *weights[i + 1 :]]
                if any(trial) and (metric := on(searched, trial)) > best:
                    weights, best, improved = trial, metric, True
    after, before, everything = on(held_out, weights), on(held_out, equal), np.arange(len(labels))
    return weights, after, before, after > before and on(everything, weights) >= on(everything, equal)


def ensemble(found, weights, method="average", greedy=False, tune_priors=False):
    """An ensemble for each task. Args: found, each model's `outputs_of` on dev; weights, one a model.

    Returns (metrics, kept, tuned), dicts by task: the ensemble's metric; who takes part, {number of the model: weight},
    best first if `greedy`; and what `tune` found, with weights in that form too, where it was asked to. Tuned weights
    that are not used leave the given ones, which should then be equal.
    """
    metrics, kept, tuned = {}, {}, {}
    for name, (examples, _) in found[0].items():
        task, labels, values = TASKS[name], examples.labels, [model[name][1] for model in found]
        numbers = choose(task, values, labels, weights, method) if greedy else list(range(len(values)))
        kept[name] = {i: weights[i] for i in numbers}
        if tune_priors and len(numbers) > 1:
            better, *judged = tune(task, [values[i] for i in numbers], labels, method)
            tuned[name] = dict(zip(numbers, better, strict=True)), *judged
            if judged[-1]:
                kept[name] = {i: w for i, w in tuned[name][0].items() if w > 0}
        metrics[name] = score(task, combine_kept(task, values, kept[name], method), labels)
    return metrics, kept, tuned


def combine_kept(task, values, kept, method):
    """`combine` for those who take part. Args: values, by number of the model; kept, {number: weight}."""
    return combine(task, [values[i] for i in kept], list(kept.values()), method)


# ----- the command line


def parse(argv):
    """The flags, checked."""
    parser = Parser(prog="ensemble.py", description="Combine finished runs.")
    add = parser.add_argument
    add("runs", nargs="+", metavar="RUN", help="folder of a run of multitask.py")
    add("--method", choices=("average", "vote", "soup"), default="average", help="of outputs, of decisions, of weights")
    add("--greedy", action="store_true", help="only those that improve the ensemble on dev, chosen for each task")
    add("--priors", type=flags.positive(float), nargs="+", metavar="W", help="a weight for each RUN (default: all 1)")
    add("--tune_priors", action="store_true", help="search weights on half of dev; used if better on the rest")
    add("--split", choices=("dev", "test"), default="dev", help="what to predict (choices are made on dev)")
    add("--out", default="runs/ensemble", metavar="DIR", help="for predictions, or the soup (default: runs/ensemble)")
    add("--data", metavar="DIR", help="folder of the task files (default: the data of the first RUN)")
    flags.add_device(parser)
    args = parser.parse_args(argv)
    folders = [Path(run).resolve() for run in args.runs]
    for run, folder in zip(args.runs, folders, strict=True):
        if folders.count(folder) > 1:
            raise UserError(f"{run} is named twice; name it once, and give it a larger weight with --priors")
    if args.priors and len(args.priors) != len(args.runs):
        raise UserError(f"--priors gives {len(args.priors)} weights to {len(args.runs)} runs; give one for each")
    for flag in ("greedy", "tune_priors"):
        if getattr(args, flag) and len(args.runs) == 1:
            raise UserError(f"--{flag} has nothing to choose between with one run; name more of them")
    if args.tune_priors and (args.priors or args.method == "soup"):
        raise UserError("--tune_priors finds the weights of --method average or vote; leave out --priors and soups")
    if any((Path(args.out) / name).exists() for name in ("config.json", "last")):
        raise UserError(f"{args.out} already holds a run; choose another --out")
    return args


def common_data(args):
    """The data flags that all runs are scored with: those of the first run, or --data. Says which run had others."""
    own = [data_flags(run) for run in args.runs]
    common = own[0] if args.data is None else Namespace(**(dict.fromkeys(vars(own[0])) | {"data": args.data}))
    for run, data in zip(args.runs, own, strict=True):
        if _sources(data) != _sources(common):
            print(f"{run} was trained on other data, {_words(data)}; scores are on {_words(common)}", file=sys.stderr)
    return common


def _sources(data):
    """What training, and the choice of the best model, have seen."""
    files = [(getattr(data, f"{t}_{split}"), TASKS[t], split) for t in TASKS for split in ("train", "dev")]
    return data.max_examples, [Path(given or data_path(data.data, *file)).resolve() for given, *file in files]


def _words(data):
    return " ".join(f"--{name} {value}" for name, value in vars(data).items() if value is not None)


def predict(args, asked, found, kept, device):
    """{task: the ensemble's outputs} for the split asked for. Args: found, each model's outputs on dev."""
    if args.split != "dev":  # only those who take part are asked
        found = []
        for i, run in enumerate(args.runs):
            wanted = {name: these for name, these in asked.items() if i in kept[name]}
            found.append(cached_outputs(run, wanted, args.split, device) if wanted else {})
    predicted = {}
    for name in asked:
        values = {i: found[i][name][1] for i in kept[name]}
        predicted[name] = combine_kept(TASKS[name], values, kept[name], args.method)
    return predicted


@command
def main(argv=None):
    args = parse(argv)
    device, folders = flags.choose_device(args), [model_folder(run) for run in args.runs]
    data, weights = common_data(args), args.priors or [1.0] * len(args.runs)
    usual = flags.multitask_parser(TASKS, SPLITS, SAMPLINGS, PRESETS).parse_args([])
    outs = {name: value for name, value in vars(usual).items() if name.endswith("_out")}
    if args.method == "soup":
        check_alike(folders)
        configs = [files.read_json(Path(run) / "config.json") for run in args.runs]
        if len({(config.get("bert"), config.get("seed")) for config in configs}) > 1:
            print("these runs began with other --bert or --seed: their mean may have learned nothing", file=sys.stderr)
    examples = load_examples(data, dict.fromkeys(("dev", args.split)))
    dev, asked = of_split(examples, "dev"), of_split(examples, args.split)
    if not asked:
        raise UserError(f"{data.data} has no test file at all; leave out --split test")
    found, alone = [], []
    for run in args.runs:
        print(f"scoring {run} on dev", file=sys.stderr)  # before the warnings that this may bring
        found.append(cached_outputs(run, dev, "dev", device))
        alone.append(metrics_of(found[-1]))

    tuned = {}
    if args.method == "soup":
        scores = [dev_score(metrics) for metrics in alone]
        numbers = choose_soup(folders, weights, scores, dev, device) if args.greedy else range(len(folders))
        best, own = [folders[i] for i in numbers], [weights[i] for i in numbers]
        config = files.read_json(Path(args.runs[0]) / "config.json") | vars(data) | outs
        notes = {"soup": {args.runs[i]: weights[i] for i in numbers}}
        metrics = save_soup(args.out, *soup(best, own), dev, config, device, **notes)
        kept = {"soup": dict(zip(numbers, own, strict=True))}
        predicted = {name: v for name, (_, v) in cached_outputs(args.out, asked, args.split, device).items()}
    else:
        metrics, kept, tuned = ensemble(found, weights, args.method, args.greedy, args.tune_priors)
        predicted = predict(args, asked, found, kept, device)
    for name, values in predicted.items():
        write_predictions(Path(args.out) / outs[f"{name}_{args.split}_out"], TASKS[name], asked[name].ids, values)
    report(args, [*alone, metrics], kept, tuned)
    print(f"predictions for {args.split} ({', '.join(predicted)}) are in {args.out}/predictions")


def report(args, metrics, kept, tuned):
    """Prints the table of the models and the ensemble, what was tuned, and who takes part."""
    name = "greedy " * args.greedy + args.method
    rows = [[run, *own.values(), dev_score(own)] for run, own in zip([*args.runs, name], metrics, strict=True)]
    print(table(["dev", *metrics[0], "dev score"], rows))

    def people(members):
        return ", ".join(args.runs[i] + f" (weight {w:g})" * (w != 1) for i, w in members.items())

    if tuned:
        print("weights tuned on half of dev; used where they beat equal ones on the other half and are no worse on all")
        rows = [[t, after, before, "yes" if use else "no", people(w)] for t, (w, after, before, use) in tuned.items()]
        print(table(["other half", "tuned", "equal", "used", "tuned weights"], rows))
    for task, members in kept.items():
        alone = ", so no weights to tune" if args.tune_priors and task not in tuned else ""
        print(f"{task}: {len(members)} of {len(args.runs)} models{alone}: {people(members)}")


if __name__ == "__main__":
    main()
