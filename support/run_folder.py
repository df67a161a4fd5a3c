"""A run is a folder, and survives being killed at any instant.

    config.json              the flags it was started with
    metrics.jsonl            one JSON object a line: the losses and the dev metrics of each epoch
    last/state.safetensors   all that is needed to go on: weights, optimizer, random state, position, in ONE file, so
                             that it is always consistent with itself
    best/                    the model with the best dev score, which `transformers` opens; the heads stand beside
    predictions/             what the best model predicts for dev and test

Files are written aside and renamed. On the CPU a run that was killed and resumed ends with the same weights, bit for
bit, as one that was not: its steps depend on the seed only, and its random state is restored.
"""

import contextlib
import json
import signal
import time
from pathlib import Path

import torch

from support.console import UserError
from support.files import read_json, replacing
from support.safetensors import open_safetensors, write_safetensors

OWN_FLAGS = ("out", "resume", "eval_only", "skip_test", "cuda_graphs")  # of one command, never taken over from the run
FREE_FLAGS = (*OWN_FLAGS, "device", "save_every")  # may change: they say where and how it runs, not what it computes


def parse_flags(parser, argv):
    """The flags of a run: from `argv`, and with --resume from the run's own `config.json`.

    So `--resume --out DIR` alone goes on with the flags of before. Raises UserError where a flag given now contradicts
    the run, and where a run would be overwritten.
    """
    args = parser.parse_args(argv)
    config = Path(args.out) / "config.json"
    if not config.exists():
        if args.eval_only:
            raise UserError(f"{args.out} holds no run; train one first, or name another folder with --out")
        if (Path(args.out) / "last").exists():
            raise UserError(f"{args.out} holds a run without its config.json; choose another --out")
        return args
    if not (args.resume or args.eval_only):
        raise UserError(f"{args.out} already holds a run; add --resume to go on with it, or choose another --out")
    saved = read_json(config)
    unknown = [name for name in saved if name not in vars(args)]
    if unknown or "out" not in saved:
        raise UserError(f"{config} is not a run of {parser.prog}; choose another --out")
    parser.set_defaults(**{name: value for name, value in saved.items() if name not in OWN_FLAGS})
    args = parser.parse_args(argv)
    for name, value in saved.items():
        if name not in FREE_FLAGS and getattr(args, name) != value:
            raise UserError(
                f"{args.out} was started with --{name} {value}, not {getattr(args, name)}; "
                f"leave the flag out to resume, or choose another --out"
            )
    return args


# ----- metrics.jsonl


def append_metrics(folder, **values):
    """Adds a line to `metrics.jsonl`. Each line has a `step`."""
    with open(Path(folder) / "metrics.jsonl", "a", encoding="utf-8") as file:
        file.write(json.dumps(values) + "\n")


def read_metrics(folder):
    """The lines of `metrics.jsonl`, a list of dicts; a line that a kill cut short is left out."""
    lines = []
    with contextlib.suppress(FileNotFoundError):
        for line in (Path(folder) / "metrics.jsonl").read_text(encoding="utf-8").splitlines():
            with contextlib.suppress(ValueError):
                lines.append(json.loads(line))
    return lines


def rewind_metrics(folder, step):
    """Drops what was recorded after `step`: the run goes on from there, and will record it again."""
    kept = [line for line in read_metrics(folder) if line["step"] <= step]
    with replacing(Path(folder) / "metrics.jsonl") as file:
        file.write("".join(json.dumps(line) + "\n" for line in kept).encode())


# ----- last/


def save_state(folder, model, optimizer, others=None, **position):
    """Writes `last/state.safetensors`.

    Args: others, more tensors that belong to the state, by name; position, JSON values: the step, the best dev score
    so far, ...
    """
    tensors = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    moments, steps = optimizer.state_dict()
    tensors |= moments | (others or {})
    tensors["random.cpu"] = torch.get_rng_state()
    if torch.cuda.is_available():
        tensors["random.cuda"] = torch.cuda.get_rng_state()
    metadata = {"position": json.dumps(position), "optimizer_steps": json.dumps(steps)}
    write_safetensors(Path(folder) / "last" / "state.safetensors", tensors, metadata)


def load_state(folder, model, optimizer, others=None):
    """Takes over `last/state.safetensors`, if there is one, into the arguments (see `save_state`).

    Returns the position, or None for a run that must start.
    """
    path = Path(folder) / "last" / "state.safetensors"
    if not path.exists():
        return None
    tensors, metadata = open_safetensors(path)
    own = model.state_dict()
    saved = {name.removeprefix("model."): t for name, t in tensors.items() if name.startswith("model.")}
    if saved.keys() != own.keys() or any(saved[name].shape != own[name].shape for name in own):
        raise UserError(f"{path} belongs to another model than these flags describe; choose another --out")
    with torch.no_grad():
        for name, tensor in own.items():  # in place: the optimizer's flat tensors are what these are views of
            tensor.copy_(saved[name])
        for name, tensor in (others or {}).items():
            tensor.copy_(tensors[name])
    optimizer.load_state_dict(tensors, json.loads(metadata["optimizer_steps"]))
    torch.set_rng_state(tensors["random.cpu"].clone())
    if "random.cuda" in tensors and torch.cuda.is_available():
        torch.cuda.set_rng_state(tensors["random.cuda"].clone())
    return json.loads(metadata["position"])


# ----- best/


def best_folder(run, name="best"):
    """The folder of a run's best model, for readers: they never change the run, which may still be training."""
    best = Path(run) / name
    old = best.with_name(f"{name}.old")
    return old if old.exists() and not best.exists() else best


# ----- Ctrl-C


class Interrupt:
    """`with Interrupt() as interrupt`: Ctrl-C (or SIGTERM) sets `interrupt.asked`; a second one stops at once.

    torchrun forwards a signal that the processes have seen already: what comes within two seconds is the same one.
    """

    def __enter__(self):
        self.asked = False
        self.before = {number: signal.signal(number, self._handle) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def _handle(self, number, frame):
        if self.asked and time.monotonic() > self.since + 2:
            raise KeyboardInterrupt
        if not self.asked:
            self.asked, self.since = True, time.monotonic()

    def __exit__(self, *_):
        for number, handler in self.before.items():
            signal.signal(number, handler)
