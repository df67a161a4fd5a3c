"""Places that a program is going to write: tried before its work, not after it."""

import os
import tempfile
from pathlib import Path

from support.console import UserError
from support.files import beside, open_regular

OWN = ("config.json", "metrics.jsonl", "lock", "last", "best", "outputs", "row.json", "seconds.json")  # of a run


def check_folder(flag, folder, *inside):
    """Raises UserError where a folder cannot be written, or one that the program makes in it.

    Args: flag, what named the folder; inside, paths relative to it.
    """
    for path in (Path(folder), *(Path(folder, name) for name in inside)):
        if fault := _fault(path, is_folder=True):
            said = f"{folder}: {path}" if path != Path(folder) else folder
            raise UserError(f"{flag} {said} {fault}; name another folder")


def check_file(flag, path):
    """Raises UserError where a file cannot be written. Args: flag, what named it."""
    if fault := _fault(Path(path), is_folder=False):
        raise UserError(f"{flag} {path} {fault}; name another file")


def _fault(path, is_folder):
    """What keeps a file or folder, which need not exist yet, from being written; None where nothing does."""
    there = os.path.lexists(path)
    if there and not (os.path.isdir(path) if is_folder else os.path.isfile(path)):
        return "is not a folder" if is_folder else "is not a file"
    if len(os.fsencode(path.name)) > 230:  # it is longer while it is written
        return "has too long a name"
    above = path if there and is_folder else next(filter(os.path.lexists, path.parents), Path())
    if not os.path.isdir(above):
        return f"lies below {above}, which is not a folder"
    try:
        with tempfile.TemporaryFile(dir=above):
            return None
    except OSError as error:
        return f"cannot be written ({error.strerror})"


# ----- prediction files of a run


def check_predictions(args, tasks, splits):
    """Raises UserError where --out or a prediction file cannot be written, or would take the place of another file.

    Args: args, the flags of `multitask.py`; tasks and splits, `TASKS` and `SPLITS` of `tasks.py`.
    """
    out, taken = Path(args.out), {}
    if not args.eval_only:
        check_folder("--out", out)
        check_folder("--out", _real(out / "best").parent)  # it may be a link to another disk
    for name in OWN:
        for path in (out / name, beside(out / name, "part"), beside(out / name, "old")):
            taken[_real(path)] = f"the run's own {name}"
    for name, split in ((name, split) for name in tasks for split in splits):
        file = Path(args.data, tasks[name].file.format(split=splits[split]))
        file = getattr(args, f"{name}_{split}") or file
        taken[_real(file)] = f"the task file {file}"
    for flag, usual in prediction_files(tasks).items():
        given = getattr(args, flag)
        path = out / given
        said = f"--{flag} {given}" if given != usual else f"--out {out}: its {given}"
        if fault := _fault(path, is_folder=False) or _precious(path, tasks):
            raise UserError(f"{said} {fault}; name another place")
        places = _real(path), _real(beside(path, "part"))
        for place, whose in taken.items():
            if any(mine == place or mine in place.parents or place in mine.parents for mine in places):
                raise UserError(f"--{flag} {given} is in the way of {whose}; name another file")
        taken |= dict.fromkeys(places, f"--{flag} {given}")


def prediction_files(tasks):
    """Where predictions go unless a flag says otherwise, relative to --out: {flag: path}."""
    pairs = [(name, split) for name in tasks for split in ("dev", "test")]
    return {f"{name}_{split}_out": f"predictions/{name}-{split}-output.csv" for name, split in pairs}


def _real(path):
    return Path(os.path.realpath(path))


def _precious(path, tasks):
    """What speaks against writing over a file; None where there is none, or it holds predictions or nothing."""
    if not os.path.exists(path):
        return None
    with open_regular(path) as file:
        start = file.read(100)
    ours = any(start.startswith(f"id \t {task.output} ".encode()) for task in tasks.values())
    return None if ours or not start else "is there, and holds no predictions"
