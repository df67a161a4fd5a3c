"""Files that are never half written, and files that others wrote, which are what they should be or one sentence."""

import contextlib
import fcntl
import glob
import json
import math
import os
import re
import shutil
import stat
from pathlib import Path

from support.console import UserError

# all that a model of ours may consist of; what else stands in its folder is somebody else's
MODEL = ("config.json", "multitask.json", "model.safetensors", "heads.safetensors", "pals.safetensors")
MODEL += ("tokenizer.json", "vocab.txt", "tokenizer_config.json")
BESIDE = re.compile(r"\.(.+)\.replacing\.(?:(?:(\d{1,9})\.)?part|old)", re.ASCII)  # of what, and by which process


def beside(path, kind):
    """A name beside `path` that no human gives: what stands there is this module's own.

    Args: kind, "part" for what this process has not completed yet, "old" for what is about to be deleted.
    """
    path, process = Path(path), f"{os.getpid()}." if kind == "part" else ""
    return path.with_name(f".{path.name}.replacing.{process}{kind}")


def sweep(path):
    """Deletes what processes that are dead by now left beside `path`, half written."""
    for other in path.parent.glob(glob.escape(f".{path.name}.replacing.") + "*part"):
        found = BESIDE.fullmatch(other.name)
        if found and found[1] == path.name and not _runs(found[2]):
            with contextlib.suppress(OSError):
                other.unlink() if other.is_symlink() or not other.is_dir() else shutil.rmtree(other)


def _runs(process):
    """Whether a process runs on this machine. Args: its number, a text, or None, which nobody has."""
    try:
        os.kill(int(process), 0)
    except (TypeError, ProcessLookupError):
        return False
    except PermissionError:  # somebody else's
        pass
    return True


class replacing:
    """`with replacing(path) as file`: a binary file that takes the place of `path` once it is complete.

    A kill at any instant leaves either the old file or the new one; a failed write leaves the old one. Of two processes
    that write one file, the last one wins.
    """

    def __init__(self, path):
        self.path, self.aside = Path(path), beside(path, "part")

    def __enter__(self):
        self.path.parent.mkdir(parents=True, exist_ok=True)
        sweep(self.path)
        try:
            self.file = open(self.aside, "wb")
        except OSError as error:
            error.filename = str(self.path)
            raise
        return self.file

    def __exit__(self, kind, error, _):
        try:
            self.file.close()  # what was still buffered may not fit the disk either
            if kind is None:
                os.replace(self.aside, self.path)
        except OSError as late:
            error = late
            raise
        finally:
            self.aside.unlink(missing_ok=True)
            if isinstance(error, OSError) and error.filename in (None, str(self.aside)):  # a name that nobody knows
                error.filename = str(self.path)


@contextlib.contextmanager
def naming(path, *hidden):
    """`with naming(path)`: a failed write, which does not say where it failed, says it.

    Args: hidden, folders with names that nobody knows, which stand for `path`.
    """
    try:
        yield
    except OSError as error:
        error.filename = str(error.filename or path)
        for folder in map(str, hidden):
            if error.filename == folder or error.filename.startswith(f"{folder}/"):
                error.filename = f"{path}{error.filename.removeprefix(folder)}"
        raise


@contextlib.contextmanager
def replacing_folder(folder):
    """`with replacing_folder(best) as aside`: fill `aside`; it takes the place of `best` once it is complete.

    What others put into `best` moves on into the new one. Where `best` is a link, to a larger disk perhaps, the new one
    takes the place of what that points to. Raises UserError where a file stands there, or a link to nothing, before
    anything is written.
    """
    folder = target_of(folder)
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder} is a file where a folder belongs; move it away")
    aside, old = beside(folder, "part"), beside(folder, "old")
    sweep(folder)
    shutil.rmtree(aside, ignore_errors=True)
    try:
        with naming(folder, aside, old):
            aside.mkdir(parents=True)
            yield aside
            recover_folder(folder)
            if folder.exists():
                os.rename(folder, old)
            os.rename(aside, folder)
            _clear(old, folder)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def recover_folder(folder):
    """Undoes or ends a `replacing_folder` that was killed while it renamed. For the process that writes the run."""
    folder = target_of(folder)
    old = beside(folder, "old")
    with naming(folder, old):
        if old.exists() and not folder.exists():
            os.rename(old, folder)
        _clear(old, folder)


def _clear(old, folder):
    """Deletes `old`, whose place `folder` has taken. What is not of a model, and not in `folder`, moves there first."""
    for path in list(old.iterdir()) if old.exists() else ():
        if path.name not in MODEL and not os.path.lexists(folder / path.name):
            os.rename(path, folder / path.name)
    shutil.rmtree(old, ignore_errors=True)


def target_of(folder):
    """What a folder or file is a link to, or itself. Raises UserError for a link to nothing.

    Its disk may not be mounted: a folder made there now would be hidden later.
    """
    target = Path(os.path.realpath(folder))
    if os.path.islink(folder) and not target.exists() and not beside(target, "old").exists():
        raise UserError(f"{folder} is a link to {target}, which is not there; mount its disk, or make it")
    return target


def is_vacant(path):
    """True where nothing stands, or an empty folder, or a link to one of the two."""
    return not path.exists() or (path.is_dir() and not any(path.iterdir()))


def is_left_over(folder):
    """True for what a `replacing_folder` that was killed leaves beside the folder itself."""
    found = BESIDE.fullmatch(folder.name)
    return bool(found) and (folder.name.endswith("part") or folder.with_name(found[1]).exists())


def lock_open(file, otherwise):
    """Locks an open file or its number, until it is closed. Raises UserError, `otherwise`, where another has the lock.

    Where a file system has no locks, this does nothing.
    """
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise UserError(otherwise) from None
    except OSError:
        pass


@contextlib.contextmanager
def locked(folder, otherwise):
    """`with locked(folder, "..."):` one process at a time is within it. Raises UserError as `lock_open` does."""
    number = os.open(folder, os.O_RDONLY)
    try:
        lock_open(number, otherwise)
        yield
    finally:
        os.close(number)


# ----- reading what others wrote


def open_regular(path, mode="rb"):
    """Opens a file of bytes that is there. Raises UserError, at once, for a FIFO, a device, a socket or a directory."""
    kind = os.stat(path).st_mode  # first: opening a FIFO waits for its other end, opening a device may act on it
    for test, what in _NO_FILES.items():
        if test(kind):
            raise UserError(f"{path} is {what}, not a file; name a file")
    return open(path, mode)


_NO_FILES = {
    stat.S_ISDIR: "a folder",
    stat.S_ISFIFO: "a pipe",
    stat.S_ISCHR: "a device",
    stat.S_ISBLK: "a device",
    stat.S_ISSOCK: "a socket",
}


def read_text(path, most=100_000_000):
    """The text of a UTF-8 file, with or without a byte order mark. Raises UserError for what is no text.

    Args: most, bytes; a larger file is refused before it is read.
    """
    with open_regular(path) as file:
        if os.fstat(file.fileno()).st_size > most:
            raise UserError(f"{path} is larger than {most:,} bytes; name another file")
        raw = file.read(most)
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise UserError(f"{path} is not UTF-8 text; save it as UTF-8") from None


def read_json(path, required=None, optional=None, remedy="fetch or write it again"):
    """The object in a JSON file, a dict. See `parse_json` for the other arguments and for errors."""
    return parse_json(read_text(path), path, required, optional, remedy)


def parse_json(text, source, required=None, optional=None, remedy="fetch or write it again"):
    """The object in a JSON text, a dict.

    Args: source, what messages call it; required and optional, {key: type, or tuple of types}. `int` stands for whole
    numbers, `float` for finite numbers of both kinds; True and False are of type `bool` alone. Other keys are left
    alone. Raises UserError, with the remedy, for what is no JSON object, for NaN, for a key that is missing and for a
    value of another type.
    """
    try:
        value = json.loads(text, parse_constant=_no_number, parse_float=_finite, parse_int=_whole)
        if "\\u" in text:
            json.dumps(value, ensure_ascii=False).encode()  # fails for half of a surrogate pair, which no file can hold
    except (ValueError, RecursionError) as error:
        reason = "it is nested too deep" if isinstance(error, RecursionError) else str(error)
        raise UserError(f"{source} is not valid JSON ({reason:.100}); {remedy}") from None
    if not isinstance(value, dict):
        raise UserError(f"{source} is not a JSON object; {remedy}")
    required, optional = required or {}, optional or {}
    for key in required:
        if key not in value:
            raise UserError(f"{source} has no {key!r}; {remedy}")
    for key, kinds in (required | optional).items():
        if key in value and not _is_a(value[key], kinds):
            raise UserError(f"{source}: {key} cannot be {shown(value[key])}; {remedy}")
    return value


def shown(value):
    """A value as messages show it: 40 characters at most."""
    if isinstance(value, list | dict):
        return "a list" if isinstance(value, list) else "an object"
    text = repr(value[:40] if isinstance(value, str) else value)
    return text if len(text) <= 40 else text[:37] + "..."


def _is_a(value, kinds):
    kinds = kinds if isinstance(kinds, tuple) else (kinds,)
    return type(value) in kinds or (type(value) is int and float in kinds)


def _no_number(text):
    raise ValueError(f"{text} is not a number")


def _finite(text):
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text:.20} is too large a number")
    return value


def _whole(text):
    _finite(text)  # else a division would end with a traceback
    return int(text)


def write_json(path, value):
    with replacing(path) as file:
        file.write(json.dumps(value, indent=2, allow_nan=False).encode() + b"\n")
