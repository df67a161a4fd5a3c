"""What a folder is that somebody named in place of a run: each gets its own sentence, from every program."""

import json
import shutil

import pytest
import tiny

import ensemble
import multitask
import predict
import reproduce
import visualize
from bert import Bert
from model import MultitaskBert
from support import downloads, folders, metrics_file, run_folder
from support.console import UserError
from tokenizer import Tokenizer

RESUME = "python multitask.py --resume --out"


@pytest.fixture
def run(tmp_path, tiny_encoder):
    """A run with an untrained model."""
    model = MultitaskBert(Bert.load(tiny_encoder), pal_size=12)
    (tmp_path / "run" / "best").mkdir(parents=True)
    model.save(tmp_path / "run" / "best", Tokenizer(tiny_encoder))
    (tmp_path / "run" / "config.json").write_text(json.dumps({"out": "run", "epochs": 2}))
    return tmp_path / "run"


@pytest.fixture
def wrong(run, tiny_encoder):
    """{folder: what its sentence says}."""
    root = run.parent
    (root / "file").write_text("")
    for name in ("empty", "simcse", "simcse/encoder", "evidence", "young", "soup", "lost", "last", "data"):
        (root / name).mkdir(parents=True)
    (root / "simcse" / "config.json").write_text('{"out": "simcse", "tau": 0.05}')
    (root / "evidence" / "record.json").write_text("{}")
    for name, epochs in {"young": 2, "soup": 0, "lost": 2}.items():
        (root / name / "config.json").write_text(json.dumps({"out": name, "epochs": epochs}))
    metrics_file.append(root / "lost", kind="dev", step=3)
    return {
        root / "none": "does not exist",
        root / "file": "is a file; name the folder of a run",
        root / "empty": "holds no run; train one with multitask.py",
        root / "simcse": "a run of simcse.py",
        root / "evidence": "is the evidence of a run",
        root
        / "young": f"holds no trained model yet; let its first epoch end: python multitask.py --resume --out {root}/",
        root / "soup": "is a soup without its model; make it again",
        root / "lost": "holds no trained model any more, and no state to go on from; copy the run again",
        root / "data": "holds ids and labels of the runs beside it, and is none; leave it out",
        tiny_encoder: f"is a pretrained model; fine-tune it first: python multitask.py --bert {tiny_encoder}",
    }


def test_what_is_no_run_is_told_apart_and_only_a_run_is_to_be_resumed(wrong, refused):
    for folder, says in wrong.items():
        with pytest.raises(UserError) as said:
            folders.model_folder(folder)
        assert str(said.value).startswith(f"{folder} {says}") or f"{folder} is {says}" in str(said.value)
        assert ("--resume" in str(said.value)) == (folder.name == "young")
        refused(predict.main, ["--run", folder, "A film."], folder, says)


def test_a_run_of_the_project_is_looked_for_in_its_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=f"results does not exist and so holds no run; start this in {tiny.ROOT}"):
        folders.model_folder("results")


def test_to_ask_a_model_any_copy_of_it_will_do(run, capsys):
    shutil.copytree(run / "best", run.parent / "copy")
    for folder in (run, run / "best", run.parent / "copy"):
        predict.main(["--run", str(folder), "A film."])
    said = capsys.readouterr().out
    assert said == 3 * said[: len(said) // 3] != ""


@pytest.mark.parametrize("name", ["part", "copy", "bare"])
def test_every_program_asks_the_same(wrong, run, refused, name):
    part, says = {
        "part": (run / "best", f"is a part of a run; name the run, {run}"),
        "copy": (run.parent / "copy", "is a model without its run"),
        "bare": (run.parent / "bare", "holds a model, but not the flags of its run; copy its config.json"),
    }[name]
    if part != run / "best":
        shutil.copytree(run / "best", part / "best" if name == "bare" else part)
    refused(ensemble.main, [part], part, says)
    refused(visualize.main, ["curves", part, "--out", run.parent / "a.png"], part, says)
    refused(visualize.main, ["embeddings", "--runs", part, "--out", run.parent / "a.png"], part, says)
    refused(reproduce.main, ["--keep", part, "--row", "mine"], part, says)
    refused(multitask.main, ["--teacher", part, "--out", run.parent / "student"], part, says)


def test_a_model_a_part_and_a_run_of_another_program_are_not_to_be_resumed(wrong, run, tiny_encoder, refused):
    for folder in (tiny_encoder, run / "best", run.parent / "simcse"):
        refused(multitask.main, ["--out", folder], f"{folder}/config.json is not a run of multitask.py; choose another")


def test_the_run_of_a_model_is_named_as_its_folder_was(run, monkeypatch):
    monkeypatch.chdir(run.parent)
    for folder, parent in {"run/best": "run", "run/best/": "run", "./run/best/../best": "run"}.items():
        assert folders.what_is(folder).endswith(f"name the run, {parent}")
    monkeypatch.chdir(run / "best")
    assert folders.what_is(".").endswith("name the run, ..")


def test_a_run_that_is_a_link_to_nothing_may_lie_on_a_disk_that_is_not_mounted(tmp_path, refused):
    (tmp_path / "link").symlink_to("nothing")
    said = f"error: {tmp_path}/link is a link to {tmp_path}/nothing, which is not there; mount its disk"
    refused(multitask.main, ["--eval_only", "--out", tmp_path / "link"], said)
    refused(predict.main, ["--run", tmp_path / "link", "a film"], said)


def test_a_run_in_place_of_a_pretrained_model_is_shown_its_model(run):
    with pytest.raises(UserError, match=f"{run} is a run; name its model, {run}/best"):
        downloads.find_model(str(run))
    assert downloads.find_model(str(run / "best")) == run / "best"
    evidence = tiny.ROOT / "results" / "runs" / "means-11711"
    with pytest.raises(UserError, match=f"{evidence} is the evidence of a run, without its weights; name"):
        downloads.find_model(str(evidence))


# ----- half-copied runs

FILES = [
    "config.json",
    "model.safetensors",
    "tokenizer.json",
    "multitask.json",
    "heads.safetensors",
    "pals.safetensors",
]


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("damage", ["missing", "cut"])
def test_a_model_that_was_copied_in_part_has_a_remedy_that_fits(run, name, damage):
    path = run / "best" / name
    raw = path.read_bytes()
    path.unlink()
    if damage == "cut":
        path.write_bytes(raw[:-9])
    for load in (MultitaskBert.load, lambda best: folders.model_folder(best.parent)):
        with pytest.raises(UserError, match=rf"{name}.*; copy the run again$"):
            load(run / "best")
    run_folder.state_path(run).parent.mkdir()
    run_folder.state_path(run).touch()
    with pytest.raises(
        UserError, match=rf"{name}.*; move {run}/best away, and .*--resume --out {run}. writes it again$"
    ):
        MultitaskBert.load(run / "best")


def test_pals_that_the_options_do_not_know_are_not_left_out_in_silence(run):
    path = run / "best" / "multitask.json"
    options = json.loads(path.read_text())
    path.write_text(json.dumps({name: value for name, value in options.items() if name != "pal_size"}))
    with pytest.raises(UserError, match=r"pals.safetensors and multitask.json .* do not belong together"):
        MultitaskBert.load(run / "best")


def test_a_file_in_the_place_of_a_model_is_said(run):
    shutil.rmtree(run / "best")
    (run / "best").write_text("mine")
    with pytest.raises(UserError, match=f"{run}/best is a file, not a model; copy the run again"):
        folders.model_folder(run)


def test_the_remedies_of_a_run_that_lost_part_of_itself_work(flags, tmp_path, refused):
    run, resume = tmp_path / "run", ["--resume", "--out", str(tmp_path / "run")]
    multitask.main([str(flag) for flag in [*flags, "--epochs", "1"]])
    (run / "best" / "heads.safetensors").unlink()
    refused(multitask.main, resume, "heads.safetensors", "writes it again")
    (run / "best").rename(tmp_path / "away")
    multitask.main(resume)
    predict.main(["--run", str(run), "A film."])
    state = run_folder.state_path(run)
    state.write_bytes(state.read_bytes()[:-9])
    refused(multitask.main, resume, "state.safetensors", "copy the run again, or choose another --out")
    state.unlink()
    multitask.main(resume)
    assert tiny.metrics(run)
