"""The fixtures that several files of tests share; `tiny.py` has the rest."""

import json
import shutil

import pytest
import tiny
import torch

import multitask
from model import MultitaskBert
from support import flags as program_flags

torch.set_num_threads(1)  # each worker of the suite has a core


@pytest.fixture(scope="session", autouse=True)
def measured_once(tmp_path_factory):
    """The libraries of products are chosen once: two runs that a test compares round alike on a busy machine, too."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(program_flags, "MODELS", tmp_path_factory.mktemp("models"))
        yield


@pytest.fixture(scope="session")
def tiny_encoder(tmp_path_factory):
    """A folder with a random encoder, as --bert takes it."""
    return tiny.folder(tmp_path_factory.mktemp("encoder"), dropout=0.1)


@pytest.fixture(scope="session")
def task_files(tmp_path_factory):
    """A folder with task files of 24 examples."""
    return tiny.task_files(tmp_path_factory.mktemp("data"), n=24)


@pytest.fixture
def flags(tiny_encoder, task_files, tmp_path):
    """Flags for a run of a few seconds into tmp_path / "run"."""
    return ["--bert", tiny_encoder, "--data", task_files, "--out", tmp_path / "run", "--batch_size", "8"]


@pytest.fixture
def refused(capsys):
    """`refused(main, arguments, *words)`: `tiny.assert_refused` within this process, which saves starting one."""

    def check(main, arguments, *words):
        with pytest.raises(SystemExit) as stopped:
            main([str(argument) for argument in arguments])
        assert stopped.value.code == 2
        said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
        assert len(said) == 1
        assert all(str(word) in said[0] for word in words), said

    return check


@pytest.fixture(scope="session")
def trained(tmp_path_factory):
    """Runs a, b and c from one start, and d: siamese, with PALs, another encoder; and their data."""
    folder = tmp_path_factory.mktemp("ensemble")
    data = tiny.task_files(folder / "data", n=40, seed=3)
    for layers in (1, 2):  # weights large enough to tell sentences apart from the first step
        tiny.folder(folder / f"layers{layers}", 0.1, num_hidden_layers=layers, initializer_range=0.3)
    same = ["--bert", folder / "layers2"]
    other = ["--bert", folder / "layers1", "--pair_encoding", "siamese", "--use_pals", "--pal_size", "12"]
    for name, own in {"a": same, "b": [*same, "--lr", "2e-3"], "c": [*same, "--extra_sst"], "d": other}.items():
        flags = ["--data", data, "--batch_size", "8", "--epochs", "3", "--head_lr", "3e-3", *own]
        multitask.main([str(flag) for flag in [*flags, "--out", folder / name]])
        shutil.rmtree(folder / name / "last")
    return folder


@pytest.fixture
def copied(trained, tmp_path):
    """The same in a folder of the test's own, without cached outputs."""
    for name in ("a", "b", "c", "d", "data"):
        shutil.copytree(trained / name, tmp_path / name, ignore=shutil.ignore_patterns("outputs"))
    for name in "abcd":
        config = json.loads((tmp_path / name / "config.json").read_text())
        (tmp_path / name / "config.json").write_text(json.dumps(config | {"data": str(tmp_path / "data")}))
    return tmp_path


@pytest.fixture
def loads(monkeypatch):
    """The folders of the models that were loaded."""
    seen, load = [], MultitaskBert.load
    monkeypatch.setattr(MultitaskBert, "load", lambda folder: seen.append(folder) or load(folder))
    return seen
