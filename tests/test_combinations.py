"""Every method with every other: one step, saved, loaded, and the same again; and a fourth task."""

import itertools

import pytest
import tiny

import multitask
import tasks
from bert import Bert

PALS = "--use_pals --pal_size 12 --pal_heads 4"
METHODS = (PALS, "--use_smart", "--gradient_surgery", "--option pretrain", "--use_means")


@pytest.mark.parametrize("chosen", list(itertools.product([False, True], repeat=5)), ids=str)
def test_a_combination_runs_and_evaluates_the_same_from_disk(tmp_path, capsys, chosen):
    bert, files, out = tiny.folder(tmp_path / "bert", 0.1), tiny.task_files(tmp_path / "data", 4), tmp_path / "run"
    methods = " ".join(flag for flag, on in zip(METHODS, chosen, strict=True) if on)
    command = f"--bert {bert} --data {files} --out {out} --epochs 1 --batch_size 12 {methods}".split()
    if chosen[2] and chosen[3]:
        with pytest.raises(SystemExit):
            multitask.main(command)
        assert "no shared parameters train; leave out --gradient_surgery" in capsys.readouterr().err
        return
    multitask.main(command)
    table = capsys.readouterr().out.split("| task")[1]
    predictions = [path.read_bytes() for path in sorted((out / "predictions").iterdir())]
    assert len(predictions) == 2 * len(tasks.TASKS)
    metrics = tiny.metrics(out)
    steps = 1 if chosen[2] else len(tasks.TASKS)  # surgery's one step takes every task
    assert [line["step"] for line in metrics] == [steps, steps]
    assert metrics[0]["steps"] == steps
    assert ("smoothness" in metrics[0]) == chosen[1]
    assert metrics[0].keys() >= tasks.TASKS.keys()
    assert (out / "best" / "pals.safetensors").exists() == chosen[0]
    frozen = Bert.load(out / "best").state_dict()
    before = Bert.load(bert).state_dict()
    assert all((frozen[name] == before[name]).all() for name in before) == chosen[3]
    multitask.main(["--eval_only", "--out", str(out)])
    assert capsys.readouterr().out.split("| task")[1] == table
    assert [path.read_bytes() for path in sorted((out / "predictions").iterdir())] == predictions


SENSELESS = ["--smart strong", "--gradient_surgery --sampling sqrt", "--use_pals --pal_size 10"]


@pytest.mark.parametrize("flags", [*SENSELESS, "--use_smart --smart_projection ball --bf16"])
def test_flags_that_make_no_sense_are_refused_in_one_sentence(tmp_path, capsys, flags):
    bert, files = tiny.folder(tmp_path / "bert"), tiny.task_files(tmp_path / "data", 8)
    with pytest.raises(SystemExit) as stop:
        multitask.main(f"--bert {bert} --data {files} --out {tmp_path / 'run'} {flags}".split())
    assert stop.value.code == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_a_fourth_task_is_a_row_and_three_files(tmp_path, monkeypatch, capsys):
    movies = tasks.Task("cfimdb", "cfimdb-{split}.csv", ("review",), "liked", 2, 0, 1, "accuracy", "Predicted_Liked")
    monkeypatch.setitem(tasks.TASKS, "cfimdb", movies)
    bert, files = tiny.folder(tmp_path / "bert"), tiny.task_files(tmp_path / "data", 8)
    for i, methods in enumerate(("--gradient_surgery", f"{PALS} --use_smart --use_means")):
        out = tmp_path / f"run{i}"
        multitask.main(f"--bert {bert} --data {files} --out {out} --epochs 2 --batch_size 4 {methods}".split())
        assert "| cfimdb " in capsys.readouterr().out
        assert "cfimdb" in tiny.metrics(out)[0]
        lines = (out / "predictions" / "cfimdb-test-output.csv").read_text().splitlines()
        assert lines[0] == "id \t Predicted_Liked "
        assert len(lines) == 9
