"""A model of 2 layers and 32 wide, and task files of a few lines: what the tests of the methods train."""

import csv

import numpy as np
import pytest
import torch

import multitask
import tasks
from adamw import AdamW
from bert import Bert, BertConfig
from model import MultitaskBert
from support import training_run
from support.safetensors import read_safetensors
from tokenizer import Tokenizer, pack

WORDS = [a + b for a in ("ba", "ce", "di", "fo", "gu") for b in ("lan", "mer", "nis", "pot", "rux", "sil")]


def config(dropout=0.0):
    vocabulary = 5 + len(WORDS)
    return BertConfig(vocabulary, 32, 2, 4, 64, 64, hidden_dropout_prob=dropout, attention_probs_dropout_prob=dropout)


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
    return pack([(rng.integers(5, 5 + len(WORDS), n).astype(np.int32), n // 2 + 1) for n in lengths])


def folder(path, dropout=0.0):
    """A pretrained encoder, as --bert takes it."""
    path.mkdir(parents=True)
    torch.manual_seed(1)
    Bert(config(dropout)).save(path)
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]
    (path / "vocab.txt").write_text("\n".join(words) + "\n")
    Tokenizer(path).save(path)
    return path


def sentence(rng, low=2, high=9):
    return " ".join(rng.choice(WORDS, rng.integers(low, high)))


def task_files(path, n=12, seed=0):
    """Files of n examples for all tasks of tasks.TASKS and all splits."""
    path.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    for task in tasks.TASKS.values():
        for split in tasks.SPLITS:
            with open(tasks.data_path(path, task, split), "w", newline="") as file:
                writer = csv.writer(file, delimiter="\t")
                writer.writerow(["", "id", *task.columns, *([task.label] if split != "test" else [])])
                for i in range(n):
                    label = rng.integers(task.classes) if task.classes else round(float(rng.uniform(0, 5)), 1)
                    row = [i, f"{task.name}{split}{i}", *(sentence(rng) for _ in task.columns)]
                    writer.writerow(row + ([label] if split != "test" else []))
    return path


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
