"""Places that a program is going to write: tried before its work, not after it."""

import itertools
import os
import tempfile
from pathlib import Path

from support.console import UserError
from support.files import BESIDE, open_regular, target_of

FIGURE_TAG = "multitask-bert"  # in the metadata of our figures
REPLACED = ("best", "encoder", "last", "outputs")  # folders of a run that programs replace or empty
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


def check_own(flag, path, is_own):
    """Raises UserError where a file stands that a program did not write itself, and would write over.

    Args: is_own, a function of the first bytes of a file, which is not called for an empty one.
    """
    if os.path.exists(path):
        with open_regular(path) as file:
            start = file.read(200)
        if start and not is_own(start):
            raise UserError(f"{flag}: {path} is there, and no earlier output; move it away, or name another place")


def check_figure(flag, path):
    """Raises UserError where a PNG file cannot be written, or would take the place of what is no figure of ours."""
    if not path.lower().endswith(".png"):
        raise UserError(f"{flag} {path} is not the name of a PNG file; let it end in .png")
    check_file(flag, path)
    check_own(flag, path, lambda start: start.startswith(b"\x89PNG") and f"Software\0{FIGURE_TAG}".encode() in start)


def _fault(path, is_folder):
    """What keeps a file or folder, which need not exist yet, from being written; None where nothing does.

    Raises UserError where the folder, or one above it, is a link to nothing.
    """
    there, real = os.path.lexists(path), _real(path)
    for part in (real, *real.parents):
        if BESIDE.fullmatch(part.name):
            return "has a name that stands for something half written"
        if (is_folder or part != real) and _is_replaced(part):
            return f"lies in {part}, which a run replaces as a whole"
    for folder in (*[path] * is_folder, *path.parents):
        target_of(folder)
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


def _is_replaced(folder):
    """True for a folder in a run that its programs replace as a whole, or empty."""
    return os.path.exists(folder / "multitask.json") or (folder.name in REPLACED and _is_run(folder.parent))


def _is_run(folder):
    return all(os.path.exists(folder / name) for name in ("config.json", "metrics.jsonl"))


# ----- prediction files


def check_predictions(args, tasks, splits):
    """Raises UserError where --out or a prediction file cannot be written, or would take the place of another file.

    It may take the place of earlier predictions, but not of those of another run. Args: args, the flags of
    `multitask.py`; tasks and splits, `TASKS` and `SPLITS` of `tasks.py`.
    """
    out = Path(args.out)
    if not args.eval_only:
        check_folder("--out", out)
        check_folder("--out", _real(out / "best").parent)  # it may be a link to another disk
    taken = {_real(out / name): f"the run's own {name}" for name in OWN}
    for name, split in ((name, split) for name in tasks for split in splits):
        file = Path(args.data, tasks[name].file.format(split=splits[split]))
        file = getattr(args, f"{name}_{split}") or file
        taken[_real(file)] = f"the task file {file}"
    for flag, usual in prediction_files(tasks).items():
        given = getattr(args, flag)
        path = out / given
        said = f"--{flag} {given}" if given != usual else f"--out {out}: its {given}"
        real, fault = _real(path), _fault(path, is_folder=False)
        above = itertools.takewhile(lambda folder: folder != _real(out), real.parents)
        if not fault and (other := next(filter(_is_run, above), None)):
            fault = f"belongs to the run {other}"
        if fault:
            raise UserError(f"{said} {fault}; name another place with --{flag}")
        check_own(f"--{flag}", path, is_predictions(tasks))
        for place, whose in taken.items():
            if real == place or real in place.parents or place in real.parents:
                raise UserError(f"--{flag} {given} is in the way of {whose}; name another file")
        taken[real] = f"--{flag} {given}"


def check_outputs(flag, folder, inside, tasks, split):
    """Raises UserError where a folder cannot hold prediction files of a split, or holds other files in their places.

    Args: flag, what named the folder; inside, the path in it that they go to.
    """
    check_folder(flag, folder, inside)
    for name in tasks:
        check_own(flag, Path(folder, inside, f"{name}-{split}-output.csv"), is_predictions(tasks))


def is_predictions(tasks):
    """A function that tells the first bytes of a prediction file, of any of the tasks, from those of other files.

    An editor may have put a byte order mark before them, and taken blanks away.
    """
    headers = [[b"id", task.output.encode()] for task in tasks.values()]
    return lambda start: start.removeprefix(b"\xef\xbb\xbf").split()[:2] in headers


def prediction_files(tasks):
    """Where predictions go unless a flag says otherwise, relative to --out: {flag: path}."""
    pairs = [(name, split) for name in tasks for split in ("dev", "test")]
    return {f"{name}_{split}_out": f"predictions/{name}-{split}-output.csv" for name, split in pairs}


def _real(path):
    return Path(os.path.realpath(path))
