"""Metrics, the dev score, and prediction files.

    accuracy     share of correct classes                               sst, para
    pearson r    cov(x, y) / (std(x) std(y))                            sts
    dev score    mean over the tasks of accuracy, or of (1 + r) / 2

An r of 0.546 counts as 0.773. With sst 0.454 and para 0.625 the dev score is (0.454 + 0.625 + 0.773) / 3 = 0.617.
`alignment`, `uniformity` and `ranks` are for `simcse.py` alone.

A model that gives one and the same answer to everything can have a respectable accuracy (on Quora 0.627): `score`
says so when it sees it.
"""

import sys

import numpy as np
import torch

from kernels import precision
from support import distributed
from support.console import UserError
from support.files import replacing
from support.task_files import id_fault
from tasks import TASKS


def accuracy(predicted, labels):
    """Two arrays (n,) -> the share of equal entries, a float in [0, 1]."""
    return float(np.mean(np.asarray(predicted) == np.asarray(labels)))


def pearson(predicted, labels):
    """Two arrays (n,) -> Pearson's r in [-1, 1]; 0 where one of them is constant (r is not defined there)."""
    x, y = (np.asarray(values, dtype=np.float64) for values in (predicted, labels))
    x, y = x - x.mean(), y - y.mean()
    scale = np.sqrt((x @ x) * (y @ y))
    return float(x @ y / scale) if scale > 0 else 0.0


def alignment(a, b):
    """Unit vectors of pairs that are alike, a and b (n, H) -> mean ‖a - b‖², None for no pair."""
    return float(((a - b) ** 2).sum(1).mean()) if len(a) else None


def uniformity(a):
    """Unit vectors (n, H) -> log of the mean of e^{-2 ‖x - y‖²} over all pairs x ≠ y, None for no pair."""
    squared = np.maximum(2 - 2 * (a @ a.T), 0)[np.triu_indices(len(a), 1)]
    return float(np.log(np.exp(-2 * squared.astype(np.float64)).mean())) if len(squared) else None


def ranks(values):
    """(n,) -> the ranks 0 .. n - 1 as floats, equal values sharing the mean of theirs."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts + 1) / 2)[inverse]


METRICS = {"accuracy": accuracy, "pearson": pearson}


def dev_score(metrics):
    """Args: metrics, a float by task name. Returns the mean, with r counted as (1 + r) / 2."""
    parts = [(1 + value) / 2 if TASKS[name].metric == "pearson" else value for name, value in metrics.items()]
    return sum(parts) / len(parts)


@torch.inference_mode()
def model_outputs(model, task, dataset, batch_size=64):
    """The model's output for each example, in the order of the data set.

    Returns a float32 array: class probabilities (n, classes) for a classification task (so (n, 2) for `para`), or the
    predicted values (n,). Under torchrun, each process takes some of the batches, and all get the whole result. Raises
    UserError as `check_finite` does.
    """
    model.eval()
    device = next(model.parameters()).device
    result = np.zeros((len(dataset), task.classes) if task.classes else len(dataset), dtype=np.float32)
    for indices in dataset.by_length(batch_size)[distributed.rank() :: distributed.world()]:
        with precision.autocast(device):
            logits = model(task.name, dataset.batch(indices).to(device))
        result[indices] = probabilities(task, logits.float()).cpu().numpy()
    distributed.sum_(torch.from_numpy(result))  # in place, zeros where another process has the values
    return check_finite(model.bert, task.name, result)


def check_finite(bert, what, values):
    """The values, an array. Raises UserError where one is not finite. Args: bert, of the model; what, its task."""
    if not np.isfinite(values).all():
        remedy = "its weights are damaged or too large: name another model, or train again with lower rates (--lr)"
        raise UserError(f"what the model from {bert.source} says of {what} is not finite; {remedy}")
    return values


def dev_metrics(model, datasets):
    """The metric of each task. Args: datasets, {task: labelled DataSet}."""
    values = {name: model_outputs(model, TASKS[name], dataset) for name, dataset in datasets.items()}
    return {name: score(TASKS[name], values[name], dataset.examples.labels) for name, dataset in datasets.items()}


def probabilities(task, logits):
    """logits (B, C) -> (B, classes), or (B,) for a real number.

    C as in `MultitaskBert.forward`.
    """
    if not task.classes:
        return logits.mean(1)
    if task.classes == 2:
        yes = torch.sigmoid(logits)
        return torch.cat((1 - yes, yes), 1)
    return torch.softmax(logits, 1)


def to_predictions(task, values):
    """`model_outputs` -> predictions (n,): the likeliest class, or the value as it is."""
    return values.argmax(1) if task.classes else values


def score(task, values, labels):
    """`model_outputs` and labels (n,) -> the task's metric. Warns on stderr of a model that answers the same to all."""
    predicted = to_predictions(task, values)
    if distributed.rank() == 0 and len(predicted) > 1 and (predicted == predicted[0]).all():
        print(
            f"warning: {task.name} has not learned: it predicts {predicted[0]:.4g} for all {len(predicted)} examples",
            file=sys.stderr,
        )
    return METRICS[task.metric](predicted, labels)


def majority(task, labels):
    """The metric of always predicting the commonest class; 0 for a correlation."""
    return float(np.unique(labels, return_counts=True)[1].max() / len(labels)) if task.classes else 0.0


def write_predictions(path, task, ids, values):
    """A prediction file as the course's tools read it. Args: ids, n str; values, `model_outputs` (n, ...).

    Raises UserError for an id that such a file cannot hold (`tasks.read_examples` reports them).
    """
    lines = [f"id \t {task.output} "]
    for name, value in zip(ids, to_predictions(task, values), strict=True):
        if fault := id_fault(name):
            raise UserError(f"{path} cannot be written: {fault}; give it another id in its task file")
        lines.append(f"{name} , {value:.4f} " if not task.classes else f"{name} , {value} ")
    with replacing(path) as file:
        file.write(("\n".join(lines) + "\n").encode())
