"""Try a trained model on your own sentences.

    python predict.py "A film that never lets go."                            its sentiment, all five probabilities
    python predict.py "How old are you?" "What is your age?"                  paraphrase or not, and how similar
    python predict.py --file lines.txt                                        a sentence a line; a tab makes it a pair
    python predict.py                                                         interactive

Each with `--run DIR`, the folder of a run of `multitask.py`.
"""

import sys
from pathlib import Path

from evaluate import decide, outputs
from model import MultitaskBert
from support import run_folder
from support.console import Parser, UserError, command
from support.flags import add_device, choose_device
from tasks import TASKS, DataSet, Examples


def describe(model, tokenizer, sentences, others=None):
    """What the model says of n sentences, or of n pairs: a list of n str. Runs all tasks of that kind."""
    texts = [[] for _ in sentences]
    for task in TASKS.values():
        if task.pair != (others is not None):
            continue
        examples = Examples([""] * len(sentences), sentences, others, None)
        values = outputs(model, task, DataSet(examples, tokenizer, model.encoding(task.name)))
        for text, value, decision in zip(texts, values, decide(task, values), strict=True):
            text.append(f"{task.label}: {_words(task, value, decision)}")
    return ["; ".join(text) for text in texts]


def _words(task, value, decision):
    if not task.classes:
        return f"{min(max(value, task.low), task.high):.2f} on a scale of {task.low} to {task.high}"
    names = task.names or range(task.classes)
    every = ", ".join(f"{name} {p:.1%}" for name, p in zip(names, value, strict=True))
    return f"{names[decision]} ({every})"


def describe_lines(model, tokenizer, lines):
    """Prints what the model says of each line: a sentence, or two with a tab between them. Empty lines are left out."""
    lines = [[part.strip() for part in line.split("\t") if part.strip()] for line in lines]
    lines = [line for line in lines if line]
    for line in lines:
        if len(line) > 2:
            raise UserError(
                f"{' / '.join(line)!r:.80} has {len(line)} sentences; put one or two on a line, a tab between"
            )
    said = {}
    for count in (1, 2):
        numbers = [i for i, line in enumerate(lines) if len(line) == count]
        if numbers:
            columns = map(list, zip(*(lines[i] for i in numbers), strict=True))
            said.update(zip(numbers, describe(model, tokenizer, *columns), strict=True))
    for i, line in enumerate(lines):
        print("\t".join(line) + f"\n    {said[i]}")


@command
def main(argv=None):
    parser = Parser(prog="predict.py", description="What a trained model says of your sentences.")
    parser.add_argument("sentences", nargs="*", help="one sentence, or the two of a pair")
    parser.add_argument("--run", default="runs/sample", metavar="DIR", help="folder of a run (default: runs/sample)")
    parser.add_argument(
        "--file", metavar="FILE", help="a sentence a line, or a pair with a tab between; - for standard input"
    )
    add_device(parser)
    args = parser.parse_args(argv)
    if len(args.sentences) > 2:
        raise UserError(f"{len(args.sentences)} sentences were given; give one, or two in quotes, or use --file")
    if args.sentences and (args.file or not all(text.strip() for text in args.sentences)):
        raise UserError("give one sentence, or two, that are not empty, or a --file, but not both")
    lines = (
        read_lines(args.file)
        if args.file
        else ["\t".join(args.sentences).encode(errors="ignore").decode()]
        if args.sentences
        else None
    )
    folder = run_folder.best_folder(args.run)
    if not folder.exists():
        raise UserError(f"{args.run} holds no trained model; train one with `make train`, or name a run with --run")
    model, tokenizer = MultitaskBert.load(folder)
    model.to(choose_device(args))
    if lines is not None:
        describe_lines(model, tokenizer, lines)
    else:
        print("Type a sentence, or two with a tab (or ' || ') between them. An empty line ends.")
        while line := _ask():
            try:
                describe_lines(model, tokenizer, [line.replace("||", "\t")])
            except UserError as error:
                print(error)


def read_lines(file):
    """The lines of a UTF-8 file, or of standard input where `file` is "-"."""
    raw = sys.stdin.buffer.read() if file == "-" else Path(file).read_bytes()
    try:
        return raw.decode("utf-8").split("\n")
    except UnicodeDecodeError:
        raise UserError(f"{file} is not UTF-8 text; save it as UTF-8") from None


def _ask():
    """The next line that somebody types, without what is not text in it; "" at the end."""
    try:
        return input("> ").encode(errors="ignore").decode().strip()
    except (EOFError, UnicodeDecodeError):
        return ""


if __name__ == "__main__":
    main()
