"""The tables: their rows on a tiny encoder, interrupted and resumed, and what is written."""

import json
import statistics
from pathlib import Path

import pytest
from conftest import ROOT

import ensemble
import multitask
import reproduce
import simcse
from support import files, run_folder
from tasks import TASKS


@pytest.fixture
def table(tiny_encoder, task_files, tmp_path, monkeypatch):
    """`table("--table", "2", ...)` runs the command on tiny runs, in this process; `.started` lists what it started."""
    data = f"--bert {tiny_encoder} --data {task_files} --batch_size 8"
    wanted = ("pretrain", "finetune", "simcse-finetune")
    monkeypatch.setattr(reproduce, "METHODS", [row for row in reproduce.METHODS if row.name in wanted])
    monkeypatch.setattr(reproduce, "TUNING", reproduce.TUNING[:2])

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
        reproduce.main(
            [*arguments, "--preset", "sample", "--out", str(tmp_path / "runs"), "--results", str(tmp_path / "results"),
             "--flags", f"{data} --epochs 1", "--simcse_flags", f"{data} --normalize_length 1"]
        )  # fmt: skip
        name = f"table{arguments[arguments.index('--table') + 1]}-sample"
        return json.loads((tmp_path / "results" / f"{name}.json").read_text())["results"]

    monkeypatch.setattr(reproduce.subprocess, "Popen", Started)
    monkeypatch.setattr(reproduce, "commit", lambda: "abc1234")
    table.started, table.stop_at = [], None
    return table


def test_a_table_that_was_interrupted_loses_no_row_and_runs_none_twice(table, tmp_path, capsys):
    table.stop_at = 3
    with pytest.raises(SystemExit) as stopped:
        table("--table", "2", "--seeds", "1", "2")
    assert stopped.value.code == 130
    assert "go on with: python reproduce.py" in capsys.readouterr().out
    assert table.started == ["pretrain-1", "finetune-1", "simcse"]
    results = table("--table", "2", "--seeds", "1", "2")
    assert table.started[3:] == ["simcse", "simcse-finetune-1", "pretrain-2", "finetune-2", "simcse-finetune-2"]
    table("--table", "2", "--seeds", "1", "2")
    assert len(table.started) == 8

    assert [r["title"] for r in results] == ["Pretrain base model (encoder frozen)", "Finetune base model", "+ SimCSE"]
    for r in results:
        for name, value in [(n, r[n]) for n in (*TASKS, "score")]:
            lines = [run_folder.read_metrics(folder) for folder in r["runs"]]
            best = [max((x for x in of if x["kind"] == "dev"), key=lambda x: x["score"])[name] for of in lines]
            assert value == best
        assert r["took"][0].keys() == {"seconds", "commit", "device"}
    text = (tmp_path / "results" / "table2-sample.md").read_text()
    score = results[1]["score"]
    assert f"{statistics.mean(score):.3f} ± {statistics.stdev(score):.3f}" in text
    assert f"{statistics.mean(score) - 0.764:+.3f}" in text
    assert (
        str(tmp_path / "runs" / "simcse" / "encoder") in files.read_json(results[2]["runs"][0] + "/config.json")["bert"]
    )


def test_table_1_has_the_settings_and_no_published_figures_for_them(table):
    results = table("--table", "1", "--seeds", "1")
    assert table.started == ["finetune-1", "size-96-1"]
    assert [r["published"] is None for r in results] == [False, True]


def test_table_3_is_what_ensemble_says_of_the_runs_of_table_2(table, tmp_path, monkeypatch):
    results = {r["title"]: r for r in table("--table", "3", "--seeds", "1")}
    assert set(results) == {"plain fine-tuned model", "best single model", "best 2 models, average",
                            "best 2 models, vote", "greedy for each task, average"}  # fmt: skip
    two = results["best 2 models, average"]
    data = ensemble.data_flags(two["members"][0][0])
    found = [ensemble.outputs_of(run, data, "dev", "cpu") for run in two["members"][0]]
    metrics, _, _ = ensemble.ensemble(found, [1, 1])
    assert {name: two[name] for name in TASKS} == {name: [value] for name, value in metrics.items()}
    best = results["best single model"]
    for task in TASKS:
        alone = max(reproduce.best_epoch(tmp_path / "runs" / f"{row.name}-1")[task] for row in reproduce.METHODS)
        assert results["greedy for each task, average"][task][0] >= alone - 1e-6
    assert best["score"][0] >= results["plain fine-tuned model"]["score"][0]


def test_mistakes_get_one_sentence(table, refused, tmp_path):
    refused(reproduce.main, ["--table", "2", "--report", "--out", tmp_path / "none"], "no run", "is finished")
    table("--table", "1", "--seeds", "1")
    again = ["--table", "1", "--seeds", "1", "--out", str(tmp_path / "runs"), "--flags", "--epochs 9"]
    refused(reproduce.main, [*again, "--results", tmp_path / "r"], "was started with")
