"""A run is a folder, and survives being killed at any instant.

    config.json              the flags it was started with
    metrics.jsonl            one JSON object a line: the losses and the dev metrics of each epoch
    last/state.safetensors   all that is needed to go on: weights, optimizer, random state, position, in ONE file, so
                             that it is always consistent with itself
    last/unsaved             an empty file, until there is a first state
    best/                    the model with the best dev score, which `transformers` opens; the heads stand beside
    predictions/             what the best model predicts for dev and test
    lock                     an empty file, locked while a process trains

Files are written aside and renamed. On the CPU a run that was killed and resumed ends with the same weights, bit for
bit, as one that was not: its steps depend on the seed only, and its random state is restored. `training_run.py` does
all this for a training loop.
"""

import fcntl
import hashlib
import json
import os
from pathlib import Path

import torch

from kernels.cpu.products import bfloat16_products
from support import metrics_file
from support.console import UserError
from support.files import beside, is_vacant, lock_open, open_regular, read_json, target_of
from support.safetensors import open_safetensors, write_safetensors
from support.saved_flags import OWN_FLAGS, as_typed

# these may change: how a run runs, and the places of what it reads, since its state knows what stood there
READS = ("data", "bert", "unlabelled", "corpus", "pairs")
FREE_FLAGS = (*OWN_FLAGS, "device", "save_every", *READS)
FREE_ENDS = ("_train", "_dev", "_test", "_out")  # of a task's files
USUAL = {"smart": "weak"}  # what a flag that was not given stands for
ON_SOME_DEVICES = ("random.cuda", "loss_scale", "loss_scale.good_steps")  # of a state: another device starts them anew
ANOTHER = "another --out (with make: OUT=DIR)"


def _lasting(flags, free=FREE_FLAGS):
    """What a run keeps from its first step to its last: values of flags, by name. Of a list of places it is the length.

    Args: flags, a dict; free, names of those that may change.
    """
    kept = {name: value for name, value in flags.items() if name not in free and not name.endswith(FREE_ENDS)}
    kept = {name: USUAL.get(name) if value is None else value for name, value in kept.items()}
    return {name: len(value) if isinstance(value, list) else value for name, value in kept.items()}


def parse_flags(parser, argv, at_hand=lambda args: True):
    """The flags of a run: from `argv`, and with --resume from the run's own `config.json`.

    So `--resume --out DIR` alone goes on with the flags of before. With --eval_only too, but how to compute may change:
    a trained model may stand on another machine. --resume of a finished run is --eval_only where its last state or what
    it began with is gone. Args: at_hand, a function of the flags: whether what they begin with is there.
    Raises UserError where a flag given now contradicts the run, and where a run would be overwritten.
    """
    args = parser.parse_args(argv)
    if args.resume and args.eval_only:
        raise UserError("--resume does nothing beside --eval_only; leave it out")
    config = Path(args.out) / "config.json"
    if not config.exists():
        if args.eval_only:
            target_of(args.out)  # which may be a link to nothing
            raise UserError(f"{args.out} holds no run; train one first, or name another folder with --out")
        if state_path(args.out).exists():
            raise UserError(f"{args.out} holds a run without its config.json; choose another --out")
        return args
    remedy = "choose another --out"
    saved = read_json(config, remedy=remedy)
    unknown = sorted(saved.keys() - vars(args).keys())
    if unknown and saved.keys() > vars(args).keys():
        said = f"is of a newer version of {parser.prog}, with --{unknown[0]:.40}; update this project, or {remedy}"
        raise UserError(f"{config} {said}")
    if "out" not in saved or unknown:
        raise UserError(f"{config} is not a run of {parser.prog}; {remedy}")
    if not (args.resume or args.eval_only):
        raise UserError(f"{args.out} already holds a run; add --resume to go on with it, or choose another --out")
    own, free = as_typed(parser, saved, config, remedy), FREE_FLAGS
    if args.eval_only:
        here = computing_here(own)
        own, free = own | here, (*FREE_FLAGS, *here)
    parser.set_defaults(**own)
    kept = vars(parser.parse_args([]))  # with the defaults of flags that are newer than the run
    args = parser.parse_args(argv)
    before = _lasting(kept, free)
    for name, value in _lasting(vars(args), free).items():
        if value != before[name]:
            differs = f"with --{name} {kept[name]!s:.60}, not {getattr(args, name)!s:.60}"
            if is_finished(args.out, kept["epochs"]):
                remedy = f"leave the flag out to score it; {ANOTHER} starts a new run"
                raise UserError(f"{args.out} is finished, and was started {differs}; {remedy}")
            remedy = f"leave the flag out to resume, or choose {ANOTHER}"
            raise UserError(f"{args.out} was started {differs}; {remedy}")
    if is_finished(args.out, args.epochs) and not args.eval_only:
        bare = not at_hand(args) and not is_vacant(best_folder(args.out))
        args.eval_only = bare or has_lost_state(args.out)
    return args


def is_finished(folder, epochs):
    """Whether a run of so many epochs has recorded the end of its last one."""
    return any(line["kind"] == "dev" and line.get("epoch") == epochs for line in metrics_file.read(folder))


def computing_here(flags):
    """How a run computes, as far as this machine can: its flags that say so. Args: flags, all that the run has."""
    return {
        "device": "cpu" if flags.get("device") == "cpu" else "auto",
        "bf16": flags.get("bf16", False) and bfloat16_products(),
        "kernels": flags.get("kernels", "auto"),
    }


def lock(folder):
    """Locks a run for this process, which is about to train it: an open file, whose lock ends with it.

    A lock dies with its process. Reading a run needs none. Raises UserError where another process trains this run.
    """
    path = Path(folder) / "lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    file = open_regular(path, "ab")  # open as long as it locks; "a" empties nobody's file
    try:
        lock_open(file, f"another process trains in {folder}; wait for its end, or choose another --out")
    except UserError:
        file.close()
        raise
    return file


def check_lock(file, folder):
    """Raises UserError where a folder is no longer the one that `lock` locked. Args: file, what `lock` returned."""
    path = Path(folder) / "lock"
    if not path.parent.exists() or (path.exists() and not os.path.samestat(os.fstat(file.fileno()), path.stat())):
        remedy = "where it is now, --resume goes on from its last save; else start it again with another --out"
        raise UserError(f"{folder} was moved or removed while this trained in it; {remedy}")


def is_training(folder):
    """Whether a process trains in this folder now, and so may change the run's best model."""
    try:
        with open_regular(Path(folder) / "lock") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:  # no such file, or a file system without locks
        pass
    return False


# ----- last/


def state_path(folder):
    """Where a run keeps what it needs to go on."""
    return Path(folder) / "last" / "state.safetensors"


def begin_states(folder):
    """Makes last/, and in it the mark of a run that has saved no state yet: `has_lost_state` asks for it."""
    state_path(folder).parent.mkdir(exist_ok=True)
    state_path(folder).with_name("unsaved").touch()


def has_lost_state(folder, best="best"):
    """True where an epoch has ended and the state is gone: not for a run that was killed before it saved one."""
    if state_path(folder).exists() or state_path(folder).with_name("unsaved").exists():
        return False
    return not is_vacant(best_folder(folder, best)) or any(line["kind"] == "dev" for line in metrics_file.read(folder))


def save_state(folder, model, optimizer, extra, flags, position):
    """Writes `last/state.safetensors`, and into its metadata a checksum of everything.

    Args: extra, more tensors that belong to the state, by name; flags, a dict of the run's; position, a dict of JSON
    values: the step, the best dev score so far, ...
    """
    tensors = {name: tensor.detach().cpu() for name, tensor in _tensors(model, optimizer, extra).items()}
    tensors |= _random_states()
    metadata = {"position": position, "optimizer_steps": optimizer.steps, "flags": _lasting(flags)}
    metadata = {name: json.dumps(value) for name, value in metadata.items()}
    metadata["checksum"] = _checksum(tensors, metadata)
    write_safetensors(state_path(folder), tensors, metadata)
    state_path(folder).with_name("unsaved").unlink(missing_ok=True)


def load_state(folder, model, optimizer, extra, flags, steps):
    """Takes over `last/state.safetensors`, if there is one, into the arguments (see `save_state`).

    Args: steps, how many the whole run has. Returns the position, or None for a run that must start. Raises UserError
    for a state that is damaged or belongs to another run, before anything is taken over.
    """
    path, remedy = state_path(folder), "copy the run again, or choose another --out"
    if not path.exists():
        return None
    tensors, metadata = open_safetensors(path, remedy)
    own, random = _tensors(model, optimizer, extra), _random_states()
    if _shapes(tensors, without=random) != _shapes(own):
        raise UserError(f"{path} belongs to another model than these flags describe; choose {ANOTHER}")
    try:
        position, groups, saved = (json.loads(metadata.get(k, "{}")) for k in ("position", "optimizer_steps", "flags"))
        step, best = position["step"], position.get("best") or 0.0
        checks = (
            metadata.get("checksum") in (None, _checksum(tensors, metadata)),  # older states have none
            type(step) is int and 0 <= step <= steps,
            isinstance(saved, dict) and isinstance(position.get("data"), dict | str),
            isinstance(best, int | float) and best < float("inf"),  # not NaN; -inf before the first epoch's end
            groups.keys() == optimizer.steps.keys(),
            all(type(n) is int and 0 <= n <= step for n in groups.values()),
            all(tensors[k].shape == t.shape and tensors[k].dtype == t.dtype for k, t in random.items() if k in tensors),
            "random.cpu" in tensors,
        )
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        checks = (False,)
    if not all(checks):
        raise UserError(f"{path} is damaged; {remedy}")
    saved = _lasting(saved)  # older states hold others, too
    for name, value in _lasting(flags).items():
        if saved.get(name, value) != value:
            said = f"--{name} {saved[name]!s:.60}, not {value!s:.60}"
            raise UserError(f"{path} was written with {said}; choose {ANOTHER}")
    with torch.no_grad():
        for name, tensor in own.items():  # in place: the optimizer's flat tensors are what these are views of
            if name in tensors:
                tensor.copy_(tensors[name])
    optimizer.resume(groups)
    torch.set_rng_state(tensors["random.cpu"].clone())
    if "random.cuda" in tensors and torch.cuda.is_available():
        torch.cuda.set_rng_state(tensors["random.cuda"].clone())
    return position


def data_of(folder):
    """What a run read, as its last state knows it: texts by name (`fingerprints.py`), {} where nothing says so.

    Raises UserError for a damaged state.
    """
    if not state_path(folder).exists():
        return {}
    _, metadata = open_safetensors(state_path(folder), "copy the run again, or delete this file")
    try:
        found = json.loads(metadata.get("position", "{}"))["data"]
    except (ValueError, TypeError, KeyError, RecursionError):
        found = None
    return found if isinstance(found, dict) else {}


def _tensors(model, optimizer, extra):
    """All that trains, by its name in the state: the tensors themselves, not copies."""
    return {f"model.{name}": t for name, t in model.state_dict().items()} | optimizer.state_dict()[0] | extra


def _random_states():
    """The random states of this process, by name."""
    on_gpu = {"random.cuda": torch.cuda.get_rng_state()} if torch.cuda.is_available() else {}
    return {"random.cpu": torch.get_rng_state()} | on_gpu


def _shapes(tensors, without=()):
    return {name: (t.dtype, t.shape) for name, t in tensors.items() if name not in {*without, *ON_SOME_DEVICES}}


def _checksum(tensors, metadata):
    """A text that changes with any bit of the tensors, with any of their names, shapes and types, and with metadata."""
    digest = hashlib.sha256(json.dumps([metadata[k] for k in sorted(metadata) if k != "checksum"]).encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(repr((name, tensor.dtype, tuple(tensor.shape))).encode())
        digest.update(tensor.contiguous().view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


# ----- best/


def best_folder(run, name="best"):
    """The folder of a run's best model, for readers: they never change the run, which may still be training.

    Raises UserError where it is a link to nothing.
    """
    best = Path(run) / name
    old = beside(target_of(best), "old")
    return old if old.exists() and not best.exists() else best


def check_named_once(runs, remedy=""):
    """Raises UserError where a list of runs names a folder twice. Args: remedy, more of it, for the message."""
    folders = [os.path.realpath(run) for run in runs]
    for run, folder in zip(runs, folders, strict=True):
        if folders.count(folder) > 1:
            raise UserError(f"{run} is named twice; name it once{remedy}")
