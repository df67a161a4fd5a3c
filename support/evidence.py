"""The evidence of a finished run: what outlives the machine that made it. About 120 KB a run, no weights, no text.

    results/runs/ROW-SEED/
        config.json             the flags of the run, without paths of the machine
        record.json             row, seed, commit, device, seconds, and which data: a name, and a digest of each file
        metrics.jsonl           the run's own: losses and dev metrics
        outputs.safetensors     float16: what the best model says of dev and test (below), and components of
                                sentence embeddings for the maps of `visualize.py`
    results/runs/data/NAME/     TASK-SPLIT.tsv: the ids, and for dev the labels; once for all runs on these data

Tables, ensembles, figures and prediction files are rebuilt from these folders alone: `ensemble.py` and `visualize.py`
take one wherever they take a run, since it is a run without its weights.

Class probabilities p_c are kept as log(p_c / max p), those of two classes as log(p_1 / p_0). float16 is most precise
near 0, where the decision falls, so no decision changes. A probability above 0.01 changes by less than 0.3 % of itself.
A predicted number is kept as it is, to 3 digits.
"""

import functools
import hashlib
import json
import os
from pathlib import Path

import numpy as np
import torch

from support import files, run_folder
from support.console import UserError
from support.safetensors import open_safetensors, write_safetensors

# flags that say where a run stands and how it is started, those of files, those that may differ between runs of one row
PLACES, FILES = ("out", "resume", "eval_only", "skip_test"), ("_train", "_dev", "_test", "_out")
FREE = ("data", "device", "save_every", "cuda_graphs", "bf16", "kernels")


def is_evidence(folder):
    """True for a folder that `write` made."""
    return (Path(folder) / "record.json").exists()


def record_of(folder):
    """The dict in record.json."""
    path = Path(folder) / "record.json"
    record = files.read_json(path, {"row": str, "seed": int, "data": dict, "examples": dict})
    if not isinstance(record["data"].get("name"), str) or not isinstance(record["data"].get("files"), dict):
        raise UserError(f"{path} does not say which data it is of; fetch or write it again")
    return record


def find(root, row=None, seeds=None):
    """The evidence in a folder such as results/runs, a sorted list of Path; of one row, of some seeds, or all."""
    folders = [path.parent for path in sorted(Path(root).glob("*/record.json")) if not files.is_left_over(path.parent)]
    found = {folder: record_of(folder) for folder in folders}
    return [f for f, own in found.items() if row in (None, own["row"]) and (not seeds or own["seed"] in seeds)]


def best_epoch(folder, names=()):
    """The dev metrics of a run, or of its evidence, at its best epoch: {task: metric, ..., "score": dev score}.

    Args: names, of the metrics that are needed. Raises UserError where one is missing.
    """
    lines = _dev_lines(folder, names)
    if not lines:
        raise UserError(f"{Path(folder) / 'metrics.jsonl'} has no dev metrics; fetch or write it again")
    return max(lines, key=lambda line: line["score"])


def _dev_lines(folder, names=()):
    lines = [line for line in run_folder.read_metrics(folder) if line["kind"] == "dev"]
    for name in ("epoch", "score", *names):
        if not all(name in line for line in lines):
            raise UserError(f"{Path(folder) / 'metrics.jsonl'} has dev metrics without {name}; fetch or write it again")
    return lines


# ----- float16


def to_float16(values):
    """`evaluate.model_outputs`, (n, classes) probabilities or (n,) numbers -> float16 (n, classes), (n, 1) or (n,)."""
    if values.ndim == 1:
        return values.astype(np.float16)
    z = np.log(np.maximum(values.astype(np.float64), 1e-30))
    if z.shape[1] == 2:
        return (z[:, 1:] - z[:, :1]).astype(np.float16)  # (n, 1)
    return (z - z.max(1, keepdims=True)).astype(np.float16)


def from_float16(z):
    """The reverse of `to_float16`: float32, (n, classes) or (n,)."""
    if z.ndim == 1:
        return z.astype(np.float32)
    z = z.astype(np.float64)
    if z.shape[1] == 1:
        z = np.concatenate((np.zeros_like(z), z), 1)  # (n, 2)
    p = np.exp(z - z.max(1, keepdims=True))
    return (p / p.sum(1, keepdims=True)).astype(np.float32)


# ----- writing


def check_finished(run):
    """Raises UserError for a run that is not finished, or has seen only some of the dev examples."""
    kinds = {"epochs": int, "max_examples": (int, type(None))}
    config, lines = files.read_json(Path(run) / "config.json", kinds), _dev_lines(run)
    if not lines or lines[-1]["epoch"] < config["epochs"]:
        raise UserError(f"{run} is not finished; go on with it first: python multitask.py --resume --out {run}")
    if config["max_examples"]:
        raise UserError(f"{run} knows only some of the dev examples; make evidence of runs without --max_examples")


def write(root, run, record, paths, examples, outputs, more, name=None):
    """Makes the evidence of a run, root/ROW-SEED, and returns that folder.

    Args: record, a dict with row, commit, device and seconds; paths, the task files, {"TASK-SPLIT": path}; examples,
    {"TASK-SPLIT": (ids, labels or None)}; outputs, {"TASK-SPLIT": values of `evaluate.model_outputs`}; more, {name:
    array} to keep beside them; name, of the data (default: as runs in root have named these files, or the name of their
    folder).
    """
    run, config = Path(run), files.read_json(Path(run) / "config.json", {"seed": int, "bert": str})
    digests = {split: _digest_of_file(path) for split, path in paths.items()}
    known = (record_of(folder)["data"] for folder in find(root))
    name = name or next((data["name"] for data in known if data["files"] == digests), None)
    name = name or Path(next(iter(paths.values()))).resolve().parent.name
    for split, (ids, labels) in examples.items():
        _write_examples(Path(root) / "data" / name / f"{split}.tsv", ids, labels)
    record = {"row": record["row"], "seed": config["seed"]} | record | {"data": {"name": name, "files": digests}}
    stage, members = Path(config["bert"]).parent, best_epoch(run).get("soup")
    if (stage / "row.json").exists():  # a stage of SimCSE that the run began with
        own = {"flags": portable(files.read_json(stage / "config.json"), name)}
        record["encoder"] = files.read_json(stage / "row.json", {"seconds": (int, float)}) | own
    if members:
        record["soup"] = _names_of(members)
    record["examples"] = {split: digest_of_ids(ids) for split, (ids, _) in examples.items()}
    tensors = {split: to_float16(values) for split, values in outputs.items()}
    tensors |= {key: np.asarray(array, dtype=np.float16) for key, array in more.items()}
    folder = Path(root) / f"{record['row']}-{record['seed']}"
    metrics = _portable_metrics(run)
    if folder.exists() and _portable_metrics(folder) != metrics:
        raise UserError(f"{folder} is the evidence of another run; choose another --row, or delete it first")
    with files.replacing_folder(folder) as aside:
        files.write_json(aside / "config.json", portable(config, name))
        (aside / "metrics.jsonl").write_text(metrics, encoding="utf-8")
        write_safetensors(aside / "outputs.safetensors", {key: torch.from_numpy(t) for key, t in tensors.items()})
        files.write_json(aside / "record.json", record)
    return folder


def _write_examples(path, ids, labels):
    if path.exists():
        known, gold = read_examples(path)
        if known != ids or not np.array_equal(gold, labels):
            raise UserError(f"{path} has ids or labels of other data; choose another name with --data_name")
        return
    lines = ["id"] if labels is None else ["id\tlabel"]
    if labels is None:
        lines += ids
    else:
        lines += [f"{i}\t{np.format_float_positional(x, trim='-')}" for i, x in zip(ids, labels, strict=True)]
    with files.replacing(path) as file:
        file.write(("\n".join(lines) + "\n").encode())


def _portable_metrics(folder):
    """The text of a run's metrics.jsonl, or of its evidence's: the members of a soup by names, without paths."""
    read = run_folder.read_metrics(folder)
    lines = [line | {"soup": _names_of(line["soup"])} if "soup" in line else line for line in read]
    return "".join(json.dumps(line) + "\n" for line in lines)


def _names_of(members):
    """The members of a soup, {path: weight}, by names; where two have one name, with their numbers behind it."""
    names = [_last_name(path) for path in members]
    apart = [f"{name} ({i})" if names.count(name) > 1 else name for i, name in enumerate(names, 1)]
    return dict(zip(apart, members.values(), strict=True))


def portable(config, data=None):
    """The flags of a run without its paths. Args: config, a dict; data, the name for the data folder."""
    kept = {key: value for key, value in config.items() if key not in PLACES and not key.endswith(FILES)}
    kept = {key: [_name(v) for v in value] if isinstance(value, list) else _name(value) for key, value in kept.items()}
    return kept | ({"data": data} if data else {})


def _name(value):
    """A path by the last of its names that says something; a name of the Hub, which has a slash too, as it is."""
    if not isinstance(value, str) or "/" not in value.rstrip("/"):
        return value
    if value[0] not in "./~" and value.count("/") == 1 and not os.path.exists(value):
        return value
    return _last_name(value)


def _last_name(path):
    path = Path(path)
    return path.parent.name if path.name in ("encoder", "best") and path.parent.name else path.resolve().name


def check_flags(folder, wanted, defaults):
    """Raises UserError where a run, or its evidence, was started with other flags than those wanted.

    Args: wanted and defaults, dicts of flags. A flag that the run did not know yet counts as its default.
    """
    config = portable(files.read_json(Path(folder) / "config.json"))
    for name, value in portable(wanted).items():
        own = config.get(name, defaults.get(name))
        if name not in FREE and own != value:
            raise UserError(
                f"{folder} was started with --{name} {own}, its row has {value}; choose another row or folder"
            )


def check_data(root):
    """Raises UserError where the evidence in a folder is of different data."""
    first = None
    for folder in find(root):
        digests = record_of(folder)["data"]["files"]
        first = first or (folder, digests)
        if digests != first[1]:
            raise UserError(f"{first[0]} and {folder} have different data; keep one of them in another --results")


def digest_of_ids(ids):
    return hashlib.sha256("\n".join(ids).encode()).hexdigest()[:16]


def _digest_of_file(path):
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]


# ----- reading


def outputs_of(folder, split, wanted=None):
    """What the run's best model says of dev or test: {task: values}, as `evaluate.model_outputs` gives them.

    Args: wanted, {task: ids}; None for all tasks. Raises UserError where the run speaks of other examples.
    """
    digests = {name: digest_of_ids(ids) for name, ids in (wanted or {}).items()}
    kept, tensors = _digests_of(folder, split), _tensors(folder)
    names = list(kept) if wanted is None else list(digests)
    for name in names:
        if f"{name}-{split}" not in tensors:
            raise UserError(f"{folder} keeps nothing of {name}-{split}; leave it out")
        if name in digests and digests[name] != kept[name]:
            raise UserError(f"{folder} speaks of other examples of {name}-{split}; leave it out, or name its --data")
    return {name: from_float16(tensors[f"{name}-{split}"]) for name in names}


def more_of(folder, name):
    """One of the arrays that were kept as `more`, float32. Raises UserError where the run has none."""
    tensors = _tensors(folder)
    if name not in tensors:
        raise UserError(f"{folder} keeps no {name}; make its evidence again")
    return tensors[name].astype(np.float32)


def _digests_of(folder, split):
    """{task: digest of its ids} of a split. Raises UserError where record.json lacks a task that has outputs."""
    kept, end = record_of(folder)["examples"], f"-{split}"
    for key in _tensors(folder):
        if key.endswith(end) and key not in kept:
            raise UserError(f"{Path(folder) / 'record.json'} has no examples of {key}; fetch or write it again")
    return {key.removesuffix(end): digest for key, digest in kept.items() if key.endswith(end)}


def _tensors(folder):
    tensors, _ = open_safetensors(Path(folder) / "outputs.safetensors")
    return {name: tensor.numpy() for name, tensor in tensors.items()}


def examples_of(folder, split):
    """The examples of a run: {task: (ids, labels or None)}. Raises UserError where they are not those it speaks of."""
    data, found = Path(folder).parent / "data" / record_of(folder)["data"]["name"], {}
    for name, digest in _digests_of(folder, split).items():
        path = data / f"{name}-{split}.tsv"
        if not path.exists():
            raise UserError(f"{path} is missing, and {folder} needs it; fetch it again")
        found[name] = read_examples(path)
        if digest_of_ids(found[name][0]) != digest:
            raise UserError(f"{path} has other ids than {folder} speaks of; fetch both again")
    return found


@functools.cache
def read_examples(path):
    """A file of ids and labels: (ids, a list of str; labels, float32 (n,), or None where there are none)."""
    text = files.read_text(path)
    try:
        columns = list(zip(*(line.split("\t") for line in text.splitlines()), strict=True))
        labels = [np.array(column[1:], dtype=np.float32) for column in columns[1:]]
        whole = text.endswith("\n") and [name for name, *_ in columns] in (["id"], ["id", "label"])
    except ValueError:
        whole = False
    if not whole or not np.isfinite(labels).all():
        raise UserError(f"{path} is damaged; fetch or write it again")
    return list(columns[0][1:]), labels[0] if labels else None
