"""Files that are never half written: each is written aside and renamed."""

import contextlib
import json
import os
import shutil
from pathlib import Path

from support.console import UserError


class replacing:
    """`with replacing(path) as file`: a binary file that takes the place of `path` once it is complete.

    A kill at any instant leaves either the old file or the new one; a failed write leaves the old one.
    """

    def __init__(self, path):
        self.path = Path(path)
        self.aside = self.path.with_name(self.path.name + ".part")

    def __enter__(self):
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.file = open(self.aside, "wb")
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
            if isinstance(error, OSError) and error.filename is None:  # a failed write does not say where
                error.filename = str(self.path)


@contextlib.contextmanager
def replacing_folder(folder):
    """`with replacing_folder(best) as aside`: fill `aside`; it takes the place of `best` once it is complete."""
    folder = Path(folder)
    aside, old = folder.with_name(folder.name + ".part"), folder.with_name(folder.name + ".old")
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
    old = folder.with_name(folder.name + ".old")
    if old.exists() and not folder.exists():
        os.rename(old, folder)
    shutil.rmtree(old, ignore_errors=True)


def read_json(path):
    """The value in a JSON file. Raises UserError for one that is not JSON."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path} is not valid JSON ({error}); delete it, or choose another folder") from None


def write_json(path, value):
    with replacing(path) as file:
        file.write(json.dumps(value, indent=2).encode() + b"\n")
