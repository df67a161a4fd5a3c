"""Weight soups (Wortsman et al., 2022): the mean of the weights of several runs, as ONE model.

    f(x; θ),  θ = Σ W_i θ_i / Σ W_i          f, the model; θ_i, the weights of run i; W_i, how much it counts

An ensemble of k models costs k times as much to use as one model. A soup of k models costs as much as one. It needs
runs that ended in the same low-loss region, and they do if they started from the same weights: then the models between
them are about as good as they are, or better. So take runs with the same --bert AND the same --init_seed, which draws
the first weights of heads and PALs (default: --seed), but with another --seed, which orders the batches and draws
dropout's masks, or another --lr, --epochs, --use_smart and so on. Heads that started from different random weights
cannot be averaged: their mean predicts like an untrained head. A uniform soup takes all runs. A greedy soup takes
those that do not lower its dev score.

    python ensemble.py runs/a runs/b runs/c --method soup --greedy --out runs/soup
"""

import os
import sys
from dataclasses import asdict
from pathlib import Path

from bert import BertConfig
from evaluate import dev_metrics, dev_score, score
from model import MultitaskBert
from predict import SOURCES, flags_of, outputs_of
from support import files, metrics_file, run_folder
from support.console import UserError
from support.folders import check_vacant_for_ensemble, model_folder
from tasks import TASKS, DataSet
from tokenizer import Tokenizer

TRAINING_ONLY = ("hidden_dropout_prob", "attention_probs_dropout_prob", "initializer_range")
TEACHING = ("teacher", "unlabelled", "distill_lambda")  # flags of `distill.py`


def soup(folders, weights):
    """(model, tokenizer): the weighted mean of models of one architecture. Args: their folders; weights, not negative.

    The mean is taken in float64 and rounded once, and a single model is multiplied by exactly 1: a soup of one model is
    that model, bit for bit. In memory are the sum, in float64, and two ingredients. Raises UserError for different
    architectures.
    """
    check_alike(folders)
    total = {}
    for folder, weight in zip(folders, weights, strict=True):
        model, tokenizer = MultitaskBert.load(folder)
        for name, tensor in model.state_dict().items():
            part = tensor.double() * (weight / sum(weights))
            total[name] = total[name].add_(part) if name in total else part  # never 0 + part: that loses a -0.0
    model.load_state_dict(total)
    return model, tokenizer


def check_alike(folders):
    """Raises UserError unless all models have the same options, the same sizes, and one vocabulary."""
    first = None
    for folder in folders:
        config = asdict(BertConfig.load(folder))
        own = {
            "heads, PALs or pair encodings": files.read_json(Path(folder) / "multitask.json"),
            "encoders": {name: value for name, value in config.items() if name not in TRAINING_ONLY},
            "vocabularies": Tokenizer(folder).wordpiece.to_str(),
        }
        first = first or own
        for what, value in own.items():
            if value != first[what]:
                raise UserError(f"{folders[0]} and {folder} have different {what}; a soup takes runs of one kind")


def choose_soup(folders, weights, scores, examples, device):
    """Greedy soup (recipe 1 of the paper): the numbers of the models to keep, best first.

    Takes the models in the order of their dev scores, and keeps each with which the soup's dev score does not fall.
    Args: scores, the models' dev scores; examples, {task: Examples} of dev. Evaluates a soup for each model but one.
    """
    first, *rest = sorted(range(len(folders)), key=lambda i: -scores[i])
    kept, best = [first], scores[first]
    for i in rest:
        trial = [*kept, i]
        model, tokenizer = soup([folders[j] for j in trial], [weights[j] for j in trial])
        found = dev_score_of(model.to(device), tokenizer, examples)
        if found >= best:
            kept, best = trial, found
    return kept


def dev_score_of(model, tokenizer, examples):
    """The dev score of a model on {task: Examples}."""
    data = {name: DataSet(these, tokenizer, model.encodings[name]) for name, these in examples.items()}
    return dev_score(dev_metrics(model, data))


def make_soup(args, weights, scores, examples, device):
    """Makes a run of a soup in args.out, a folder like that of any other run, and locked like one.

    Args: args, the flags of `ensemble.py`; weights and scores, how much each run counts, and its dev score; examples,
    {task: Examples} of dev. Returns ({number of the run: weight}, who is in it; its dev metrics by task).
    `write_records` completes the run: until then it may be made again. Raises UserError where another process makes a
    run in this folder, or has made one.
    """
    folders = [model_folder(run) for run in args.runs]
    check_alike(folders)
    with run_folder.lock(args.out):
        check_vacant_for_ensemble(args.out, soup=True)
        members = write_model(args, folders, weights, scores, examples, device)
        values = outputs_of(args.out, examples, "dev", device)
        metrics = {name: score(TASKS[name], of, examples[name].labels) for name, of in values.items()}
        write_records(args, members, metrics)
    return members, metrics


def write_model(args, folders, weights, scores, examples, device):
    """Writes `best/` and `config.json` of a soup's run. Arguments as for `make_soup`; folders, those of the models.

    Returns who is in it.
    """
    configs = [flags_of(run) for run in args.runs]
    if len({first_weights(config) for config in configs}) > 1:
        print("these runs began with other --bert or --init_seed: their mean may have learned nothing", file=sys.stderr)
    numbers = choose_soup(folders, weights, scores, examples, device) if args.greedy else range(len(folders))
    members = {i: weights[i] for i in numbers}
    model, tokenizer = soup([folders[i] for i in numbers], list(members.values()))
    write_config(args, members, configs)
    with files.replacing_folder(Path(args.out) / "best") as folder:
        model.save(folder, tokenizer)
    return members


def first_weights(config):
    """What the first weights of a run depend on, besides its kind. Args: config, its flags."""
    drawn = config.get("init_seed")
    bert = os.path.realpath(os.path.expanduser(config.get("bert", "")))
    return bert, config.get("seed") if drawn is None else drawn


def write_config(args, members, configs):
    """Writes `config.json` of a soup's run: the flags of its first member, but for 0 epochs.

    So `--resume` leaves it as it is, and asks no teachers. Args: members, of `make_soup`; configs, of all runs.
    """
    first, *others = (configs[i] for i in members)
    own = {name: value for name, value in first.items() if name not in TEACHING}
    if any(config.get("fold") != first.get("fold") for config in others):
        own["fold"] = None  # together they have seen every example
    scored_on = dict.fromkeys(SOURCES) | {"data": args.data} if args.data else {n: configs[0][n] for n in SOURCES}
    written = {f"{t}_{s}_out": f"predictions/{t}-{s}-output.csv" for t in TASKS for s in ("dev", "test")}
    files.write_json(Path(args.out) / "config.json", own | scored_on | written | {"out": args.out, "epochs": 0})


def write_records(args, members, metrics):
    """Writes `metrics.jsonl` of a soup's run. Args: members, of `make_soup`; metrics, its dev metrics by task."""
    notes = {"score": dev_score(metrics), "soup": {args.runs[i]: weight for i, weight in members.items()}}
    metrics_file.append(args.out, kind="dev", step=0, epoch=0, **metrics, **notes)
