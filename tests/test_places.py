"""Places that flags name: what cannot be one is one sentence."""

from pathlib import Path

import pytest

import visualize
from sampling import SAMPLINGS
from smart import PRESETS
from support import flags
from support.console import UserError
from support.rows import parse_reproduce
from tasks import SPLITS, TASKS

TABLES = TASKS, SPLITS, SAMPLINGS, PRESETS


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "--out: .* names nothing"),
        ("  ", "--out: .* names nothing"),
        ("~nobody-of-this-name/x", "--out: .* no user"),
        ("\ud800", "--out: .* UTF-8"),
        ("x" * 300, "--out: .* too long"),
        ("é" * 200, "--out: .* too long"),
        ("x/" * 2000, "--out: .* too long"),
        ("\0", "NUL"),
    ],
)
def test_a_text_that_names_no_place_is_refused(text, says):
    with pytest.raises(UserError, match=says) as refused:
        flags.multitask_parser(*TABLES).parse_args([f"--out={text}"])
    assert len(str(refused.value)) <= 300


def test_a_tilde_is_the_home_folder_in_every_flag_that_names_a_place(monkeypatch):
    monkeypatch.setenv("HOME", "/home/somebody")
    parsers = [flags.multitask_parser(*TABLES), flags.simcse_parser()]
    parsers += next(a.choices for a in visualize.arguments()._actions if a.dest == "figure").values()
    actions = [action for parser in parsers for action in parser._actions]
    named = [action for action in actions if action.metavar in ("DIR", "FILE", "RUN") or action.dest == "out"]
    assert len(named) > 30
    assert {action.dest for action in named if not action.type or action.type("~/x") != "/home/somebody/x"} == set()
    assert parsers[0].parse_args(["--teacher", "~/a", "./~"]).teacher == ["/home/somebody/a", "./~"]
    assert parse_reproduce(["--table", "1", "--results=~/r"]).runs == Path("/home/somebody/r/runs-sample")
