"""A model's numbers, checked before anything is allocated for them."""

import os
from pathlib import Path

from support.console import UserError
from support.files import read_json, shown

OPTIONS = {  # of a `MultitaskBert`
    "pair_encoding": str,
    "use_means": bool,
    "classifier_layers": int,
    "classifier_size": int,
    "pal_size": int,
    "pal_heads": int,
}

# of config.json: what else it may say would be another encoder
USUAL = {
    "model_type": ["bert"],
    "hidden_act": ["gelu", "gelu_python"],  # two names of one function
    "position_embedding_type": ["absolute"],
    "is_decoder": [False],
}

ANOTHER_MODEL = "name another model, such as all-MiniLM-L6-v2 or bert-base-uncased"
MOST_LAYERS = 1000  # each costs Python objects, however few numbers it has


def read_bert_config(folder, wanted):
    """The values of `config.json` in a model folder, by name. Args: wanted, {name: (type, default)}.

    Raises UserError where the file is missing or damaged, or describes no BERT encoder, or one that no machine holds.
    """
    path = Path(folder) / "config.json"
    if not path.exists():
        raise UserError(f"{folder} has no config.json; name the folder of a BERT model")
    found = read_json(path, optional={name: kind for name, (kind, _) in wanted.items()})
    for key, usual in USUAL.items():
        if found.get(key) not in (None, *usual):
            said = f"{path} says {key} = {shown(found[key])}, and only {usual[0]!r} is supported"
            raise UserError(f"{said}; {ANOTHER_MODEL}")
    values = {name: found.get(name, default) for name, (_, default) in wanted.items()}
    for name, (kind, _) in wanted.items():
        too_small, too_large = values[name] < (1 if kind is int else 0), kind is float and values[name] >= 1
        if too_small or too_large:  # the floats are probabilities and other small numbers
            raise UserError(f"{path}: {name} cannot be {shown(values[name])}; fetch the model again")
    if values["hidden_size"] % values["num_attention_heads"]:
        said = f"hidden_size {shown(values['hidden_size'])} is no multiple of num_attention_heads"
        raise UserError(f"{path}: {said}; fetch the model again")
    check_memory(parameters_of(values), values["num_hidden_layers"], path)
    return values


def parameters_of(config):
    """How many numbers the weights of an encoder are. Args: config, a dict with the names of `config.json`."""
    H, F, layers = (config[name] for name in ("hidden_size", "intermediate_size", "num_hidden_layers"))
    tables = (config["vocab_size"] + config["max_position_embeddings"] + config["type_vocab_size"]) * H
    return tables + layers * (4 * H * H + 2 * H * F + 9 * H + F) + H * H + 3 * H


def check_memory(count, layers, source, remedy="fetch the model again"):
    """Raises UserError for a model that no machine like this can hold.

    Args: count, how many float32 numbers it has; layers, how many layers; source, what says so, a file or flags, for
    the message.
    """
    if layers > MOST_LAYERS:
        raise UserError(f"{source} asks for {shown(layers)} layers, and {MOST_LAYERS} are the limit; {remedy}")
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if 4 * count > memory:
        asked = f"{4 * count / 1e9:,.0f} GB" if count < 10**18 else "far more memory"
        raise UserError(f"{source} asks for {asked}, and this machine has {memory / 1e9:,.0f} GB; {remedy}")


def check_heads(tasks, config, layers, size, pal_size):
    """Raises UserError where heads and PALs are more than this machine can hold.

    Args: tasks, how many; config, the encoder's `BertConfig`; layers and size, of a head; pal_size, 0 for none.
    """
    H, L = config.hidden_size, config.num_hidden_layers
    count = tasks * (2 * H * size + layers * size**2 + (2 * H + 3 * L * pal_size) * pal_size)
    flags = "--classifier_size, --classifier_layers or --pal_size"
    check_memory(4 * count, layers, flags, "give less")  # with gradient, m and v


def read_options(path):
    """The options in a model's `multitask.json`, a dict. Raises UserError for what `MultitaskBert` never wrote."""
    remedy = "train the model again"
    options = read_json(path, optional=OPTIONS, remedy=remedy)
    for key, value in options.items():
        if key not in OPTIONS:
            raise UserError(f"{path} has {key!r:.40}, unknown to this version; update this project, or {remedy}")
        if key == "pair_encoding":
            right = value in ("joint", "siamese")
        else:
            right = value >= (key not in ("use_means", "classifier_layers"))
        if not right:
            raise UserError(f"{path}: {key:.40} cannot be {shown(value)}; {remedy}")
    return options
