"""The task table; task files -> examples -> batches.

A task is one row of `TASKS` and three files, `train`, `dev` and `test`: tab-separated, a header line first, quoted as
CSV is. Columns are found by their names, and other columns are ignored. A fourth task is a fourth row.
"""

import os
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from sampling import in_fold
from support import task_files
from support.console import UserError
from tokenizer import pack


@dataclass(frozen=True)
class Task:
    """What the rest of the project needs to know of a task."""

    name: str
    file: str  # name of its files, `{split}` standing for train, dev or test-student
    columns: tuple  # the column of the sentence, or of both sentences
    label: str  # the column of the label
    classes: int  # 2 or more classes (labels 0, 1, ...), or 0: a real number is predicted
    low: float  # smallest and largest label
    high: float
    metric: str  # what the dev score counts: "accuracy" or "pearson"
    output: str  # the name of the value in prediction files
    names: tuple = ()  # of the classes, for people
    title: str = ""  # what predict.py calls the label; by default as its column

    @property
    def pair(self):
        """True for a task about two sentences."""
        return len(self.columns) == 2

    def encoding(self, pair_encoding, use_means):
        """How an example is encoded, by the flags `--pair_encoding` and `--use_means`.

        one sentence    "sentence"; "sentence and mean" where the mean of its hidden states is read, too
        a pair          "joint", one sequence; "siamese", each sentence a sequence of its own; "both", joint and siamese
        """
        if not self.pair:
            return "sentence and mean" if use_means else "sentence"
        return "both" if use_means and not self.classes else pair_encoding

    @property
    def n_logits(self):
        """What a head gives: a logit for each class, but one for two classes (of the second), and one for a number."""
        return self.classes if self.classes > 2 else 1


TASKS = {
    task.name: task
    for task in (
        Task(
            name="sst",
            file="ids-sst-{split}.csv",
            columns=("sentence",),
            label="sentiment",
            classes=5,
            low=0,
            high=4,
            metric="accuracy",
            output="Predicted_Sentiment",
            names=("very negative", "negative", "neutral", "positive", "very positive"),
        ),
        Task(
            name="para",
            file="quora-{split}.csv",
            columns=("sentence1", "sentence2"),
            label="is_duplicate",
            classes=2,
            low=0,
            high=1,
            metric="accuracy",
            output="Predicted_Is_Paraphrase",
            names=("no", "yes"),
            title="paraphrase",
        ),
        Task(
            name="sts",
            file="sts-{split}.csv",
            columns=("sentence1", "sentence2"),
            label="similarity",
            classes=0,
            low=0,
            high=5,
            metric="pearson",
            output="Predicted_Similiary",  # spelt as the course's own tools expect it
        ),
    )
}
SPLITS = {"train": "train", "dev": "dev", "test": "test-student"}


@dataclass(frozen=True)
class Examples:
    """n examples of one split of a task."""

    ids: list  # n str
    sentences: list  # n str
    second_sentences: list | None  # n str, the second sentences of pairs
    labels: np.ndarray | None  # (n,) float32, NaN for an unlabelled example; None where the file has none (test)

    def __len__(self):
        return len(self.ids)

    def sample(self, n):
        """n of them at random, always the same (the files are not in random order); all of them where n is None."""
        if n is None or n >= len(self):
            return self
        return self.take(np.sort(np.random.default_rng(0).permutation(len(self))[:n]))

    def take(self, rows):
        """Some of them. Args: rows, their places, (m,) int."""
        pick = lambda values: None if values is None else [values[i] for i in rows]  # noqa: E731
        labels = None if self.labels is None else self.labels[rows]
        return Examples(pick(self.ids), pick(self.sentences), pick(self.second_sentences), labels)

    def with_unlabelled(self, other):
        """These and the ones of `other`, whose labels are NaN."""
        second = self.second_sentences and self.second_sentences + other.second_sentences
        labels = np.append(self.labels, np.full(len(other), np.nan, np.float32))
        return Examples(self.ids + other.ids, self.sentences + other.sentences, second, labels)


def read_examples(path, task, labelled=True):
    """The examples of a file.

    Lines that cannot be used are reported on stderr with file, line and reason, counted, and left out. Raises UserError
    where the file does not exist, is no UTF-8 text, lacks a needed column, or has no usable row.
    """
    needed = ["id", *task.columns] + [task.label] * labelled
    note = "" if labelled else ", and nothing is said of them"
    columns = task_files.read_columns(path, needed, lambda values: fault_of(values, task, labelled), note)
    labels = np.array(columns[-1], dtype=np.float32) if labelled else None
    return Examples(columns[0], columns[1], columns[2] if task.pair else None, labels)


def fault_of(values, task, labelled):
    """Why a row cannot be used, or None. Args: values, the texts of its id, sentences and, where labelled, label."""
    if not all(values[1 : 1 + len(task.columns)]):
        return "an empty sentence"
    return (label_fault(values[-1], task) if labelled else None) or task_files.id_fault(values[0])


def label_fault(text, task):
    """Why a text is no label of the task, or None."""
    try:
        label = float(text)
    except ValueError:
        label = None
    if label is None or "_" in text or not text.isascii():  # `float` takes 1_0, and Arabic digits
        return f"the label {text!r:.40} is not a number"
    if not task.low <= label <= task.high or (task.classes and label != int(label)):
        allowed = f"one of 0 to {task.classes - 1}" if task.classes else f"in {task.low} to {task.high}"
        return f"the label {text:.40} is not {allowed}"
    return None


def data_path(folder, task, split):
    """Where a split's file stands in a data folder: `split` is train, dev or test; or unlabelled (`data/more.py`)."""
    return Path(folder) / task.file.format(split=SPLITS.get(split, split))


class DataSet:
    """Examples with their token ids: what training and evaluation draw batches from."""

    def __init__(self, examples, tokenizer, encoding="joint"):
        """Args: encoding, as `Task.encoding` says."""
        self.examples = examples
        self.encoded = []  # one list of n encoded sequences for each sequence that an example has
        if examples.second_sentences is None or encoding != "siamese":
            self.encoded.append(tokenizer.encode(examples.sentences, examples.second_sentences))
        if encoding in ("siamese", "both"):
            self.encoded += [tokenizer.encode(examples.sentences), tokenizer.encode(examples.second_sentences)]

    def __len__(self):
        return len(self.examples)

    def batch(self, indices):
        """A `Batch` of B examples. Args: indices, a list of B int.

        Its sequences: B sentences or joint pairs; "siamese", B first sentences, then B second ones; "both", B joint
        pairs, then B first sentences, then B second ones.
        """
        return pack([encoded[i] for encoded in self.encoded for i in indices])

    def labels(self, indices):
        """(B,) float32 tensor."""
        return torch.from_numpy(self.examples.labels[indices])

    def by_length(self, batch_size):
        """Lists of indices, of examples of similar length in each list, all examples once: the order for evaluation."""
        lengths = [sum(len(ids) for ids, _ in sequences) for sequences in zip(*self.encoded, strict=True)]
        order = sorted(range(len(self)), key=lengths.__getitem__)
        return [order[i : i + batch_size] for i in range(0, len(order), batch_size)]


def load_examples(args, splits=SPLITS):
    """The files of a run: {task: {split: Examples}}. A task without a test file has no "test".

    Args: args, the flags of `multitask.py` (listed in `support/flags.py`). Raises UserError as `read_examples` does.
    """
    examples = {}
    for task in TASKS.values():
        examples[task.name] = {}
        for split in splits:
            path = task_files.path_of(args, task.name, split, data_path(args.data, task, split))
            if split == "test" and not os.path.lexists(path):
                print(f"{path} does not exist: no test predictions for {task.name}", file=sys.stderr)
                continue
            these = read_examples(path, task, split != "test").sample(args.max_examples)
            if split != "train":
                task_files.report_doubles(path, these.ids)
            if split == "dev" and task.metric == "pearson":
                task_files.report_constant(path, these.labels)
            examples[task.name][split] = these
    return examples


def load_data(args, tokenizer, splits=SPLITS):
    """What a run computes with: {task: {split: DataSet}}."""
    splits = [split for split in splits if split != "test" or not args.skip_test]
    datasets = {}
    for name, files in load_examples(args, splits).items():
        if "train" in files:  # --fold K/N leaves part K out, so that this run can later teach on it (distill.py)
            left_out = in_fold(files["train"].ids, args.fold)
            if args.fold and left_out.all() == left_out.any():
                which = "every" if left_out.all() else "no"
                raise UserError(f"--fold {args.fold} leaves out {which} training example of {name}; choose another")
            files["train"] = files["train"].take(np.flatnonzero(~left_out)).sample(args.train_examples)
            if "dev" in files:
                task_files.report_known(name, files["train"], files["dev"])
            path = data_path(args.unlabelled or "", TASKS[name], "unlabelled")
            if args.unlabelled and os.path.lexists(path):
                new = read_examples(path, TASKS[name], labelled=False).sample(args.max_examples)
                files["train"] = files["train"].with_unlabelled(new.sample(args.train_examples))
        encoding = TASKS[name].encoding(args.pair_encoding, args.use_means)
        datasets[name] = {split: DataSet(examples, tokenizer, encoding) for split, examples in files.items()}
    return datasets
