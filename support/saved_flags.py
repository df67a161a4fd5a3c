"""The flags in a run's `config.json`, which anybody may have edited: each is checked as if it was typed."""

from pathlib import Path

from support.console import UserError
from support.files import read_json, shown

OWN_FLAGS = ("out", "resume", "eval_only", "skip_test", "cuda_graphs")  # of one command, never taken over from the run


def read_flags(run, parser, remedy="copy the run again, or leave it out"):
    """The flags in a run's `config.json`, a dict. Those that the parser does not know stand there unchecked.

    Raises UserError where `as_typed` does.
    """
    path = Path(run) / "config.json"
    saved = read_json(path, remedy=remedy)
    return saved | as_typed(parser, saved, path, remedy)


def as_typed(parser, saved, path, remedy):
    """The flags in a `config.json`, without those of one command and those that the parser does not know.

    Args: saved, a dict of JSON values; path and remedy, for messages. Raises UserError for a value that no command line
    gives.
    """
    known = vars(parser.parse_args([])).keys() - OWN_FLAGS
    saved = {name: value for name, value in saved.items() if name in known}
    try:
        given = []
        for name, value in saved.items():
            if isinstance(value, list) and all(isinstance(part, str) for part in value):
                given += [f"--{name}={part}" for part in value]
            elif value is not None and value is not False:
                given.append(f"--{name}" + f"={value}" * (value is not True))
        typed = vars(parser.parse_args(given))
        for name, value in saved.items():
            if typed[name] != value:
                raise UserError(f"--{name} cannot be {shown(value)}")
    except UserError as error:
        raise UserError(f"{path} is damaged ({str(error).partition(';')[0]:.150}); {remedy}") from None
    return {name: typed[name] for name in saved}
