"""What the tests share: a tiny encoder in the usual layout, small task files, and commands run as a user runs them."""

import csv
import json
import os
import random
import shutil
import string
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

import multitask  # noqa: E402
from bert import Bert, BertConfig  # noqa: E402
from model import MultitaskBert  # noqa: E402
from tasks import SPLITS, TASKS, data_path  # noqa: E402

torch.set_num_threads(2)
WORDS = "good bad film very not dull bright story how what is the of old new cat dog runs sleeps".split()  # noqa: SIM905


def tiny_config(**changes):
    values = {"vocab_size": 120, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    values |= {"intermediate_size": 64, "max_position_embeddings": 512}
    return BertConfig(**(values | changes))


def write_vocabulary(folder):
    """Letters, digits and a few words: 120 pieces at most."""
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    letters = list(string.ascii_lowercase + string.digits + ".,?!'-")
    pieces = special + letters + [f"##{c}" for c in string.ascii_lowercase] + WORDS
    Path(folder, "vocab.txt").write_text("\n".join(pieces[:120]) + "\n")


@pytest.fixture(scope="session")
def tiny_encoder(tmp_path_factory):
    """A folder with a random encoder of 2 layers, 32 wide, and a vocabulary."""
    folder = tmp_path_factory.mktemp("encoder")
    torch.manual_seed(0)
    Bert(tiny_config()).save(folder)
    write_vocabulary(folder)
    return folder


def write_task_files(folder, rows=24, seed=0):
    """Task files with a rule that can be learnt: labels count words."""
    rng = random.Random(seed)
    for task in TASKS.values():
        for split in SPLITS:
            labelled = split != "test"
            with open(data_path(folder, task, split), "w", newline="") as file:
                writer = csv.writer(file, delimiter="\t")
                writer.writerow(["", "id", *task.columns] + [task.label] * labelled)
                for i in range(rows):
                    words = rng.choices(WORDS, k=rng.randint(2, 12))
                    label = min(words.count("good") + words.count("film"), task.high)
                    sentences = [" ".join(words), " ".join(rng.sample(words, len(words)))][: len(task.columns)]
                    writer.writerow([i, f"{split}{i:04d}", *sentences] + [label] * labelled)
    return folder


@pytest.fixture(scope="session")
def task_files(tmp_path_factory):
    return write_task_files(tmp_path_factory.mktemp("data"))


@pytest.fixture
def flags(tiny_encoder, task_files, tmp_path):
    """Flags for a run of a few seconds into tmp_path / "run"."""
    return ["--bert", tiny_encoder, "--data", task_files, "--out", tmp_path / "run", "--batch_size", "8"]


def run(script, *arguments, timeout=120, **environment):
    """Runs a script of the project as a user would; returns the finished process, its output as text."""
    command = [sys.executable, str(ROOT / script), *map(str, arguments)]
    env = os.environ | {"OMP_NUM_THREADS": "1"} | environment
    return subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=timeout)


def assert_refused(done, *words):
    """The process ended with code 2 and one sentence on stderr that has these words, without a traceback."""
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    sentence = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(sentence) == 1, done.stderr
    for word in words:
        assert str(word) in sentence[0], sentence[0]


@pytest.fixture
def refused(capsys):
    """`refused(main, arguments, *words)`: the same within this process, which saves starting one."""

    def check(main, arguments, *words):
        with pytest.raises(SystemExit) as stopped:
            main([str(argument) for argument in arguments])
        assert stopped.value.code == 2
        said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
        assert len(said) == 1
        assert all(str(word) in said[0] for word in words), said

    return check


@pytest.fixture(scope="session")
def trained(tiny_encoder, tmp_path_factory):
    """Runs a, b and c from one start, and d: siamese, with PALs, another encoder; and their data."""
    folder = tmp_path_factory.mktemp("ensemble")
    data = folder / "data"
    data.mkdir()
    write_task_files(data, rows=40, seed=3)
    torch.manual_seed(1)
    for layers in (1, 2):  # weights large enough to tell sentences apart from the first step
        Bert(tiny_config(num_hidden_layers=layers, initializer_range=0.3)).save(folder / f"layers{layers}")
        shutil.copy(tiny_encoder / "vocab.txt", folder / f"layers{layers}")
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
