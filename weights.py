"""Pretrained weights: the names that everyone else uses for them, and the files that they come in.

`transformers` keeps query, key and value as three matrices (H, H) where `bert.py` has one (3H, H), and has longer
names; here is the translation, both ways. `model.safetensors` is a file of named tensors without code
(`support/safetensors.py` has the format, byte by byte). The older `pytorch_model.bin` is a pickle, read only with
`weights_only=True`, which runs no code that it brings.
"""

import sys

import torch

from support import weight_files
from support.checks import ANOTHER_MODEL
from support.console import UserError
from support.safetensors import read_safetensors

_OUTER = {
    "word": "embeddings.word_embeddings",
    "position": "embeddings.position_embeddings",
    "segment": "embeddings.token_type_embeddings",
    "embedding_norm": "embeddings.LayerNorm",
    "pooler": "pooler.dense",
}
_INNER = {
    "attention_output": "attention.output.dense",
    "attention_norm": "attention.output.LayerNorm",
    "up": "intermediate.dense",
    "down": "output.dense",
    "output_norm": "output.LayerNorm",
}


def _huggingface_names(name):
    """Our name of a parameter -> the usual one, or the usual three where query, key and value are fused."""
    module, _, kind = name.rpartition(".")
    if module in _OUTER:
        return [f"{_OUTER[module]}.{kind}"]
    _, i, inner = module.split(".")
    if inner == "qkv":
        return [f"encoder.layer.{i}.attention.self.{part}.{kind}" for part in ("query", "key", "value")]
    return [f"encoder.layer.{i}.{_INNER[inner]}.{kind}"]


def to_huggingface_names(state):
    """The state dict of a `Bert` -> its tensors as `transformers` names them."""
    tensors = {}
    for name, tensor in state.items():
        names = _huggingface_names(name)
        tensors.update(zip(names, tensor.chunk(len(names)), strict=True))
    return tensors


def from_huggingface_names(tensors, shapes, std, source):
    """A state dict for `Bert` from the usual names, with `bert.` before them or not, gamma/beta or weight/bias.

    Args: shapes, of our parameters by name; std, of a pooler that starts at random because the tensors have none;
    source, the folder, for messages. Tensors that the encoder does not have (a language-model head, say) are left
    alone. Raises UserError where a tensor of ours (but the pooler's) is missing, comes twice, has another shape, or
    holds anything but finite floats.
    """
    found = {}
    for name, tensor in tensors.items():
        name = name.removeprefix("bert.").replace("LayerNorm.gamma", "LayerNorm.weight")
        name = name.replace("LayerNorm.beta", "LayerNorm.bias")
        if name in found:
            raise UserError(f"{source} has two weights {name}; fetch the model again")
        found[name] = tensor
    wanted = {part for name in shapes for part in _huggingface_names(name)}
    if more := [name for name in found if name.startswith("encoder.layer.") and name not in wanted]:
        print(f"{source}: its config.json has no place for {len(more)} weights ({more[0]}, ...)", file=sys.stderr)
    state = {}
    for name, shape in shapes.items():
        names = _huggingface_names(name)
        missing = [n for n in names if n not in found]
        if missing and name.startswith("pooler"):  # many encoders are published without one: start it afresh
            print(f"{source} has no {names[0]}: it starts at random", file=sys.stderr)
            state[name] = torch.randn(shape) * std if len(shape) == 2 else torch.zeros(shape)
            continue
        if missing:
            fault = f"has no weight {missing[0]} of floats, so it is not what its config.json describes"
            raise UserError(f"{source} {fault}; {ANOTHER_MODEL}")
        part = (shape[0] // len(names), *shape[1:])
        for n in names:
            if found[n].shape != part:
                fault = f"{n} is {tuple(found[n].shape)}, where config.json asks for {part}"
                raise UserError(f"{source}: {fault}; fetch the model again")
        state[name] = torch.cat([weight_files.checked(found[n], n, source) for n in names])
    return state


def read_model(folder):
    """The tensors of a model folder, by the names in its file: `model.safetensors`, or else `pytorch_model.bin`.

    Large models come in parts. Raises UserError where the folder has neither, or one that cannot be read.
    """
    tensors = {}
    for path in weight_files.find(folder):
        tensors |= read_safetensors(path) if path.suffix == ".safetensors" else weight_files.read_pickled(path)
    return tensors
