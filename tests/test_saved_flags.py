"""config.json of a run as an editor may have left it: every program that reads it has one sentence."""

import json

import pytest

from predict import TABLES, flags_of
from support import flags
from support.console import UserError
from support.saved_flags import read_flags


@pytest.fixture
def run(tmp_path):
    """`run(**changes)`: the folder of a run, without a model, whose config.json has these changes."""

    def write(**changes):
        config = vars(flags.parse_multitask(["--out", str(tmp_path / "new")], *TABLES))
        (tmp_path / "config.json").write_text(json.dumps(config | changes))
        return tmp_path

    return write


def test_flags_are_read_back_and_those_of_other_versions_are_kept(run):
    own = {
        "teacher": ["a", "--seed=5", "-b"],
        "fold": "1/2",
        "lr": 1,
        "distill_lambda": 0.5,
        "max_examples": 3,
        "use_pals": True,
    }
    found = flags_of(run(**own, new_flag=[1]))
    assert {name: found[name] for name in own} == own
    assert found["new_flag"] == [1]
    assert found["cuda_graphs"] is False  # as written: the flag takes a word
    folder = run()
    (folder / "config.json").write_text('{"out": "x", "seed": 4}')
    assert flags_of(folder) == {"out": "x", "seed": 4}


@pytest.mark.parametrize(
    "change",
    [
        {"data": "a\0b"},
        {"data": ""},
        {"data": None},
        {"sts_test": 7},
        {"max_examples": 0},
        {"max_examples": -3},
        {"max_examples": True},
        {"seed": [1]},
        {"seed": "11711"},
        {"epochs": None},
        {"bert": {"a": 1}},
        {"bert": "/a\0b/c"},
        {"kernels": 7},
        {"kernels": ["auto"]},
        {"device": 5},
        {"fold": "9/3"},
        {"teacher": "x"},
        {"teacher": ["a", 5]},
        {"teacher": []},
        {"use_smart": "yes"},
        {"bf16": 1},
        {"clip": False},
    ],
)
def test_a_value_that_no_command_line_gives_is_one_sentence(run, change):
    with pytest.raises(UserError, match=rf"config.json is damaged .*--{next(iter(change))}.*copy the run again"):
        flags_of(run(**change))
    with pytest.raises(UserError, match=rf"config.json is damaged .*--{next(iter(change))}.*choose another --out"):
        flags.parse_multitask(["--resume", "--out", str(run(**change))], *TABLES)


def test_half_of_a_surrogate_pair_is_one_sentence(run):
    with pytest.raises(UserError, match="surrogates not allowed"):
        flags_of(run(bert="/a/\ud800"))


def test_the_flags_of_a_stage_are_those_of_simcse(tmp_path):
    (tmp_path / "config.json").write_text('{"out": "x", "tau": "warm"}')
    with pytest.raises(UserError, match="argument --tau: 'warm' is not a number"):
        read_flags(tmp_path, flags.simcse_parser())
