"""Numbers that flags give: what no run can have is one sentence that names the flag."""

import json
from argparse import Namespace

import pytest
import torch

import kernels
import reproduce
import simcse
from bench import shares, speed
from sampling import SAMPLINGS
from smart import PRESETS
from support import flags
from support.checks import check_memory
from support.console import UserError, command
from tasks import SPLITS, TASKS

TABLES = TASKS, SPLITS, SAMPLINGS, PRESETS


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["--lr", "1e30"], "--lr 1e+30 too large"),
        (["--lr", "0"], "--lr greater than 0"),
        (["--lr", "nan"], "--lr greater than 0"),
        (["--lr=-inf"], "--lr greater than 0"),
        (["--lr", "1e400"], "--lr too large"),
        (["--lr", "x" * 5000], "--lr not a number"),
        (["--T_x", str(2**63)], "--T_x too large"),
        (["--T_x", "100000"], "--T_x too large"),
        (["--classifier_size", "1000000000"], "--classifier_size too large"),
        (["--classifier_layers", "1000000"], "--classifier_layers too large"),
        (["--pal_size", "9" * 5000], "--pal_size"),
        (["--batch_size", str(10**12)], "--batch_size too large"),
        (["--seed", str(2**63)], "--seed too large"),
        *((["--epochs", text], "--epochs not a whole number") for text in ("1e3", "1.5", "0x1", "1_0", " 1", "１", "")),
        *((["--lr", text], "--lr not a number") for text in ("1,5", "1_0", " 1 ", "1 ", "１", "")),
        (["--epochs", "9" * 5000], "--epochs too large"),
        (["--epochs", "-" + "9" * 5000], "--epochs at least 0"),
        (["--epochs", str(2**62)], "--epochs too large"),
        (["--option", "x" * 5000], "--option"),
    ],
)
def test_a_number_that_no_run_can_have_is_refused_with_its_flag(argv, words):
    with pytest.raises(UserError) as refused:
        flags.multitask_parser(*TABLES).parse_args(argv)
    assert all(word in str(refused.value) for word in words.replace("1e+30 ", "").split())
    assert len(str(refused.value)) <= 300


@pytest.mark.parametrize(
    ("main", "flag"),
    [(simcse.main, "--epochs")] + [(of.main, flag) for of in (speed, shares) for flag in ("--threads", "--batch_size")],
)
def test_other_programs_have_the_same_limits(refused, main, flag):
    refused(main, [flag, 2**40], flag, "too large")


def test_a_strength_of_smart_may_be_named_where_it_is_the_usual_one(tmp_path):
    first, again = ["--use_smart", "--out", str(tmp_path)], ["--resume", "--out", str(tmp_path), "--smart"]
    for own, other in (([], "strong"), (["--smart", "weak"], "strong"), (["--smart", "strong"], "weak")):
        (tmp_path / "config.json").unlink(missing_ok=True)
        started = vars(flags.parse_multitask(first + own, *TABLES))
        (tmp_path / "config.json").write_text(json.dumps(started))
        resumed = vars(flags.parse_multitask([*again, (own or ["weak"])[-1]], *TABLES))
        assert [resumed[name] for name in ("mu", "epsilon")] == [started[name] for name in ("mu", "epsilon")]
        with pytest.raises(UserError, match="was started with --smart"):
            flags.parse_multitask([*again, other], *TABLES)


@pytest.mark.parametrize(("epsilon", "sigma"), [(1e-3, 1e-3), (1, 9e-4), (9e-4, 1)])
def test_bfloat16_is_refused_where_it_rounds_the_perturbation_away(epsilon, sigma):
    noise = f"--use_smart --T_x 0 --sigma {sigma} --bf16".split()
    if sigma < 1e-3:
        with pytest.raises(UserError, match="give --sigma 0"):
            flags.parse_multitask(noise, *TABLES)
    else:
        assert flags.parse_multitask(noise, *TABLES).bf16
    argv = f"--use_smart --smart_projection ball --epsilon {epsilon} --sigma {sigma} --bf16".split()
    if (epsilon, sigma) == (1e-3, 1e-3):
        assert flags.parse_multitask(argv, *TABLES).bf16
        return
    with pytest.raises(UserError, match="both --epsilon and --sigma"):
        flags.parse_multitask(argv, *TABLES)


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        ("--sigma 0", "--sigma 0 keeps the smoothness penalty at 0"),
        ("--lambda_s 0 --T_x 2", "--T_x does nothing beside --lambda_s 0"),
        ("--lambda_s 0 --smart_projection ball", "--smart_projection does nothing beside --lambda_s 0"),
        ("--mu 0 --S 10", "--S does nothing beside --mu 0"),
        ("--beta 0", "give --mu 0 instead"),
        ("--T_x 0 --eta 1", "--eta does nothing beside --T_x 0"),
        ("--T_x 0 --smart_projection ball", "--smart_projection does nothing beside --T_x 0"),
    ],
)
def test_flags_of_a_penalty_that_is_always_0_are_refused_for_a_new_run(tmp_path, argv, words):
    out, argv = ["--out", str(tmp_path)], ["--use_smart", *argv.split()]
    with pytest.raises(UserError, match=words):
        flags.parse_multitask([*argv, *out], *TABLES)


def test_a_run_of_older_code_may_have_a_penalty_that_is_always_0(tmp_path):
    out = ["--out", str(tmp_path)]
    started = flags.parse_multitask(["--use_smart", "--lambda_s", "0", "--smart", "strong", *out], *TABLES)
    (tmp_path / "config.json").write_text(json.dumps(vars(started) | {"sigma": 0.0}))
    assert flags.parse_multitask(["--resume", *out], *TABLES).sigma == 0


def test_seeds_of_a_table_are_whole_numbers_each_named_once(refused, monkeypatch):
    monkeypatch.setattr(reproduce.jobs, "run", lambda *_: 1 / 0)  # nothing starts
    refused(reproduce.main, ["--table", "1", "--seeds", "1.5"], "--seeds: '1.5' is not a whole number")
    refused(reproduce.main, ["--table", "1", "--seeds", "2", "1", "--seeds=2"], "--seeds names 2 twice")


def test_what_a_command_computes_with_lasts_to_its_end(monkeypatch):
    """In a notebook `ensemble.main` may follow `multitask.main(["--bf16"])`."""
    form, rounds = lambda: kernels.backend_of(torch.zeros(1)), []
    monkeypatch.setattr(flags, "bfloat16_products", lambda: True)
    monkeypatch.setattr(flags, "use_bfloat16_products", lambda on=True: rounds.append(on))
    monkeypatch.setattr(flags.libraries, "choose", lambda path: None)

    @command
    def main(argv=None):
        flags.choose_kernels(Namespace(kernels=argv[0], bf16=argv[0] == "auto"), torch.device("cpu"))
        assert (form() is kernels.plain) == (argv[0] == "plain")
        assert rounds == [True] * (argv[0] == "auto")
        raise UserError("another mistake")

    before = form()
    for choice in ("plain", "auto"):
        with pytest.raises(SystemExit):
            main([choice])
        assert form() is before
    assert rounds == [True, False]


def test_sizes_are_compared_with_the_memory_of_this_machine():
    check_memory(10**6, 12, "a file")
    for count, layers in ((10**12, 1), (10**400, 1), (1, 10**6)):
        with pytest.raises(UserError, match=r"^a file asks for .*; make it smaller$"):
            check_memory(count, layers, "a file", "make it smaller")


@pytest.mark.parametrize("flag", ["--flags", "--simcse_flags"])
def test_flags_of_runs_with_an_open_quote_are_one_sentence(tmp_path, refused, monkeypatch, flag):
    monkeypatch.setattr(reproduce.jobs, "run", lambda *_: 1 / 0)  # nothing starts
    refused(reproduce.main, ["--table", "2", "--preset", "sample", "--out", tmp_path, flag, "'"], "quot")
