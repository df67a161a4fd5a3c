"""Makes the evidence of a finished run (`evidence.py` says what that is), and compares runs with their rows.

Class probabilities p_c are kept as log(p_c / max p), those of two classes as log(p_1 / p_0). float16 is most precise
near 0, where the decision falls, so no decision changes. A probability above 0.01 changes by less than 0.3 % of itself.
A predicted number is kept as it is, to 3 digits.
"""

import json
import os
from pathlib import Path

import numpy as np
import torch

from support import evidence, files, fingerprints, flags, metrics_file, run_folder
from support.console import UserError, typed
from support.safetensors import write_safetensors
from support.saved_flags import read_flags

PLACES = ("out", "resume", "eval_only", "skip_test")  # flags that say where a run stands and how it is started
FILES = ("_train", "_dev", "_test", "_out")  # ends of flags that name files
NEEDED = ("bert", "epochs", "seed", "max_examples")  # flags that every run has
FREE = ("data", "device", "save_every", "cuda_graphs", "bf16", "kernels")  # may differ between runs of one row


def to_float16(values):
    """`evaluate.model_outputs`, (n, classes) probabilities or (n,) numbers -> float16 (n, classes), (n, 1) or (n,)."""
    if values.ndim == 1:
        return values.astype(np.float16)
    z = np.log(np.maximum(values.astype(np.float64), 1e-30))
    if z.shape[1] == 2:
        return (z[:, 1:] - z[:, :1]).astype(np.float16)  # (n, 1)
    return (z - z.max(1, keepdims=True)).astype(np.float16)


def check_finished(run, config):
    """Raises UserError unless a run is finished and has seen all of the dev examples. Args: config, its flags."""
    if evidence.is_evidence(run):
        raise UserError(f"{run} is evidence already; name a run")
    if missing := [name for name in NEEDED if name not in config]:
        raise UserError(f"{run}/config.json has no {missing[0]!r}; copy the run again")
    lines = evidence.dev_lines(run)
    if not lines or lines[-1]["epoch"] < config["epochs"]:
        remedy = f"go on with it first ({typed('multitask.py', '--resume', '--out', run)}), or copy that file again"
        raise UserError(f"{run} is not finished, as its metrics.jsonl says; {remedy}")
    if config["max_examples"]:
        raise UserError(f"{run} knows only some of the dev examples; make evidence of runs without --max_examples")


def check_examples(run, dev):
    """Raises UserError where a run knows that it was scored on other dev examples. Args: dev, {task: Examples}."""
    known = run_folder.data_of(run)
    now = {f"{task} dev": fingerprints.of_examples(examples) for task, examples in dev.items()}
    if changed := [name for name, text in now.items() if known.get(name, text) != text]:
        said = f"{', '.join(changed)} {'is' if len(changed) == 1 else 'are'} not what {run} was scored on"
        raise UserError(f"{said}; name the task files that it was scored on with --data")


def write(root, run, config, record, paths, examples, outputs, more, name=None):
    """Makes the evidence of a run, root/ROW-SEED, and returns that folder.

    Args: config, the run's flags; record, a dict with row, commit, device and seconds; paths, the task files,
    {"TASK-SPLIT": path}; examples, {"TASK-SPLIT": (ids, labels or None)}; outputs, {"TASK-SPLIT": values of
    `evaluate.model_outputs`}; more, {name: array} to keep beside them; name, of the data (default: as runs in root call
    them, or the name of their folder).
    Raises UserError before anything is written.
    """
    folder, metrics = Path(root) / f"{record['row']}-{config['seed']}", _portable_metrics(run)
    if folder.exists() and not evidence.is_evidence(folder):
        raise UserError(f"{folder} is there, and it is no evidence; choose another --row, or move it away")
    if folder.exists() and _portable_metrics(folder) != metrics:
        raise UserError(f"{folder} is the evidence of another run; choose another --row, or delete it first")
    evidence.check_data(root, paths)
    digests = {key: evidence.digest_of_file(path) for key, path in paths.items()}
    known = (evidence.record_of(other)["data"] for other in evidence.find(root))
    name = name or next((data["name"] for data in known), None)
    name = name or Path(os.path.realpath(next(iter(paths.values())))).parent.name
    record = {"row": record["row"], "seed": config["seed"]} | record | {"data": {"name": name, "files": digests}}
    stage, members = Path(config["bert"]).parent, evidence.best_epoch(run).get("soup")
    if (stage / "row.json").exists():  # a stage of SimCSE that the run began with
        own = {"flags": portable(read_flags(stage, flags.simcse_parser(), "copy the run again"), name)}
        record["encoder"] = files.read_json(stage / "row.json", {"seconds": (int, float)}) | own
    if members:
        record["soup"] = _names_of(members)
    record["examples"] = {key: evidence.digest_of_ids(ids) for key, (ids, _) in examples.items()}
    tensors = {key: to_float16(values) for key, values in outputs.items()}
    tensors |= {key: np.asarray(array, dtype=np.float16) for key, array in more.items()}
    for key, (ids, labels) in examples.items():
        _write_examples(Path(root) / "data" / name / f"{key}.tsv", ids, labels)
    with files.replacing_folder(folder) as aside:
        files.write_json(aside / "config.json", portable(config, name))
        (aside / "metrics.jsonl").write_text(metrics, encoding="utf-8")
        write_safetensors(aside / "outputs.safetensors", {key: torch.from_numpy(t) for key, t in tensors.items()})
        files.write_json(aside / "record.json", record)
    return folder


def _write_examples(path, ids, labels):
    if path.exists():
        known, gold = evidence.read_examples(path)
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
    read = metrics_file.read(folder)
    lines = [line | {"soup": _names_of(line["soup"])} if "soup" in line else line for line in read]
    return "".join(json.dumps(line, allow_nan=False) + "\n" for line in lines)


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
    if path.name in ("encoder", "best") and path.parent.name:
        return path.parent.name
    return os.path.basename(os.path.realpath(path))


def check_flags(folder, config, wanted, defaults):
    """Raises UserError where a run, or its evidence, was started with other flags than those wanted.

    Args: config, its flags; wanted and defaults, dicts of flags. A flag that the run did not know yet counts as its
    default.
    """
    config = portable(config)
    for name, value in portable(wanted).items():
        own = config.get(name, defaults.get(name))
        if name not in FREE and own != value:
            raise UserError(
                f"{folder} was started with --{name} {own}, its row has {value}; "
                f"give the flags of the run with --flags, or choose another --row or --results"
            )
