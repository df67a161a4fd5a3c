"""Places that flags name: what cannot be one, or cannot be written, is one sentence before the work."""

import importlib.util
import os
from pathlib import Path

import pytest
from tiny import ROOT

import ensemble
import multitask
import reproduce
import simcse
import visualize
from bench import padding
from sampling import SAMPLINGS
from smart import PRESETS
from support import flags, places
from support.console import UserError
from support.rows import parse_reproduce
from tasks import SPLITS, TASKS, data_path

TABLES = TASKS, SPLITS, SAMPLINGS, PRESETS
spec = importlib.util.spec_from_file_location("more", ROOT / "data" / "more.py")
more = importlib.util.module_from_spec(spec)
spec.loader.exec_module(more)


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


FOLDERS = {
    "multitask": (multitask.main, [], "--out"),
    "simcse": (simcse.main, [], "--out"),
    "reproduce": (reproduce.main, ["--table", "2", "--report"], "--results"),
    "ensemble": (ensemble.main, ["no-run"], "--out"),
    "more": (more.main, [], "--out"),
}


@pytest.mark.parametrize("program", FOLDERS)
def test_a_folder_that_cannot_be_written_is_refused_before_the_work(tmp_path, refused, program):
    main, argv, flag = FOLDERS[program]
    (tmp_path / "file").write_text("mine")
    (tmp_path / "link").symlink_to("nothing")
    for name, says in {"file": "is not a folder", "file/x/y": "lies below"}.items():
        refused(main, [*argv, flag, tmp_path / name], f"error: {flag} {tmp_path / name} {says}")
    for name in ("link", "link/x/y"):
        said = f"error: {tmp_path}/link is a link to {tmp_path}/nothing, which is not there; mount its disk, or make"
        refused(main, [*argv, flag, tmp_path / name], said)
    assert sorted(os.listdir(tmp_path)) == ["file", "link"]
    assert (tmp_path / "file").read_text() == "mine"


def test_a_folder_that_a_program_makes_in_another_is_tried_too(tmp_path, refused):
    (tmp_path / "predictions").write_text("")
    (tmp_path / "runs-sample").mkdir()
    (tmp_path / "runs-sample" / "data").write_text("")
    refused(ensemble.main, ["no-run", "--out", tmp_path], f"--out {tmp_path}: {tmp_path}/predictions is not a folder")
    refused(reproduce.main, ["--table", "2", "--results", tmp_path], f"{tmp_path}/runs-sample/data is not a folder")
    said = f"--out {tmp_path}: its predictions/sst-dev-output.csv lies below"
    refused(multitask.main, ["--out", tmp_path], said)


def test_a_figure_that_cannot_be_written_is_refused_before_the_work(tmp_path, refused):
    (tmp_path / "a.png").mkdir()
    (tmp_path / "file").write_text("")
    faults = {"a.png": "is not a file", "file/a.png": "lies below", f"{'x' * 240}.png": "too long a name"}
    for name, says in faults.items():
        refused(visualize.main, ["curves", "no-run", "--out", tmp_path / name], f"--out {tmp_path}/{name:.20}", says)


@pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="no folder here that nobody can write")
def test_a_folder_in_which_nothing_can_be_made_is_refused():
    for place in ("/proc", "/proc/x/y"):
        with pytest.raises(UserError, match=f"^--out {place} cannot be written .*; name another folder$"):
            places.check_folder("--out", place)


# ----- prediction files of a run


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["--sst_dev_out", "/"], "--sst_dev_out / is not a file"),
        (["--sst_dev_out", ".."], "is not a file"),
        (["--sst_dev_out", "x" * 250], "too long a name"),
        (["--sst_dev_out", "file/predictions.csv"], "lies below"),
        (["--sst_dev_out", "file"], "no earlier output"),
        (["--sst_dev_out", "/dev/null"], "is not a file"),
        (["--sst_dev_out", "config.json"], "the run's own config.json"),
        (["--sts_test_out", ".metrics.jsonl.replacing.part"], "something half written"),
        (["--sts_test_out", ".best.replacing.old/x"], "something half written"),
        (["--sts_test_out", ".metrics.jsonl.replacing.17.part"], "something half written"),
        (["--sst_dev_out", "lock"], "the run's own lock"),
        (["--sst_dev_out", "best"], "the run's own best"),
        (["--sst_dev_out", "x/../last/x/p.csv"], "the run's own last"),
        (["--sst_dev_out", "predictions"], "--sst_test_out --sst_dev_out"),
        (["--sst_dev_out", "p.csv", "--para_dev_out", "x/../p.csv"], "--para_dev_out x/../p.csv --sst_dev_out p.csv"),
        (["--sst_dev_out", "p.csv", "--para_dev_out", "p.csv/q.csv"], "--para_dev_out --sst_dev_out"),
        (["--data", ".", "--sst_test_out", "{cwd}/sts-test-student.csv"], "the task file sts-test-student.csv"),
        (["--para_test", "new.csv", "--sst_test_out", "{cwd}/new.csv"], "the task file new.csv"),
    ],
)
def test_a_prediction_file_takes_the_place_of_nothing_else(tmp_path, monkeypatch, refused, argv, words):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "file").write_text("mine")
    argv = [text.format(cwd=tmp_path) for text in argv]
    refused(multitask.main, ["--out", "run", *argv], *words.format(cwd=tmp_path).split(" --"))
    assert os.listdir(tmp_path) == ["run"]
    assert os.listdir(tmp_path / "run") == ["file"]


def test_a_new_run_whose_folder_would_be_a_prediction_file_is_refused(tmp_path, refused):
    refused(multitask.main, ["--out", tmp_path / "new", "--sst_dev_out", "."], "--sst_dev_out . is in the way of")


def test_a_data_file_named_as_a_prediction_file_is_left_alone(tmp_path, task_files, refused):
    path = data_path(task_files, TASKS["sst"], "dev")
    before = path.read_bytes()
    argv = ["--out", tmp_path, "--sst_dev_out", path]
    refused(multitask.main, argv, f"--sst_dev_out: {path} is there, and no earlier output; move it away")
    assert path.read_bytes() == before


PREDICTIONS = "id \t Predicted_Sentiment \nx , 3 \n"


def test_earlier_predictions_are_written_over_but_not_those_of_another_run(tmp_path, refused):
    path = tmp_path / "other" / "predictions" / "sst-dev-output.csv"
    path.parent.mkdir(parents=True)
    path.write_text(PREDICTIONS)
    argv = ["--out", str(tmp_path / "run"), "--sst_dev_out", str(path)]
    assert flags.parse_multitask(argv, *TABLES).sst_dev_out == str(path)
    for name in ("config.json", "metrics.jsonl"):
        (tmp_path / "other" / name).write_text("")
    refused(multitask.main, argv, f"belongs to the run {tmp_path / 'other'}; name another place with --sst_dev_out")
    assert path.read_text() == PREDICTIONS


def test_files_in_the_places_of_predictions_tables_and_figures_are_left_alone(tmp_path, refused):
    (tmp_path / "predictions").mkdir()
    (tmp_path / "predictions-sample" / "single").mkdir(parents=True)
    names = ["predictions/sts-dev-output.csv", "table1-sample.json", "table2-sample.md", "a.png", "b.txt"]
    for name in [*names, "predictions-sample/single/para-test-output.csv"]:
        (tmp_path / name).write_text("mine")
    ours = (ROOT / "results" / "curves.png").read_bytes()
    (tmp_path / "plot.png").write_bytes(ours.replace(b"multitask-bert", b"Matplotlib version3.11.2"))
    report = [reproduce.main, ["--results", tmp_path, "--report", "--table"]]
    refused(ensemble.main, ["no-run", "--out", tmp_path], "predictions/sts-dev-output.csv is there")
    refused(report[0], [*report[1], "1"], "table1-sample.json is there")
    refused(report[0], [*report[1], "2"], "table2-sample.md is there")
    refused(report[0], [*report[1][:2], "--table", "3"], "single/para-test-output.csv is there")
    for name, says in {"a.png": "is there", "plot.png": "is there", "b.txt": "is not the name of a PNG"}.items():
        pytest.importorskip("matplotlib")
        refused(visualize.main, ["curves", "no-run", "--out", tmp_path / name], says)
        refused(padding.main, ["--out", tmp_path / name], says)
    for path in (ROOT / "results").rglob("*.png"):
        places.check_figure("--out", str(path))


@pytest.mark.parametrize("inside", ["best", "best/x", "encoder/x/y", "last/x", "outputs"])
def test_no_place_lies_in_a_folder_that_a_run_replaces(tmp_path, refused, inside):
    for name in ("config.json", "metrics.jsonl", "best/multitask.json", "encoder/x/f", "last/f", "outputs/f"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("{}")
    said = f"lies in {tmp_path / inside.split('/')[0]}, which a run replaces as a whole"
    (tmp_path / "link").symlink_to(tmp_path / inside)
    for place in (tmp_path / inside, tmp_path / "link"):
        refused(simcse.main, ["--out", place], said)
        refused(ensemble.main, ["no-run", "--out", place], said)
        refused(multitask.main, ["--out", tmp_path / "new", "--sst_dev_out", place / "p.csv"], said)
        with pytest.raises(UserError, match=said):
            places.check_figure("--out", f"{place}/a.png")
    places.check_folder("--out", tmp_path / "predictions")


@pytest.mark.parametrize(
    "text", [PREDICTIONS, PREDICTIONS.replace(" \n", "\n"), f"\ufeff{PREDICTIONS}", PREDICTIONS.replace("\n", "\r\n")]
)
def test_predictions_of_before_and_an_empty_file_may_be_written_over(tmp_path, text):
    folder = tmp_path / "predictions"
    folder.mkdir()
    (folder / "sst-dev-output.csv").write_text(text, newline="")
    (folder / "sts-dev-output.csv").touch()
    args = flags.parse_multitask(["--out", str(tmp_path)], *TABLES)
    assert args.sst_dev_out == "predictions/sst-dev-output.csv"
