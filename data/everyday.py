"""Some seven hundred everyday sentences and pairs: does a trained model answer sensibly? `make everyday` asks it.

    python data/everyday.py --run runs/sample --show 1000

No model has trained on the lines of `everyday.tsv`. Their writers were language models that worked apart. The first
sixty mislead on purpose: there, questions that mean the same share fewer words than others. All others were written
without a look at the sample data or at any model's answer, and labelled again without a look at the labels. A hundred
of the question pairs are alike but for a word or two. Each line holds what is expected and one sentence or two:
`negative` or `positive` (the model is right where its likeliest class is on that side), 1 or 0 (paraphrase or not),
or a similarity from 0 to 5 (together they are scored by Pearson's r).
"""

import re
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

import support.interrupt  # noqa: F401, from here on Ctrl-C prints one line

import numpy as np

from evaluate import model_outputs, pearson, to_predictions
from model import MultitaskBert
from support import files
from support.console import Parser, UserError, command, table
from support.flag_types import place, positive
from support.folders import model_folder
from tasks import TASKS, DataSet, Examples

GOALS = {"sst": 0.80, "para": 0.85, "sts": 0.85}  # polarity, accuracy, Pearson's r
HEADER = "expected\tsentence1\tsentence2"


def read_list(path):
    """{task: (what is expected, sentences, second sentences)}, lists of str. Raises UserError for a damaged file."""
    found = {name: ([], [], []) for name in GOALS}
    header, *lines = files.read_text(path).splitlines() or [""]
    if header != HEADER:
        raise UserError(f"{path} begins with {header!r:.80}, not with {HEADER!r}; fetch it again")
    for number, line in enumerate(lines, 2):
        if not line.strip():
            continue
        expected, *sentences = map(str.strip, line.split("\t"))
        one = sentences[1:] == [""]
        answers = "positive|negative" if one else r"[0-4](\.\d+)?|5(\.0+)?"
        if len(sentences) != 2 or not sentences[0] or not re.fullmatch(answers, expected):
            raise UserError(f"{path}, line {number}: {line!r:.80} has no answer or no two sentences; fetch it again")
        # 0 and 1 stand for both kinds of pairs: those of paraphrases are questions
        name = "sst" if one else "para" if expected in ("0", "1") and sentences[0].endswith("?") else "sts"
        for column, value in zip(found[name], (expected, *sentences), strict=True):
            column.append(value)
    for name, (expected, _, _) in found.items():
        if not expected:
            raise UserError(f"{path} has no lines of {name}; fetch it again")
    return found


def ask(model, tokenizer, task, sentences, second_sentences):
    """The model's predictions (n,) for n sentences or pairs."""
    examples = Examples([""] * len(sentences), sentences, second_sentences if task.pair else None, None)
    return to_predictions(task, model_outputs(model, task, DataSet(examples, tokenizer, model.encodings[task.name])))


@command
def main(argv=None):
    parser = Parser(prog="data/everyday.py", description="Everyday sentences and pairs.")
    parser.add_argument("--run", type=place, default="runs/sample", metavar="DIR", help="folder of a run")
    parser.add_argument("--show", type=positive(int), default=8, help="how many wrong answers of each task to print")
    args = parser.parse_args(argv)
    model, tokenizer = MultitaskBert.load(model_folder(args.run))
    rows = []
    for name, (expected, sentences, second_sentences) in read_list(Path(__file__).with_name("everyday.tsv")).items():
        said = ask(model, tokenizer, TASKS[name], sentences, second_sentences)
        if name == "sts":
            right, score = np.abs(said - np.array(expected, float)) < 1.5, pearson(said, np.array(expected, float))
        else:
            right = np.sign(said - 2) == [1 if e == "positive" else -1 for e in expected]
            right = right if name == "sst" else said == np.array(expected, int)
            score = float(right.mean())
        wrong = np.flatnonzero(~right)
        for i in wrong[: args.show]:
            print(f"{name}: {said[i]:.3g} instead of {expected[i]}: {sentences[i]} {second_sentences[i]}".rstrip())
        if len(wrong) > args.show:
            print(f"{name}: {len(wrong) - args.show} more wrong answers; --show {len(wrong)} prints them")
        rows.append([name, len(said), score, GOALS[name], "yes" if score >= GOALS[name] else "no"])
    print(table(["task", "lines", "score", "goal", "reached"], rows))


if __name__ == "__main__":
    main()
