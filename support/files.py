"""Files that are never half written, and files that others wrote, which are what they should be or one sentence."""

import contextlib
import json
import math
import os
import re
import shutil
import stat
from pathlib import Path

from support.console import UserError


def beside(path, kind):
    """A name beside `path` that no human gives: what stands there is this module's own.

    Args: kind, "part" for what is not complete yet, "old" for what is about to be deleted.
    """
    path = Path(path)
    return path.with_name(f".{path.name}.replacing.{kind}")


class replacing:
    """`with replacing(path) as file`: a binary file that takes the place of `path` once it is complete.

    A kill at any instant leaves either the old file or the new one; a failed write leaves the old one.
    """

    def __init__(self, path):
        self.path, self.aside = Path(path), beside(path, "part")

    def __enter__(self):
        self.path.parent.mkdir(parents=True, exist_ok=True)
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
def naming(path):
    """`with naming(path)`: a failed write, which does not say where it failed, says it."""
    try:
        yield
    except OSError as error:
        error.filename = error.filename or str(path)
        raise


@contextlib.contextmanager
def replacing_folder(folder):
    """`with replacing_folder(best) as aside`: fill `aside`; it takes the place of `best` once it is complete.

    Where `best` is a link, to a larger disk perhaps, it takes the place of what that points to. Raises UserError where
    a file stands there, before anything is written.
    """
    folder = Path(os.path.realpath(folder))
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder} is a file where a folder belongs; move it away")
    aside, old = beside(folder, "part"), beside(folder, "old")
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    try:
        yield aside
        recover_folder(folder)
        if folder.exists():
            os.rename(folder, old)
        os.rename(aside, folder)
        shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def recover_folder(folder):
    """Undoes a `replacing_folder` that was killed between its two renames. For the process that writes the run."""
    folder = Path(os.path.realpath(folder))
    old = beside(folder, "old")
    if old.exists() and not folder.exists():
        os.rename(old, folder)
    shutil.rmtree(old, ignore_errors=True)


def is_vacant(path):
    """True where nothing stands, or an empty folder, or a link to one of the two."""
    return not path.exists() or (path.is_dir() and not any(path.iterdir()))


def is_left_over(folder):
    """True for what a `replacing_folder` that was killed leaves beside the folder itself."""
    own = re.fullmatch(r"\.(.+)\.replacing\.(part|old)", folder.name)
    return bool(own) and (own[2] == "part" or folder.with_name(own[1]).exists())


# ----- reading what others wrote


def open_regular(path):
    """Opens a file for reading bytes. Raises UserError, at once, for a FIFO, a device, a socket or a directory."""
    mode = os.stat(path).st_mode  # first: opening a FIFO waits for its other end, opening a device may act on it
    for test, what in _NO_FILES.items():
        if test(mode):
            raise UserError(f"{path} is {what}, not a file; name a file")
    return open(path, "rb")


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
        value = json.loads(text, parse_constant=_no_number, parse_float=_finite)
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


def write_json(path, value):
    with replacing(path) as file:
        file.write(json.dumps(value, indent=2).encode() + b"\n")
