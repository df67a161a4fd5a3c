"""Try a trained model on your own sentences.

    python predict.py "I laughed until I cried."                              its sentiment, all five probabilities
    python predict.py "How old are you?" "What is your age?"                  paraphrase or not, and how similar
    python predict.py --file lines.txt                                        a sentence a line; a tab makes it a pair
    python predict.py                                                         interactive

`--run DIR` names the folder of a run of `multitask.py` (default: runs/sample).
"""

import support.interrupt  # noqa: F401, from here on Ctrl-C prints one line

import itertools
import os
import re
import sys
from argparse import Namespace

from evaluate import METRICS, model_outputs, to_predictions
from model import MultitaskBert
from sampling import SAMPLINGS
from smart import PRESETS
from support import evidence, fingerprints, saved_flags, task_files
from support.console import Parser, UserError, as_utf8, command
from support.flag_types import place
from support.flags import add_device, add_kernels, choose_device, choose_kernels, multitask_parser
from support.folders import check_run, model_folder
from support.output_cache import cached_outputs
from tasks import SPLITS, TASKS, DataSet, Examples, data_path, load_examples

# characters that steer a terminal, turn text round, or break lines
CONTROL = re.compile(r"[\0-\x1f\x7f-\x9f\u200b\u2028-\u202e\u2060-\u2069\ufeff]")
TABLES = TASKS, SPLITS, SAMPLINGS, PRESETS  # what the flags of multitask.py depend on
# the flags of a run that say which examples it was trained and chosen on
SOURCES = ("data", "max_examples", *(f"{task}_{split}" for task in TASKS for split in SPLITS))


def describe(model, tokenizer, sentences, second_sentences=None):
    """What the model says of n sentences, or of n pairs: a list of n str. Runs all tasks of that kind."""
    texts = [[] for _ in sentences]
    for task in TASKS.values():
        if task.pair != (second_sentences is not None):
            continue
        examples = Examples([""] * len(sentences), sentences, second_sentences, None)
        values = model_outputs(model, task, DataSet(examples, tokenizer, model.encodings[task.name]))
        for text, value, decision in zip(texts, values, to_predictions(task, values), strict=True):
            text.append(f"{task.title or task.label}: {in_words(task, value, decision)}")
    return ["; ".join(text) for text in texts]


def in_words(task, value, decision):
    """Text: "yes (98 %)", "4.2 of 5", or of more than two classes the likeliest one and all others."""
    if not task.classes:
        return f"{min(max(value, task.low), task.high):.1f} of {task.high}"
    names = task.names or [str(c) for c in range(task.classes)]
    text = f"{names[decision]} ({value[decision]:.0%})".replace("%", " %")
    if task.classes == 2:
        return text
    others = (
        f"{name} {p:.0%}".replace("%", " %") for name, p in zip(names, value, strict=True) if name != names[decision]
    )
    return f"{text}; {', '.join(others)}"


def describe_rows(model, tokenizer, rows):
    """Prints what the model says of each row, one sentence or two. Raises UserError for a row of more."""
    for row in rows:
        if len(row) > 2:
            said = f"{' / '.join(row)!r:.80} has {len(row)} sentences"
            raise UserError(f"{said}; put one or two on a line, a tab between")
    said = {}
    for count in (1, 2):
        numbers = [i for i, row in enumerate(rows) if len(row) == count]
        if numbers:
            columns = map(list, zip(*(rows[i] for i in numbers), strict=True))
            said.update(zip(numbers, describe(model, tokenizer, *columns), strict=True))
    for i, row in enumerate(rows):
        # a terminal obeys control characters
        print("\t".join(CONTROL.sub(lambda c: ascii(c[0])[1:-1], text) for text in row) + f"\n    {said[i]}")


# ----- what runs say of dev and test


def flags_of(run):
    """The flags that a run of `multitask.py`, or its evidence, was started with: a dict, checked as if typed."""
    if not evidence.is_evidence(run):
        check_run(run)
    return saved_flags.read_flags(run, multitask_parser(*TABLES))


def data_flags(run):
    """Which data a run was trained on: a Namespace of --data, --max_examples, and a --TASK_SPLIT for each file."""
    model_folder(run)  # there is one
    saved = flags_of(run)
    if any(name not in saved for name in SOURCES):
        raise UserError(f"{run} is no run of multitask.py on the tasks {', '.join(TASKS)}; leave it out")
    return Namespace(**{name: saved[name] for name in SOURCES})


def paths_of(run, data=None):
    """The task files of a run, or of the folder --data: {"TASK-SPLIT": Path}, without test files that do not exist."""
    return task_paths(data_flags(run) if data is None else _in_folder(data))


def task_paths(own, splits=SPLITS):
    """The same for flags of `multitask.py`, a Namespace. Raises UserError for a first line that no task file has."""
    found = {}
    for task, split in itertools.product(TASKS.values(), splits):
        path = task_files.path_of(own, task.name, split, data_path(own.data, task, split))
        if split != "test" or os.path.lexists(path):
            task_files.check_header(path, ["id", *task.columns] + [task.label] * (split != "test"))
            found[f"{task.name}-{split}"] = path
    return found


def _in_folder(data):
    return Namespace(**(dict.fromkeys(SOURCES) | {"data": data}))


def examples_of(runs, data, split):
    """The examples that all runs are scored on, {task: Examples}: of --data, or those of the first run.

    Evidence brings ids and labels of its own, no sentences. A task without a test file has no examples of test.
    """
    trained = [run for run in runs if not evidence.is_evidence(run)]
    if not trained and data is None:
        kept = evidence.examples_of(runs[0], split)
        check_labels(runs[0], kept, split)
        return {name: Examples(ids, [], None, labels) for name, (ids, labels) in kept.items()}
    own = [data_flags(run) for run in trained]
    common = own[0] if data is None else _in_folder(data)
    for run, other in zip(trained, own, strict=True):
        if split == "dev" and _scored_on(other) != _scored_on(common):
            words = [" ".join(f"--{k} {v}" for k, v in vars(of).items() if v is not None) for of in (other, common)]
            print(f"{run} was trained with {words[0]}; scores are on {words[1]}", file=sys.stderr)
    return {name: of[split] for name, of in load_examples(common, (split,)).items() if split in of}


def _scored_on(own):
    """What flags of a run say of its dev examples: --max_examples, and where each file really is."""
    files = (getattr(own, f"{task.name}_dev") or data_path(own.data, task, "dev") for task in TASKS.values())
    return [own.max_examples, *map(os.path.realpath, files)]


def check_labels(run, kept, split):
    """Raises UserError for examples of evidence, {task: (ids, labels)}, that cannot be of these tasks."""
    if missing := [f"{name}-dev" for name in TASKS if split == "dev" and name not in kept]:
        raise UserError(f"{run} keeps nothing of {missing[0]}; {evidence.REMEDY}")
    for name, (_, labels) in kept.items():
        if name not in TASKS:
            raise UserError(f"{run} keeps outputs of {name}, which is no task of tasks.py; leave it out")
        task = TASKS[name]
        if labels is None:
            continue
        if ((labels < task.low) | (labels > task.high) | (bool(task.classes) & (labels % 1 != 0))).any():
            raise UserError(f"{run}: labels of {name}-{split} are no labels of this task; {evidence.REMEDY}")


def outputs_of(run, examples, split, device):
    """What a run's best model says of dev or test: {task: values}, as `evaluate.model_outputs` gives them.

    Args: examples, {task: Examples}. The model is loaded only for what neither evidence nor cache holds.
    """
    if evidence.is_evidence(run):
        said = evidence.outputs_of(run, split, {name: these.ids for name, these in examples.items()})
        for name, values in said.items():
            if values.shape[1:] != ((TASKS[name].classes,) if TASKS[name].classes else ()):
                raise UserError(f"{run}: outputs of {name}-{split} are none of this task; {evidence.REMEDY}")
            if split == "dev":
                warn_of_another_run(run, TASKS[name], values, examples[name].labels)
        return said

    def compute(names):
        model, tokenizer = MultitaskBert.load(model_folder(run))
        data = {name: DataSet(examples[name], tokenizer, model.encodings[name]) for name in names}
        return {name: model_outputs(model.to(device), TASKS[name], dataset) for name, dataset in data.items()}

    which = {name: fingerprints.of_examples(these) for name, these in examples.items()}
    return cached_outputs(run, split, which, compute)


def warn_of_another_run(folder, task, values, labels):
    """Says so on stderr where evidence does not score what its metrics say: files of two runs, or other labels."""
    now = METRICS[task.metric](to_predictions(task, values), labels)
    before = evidence.best_epoch(folder).get(task.name, now)
    if abs(now - before) > 0.005:
        said = f"scores {now:.3f} in {task.name}, and its metrics.jsonl says {before:.3f}"
        print(f"warning: {folder} {said}; fetch it again, or name the data that it is of", file=sys.stderr)


# ----- the command line


@command
def main(argv=None):
    parser = Parser(prog="predict.py", description="What a trained model says of your sentences.")
    parser.add_argument("sentences", nargs="*", help="one sentence, or a pair: two, or ' || ' between them")
    parser.add_argument("--run", type=place, default="runs/sample", metavar="DIR", help="folder of a run")
    parser.add_argument("--file", type=place, metavar="FILE",
        help="a sentence a line, or a pair with a tab between; - for standard input")  # fmt: skip
    add_device(parser)
    add_kernels(parser)
    args = parser.parse_args(argv)
    if len(args.sentences) > 2:
        raise UserError(f"{len(args.sentences)} sentences were given; give one, or two in quotes, or use --file")
    texts = [as_utf8(text).strip() for text in args.sentences]
    rows = [_typed(*texts) if len(texts) == 1 else texts] if texts else None
    if rows and (args.file is not None or not rows[0] or not all(rows[0])):
        raise UserError("give one sentence, or two, that are not empty, or a --file, but not both")
    rows = rows if args.file is None else task_files.read_sentences(args.file, TASKS)
    folder = model_folder(args.run)
    device = choose_device(args)
    choose_kernels(args, device)
    model, tokenizer = MultitaskBert.load(folder)
    model.to(device)
    if rows is not None:
        describe_rows(model, tokenizer, rows)
    else:
        print("Type a sentence, or two with a tab (or ' || ') between them. An empty line ends.")
        while (row := _ask()) is not None:
            if row:
                describe_rows(model, tokenizer, [row])


def _typed(text):
    """The sentences of a text that somebody typed, between tabs or " || "."""
    return task_files.sentences_of(text.replace("||", "\t"))


def _ask():
    """The sentences that somebody types next, a tab for " || "; none where they get no answer, None at the end."""
    try:
        if not (line := as_utf8(input("> "), sys.stdin.encoding).strip()):
            return None
        row = _typed(line)
        if len(row) in (1, 2):
            return row
        print("that is more than two sentences" if row else "that is no sentence")
    except EOFError:
        return None
    except UserError as error:
        print(error)
    return []


if __name__ == "__main__":
    main()
