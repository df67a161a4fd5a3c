"""Files of weights that somebody else wrote: which a folder has, and whether they hold what they should."""

import re
from pathlib import Path
from pickle import UnpicklingError

import torch

from support.aliens import alien
from support.console import UserError
from support.files import open_regular, read_json
from support.safetensors import read_safetensors

NAMES = ("model.safetensors", "pytorch_model.bin")  # in the order of preference
FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def find(folder):
    """The files of a folder's weights, a list of paths: one, or the parts that an index (`NAME.index.json`) lists.

    Raises UserError where there are none, and for what other tools leave in their place.
    """
    folder = Path(folder)
    for name in NAMES:
        index = folder / f"{name}.index.json"
        if (folder / name).exists() or index.exists():
            names = [name] if (folder / name).exists() else parts(index)
            for path in (paths := [folder / part for part in names]):
                _check_start(path)
            return paths
    raise UserError(f"{folder} has neither {' nor '.join(NAMES)}; name the folder of a model")


def parts(index):
    """The names of the files that an index lists, in order. Raises UserError unless all belong in its own folder."""
    names = set(map(str, read_json(index, {"weight_map": dict})["weight_map"].values()))
    kind = re.escape(index.name.removesuffix(".index.json").rpartition(".")[2])  # safetensors or bin
    if not names or not all(re.fullmatch(rf"\w[\w.-]*\.{kind}", name) for name in names):
        raise UserError(f"{index} does not list files of its own folder; fetch the model again")
    return sorted(names)


def _check_start(path):
    if not path.exists():
        raise UserError(f"{path} is missing, a part of the weights; fetch the model again")
    with open_regular(path) as file:
        if what := alien(file.read(100)):
            raise UserError(f"{path} is {what}, not the weights; fetch the model again")


def read_pickled(path):
    """The tensors of a `pytorch_model.bin`, by name, without running code that it brings. Raises UserError."""
    try:
        with open_regular(path) as file:
            tensors = torch.load(file, map_location="cpu", weights_only=True)
        items = tensors.items() if isinstance(tensors, dict) else [(None, None)]
        if all(isinstance(name, str) and isinstance(tensor, torch.Tensor) for name, tensor in items):
            return tensors
        reason = "it is not a dict of tensors"
    except UserError:
        raise
    except Exception as error:  # torch.load raises whatever its parser met; for some it advises to trust the file
        reason = "it is damaged, or holds more than tensors"
        reason += f": {type(error).__name__}" * (not isinstance(error, UnpicklingError))
    raise UserError(f"{path} is not a checkpoint that can be read safely ({reason}); fetch it again") from None


def checked(tensor, name, source):
    """The tensor as float32. Raises UserError for whole numbers, NaN, infinity or no values where finite floats belong.

    Args: name and source, of the tensor and of its file, for messages.
    """
    if tensor.dtype not in FLOATS or tensor.layout != torch.strided or tensor.is_meta:
        kind = "without values" if tensor.is_meta else str(tensor.dtype).removeprefix("torch.")
        raise UserError(f"{source}: {name} is {kind}, where plain floats belong; fetch the model again")
    tensor = tensor.float()
    if not tensor.isfinite().all():
        raise UserError(f"{source}: {name} holds NaN or infinity; fetch the model again, or train it again")
    return tensor


def read_checked(path):
    """The tensors of a safetensors file, by name, each `checked`."""
    return {name: checked(tensor, name, path) for name, tensor in read_safetensors(path).items()}
