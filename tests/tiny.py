"""The world of the tests: a model of 2 layers, 32 wide, task files of a few lines, commands run as a user does."""

import csv
import os
import random
import string
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import multitask
from adamw import AdamW
from bert import Bert, BertConfig
from model import MultitaskBert
from support import metrics_file, training_run
from support.safetensors import read_safetensors
from tasks import SPLITS, TASKS, data_path
from tokenizer import Tokenizer, pack

ROOT = Path(__file__).parent.parent
REAL = ROOT.parent / "shared" / "data"  # the CS224N files, where they are at hand
WORDS = "good bad film very not dull bright story how what is the of old new cat dog runs sleeps".split()  # noqa: SIM905


# ----- models


def config(dropout=0.1, **changes):
    """Args: changes, other values for `BertConfig`."""
    values = {"vocab_size": 120, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    values |= {"intermediate_size": 64, "hidden_dropout_prob": dropout, "attention_probs_dropout_prob": dropout}
    return BertConfig(**(values | changes))


def model(dropout=0.0, seed=0, std=0.2, **shape):
    """A random `MultitaskBert`, weights large enough for outputs to differ from each other."""
    torch.manual_seed(seed)
    bert = Bert(config(dropout))
    bert.config.initializer_range = std
    result = MultitaskBert(bert, **shape)
    for name, p in result.named_parameters():
        if p.dim() == 2 and "decode" not in name:
            torch.nn.init.normal_(p, std=std)
    return result


def optimizer(of, **settings):
    return AdamW(of.parameter_groups(), **settings)


def batch(lengths=(5, 3, 7, 4), seed=0):
    rng = np.random.default_rng(seed)
    return pack([(rng.integers(5, 35, n).astype(np.int32), n // 2 + 1) for n in lengths])


def folder(path, dropout=0.0, **changes):
    """A pretrained encoder, as --bert takes it: random weights, and a vocabulary."""
    path.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(1)
    Bert(config(dropout, **changes)).save(path)
    write_vocabulary(path)
    Tokenizer(path).save(path)
    return path


def write_vocabulary(path):
    """Letters, digits and a few words: fewer than 120 pieces."""
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    letters = list(string.ascii_lowercase + string.digits + ".,?!'-")
    pieces = special + letters + [f"##{c}" for c in string.ascii_lowercase] + WORDS
    Path(path, "vocab.txt").write_text("\n".join(pieces) + "\n")


# ----- task files


def sentence(rng):
    """2 to 12 words. Args: rng, a `random.Random`."""
    return " ".join(rng.choices(WORDS, k=rng.randint(2, 12)))


def task_files(path, n=12, seed=0):
    """Files of n examples for all tasks and splits, with a rule that can be learnt: labels count words."""
    path.mkdir(parents=True, exist_ok=True)
    rng = random.Random(seed)
    for task in TASKS.values():
        for split in SPLITS:
            labelled = split != "test"
            with open(data_path(path, task, split), "w", newline="") as file:
                writer = csv.writer(file, delimiter="\t")
                writer.writerow(["", "id", *task.columns] + [task.label] * labelled)
                for i in range(n):
                    words = sentence(rng).split()
                    count = words.count("good") + words.count("film")
                    label = min(count if task.classes else 2.5 * count, task.high)
                    sentences = [" ".join(words), " ".join(rng.sample(words, len(words)))][: len(task.columns)]
                    writer.writerow([i, f"{split}{i:04d}", *sentences] + [label] * labelled)
    return path


# ----- commands


def run(script, *arguments, timeout=120, **environment):
    """Runs a script of the project as a user would; returns the finished process, its output as text."""
    command = [sys.executable, str(ROOT / script), *map(str, arguments)]
    env = os.environ | {"OMP_NUM_THREADS": "1"} | environment
    return subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=timeout)


def assert_refused(done, *words):
    """The process ended with code 2 and one sentence on stderr that has these words, without a traceback."""
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    sentences = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(sentences) == 1, done.stderr
    for word in words:
        assert str(word) in sentences[0], sentences[0]


def metrics(out):
    """What a run recorded while it trained: the train and dev lines of its `metrics.jsonl`."""
    return [line for line in metrics_file.read(out) if line["kind"] in ("train", "dev")]


class StopAfter:
    """In place of `training_run.Interrupt`: Ctrl-C at the n-th step."""

    def __init__(self, n):
        self.left = n

    def __call__(self):
        return self

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    @property
    def asked(self):
        self.left -= 1
        return self.left <= 0


def last_states(path, flags, monkeypatch):
    """The last states (tensors by name) of a run in path/whole, and of one in path/parts, stopped and resumed."""
    multitask.main([*flags, "--out", str(path / "whole")])
    with monkeypatch.context() as patch:
        patch.setattr(training_run, "Interrupt", StopAfter(5))
        with pytest.raises(SystemExit):
            multitask.main([*flags, "--out", str(path / "parts")])
    multitask.main(["--resume", "--out", str(path / "parts")])
    return [read_safetensors(path / name / "last" / "state.safetensors") for name in ("whole", "parts")]
