"""The evidence of a finished run: what outlives the machine that made it. About 120 KB a run, no weights, no text.

    results/runs/ROW-SEED/
        config.json             the flags of the run, without paths of the machine
        record.json             row, seed, commit, device, seconds; which data: a name, and a digest of each file;
                                digests of the ids; for a soup its members, after SimCSE that stage's flags
        metrics.jsonl           the run's own: losses and dev metrics
        outputs.safetensors     float16: what the best model says of dev and test, and components of
                                sentence embeddings for the maps of `visualize.py`
    results/runs/data/NAME/     TASK-SPLIT.tsv: the ids, and for dev the labels; once for all runs on these data

Tables, ensembles, figures and prediction files are rebuilt from these folders alone: `ensemble.py` and `visualize.py`
take one wherever they take a run, since it is a run without its weights.

`keep_evidence.py` writes them.
"""

import functools
import hashlib
from pathlib import Path

import numpy as np
import torch

from support import files, metrics_file
from support.console import UserError
from support.jobs import RECORD
from support.safetensors import open_safetensors

REMEDY = "fetch or write it again"


def is_evidence(folder):
    """True for a folder that `keep_evidence.write` made."""
    return (Path(folder) / "record.json").exists()


def record_of(folder):
    """The dict in record.json."""
    path = Path(folder) / "record.json"
    record = files.read_json(path, {"row": str, "seed": int, "data": dict, "examples": dict} | RECORD)
    if not 0 <= record["seed"] < 2**63:
        raise UserError(f"{path}: seed cannot be {record['seed']}; {REMEDY}")
    name = record["data"].get("name")  # of a folder
    whole = isinstance(name, str) and name.strip(".") and "/" not in name
    if not whole or not isinstance(record["data"].get("files"), dict):
        raise UserError(f"{path} does not say which data it is of; {REMEDY}")
    return record


def find(root, row=None, seeds=None):
    """The evidence in a folder such as results/runs, a sorted list of Path; of one row, of some seeds, or all.

    Raises UserError where two folders hold the same run.
    """
    folders = [path.parent for path in sorted(Path(root).glob("*/record.json")) if not files.is_left_over(path.parent)]
    found = {folder: record_of(folder) for folder in folders}
    names = {}
    for folder, own in found.items():
        first = names.setdefault((own["row"], own["seed"]), folder)
        if first != folder:
            raise UserError(f"{first} and {folder} are the same run, {own['row']}-{own['seed']}; delete one of them")
    return [f for f, own in found.items() if row in (None, own["row"]) and (not seeds or own["seed"] in seeds)]


def best_epoch(folder, names=()):
    """The dev metrics of a run, or of its evidence, at its best epoch: {task: metric, ..., "score": dev score}.

    Args: names, of the metrics that are needed. Raises UserError where one is missing.
    """
    lines = dev_lines(folder, names)
    if not lines:
        raise UserError(f"{Path(folder) / 'metrics.jsonl'} has no dev metrics; {REMEDY}")
    return max(lines, key=lambda line: line["score"])


def dev_lines(folder, names=()):
    """The dev lines of a run's metrics. Raises UserError where one of them lacks one of the names."""
    lines = [line for line in metrics_file.read(folder) if line["kind"] == "dev"]
    for name in ("epoch", "score", *names):
        if not all(name in line for line in lines):
            raise UserError(f"{Path(folder) / 'metrics.jsonl'} has dev metrics without {name}; {REMEDY}")
    return lines


def from_float16(z):
    """The reverse of `keep_evidence.to_float16`: float32, (n, classes) or (n,)."""
    if z.ndim == 1:
        return z.astype(np.float32)
    z = z.astype(np.float64)
    if z.shape[1] == 1:
        z = np.concatenate((np.zeros_like(z), z), 1)  # (n, 2)
    p = np.exp(z - z.max(1, keepdims=True))
    return (p / p.sum(1, keepdims=True)).astype(np.float32)


def check_data(root, paths=None):
    """Raises UserError where the evidence in a folder is of different data.

    Args: paths, {"TASK-SPLIT": path} of the task files that more evidence would be of.
    """
    every = {folder: record_of(folder)["data"]["files"] for folder in find(root)}
    if paths:
        every[next(iter(paths.values())).parent] = {key: digest_of_file(path) for key, path in paths.items()}
    first = next(iter(every), None)
    for folder, digests in every.items():
        if digests != every[first]:
            raise UserError(f"{first} and {folder} have different data; keep one of them in another --results")


def digest_of_ids(ids):
    """16 hex digits of the SHA-256 of a list of str."""
    return hashlib.sha256("\n".join(ids).encode()).hexdigest()[:16]


def digest_of_file(path):
    """16 hex digits of the SHA-256 of a file."""
    with files.open_regular(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]


# ----- reading


def outputs_of(folder, split, wanted):
    """What the run's best model says of dev or test: {task: values}, as `evaluate.model_outputs` gives them.

    Args: wanted, {task: ids}. Raises UserError where the run speaks of other examples.
    """
    kept, tensors = _digests_of(folder, split), _tensors(folder)
    for name, ids in wanted.items():
        key = f"{name}-{split}"
        if key not in tensors:
            raise UserError(f"{folder} keeps nothing of {key}; leave it out")
        if digest_of_ids(ids) != kept[name]:
            raise UserError(f"{folder} speaks of other examples of {key}; leave it out, or name its --data")
        if len(tensors[key]) != len(ids):
            raise UserError(f"{folder} has outputs of {key} for other than {len(ids)} examples; {REMEDY}")
    return {name: from_float16(tensors[f"{name}-{split}"]) for name in wanted}


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
            raise UserError(f"{Path(folder) / 'record.json'} has no examples of {key}; {REMEDY}")
    return {key.removesuffix(end): digest for key, digest in kept.items() if key.endswith(end)}


def _tensors(folder):
    path = Path(folder) / "outputs.safetensors"
    tensors, _ = open_safetensors(path)
    for name, tensor in tensors.items():
        fits = tensor.dtype == torch.float16 and 1 <= tensor.dim() <= 2 and 0 not in tensor.shape
        if not fits or not tensor.isfinite().all():
            raise UserError(f"{path}: {name} is no float16 array of finite numbers; {REMEDY}")
    return {name: tensor.numpy() for name, tensor in tensors.items()}


def examples_of(folder, split):
    """The examples of a run: {task: (ids, labels or None)}. Raises UserError where they are not those it speaks of."""
    data, found = Path(folder).parent / "data" / record_of(folder)["data"]["name"], {}
    for name, digest in _digests_of(folder, split).items():
        path = data / f"{name}-{split}.tsv"
        if not path.exists():
            raise UserError(f"{path} is missing, and {folder} needs it; fetch it again")
        found[name] = read_examples(path)
        if split == "dev" and found[name][1] is None:
            raise UserError(f"{path} has no labels; {REMEDY}")
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
        raise UserError(f"{path} is damaged; {REMEDY}")
    return list(columns[0][1:]), labels[0] if labels else None
