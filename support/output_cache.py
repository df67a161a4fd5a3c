"""What a run's best model says of dev and test, computed once and kept in the run.

    RUN/outputs/TASK-SPLIT.safetensors     "values": float32, (n, classes) or (n,), as `evaluate.outputs` gives them

The metadata of such a file name what the values came from, a digest of the model's files and one of the examples, and
hold a digest of the values. If any of the three does not fit, they are computed again: after more training, with other
data, or where the file is damaged.
"""

import contextlib
import hashlib
import sys
from pathlib import Path

import torch

from evaluate import outputs, score
from model import MultitaskBert
from support import run_folder
from support.console import UserError
from support.safetensors import open_safetensors, write_safetensors
from tasks import TASKS, DataSet, fingerprint


def model_folder(run):
    """The folder of a run's best model. Raises UserError where there is none."""
    folder = run_folder.best_folder(run)
    if not (folder / "multitask.json").exists():
        if (Path(run) / "encoder").exists():
            raise UserError(f"{run} is a run of simcse.py, which has no tasks; fine-tune its encoder first")
        if (Path(run) / "config.json").exists():
            raise UserError(f"{run} holds no trained model yet; let its first epoch end, or leave it out")
        raise UserError(f"{run} holds no run; train one with multitask.py, or name another folder")
    return folder


def cached_outputs(run, examples, split, device):
    """What a run's best model says: {task: (Examples, values)}. Loads the model only where something is new.

    Args: examples, {task: Examples}; split, "dev" or "test", for the files' names. It does not matter which device kept
    values came from: a GPU, which computes in bfloat16, says the same to about 3 digits.
    """
    folder, model, found = model_folder(run), None, {}
    digest = model_digest(folder)
    for name, these in examples.items():
        task, path = TASKS[name], Path(run) / "outputs" / f"{name}-{split}.safetensors"
        origin = {"model": digest, "data": fingerprint(these)}
        values = _read_values(path, origin)
        if values is None:
            if model is None:
                model, tokenizer = MultitaskBert.load(folder)
                model.to(device)
            values = outputs(model, task, DataSet(these, tokenizer, model.encoding(task.name)))
            try:
                write_safetensors(path, {"values": torch.from_numpy(values)}, origin | {"values": _sha256(values)})
            except OSError as error:  # somebody else's run, a full disk: slower the next time, no reason to stop
                print(f"{path} cannot be kept for the next time: {error.strerror}", file=sys.stderr)
        found[name] = these, values
    return found


def _read_values(path, origin):
    """The values in a file of `outputs/`; None where there is none, or it is of another origin, or damaged."""
    with contextlib.suppress(UserError, OSError, KeyError, TypeError):
        tensors, metadata = open_safetensors(path)
        values = tensors["values"].numpy().copy()
        if metadata == origin | {"values": _sha256(values)}:
            return values
    return None


def _sha256(array):
    return hashlib.sha256(repr((array.dtype, array.shape)).encode() + array.tobytes()).hexdigest()


def model_digest(folder):
    """A text that changes with every file of a model folder that its outputs depend on."""
    names = ("config.json", "multitask.json", "model.safetensors", "heads.safetensors", "pals.safetensors")
    digest = hashlib.sha256()
    for name in (*names, "tokenizer.json", "vocab.txt", "tokenizer_config.json"):
        digest.update(name.encode())
        with contextlib.suppress(FileNotFoundError), open(folder / name, "rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def metrics_of(found):
    """{task: metric} of one model's `cached_outputs` on dev."""
    return {name: score(TASKS[name], values, examples.labels) for name, (examples, values) in found.items()}
