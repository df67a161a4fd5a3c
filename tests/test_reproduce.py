"""The tables: their rows on a tiny encoder, interrupted and resumed, and what is made from evidence alone."""

import importlib.util
import json
import os
import shutil
import signal
import statistics
import subprocess
from argparse import Namespace
from pathlib import Path

import numpy as np
import pytest
from tiny import ROOT

import ensemble
import multitask
import reproduce
import simcse
from evaluate import METRICS, dev_score, to_predictions
from predict import examples_of, outputs_of
from support import evidence, files, jobs, keep_evidence, metrics_file, rows
from support import flags as flags_of_run
from support.console import UserError
from tasks import TASKS, Task

NAMES = (*TASKS, "score")


@pytest.fixture
def table(tiny_encoder, task_files, tmp_path, monkeypatch):
    """`table("--table", "2", ...)` runs the command on tiny runs, in this process; `.started` lists what it started."""
    data = f"--bert {tiny_encoder} --data {task_files} --batch_size 8"
    wanted = ("pretrain", "plain", "simcse")
    monkeypatch.setattr(reproduce, "METHODS", [row for row in reproduce.METHODS if row.name in wanted])
    monkeypatch.setattr(reproduce, "TUNING", [row for row in reproduce.TUNING if row.name in ("plain", "size-96")])

    class Started:  # in place of subprocess.Popen
        def __init__(self, command):
            script, self.argv = Path(command[1]), command[2:]
            assert script.parent == ROOT
            self.main = {"multitask.py": multitask, "simcse.py": simcse}[script.name].main
            table.started.append(Path(self.argv[self.argv.index("--out") + 1]).name)
            self.interrupted = table.stop_at == len(table.started)

        def wait(self):
            if self.interrupted:  # first the parent hears Ctrl-C, then the run ends
                self.interrupted = False
                raise KeyboardInterrupt
            if table.stop_at == len(table.started):
                return 130
            self.main(self.argv)
            return 0

    def table(*arguments):
        simcse_flags = [] if "--report" in arguments else ["--simcse_flags", f"{data} --normalize_length 1"]
        reproduce.main(
            [*arguments, "--preset", "sample", "--out", str(tmp_path / "runs"), "--results", str(tmp_path / "results"),
             "--flags", f"{data} --epochs 1", *simcse_flags]
        )  # fmt: skip
        name = f"table{arguments[arguments.index('--table') + 1]}-sample"
        return json.loads((tmp_path / "results" / f"{name}.json").read_text())["results"]

    monkeypatch.setattr(jobs.subprocess, "Popen", Started)
    monkeypatch.setattr(jobs, "commit", lambda: "abc1234")
    table.started, table.stop_at, table.evidence = [], None, tmp_path / "results" / "runs-sample"
    return table


def test_a_table_that_was_interrupted_loses_no_row_and_runs_none_twice(table, tmp_path, capsys, task_files):
    table.stop_at = 3
    with pytest.raises(SystemExit) as stopped:
        table("--table", "2", "--seeds", "1", "2")
    assert stopped.value.code == 130
    assert "go on with: python reproduce.py" in capsys.readouterr().out
    assert table.started == ["pretrain-1", "plain-1", "simcse"]
    results = table("--table", "2", "--seeds", "1", "2")
    assert table.started[3:] == ["simcse", "simcse-1", "pretrain-2", "plain-2", "simcse-2"]

    assert [r["title"] for r in results] == ["Pretrain base model (encoder frozen)", "Finetune base model", "+ SimCSE"]
    for r in results:
        assert r["runs"] == [f"{r['row']}-{seed}" for seed in (1, 2)]
        lines = [metrics_file.read(tmp_path / "runs" / name) for name in r["runs"]]
        best = [max((x for x in of if x["kind"] == "dev"), key=lambda x: x["score"]) for of in lines]
        assert {name: r[name] for name in NAMES} == {name: [of[name] for of in best] for name in NAMES}
    text = (tmp_path / "results" / "table2-sample.md").read_text()
    score = results[1]["score"]
    assert f"{statistics.mean(score):.3f} ± {statistics.stdev(score):.3f}" in text
    assert f"{statistics.mean(score) - 0.764:+.3f}" in text
    assert "6 runs, " in text
    assert "1 machine: " in text
    assert "1 commit: abc1234" in text

    record = evidence.record_of(table.evidence / "simcse-1")
    assert (record["row"], record["seed"], record["commit"]) == ("simcse", 1, "abc1234")
    assert record["encoder"]["flags"]["normalize_length"] == 1
    assert files.read_json(table.evidence / "simcse-1" / "config.json")["bert"] == "simcse"
    assert str(tmp_path) not in "".join(path.read_text() for path in table.evidence.glob("*/*.json"))

    shutil.rmtree(tmp_path / "runs")  # on another machine, in a fresh clone
    again = table("--table", "2", "--seeds", "1", "2")
    assert again == table("--table", "2", "--report") == results
    assert len(table.started) == 8
    table("--table", "2", "--rows", "plain", "--seeds", "3")
    assert table.started[8:] == ["plain-3"]


def test_rows_without_evidence_say_so(table, tmp_path):
    table("--table", "1", "--seeds", "1", "--rows", "plain")
    assert table.started == ["plain-1"]
    lines = (tmp_path / "results" / "table1-sample.md").read_text().splitlines()
    (line,) = [line for line in lines if line.startswith("| heads 96 wide")]
    assert [cell.strip() for cell in line.split("|")[2:-1]] == ["size-96", "", "", "", "not run yet", "", "", "0"]


def test_the_other_rows_build_on_the_base(monkeypatch):
    class Args:
        preset, flags, out = "minilm", "--epochs 1", "runs"

    of = {row.name: row for row in (*rows.METHODS, *rows.TUNING)}
    words = lambda name: rows.row_flags(Args, of[name], 5)  # noqa: E731
    monkeypatch.setattr(rows, "BASE_FLAGS", "--use_means")
    assert "--use_means" not in words("plain")
    assert "--use_means" in words("pals")
    assert words("simcse")[-4:] == ["--bert", "runs/simcse/encoder", "--out", "runs/simcse-5"]
    assert words("pretrain").index("pretrain") > words("pretrain").index("finetune")  # the last one counts
    monkeypatch.setattr(rows, "BASE_FLAGS", "")
    assert "--use_means" not in words("pals")
    assert "--use_means" in words("means")
    Args.flags, Args.simcse_flags = "--data d --bert b --use_gpu --bf16", "--epochs 2"
    assert rows.encoder_flags(Args, "simcse-length") == [
        "--data=d", "--bert=b", "--bf16", "--use_gpu", "--normalize_length", "128", "--epochs", "2",
        "--out", "runs/simcse-length",
    ]  # fmt: skip
    Args.flags = "--no-bf16"  # of a processor without bfloat16 products
    assert "--bf16" not in rows.encoder_flags(Args, "simcse")
    assert not flags_of_run.parse_multitask(words("plain"), *reproduce.TABLES).bf16


def write_evidence(root, task_files, seeds=(1, 2, 3, 4, 5, 6, 7), row="plain", **more):
    """Evidence of models that are right by chance, on dev and test files, without any training.

    Args: more, what else its dev metrics say.
    """
    root.parent.mkdir(exist_ok=True)
    run = root.parent / "made-up"
    run.mkdir(exist_ok=True)
    for seed in seeds:
        rng, examples, outputs = np.random.default_rng(seed), {}, {}
        for name, task in TASKS.items():
            for split in ("dev", "test"):
                labels = np.random.default_rng(0).integers(0, task.classes or 6, 40).astype(np.float32)
                examples[f"{name}-{split}"] = [f"{name}{i}" for i in range(40)], labels if split == "dev" else None
                noise = rng.gumbel(size=(40, task.classes)) if task.classes else rng.normal(size=40) * 2
                if task.classes:
                    p = np.exp(noise + 2 * np.eye(task.classes)[labels.astype(int)])
                    outputs[f"{name}-{split}"] = (p / p.sum(1, keepdims=True)).astype(np.float32)
                else:
                    outputs[f"{name}-{split}"] = (labels + noise).astype(np.float32)
        metrics = {
            t: METRICS[task.metric](to_predictions(task, outputs[f"{t}-dev"]), examples[f"{t}-dev"][1])
            for t, task in TASKS.items()
        }
        line = {"kind": "dev", "epoch": 1, "step": 1, **metrics, "score": dev_score(metrics), **more}
        (run / "metrics.jsonl").write_text(json.dumps(line) + "\n")
        argv = ["--out", "none", "--seed", str(seed), "--data", str(task_files)]
        config = vars(flags_of_run.parse_multitask(argv, *reproduce.TABLES))
        paths = {"sst-dev": task_files / "ids-sst-dev.csv"}
        record = {"row": row, "seconds": 60, "commit": "abc", "device": "a machine"}
        keep_evidence.write(root, run, config, record, paths, examples, outputs, {})
    shutil.rmtree(run)


def test_table_3_is_what_ensemble_says_of_the_evidence(tmp_path, task_files):
    root = tmp_path / "results" / "runs-sample"
    write_evidence(root, task_files, row="own")
    write_evidence(root, task_files, (8, 9), row="distilled")
    write_evidence(root, task_files, (10,), row="soup-greedy", soup={"own-1": 1.0})
    write_evidence(root, task_files, (11,), row="mine", soup={"own-1": 1.0})  # one under another name
    report = ["--preset", "sample", "--table", "3", "--report", "--results", str(tmp_path / "results")]
    reproduce.main(report)
    results = {r["title"]: r for r in json.loads((tmp_path / "results" / "table3-sample.json").read_text())["results"]}
    lines = (tmp_path / "results" / "table3-sample.md").read_text().splitlines()
    cells = {line.split("|")[1].strip(): [c.strip() for c in line.split("|")[2:-1]] for line in lines if "|" in line}
    assert cells["uniform soup"] == ["", "", "", "", "not run yet", "", "", "", "", ""]
    assert cells["best 5 models, vote"][0] == "5"
    assert all(cells["greedy soup"][:5]) and not any(cells["greedy soup"][5:])  # its members have seen all of dev
    assert results["greedy soup"]["unseen"] == {name: [] for name in NAMES}
    assert all(cells["distilled student"][:9])
    assert any("best epoch was chosen on all of dev" in line for line in lines[:10])

    folders = evidence.find(root, "distilled") + evidence.find(root, "own")  # no soups: made of the others
    scores = {folder: evidence.best_epoch(folder)["score"] for folder in folders}
    ranked = sorted(folders, key=lambda folder: -scores[folder])
    dev = examples_of(ranked, None, "dev")
    labels = {name: of.labels for name, of in dev.items()}
    found = [outputs_of(folder, dev, "dev", None) for folder in ranked]
    for k, method in ((2, "average"), (5, "vote"), (7, "average")):
        r = results[f"best {k} models, {method}"]
        metrics, _, _ = ensemble.ensemble(labels, found[:k], [1.0] * k, method)
        assert [r[name] for name in NAMES] == [[metrics[name]] for name in TASKS] + [[dev_score(metrics)]]
        assert r["members"] == [{task: {folder.name: 1.0 for folder in ranked[:k]} for task in TASKS}]
    assert results["distilled student"]["members"] == [{t: {f"distilled-{n}": 1.0} for t in TASKS} for n in (8, 9)]
    greedy = results["greedy for each task"]
    assert greedy["score"][0] >= results["best single model"]["score"][0]
    assert greedy["unseen"]["score"][0] != greedy["score"][0]
    single = results["best single model"]
    assert single["unseen"]["score"][0] <= single["score"][0]

    about = "\n".join(lines[:10])
    top = max(evidence.find(root), key=lambda folder: evidence.best_epoch(folder)["score"])
    assert f"predictions-sample/single: {top.name}" in about
    best = max((t for t in results if "models" in t or "greedy" in t), key=lambda t: results[t]["unseen"]["score"])
    assert f"predictions-sample/ensemble: {best}" in about
    for kind, members in (("single", {top.name: 1.0}), ("ensemble", results[best]["members"][0]["sst"])):
        method = "vote" if kind == "ensemble" and best.endswith("vote") else "average"
        ids = {"sst": [f"sst{i}" for i in range(40)]}
        values = [evidence.outputs_of(root / name, "test", ids)["sst"] for name in members]
        decided = ensemble.combine(TASKS["sst"], values, list(members.values()), method).argmax(1)
        path = tmp_path / "results" / "predictions-sample" / kind / "sst-test-output.csv"
        expected = ["id \t Predicted_Sentiment ", *(f"sst{i} , {c} " for i, c in enumerate(decided))]
        assert path.read_text().splitlines() == expected


def test_a_table_has_columns_for_a_fourth_task(tmp_path, task_files, monkeypatch):
    monkeypatch.setitem(TASKS, "nli", Task("nli", "nli-{split}.csv", ("a", "b"), "label", 3, 0, 2, "accuracy", "Label"))
    spec = importlib.util.spec_from_file_location("reproduce_of_four", reproduce.__file__)
    of_four = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(of_four)
    root = tmp_path / "results" / "runs"
    write_evidence(root, task_files, seeds=(1, 2))
    args = rows.parse_reproduce(["--table", "1", "--preset", "minilm", "--results", str(root.parent)])
    of_four.report_rows(args, rows.TUNING[:2])
    args.table = 3
    of_four.report_ensembles(args)
    titles = ["SST", "Paraphrase", "STS", "NLI", "dev score"]
    for number, count in ((1, 5), (3, 10)):
        lines = (root.parent / f"table{number}-minilm.md").read_text().splitlines()
        table = [[cell.strip() for cell in line.split("|")[2:-1]] for line in lines if line.startswith("|")]
        assert table[0][1:6] == titles
        assert sum(bool(cell) for cell in table[2][1 : 1 + count]) == count
        assert ["", "", "", "", "not run yet"] in [row[1:6] for row in table]


def test_evidence_of_two_runs_in_one_folder_is_named(tmp_path, task_files, capsys):
    root = tmp_path / "runs"
    write_evidence(root, task_files, (1, 2))
    first, second = evidence.find(root)
    both = [str(first), str(second), "--out", str(tmp_path / "out")]
    ensemble.main(both)
    assert "metrics.jsonl says" not in capsys.readouterr().err
    shutil.copy(second / "outputs.safetensors", first)
    ensemble.main(both)
    said = [line for line in capsys.readouterr().err.splitlines() if "metrics.jsonl says" in line]
    assert said and all(line.startswith(f"warning: {first} scores 0.") and "fetch it again" in line for line in said)


def test_a_run_started_by_hand_becomes_evidence(flags, tmp_path, refused, capsys, task_files):
    multitask.main([str(flag) for flag in [*flags, "--epochs", "1", "--seed", "4"]])
    keep = ["--preset", "paper", "--keep", tmp_path / "run", "--results", tmp_path / "results"]
    own = ["--commit", "abc", "--device", "a machine", "--seconds", "90", "--data_name", "tiny"]
    refused(reproduce.main, [*keep, *own], "--row")
    refused(reproduce.main, [*keep, *own, "--row", "pals"], "started with --", "its row has")
    reproduce.main([str(word) for word in [*keep, *own, "--row", "mine"]])
    folder = tmp_path / "results" / "runs-paper" / "mine-4"
    assert f"the evidence of {tmp_path / 'run'} is in {folder}" in capsys.readouterr().out
    record = evidence.record_of(folder)
    assert [record[key] for key in ("row", "seed", "commit", "device", "seconds")] == [
        "mine",
        4,
        "abc",
        "a machine",
        90,
    ]
    assert record["data"]["name"] == "tiny"
    dev = examples_of([folder], None, "dev")
    own, kept = (outputs_of(run, dev if run == folder else examples_of([run], None, "dev"), "dev", "cpu")
                 for run in (tmp_path / "run", folder))  # fmt: skip
    for name in TASKS:
        np.testing.assert_allclose(kept[name], own[name], atol=5e-3)
    ensemble.main([str(folder), str(tmp_path / "run"), "--out", str(tmp_path / "both")])  # alike in an ensemble
    ensemble.main([str(folder), "--split", "test", "--out", str(tmp_path / "alone")])
    for name in TASKS:
        path = Path("predictions", f"{name}-test-output.csv")
        assert len((tmp_path / "alone" / path).read_text().splitlines()) == 25
    refused(
        ensemble.main, [folder, tmp_path / "run", "--method", "soup", "--out", tmp_path / "soup"], "without its weights"
    )
    other = shutil.copytree(task_files, tmp_path / "other")
    dev = other / TASKS["sst"].file.format(split="dev")
    dev.write_text(dev.read_text().replace("film", "cat"))  # hardly another score
    own_data = [*keep, "--row", "mine", "--data"]
    refused(reproduce.main, [*own_data, other], f"sst dev is not what {tmp_path}/run was scored on", "with --data")
    reproduce.main([str(word) for word in [*own_data, shutil.copytree(task_files, tmp_path / "alike")]])
    metrics = tmp_path / "run" / "metrics.jsonl"
    metrics.write_text(metrics.read_text().replace('"score": 0.', '"score": 1.'))
    refused(reproduce.main, [*keep, "--row", "mine"], "metrics.jsonl says", "that it was scored on with --data")
    refused(reproduce.main, ["--keep", folder, "--row", "twice"], "evidence already")


def test_mistakes_get_one_sentence(table, refused, tmp_path, monkeypatch):
    refused(reproduce.main, ["--table", "2", "--report", "--results", tmp_path / "none"], "no evidence of a run")
    with monkeypatch.context() as patch:
        patch.chdir(tmp_path)
        table_3 = ["--table", "3", "--preset", "minilm"]
        refused(reproduce.main, table_3, "results/runs has no evidence", f"start this in {ROOT}, the project's folder")
    refused(reproduce.main, [], "--table", "--keep")
    table("--table", "1", "--seeds", "1")
    again = ["--table", "1", "--seeds", "1", "--out", str(tmp_path / "runs"), "--flags", "--epochs 9"]
    refused(reproduce.main, [*again, "--results", tmp_path / "r"], "was started with")
    refused(reproduce.main, ["--table", "1", "--report", "--results", tmp_path / "results"], "was started with")


@pytest.mark.parametrize("preset", rows.PRESETS)
def test_each_row_of_each_table_can_run_with_each_preset(tmp_path, preset, task_files):
    folders = ["--out", str(tmp_path), "--results", str(tmp_path)]
    args = ["--table", "2", "--preset", preset, *folders, "--flags"]
    for more in ("", "--lr 2e-4", "--head_lr 1e-4", "--epochs 1 --bert x"):
        every = [(row, 7) for row in (*rows.TUNING, *rows.METHODS)]
        reproduce.check_runs(rows.parse_reproduce([*args, f"{more} --data {task_files}"]), every)


def test_a_finished_run_needs_no_data_but_those_of_its_evidence(tmp_path, task_files):
    argv = ["--table", "2", "--out", str(tmp_path), "--results", str(tmp_path), "--data", str(task_files)]
    args = rows.parse_reproduce([*argv, "--flags", "--data gone", "--simcse_flags", "--corpus gone"])
    row = next(row for row in rows.METHODS if row.encoder)
    for folder in (rows.row_flags(args, row, 7), rows.encoder_flags(args, row.encoder)):
        with pytest.raises(UserError, match="gone"):
            reproduce.check_runs(args, [(row, 7)])
        folder = Path(folder[folder.index("--out") + 1])
        folder.mkdir()
        (folder / "row.json").write_text("{}")
    reproduce.check_runs(args, [(row, 7)])


def test_what_is_not_asked_for_is_in_nobodys_way(table, tmp_path, refused, monkeypatch):
    """A run in --out matters where it goes on, and evidence where it stands in the table."""
    for name in ("plain-1", "size-96-2"):  # started with other flags
        (tmp_path / "runs" / name).mkdir(parents=True)
        config = flags_of_run.parse_multitask(["--out", str(tmp_path / "none"), "--epochs", "9"], *reproduce.TABLES)
        files.write_json(tmp_path / "runs" / name / "config.json", vars(config))
    table("--table", "1", "--rows", "size-96", "--seeds", "1")
    table("--table", "1", "--report")
    folders = ["--results", tmp_path / "results", "--preset", "sample", "--out", tmp_path / "runs"]
    reproduce.main([str(word) for word in [*folders, "--table", "3"]])
    assert table.started == ["size-96-1"]
    refused(reproduce.main, [*folders, "--table", "1", "--rows", "plain", "--seeds", "1"], "size-96-1", "--flags")
    refused(reproduce.main, [*folders, "--table", "3", "--flags=--epochs 1"], "--flags does nothing for table 3")
    folders[1] = tmp_path / "new"
    refused(reproduce.main, [*folders, "--table", "1", "--rows", "plain", "--seeds", "1"], "plain-1 was started with")


def test_evidence_needs_a_row_that_can_name_a_folder(tmp_path, refused):
    keep = ["--results", tmp_path / "results", "--keep", tmp_path / "run"]
    refused(reproduce.main, [*keep, "--table", "2"], "--keep", "add --row")
    for row in ("a/b", "/tmp/x", "..", ".hidden", "two words", ""):
        refused(reproduce.main, [*keep, "--row", row], "--row")
    assert not (tmp_path / "results").exists()


def test_what_the_flags_of_runs_name_is_there_before_anything_starts(tmp_path, refused, monkeypatch, task_files):
    monkeypatch.setattr(reproduce.jobs, "run", lambda *_: 1 / 0)
    table = ["--table", "2", "--preset", "sample", "--results", tmp_path / "results", "--out", tmp_path / "runs"]
    (tmp_path / "wrong.csv").write_text("id\ttext\n")
    for wrong, *words in (
        ("--flags=--data /nope", "/nope/ids-sst-train.csv does not exist", "--data"),
        ("--data=/nope", "/nope/ids-sst-train.csv does not exist", "--data"),
        (f"--flags=--data {tmp_path / 'wrong.csv'}", "does not exist; name a folder of task files with --data"),
        ("--flags=--sts_dev typo.csv", "--sts_dev typo.csv does not exist"),
        (f"--flags=--sts_test {tmp_path / 'wrong.csv'}", "has no column"),
        ("--flags=--teacher nope", "--teacher nope does not exist"),
        ("--simcse_flags=--corpus nope.txt", "nope.txt does not exist"),
        ("--simcse_flags=--pairs nope.tsv", "nope.tsv does not exist"),
        ("--flags=--help", "--flags has '--help'"),
        ("--simcse_flags=-h", "--simcse_flags has '-h'"),
    ):
        refused(reproduce.main, [*table, wrong], *words)


def test_what_a_run_refuses_is_said_by_the_run_alone(tmp_path, monkeypatch, capsys):
    class Child:
        def __init__(self, command):
            self.wait = lambda: 2

    monkeypatch.setattr(jobs.subprocess, "Popen", Child)
    with pytest.raises(SystemExit) as stopped:
        jobs.run("multitask.py", [], tmp_path, "again")
    assert (stopped.value.code, capsys.readouterr().err) == (2, "")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_to_the_table_ends_its_run_which_saves(tmp_path, monkeypatch, capsys, number):
    heard = []

    class Child:
        def __init__(self, command):
            self.terminate = lambda: heard.append("terminated")

        def wait(self):
            os.kill(os.getpid(), number)
            return 130

    monkeypatch.setattr(jobs.subprocess, "Popen", Child)
    before = signal.signal(number, lambda *_: heard.append("died"))
    with pytest.raises(SystemExit) as stopped:
        jobs.run("multitask.py", [], tmp_path, "again")
    os.kill(os.getpid(), number)
    signal.signal(number, before)
    assert (stopped.value.code, heard) == (130, ["terminated", "died"])
    assert (tmp_path / "seconds.json").exists()


def test_rows_that_the_table_lacks_and_flags_that_do_nothing_are_refused(tmp_path, refused, monkeypatch, task_files):
    monkeypatch.setattr(reproduce.jobs, "run", lambda *_: 1 / 0)  # nothing starts
    folders = ["--preset", "sample", "--results", tmp_path / "results", "--out", tmp_path / "runs"]
    one, two, three = ([*folders, "--table", str(n)] for n in (1, 2, 3))
    refused(reproduce.main, [*two, "--rows", "plain", "smart-waek"], "no row 'smart-waek'", "smart-weak, simcse-pals,")
    refused(reproduce.main, [*one, "--rows", "pals"], "table 1 has no row 'pals'", "plain, means, size-96")
    refused(reproduce.main, [*two, "--rows", "soup"], "table 2 has no row 'soup'")  # made by hand
    refused(reproduce.main, three, "no evidence of a run", "run table 1 or 2")
    refused(reproduce.main, [*three, "--rows", "plain"], "--rows does nothing where nothing is run")
    refused(reproduce.main, [*two, "--report", "--data_name", "x"], "--data_name does nothing where")
    refused(reproduce.main, [*two, "--row", "plain"], "--row does nothing without --keep")
    refused(reproduce.main, [*two, "--keep", tmp_path, "--row", "x"], "--table does nothing beside --keep")
    refused(reproduce.main, [*two, "--report", "--seeds", "11711"], "--seeds does nothing where")
    refused(reproduce.main, [*two, "--data_name", "../x"], "--data_name '../x' cannot name a folder")
    refused(reproduce.main, [*two, "--flags=--lr 1e-3 --seed 3"], "--flags has '--seed'")
    refused(reproduce.main, [*two, "--flags=--max_examples=20"], "--flags has '--max_examples=20'")
    refused(reproduce.main, [*two, "--flags=--epochs 0"], "--epochs 0 trains nothing")
    refused(reproduce.main, [*two, "--flags=--dat x"], "--dat")
    refused(reproduce.main, [*two, "--simcse_flags=--nonsense"], "--nonsense")
    refused(reproduce.main, [*two, "--keep", tmp_path, "--row", "x", "--seconds", "-5"], "--seconds", "at least 0")
    with pytest.raises(ZeroDivisionError):
        reproduce.main([str(word) for word in [*two, "--rows", "plain", "--data_name", "x", "--data", task_files]])


def test_evidence_of_other_data_is_refused_before_training(tmp_path, refused, monkeypatch, task_files):
    """A second data set would make every table of the folder impossible."""
    root = tmp_path / "results" / "runs-sample"
    root.mkdir(parents=True)
    shutil.copytree(ROOT / "results" / "runs" / "means-11711", root / "means-11711")
    monkeypatch.setattr(reproduce.jobs, "run", lambda *_: 1 / 0)
    command = ["--table", "1", "--results", tmp_path / "results", "--out", tmp_path / "runs", "--rows", "plain"]
    monkeypatch.setattr(reproduce, "check_flags", lambda *_: None)
    refused(reproduce.main, [*command, f"--flags=--data {task_files}"], "means-11711", "have different data")


def test_table_3_refuses_outputs_that_do_not_score_what_the_metrics_say(tmp_path, refused):
    shutil.copytree(ROOT / "results" / "runs" / "means-11711", tmp_path / "runs" / "means-11711")
    shutil.copytree(ROOT / "results" / "runs" / "data", tmp_path / "runs" / "data")
    metrics = tmp_path / "runs" / "means-11711" / "metrics.jsonl"
    metrics.write_text(metrics.read_text().replace('"score": 0.75', '"score": 0.77'))
    command = ["--table", "3", "--preset", "minilm", "--report", "--results", tmp_path]
    refused(reproduce.main, command, "means-11711 scores 0.75", "metrics.jsonl says 0.77")
    assert not list(tmp_path.glob("table3*"))


def test_one_dev_example_has_no_two_halves(monkeypatch):
    monkeypatch.setattr(evidence, "find", lambda *_: ["a"])
    monkeypatch.setattr(reproduce, "examples_of", lambda *_: {"sst": Namespace(labels=np.ones(1))})
    monkeypatch.setattr(reproduce, "outputs_of", lambda *_: {})
    with pytest.raises(UserError, match="results has one dev example of sst, which has no two halves"):
        reproduce.report_ensembles(Namespace(runs="results"))


def test_the_commit_is_that_of_a_repository_that_tracks_the_code(tmp_path, monkeypatch):
    git = ["git", "-C", tmp_path, "-c", "user.name=a", "-c", "user.email=a@b.c"]
    do = lambda *words: subprocess.run([*git, *words], check=True, capture_output=True, text=True).stdout  # noqa: E731
    monkeypatch.setattr(jobs, "ROOT", tmp_path / "course" / "bert")
    (jobs.ROOT / "support").mkdir(parents=True)
    (jobs.ROOT / "support" / "jobs.py").write_text("")
    do("init")
    do("commit", "--allow-empty", "-m", "course")
    assert jobs.commit() == "unknown"
    do("add", "course")
    do("commit", "-m", "with it")
    assert jobs.commit() == do("rev-parse", "--short", "HEAD").strip()
    (jobs.ROOT / "support" / "jobs.py").write_text("changed")
    assert jobs.commit().endswith("+")


def test_a_finished_run_keeps_what_others_put_beside_its_last_state(tmp_path, monkeypatch):
    monkeypatch.setattr(jobs.subprocess, "Popen", lambda *_: Namespace(wait=lambda: 0))
    for name in ("commit", "device_name"):
        monkeypatch.setattr(jobs, name, lambda *_: "")
    for name in ("alone", "shared"):
        (tmp_path / name / "last").mkdir(parents=True)
        (tmp_path / name / "last" / "state.safetensors").write_text("")
    (tmp_path / "shared" / "last" / "notes").write_text("mine")
    for name in ("alone", "shared"):
        jobs.run("multitask.py", [], tmp_path / name, "again")
    assert [path.name for path in tmp_path.rglob("last/*")] == ["notes"]
    assert not (tmp_path / "alone" / "last").exists()
