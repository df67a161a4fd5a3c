"""What a run's best model says of dev and test, and as a teacher of train, computed once and kept in the run.

    RUN/outputs/TASK-SPLIT-EXAMPLES.safetensors     "values": float32, (n, classes) or (n,), as
    `evaluate.model_outputs` gives them

EXAMPLES is a digest of the examples. So what a teacher says to one student stays when it speaks of other examples to
another. Of each task and split the newest four files are kept.

The metadata of such a file name what the values came from, a digest of the model's files and one of the examples, and
hold a digest of the values. If any of the three does not fit, they are computed again: after more training, or where
the file is damaged.
"""

import contextlib
import hashlib
import sys
from pathlib import Path

import torch

from support import distributed, run_folder
from support.console import UserError
from support.files import MODEL, open_regular
from support.safetensors import open_safetensors, write_safetensors

KEPT = 4  # files of a task and split


def cached_outputs(run, split, data, compute):
    """What a run's best model says of a split: {task: values}.

    Args: data, {task: a digest of the examples}; compute, a function from a list of tasks to {task: values}, called
    once, for the tasks whose values are not kept. It does not matter which device kept values came
    from: a GPU, which computes in bfloat16, says the same to about 3 digits.
    """
    digest = model_digest(run_folder.best_folder(run))
    paths = {name: Path(run) / "outputs" / f"{name}-{split}-{text}.safetensors" for name, text in data.items()}
    origins = {name: {"model": digest, "data": text} for name, text in data.items()}
    found = {name: _read_values(path, origins[name]) for name, path in paths.items()}
    missing = [name for name, values in found.items() if values is None]
    for name, values in (compute(missing) if missing else {}).items():
        found[name] = values
        if distributed.rank() > 0:  # all processes have computed it, one writes
            continue
        metadata = origins[name] | {"values": values_digest(values)}
        try:
            write_safetensors(paths[name], {"values": torch.from_numpy(values)}, metadata)
            _leave_newest(paths[name], f"{name}-{split}*.safetensors")
        except OSError as error:  # somebody else's run, a full disk: slower the next time, no reason to stop
            print(f"{paths[name]} cannot be kept for the next time: {error.strerror}", file=sys.stderr)
    return found


def _leave_newest(path, pattern):
    """Deletes the oldest of the files beside `path` that fit the pattern, but for KEPT of them, `path` included."""
    others = sorted(set(path.parent.glob(pattern)) - {path}, key=lambda other: other.stat().st_mtime_ns, reverse=True)
    for old in others[KEPT - 1 :]:
        old.unlink(missing_ok=True)


def _read_values(path, origin):
    """The values in a file of `outputs/`; None where there is none, or it is of another origin, or damaged."""
    with contextlib.suppress(UserError, OSError, KeyError, TypeError):
        tensors, metadata = open_safetensors(path)
        values = tensors["values"].numpy().copy()
        if metadata == origin | {"values": values_digest(values)}:
            return values
    return None


def values_digest(array):
    """A text that changes with any bit, the shape and the type of a NumPy array."""
    return hashlib.sha256(repr((array.dtype, array.shape)).encode() + array.tobytes()).hexdigest()


def model_digest(folder):
    """A text that changes with every file of a model folder that its outputs depend on."""
    digest = hashlib.sha256()
    for name in MODEL:
        digest.update(name.encode())
        with contextlib.suppress(FileNotFoundError), open_regular(folder / name) as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()
