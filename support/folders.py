"""What stands in a folder that somebody named: nothing of theirs is overwritten."""

from pathlib import Path

from support import files
from support.console import UserError


def check_vacant(folder, *names):
    """Raises UserError where a new run in this folder would overwrite what others left there.

    Args: names, of what it is about to write. It writes config.json before all of them: beside that they are its own.
    """
    folder = Path(folder)
    for path in () if (folder / "config.json").exists() else map(folder.joinpath, names):
        if not files.is_vacant(path):
            raise UserError(f"{path} is there, and {folder} is no run; move it away, or choose another --out")


def check_vacant_for_ensemble(folder, soup):
    """Raises UserError where `ensemble.py` would overwrite a run, or for a soup what others left there.

    A soup that was killed may be made again: it has no metrics yet. Args: soup, True for one.
    """
    config, metrics = (Path(folder) / name for name in ("config.json", "metrics.jsonl"))
    begun = soup and config.exists() and not metrics.exists()
    begun = begun and files.read_json(config, remedy="choose another --out").get("epochs") == 0
    if not begun and (config.exists() or (Path(folder) / "last").exists()):
        raise UserError(f"{folder} already holds a run; choose another --out")
    if soup:
        check_vacant(folder, "best", "metrics.jsonl")
