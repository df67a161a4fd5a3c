"""Ensembles of finished runs: weighted average, majority vote, greedy selection, tuned weights.

The output of model i, with the parameters θ_i, for an example x is f(x; θ_i): the probability f_c of each class c, or a
number. A model has a weight W_i, by default 1. [A] is 1 where A holds, else 0.

    average    f(x) = Σ W_i f(x; θ_i) / Σ W_i
    vote       argmax_c V_c  where  V_c = Σ W_i [argmax f(x; θ_i) = c];  of equal V_c, the largest Σ W_i f_c(x; θ_i).
               A number has no vote: the weighted median, with at most half of the weight on each side
    soup       f(x; Σ W_i θ_i / Σ W_i): one model, of runs with the same --init_seed (`soup.py` says why)

Average and vote take runs of any kind, each with its own tokenizer. With `--greedy`, each task has its own members: the
best model on dev, and then, in the order of the task's metric, each with which the ensemble's metric grows. (A soup has
one set for all tasks, and keeps each model with which its dev score does not fall.) Choices are made on dev, so the
scores there are too good. For the table of ensembles (`reproduce.py`) `held_out` scores choices on examples that they
have not seen.

    python ensemble.py runs/a runs/b runs/c                             the average of their outputs, scored on dev
    python ensemble.py runs/a runs/b runs/c --method vote --weights 2 1 1
    python ensemble.py runs/a runs/b runs/c --greedy --split test       chosen on dev, predictions for test
    python ensemble.py runs/a runs/b runs/c --method soup --out runs/soup
    python ensemble.py results/runs/plain-117*                          evidence of runs serves as well as runs

Every model is evaluated once: its outputs are kept in its run until the model or the data change.
"""

import support.interrupt  # noqa: F401, from here on Ctrl-C prints one line

import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np

from evaluate import METRICS, dev_score, score, to_predictions, write_predictions
from predict import examples_of, outputs_of
from soup import make_soup
from support import flags, folders, places
from support.console import UserError, command, table
from support.ensemble_flags import parse_ensemble
from tasks import TASKS

GRID = (0.0, 0.5, 1.0, 2.0, 4.0)  # the weights that --tune_weights tries
TIE = 1e-9  # sums of weights, as shares of Σ W_i, that differ by less are equal: 0.1 + 0.2 and 0.3 are


def combine(task, values, weights, method):
    """The outputs of an ensemble, float32, in the shape of one model's (`evaluate.model_outputs`).

    Args: task, its row in `TASKS`; values, each model's, (n, classes) or (n,); weights, one a model, not negative, not
    all 0; method, "average" or "vote". A model of weight 0 has no part in anything.
    """
    members = [i for i, w in enumerate(weights) if w > 0]
    values = np.stack([values[i] for i in members]).astype(np.float64)  # (models, n, ...)
    shares = np.array([weights[i] for i in members]) / sum(weights)  # (models,)
    if method == "average":
        combined = np.tensordot(shares, values, 1)
    else:
        combined = vote(values, shares) if task.classes else weighted_median(values, shares)
    return combined.astype(np.float32)


def vote(values, shares):
    """(models, n, classes) and (models,) -> (n, classes): each class's share of the votes.

    The winner has 1e-6 more, which settles ties: of the classes with most votes it has the largest mean probability,
    and the first one wins where these are equal, too.
    """
    mean = np.tensordot(shares, values, 1)  # (n, classes)
    votes = np.tensordot(shares, np.eye(values.shape[2])[values.argmax(2)], 1)
    likeliest = np.where(votes > votes.max(1, keepdims=True) - TIE, mean, -1)  # -1: not among the most voted
    winner = (likeliest > likeliest.max(1, keepdims=True) - TIE).argmax(1)  # (n,)
    votes[np.arange(len(votes)), winner] += 1e-6
    return votes


def weighted_median(values, shares):
    """(models, n) and (models,) -> (n,): the value at which the shares, summed up from the smallest value, pass 1/2.

    Where they meet 1/2 exactly, the mean of the two values on either side.
    """
    order = values.argsort(0)
    ascending, summed = np.take_along_axis(values, order, 0), shares[order].cumsum(0)  # (models, n)
    lower, upper = (summed < 0.5 - TIE).sum(0), (summed <= 0.5 + TIE).sum(0)  # (n,): two places in the order, or one
    examples = np.arange(values.shape[1])
    return (ascending[lower, examples] + ascending[upper, examples]) / 2


def metric_of(task, values, labels, weights, method):
    """The metric of an ensemble. Arguments as for `combine`, and labels (n,)."""
    return METRICS[task.metric](to_predictions(task, combine(task, values, weights, method)), labels)


def choose(task, values, labels, weights, method):
    """Greedy selection: the numbers of the models to keep, best first. Arguments as for `metric_of`, weights positive.

    Starts with the model of the best metric, takes the others in that order (of equal ones the earlier first), keeps
    each with which the ensemble's metric grows. So the ensemble is never worse, on these examples, than the best model.
    In a vote of two the heavier model always wins, so a greedy vote grows only from two models of equal weight.
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


class Tuned(NamedTuple):
    """What `tune` found."""

    weights: list | dict  # one a model; from `ensemble` by number of the model
    after: float  # their metric on the other half
    before: float  # that of equal weights there
    use: bool


def tune(task, values, labels, method):
    """Weights from `GRID`, by coordinate ascent from equal ones on one half of the examples, judged on the other half.

    They are to be used if they are better there, and not worse on all examples: Pearson's r can fall on the whole where
    it rises on each half. Returns `Tuned`.
    """
    if len(labels) < 2:
        raise UserError(f"{task.name} has one dev example, which has no two halves; leave out --tune_weights")
    searched, unseen = np.array_split(np.random.default_rng(0).permutation(len(labels)), 2)
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
    after, before, everything = on(unseen, weights), on(unseen, equal), np.arange(len(labels))
    return Tuned(weights, after, before, after > before and on(everything, weights) >= on(everything, equal))


def ensemble(labels, found, weights, method="average", greedy=False, tune_weights=False):
    """An ensemble for each task. Args: labels, {task: (n,)}; found, each model's {task: values}; weights, one a model.

    Returns (metrics, kept, tuned), dicts by task: the ensemble's metric; who takes part, {number of the model: weight},
    best first if `greedy`; and what `tune` found, with weights in that form too, where it was asked to. Tuned weights
    that are not used leave the given ones, which should then be equal.
    """
    metrics, kept, tuned = {}, {}, {}
    for name in labels:
        task, values = TASKS[name], [model[name] for model in found]
        numbers = choose(task, values, labels[name], weights, method) if greedy else list(range(len(values)))
        kept[name] = {i: weights[i] for i in numbers}
        if tune_weights and len(numbers) > 1:
            result = tune(task, [values[i] for i in numbers], labels[name], method)
            tuned[name] = result._replace(weights=dict(zip(numbers, result.weights, strict=True)))
            if result.use:
                kept[name] = {i: w for i, w in tuned[name].weights.items() if w > 0}
        metrics[name] = score(task, combine_kept(task, found, kept[name], method), labels[name])
    return metrics, kept, tuned


def combine_kept(task, found, kept, method):
    """`combine` for those who take part. Args: found, {task: values} by number of the model; kept, {number: weight}."""
    return combine(task, [found[i][task.name] for i in kept], list(kept.values()), method)


def held_out(pick, labels, found, method, halvings=10):
    """The metric of each task on examples that the choice of members has not seen.

    Dev is halved at random; members are chosen on one half and scored on the other, and the other way round. The mean
    over several halvings. Args: pick, a function from (labels, found) to {task: {number of the model: weight}}.
    """
    metrics = {name: [] for name in labels}
    for seed in range(halvings):
        rng = np.random.default_rng(seed)
        halves = {name: np.array_split(rng.permutation(len(gold)), 2) for name, gold in labels.items()}
        for seen, unseen in ((0, 1), (1, 0)):
            kept = pick(*_rows(labels, found, {name: half[seen] for name, half in halves.items()}))
            gold, values = _rows(labels, found, {name: half[unseen] for name, half in halves.items()})
            for name, task in ((name, TASKS[name]) for name in labels):
                decided = to_predictions(task, combine_kept(task, values, kept[name], method))
                metrics[name].append(METRICS[task.metric](decided, gold[name]))
    return {name: float(np.mean(values)) for name, values in metrics.items()}


def _rows(labels, found, rows):
    """Labels and outputs of some of the examples. Args: rows, {task: numbers of examples}."""
    return {n: labels[n][r] for n, r in rows.items()}, [{n: model[n][r] for n, r in rows.items()} for model in found]


# ----- the command line


@command
def main(argv=None):
    args = parse_ensemble(argv)
    places.check_outputs("--out", args.out, "predictions", TASKS, args.split)
    device, weights = flags.choose_device(args), args.weights or [1.0] * len(args.runs)
    dev = examples_of(args.runs, args.data, "dev")
    asked = dev if args.split == "dev" else examples_of(args.runs, args.data, args.split)
    if not asked:
        raise UserError("there is no test file at all; leave out --split test")
    labels = {name: examples.labels for name, examples in dev.items()}
    found, alone, tuned = [], [], {}
    for run in args.runs:
        print(f"scoring {run} on dev{folders.unfinished(run)}", file=sys.stderr)  # before what this may warn of
        found.append(outputs_of(run, dev, "dev", device))
        alone.append({name: score(TASKS[name], values, labels[name]) for name, values in found[-1].items()})
    if args.method == "soup":
        members, metrics = make_soup(args, weights, [dev_score(m) for m in alone], dev, device)
        kept, predicted = {"soup": members}, outputs_of(args.out, asked, args.split, device)
    else:
        metrics, kept, tuned = ensemble(labels, found, weights, args.method, args.greedy, args.tune_weights)
        if args.split != "dev":  # only those who take part are asked
            found = []
            for i, run in enumerate(args.runs):
                wanted = {name: these for name, these in asked.items() if i in kept[name]}
                found.append(outputs_of(run, wanted, args.split, device) if wanted else {})
        predicted = {name: combine_kept(TASKS[name], found, kept[name], args.method) for name in asked}
    for name, values in predicted.items():
        path = Path(args.out, "predictions", f"{name}-{args.split}-output.csv")
        write_predictions(path, TASKS[name], asked[name].ids, values)
    report(args, [*alone, metrics], kept, tuned)
    print(f"predictions for {args.split} ({', '.join(predicted)}) are in {args.out}/predictions")


def report(args, metrics, kept, tuned):
    """Prints the table of the models and the ensemble, what was tuned, and who takes part."""
    names = [*args.runs, "greedy " * args.greedy + args.method]
    rows = [[name, *own.values(), dev_score(own)] for name, own in zip(names, metrics, strict=True)]
    print(table(["dev", *metrics[0], "dev score"], rows))

    def people(members):
        return ", ".join(args.runs[i] + f" (weight {w:g})" * (w != 1) for i, w in members.items())

    if tuned:
        print("weights tuned on half of dev; used where they beat equal ones on the other half and are no worse on all")
        rows = [[t, of.after, of.before, "yes" if of.use else "no", people(of.weights)] for t, of in tuned.items()]
        print(table(["other half", "tuned", "equal", "used", "tuned weights"], rows))
    for task, members in kept.items():
        alone = ", so no weights to tune" if args.tune_weights and task not in tuned else ""
        print(f"{task}: {len(members)} of {len(args.runs)} models{alone}: {people(members)}")


if __name__ == "__main__":
    main()
