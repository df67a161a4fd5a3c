"""What stands in a folder that was named: the model that is meant, or one sentence. Nothing there is overwritten."""

import os
from pathlib import Path

from support import evidence, files, metrics_file, run_folder, weight_files
from support.console import UserError, remedy_for_missing, typed
from support.safetensors import open_safetensors

ENCODER = ("config.json", "model.safetensors", "tokenizer.json")
MODELS = {"best": (*ENCODER, "multitask.json", "heads.safetensors"), "encoder": ENCODER}  # folder in a run: its files
PROGRAMS = {"best": "multitask.py", "encoder": "simcse.py"}


def config_of(folder):
    """The flags of the run in a folder, or {} where there is none. Raises UserError for a damaged config.json."""
    path = Path(folder) / "config.json"
    config = files.read_json(path) if path.exists() else {}
    return config if "out" in config else {}


# ----- reading


def check_run(folder):
    """Raises UserError unless a folder is a run of `multitask.py`, with or without a model."""
    config = config_of(folder)
    if not config or "tau" in config:  # a flag of simcse.py
        raise UserError(f"{folder} {what_is(folder)}")


def model_folder(run):
    """The folder of a run's best model, or of a model that was named itself, as a copy of best/ may be.

    Raises UserError where there is none, or not all of it.
    """
    folder = Path(run) if (Path(run) / "multitask.json").exists() else run_folder.best_folder(run)
    check_model(folder)
    return folder


def encoder_folder(run):
    """The encoder of a run of `simcse.py`. Raises UserError where there is none, or not all of it."""
    folder = run_folder.best_folder(run, "encoder")
    if files.is_vacant(folder):
        raise UserError(f"{run} {_no_model(run, 'encoder')}")
    check_whole(folder, "encoder")
    return folder


def check_model(folder):
    """Raises UserError unless a folder, best/ of a run, holds all of a model: else what is wrong with the run."""
    folder = Path(folder)
    run = folder.parent
    if not (folder / "multitask.json").exists() and (files.is_vacant(folder) or not config_of(run)):
        raise UserError(f"{run} {what_is(run)}")
    check_whole(folder)


def check_whole(folder, kind="best"):
    """Raises UserError where a file of a run's model is missing or cut short. Args: kind, "best" or "encoder"."""
    remedy, pals = _remedy(folder, kind), folder / "pals.safetensors"
    if not folder.is_dir():
        raise UserError(f"{folder} is a file, not a model; {remedy}")
    for path in (*map(folder.joinpath, MODELS[kind]), *[pals] * pals.exists()):
        if not path.exists():
            raise UserError(f"{path} is missing; {remedy}")
        (open_safetensors if path.suffix == ".safetensors" else files.read_json)(path, remedy=remedy)
    if kind == "best":
        options = files.read_json(folder / "multitask.json")
        if pals.exists() != (options.get("pal_size") is not None):
            raise UserError(f"{pals} and multitask.json beside it do not belong together; {remedy}")


def _remedy(folder, kind):
    run = folder.parent
    if os.path.exists(run_folder.state_path(run)):  # False where nobody may look
        return f"move {folder} away, and `{typed(PROGRAMS[kind], '--resume', '--out', run)}` writes it again"
    return "copy the run again"


def _no_model(run, kind):
    """What to do where a run has no model: text to follow its name. Args: kind, as in `MODELS`."""
    if run_folder.has_lost_state(run, kind):
        return "holds no trained model any more, and no state to go on from; copy the run again, or train another"
    go_on = typed(PROGRAMS[kind], "--resume", "--out", run)
    return f"holds no trained model yet; let its first epoch end: {go_on}"


def what_is(folder):
    """What stands where a run with a trained model was looked for, and what to do: text to follow the folder's name."""
    whole = Path(os.path.abspath(folder))
    has = lambda name: (whole / name).exists()  # noqa: E731
    config, other = config_of(whole), "train one with multitask.py, or name another folder"
    if not files.target_of(whole).exists():
        return f"does not exist and so holds no run; {remedy_for_missing(folder, f'check the name, or {other}')}"
    if not whole.is_dir():
        return "is a file; name the folder of a run"
    if evidence.is_evidence(whole):
        return "is the evidence of a run, without its weights; name the run itself"
    if has("encoder") or "tau" in config:
        return "is a run of simcse.py, which has no tasks; fine-tune its encoder first"
    if config.get("epochs") == 0:
        return "is a soup without its model; make it again with ensemble.py in another folder"
    if config:
        return _no_model(folder, "best")
    weights = any(has(name) or has(f"{name}.index.json") for name in weight_files.NAMES)
    if weights and not has("multitask.json"):
        return f"is a pretrained model; fine-tune it first: {typed('multitask.py', '--bert', folder)}"
    if config_of(whole.parent):
        return f"is a part of a run; name the run, {os.path.normpath(Path(folder, '..'))}"
    if has("multitask.json"):
        return "is a model without its run; name the folder in which it is best/"
    if has("best/multitask.json"):
        return "holds a model, but not the flags of its run; copy its config.json, too"
    if whole.name == "data" and any(whole.parent.glob("*/record.json")):
        return "holds ids and labels of the runs beside it, and is none; leave it out, as *-* in place of * does"
    return f"holds no run; {other}"


def unfinished(run):
    """Text to follow the name of a run whose last epoch has not ended; "" for others, and where nothing says so."""
    epochs = config_of(run).get("epochs", 0)
    ended = max((line.get("epoch", 0) for line in metrics_file.read(run) if line["kind"] == "dev"), default=epochs)
    go_on = f"go on with it: {typed('multitask.py', '--resume', '--out', run)}"
    return f" (not finished, {ended} of {epochs} epochs; {go_on})" if ended < epochs else ""


# ----- writing


def check_vacant(folder, *names):
    """Raises UserError where a new run in this folder would overwrite what others left there.

    Args: names, of what the run is about to write. It writes config.json first: files beside one are the run's own.
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
