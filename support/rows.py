"""What the tables consist of: rows, presets that say how large they are, published figures; flags of `reproduce.py`.

The published figures are of the CS224N report "Exploring Pretraining, Finetuning and Regularization for Multitask
Learning of minBERT": bert-base-uncased, all 283,003 Quora pairs.
"""

import re
import shlex
import sys
from argparse import BooleanOptionalAction
from pathlib import Path
from typing import NamedTuple

from support.console import Parser, UserError
from support.flag_types import place, positive


class Row(NamedTuple):
    """One row of a table. A field of flags is a text, as one would type it."""

    name: str  # of its runs
    title: str
    flags: str | None  # None for a run that is started by hand, and kept with --keep
    encoder: str = ""  # the name of the SimCSE stage that it starts from, in `ENCODERS`
    published: tuple | None = None  # SST, paraphrase, STS, dev score


BASE_FLAGS = "--use_means"  # what all rows but the plain one build on: 0.754 ± 0.002 against 0.746 ± 0.003
PLAIN = Row("plain", "Finetune base model", "", published=(0.499, 0.862, 0.860, 0.764))
MEANS = Row("means", "means of hidden states beside [CLS]", "--use_means")
TUNING = [
    PLAIN,
    MEANS,
    Row("size-96", "heads 96 wide", "--classifier_size 96"),
    Row("size-1536", "heads 1536 wide", "--classifier_size 1536"),
    Row("layers-1", "heads of one layer", "--classifier_layers 1"),
    Row("layers-3", "heads of three layers", "--classifier_layers 3"),
    Row("extra-sst", "an extra SST pass each epoch", "--extra_sst"),
    Row("siamese", "each question of a pair alone (sts reads pairs both ways)", "--pair_encoding siamese"),
    Row("dropout-0", "dropout 0", "--hidden_dropout_prob 0"),
    Row("dropout-0.3", "dropout 0.3", "--hidden_dropout_prob 0.3"),
    Row("decay-0", "weight decay 0", "--weight_decay 0"),
    Row("decay-0.1", "weight decay 0.1", "--weight_decay 0.1"),
]
# not for --flags
BARRED = ["-h", "--help", "--option", "--seed", "--out", "--resume", "--eval_only", "--skip_test", "--max_examples"]
FROZEN = "--option pretrain --lr 1e-4"  # the usual rate: another, from a preset or --flags, is the encoder's
PALS, WEAK, STRONG = "--use_pals", "--use_smart --smart weak", "--use_smart --smart strong"
METHODS = [
    Row("pretrain", "Pretrain base model (encoder frozen)", FROZEN, "", (0.454, 0.625, 0.546, 0.617)),
    PLAIN,
    MEANS,
    Row("simcse", "+ SimCSE", "", "simcse", (0.501, 0.852, 0.870, 0.763)),
    Row("simcse-length", "+ SimCSE normalized sentence length", "", "simcse-length", (0.519, 0.745, 0.849, 0.729)),
    Row("pals", "+ PALs", PALS, "", (0.513, 0.862, 0.871, 0.770)),
    Row("pals-annealed", "+ PALs + PAL scheduling", f"{PALS} --sampling annealed", "", (0.517, 0.860, 0.862, 0.769)),
    Row("pretrain-pals", "+ Frozen BERT with PALs training", f"{FROZEN} {PALS} --pal_lr 3e-4", "",
        (0.506, 0.625, 0.797, 0.676)),
    Row("smart-weak", "+ SMART (weak)", WEAK, "", (0.510, 0.861, 0.864, 0.768)),
    Row("simcse-pals", "+ SimCSE + PALs", PALS, "simcse", (0.526, 0.867, 0.867, 0.775)),
    Row("simcse-pals-smart-weak", "+ SimCSE + PALs + SMART (weak)", f"{PALS} {WEAK}", "simcse",
        (0.505, 0.863, 0.847, 0.764)),
    Row("simcse-pals-smart-strong", "+ SimCSE + PALs + SMART (strong)", f"{PALS} {STRONG}", "simcse",
        (0.531, 0.869, 0.864, 0.778)),
    Row("smart-weak-8", "+ SMART (weak), 8 epochs", f"{WEAK} --epochs 8"),
    Row("smart-strong-8", "+ SMART (strong), 8 epochs", f"{STRONG} --epochs 8"),
]  # fmt: skip
MERGED = [  # one model each, made of several
    Row("soup", "uniform soup", None),
    Row("soup-greedy", "greedy soup", None),
    Row("distilled", "distilled student", None),
    Row("distilled-folds", "distilled student of out-of-fold teachers", None),
    Row("distilled-more", "the same, a third teacher, unlabelled examples", None),
    Row("distilled-smart", "SMART student of out-of-fold SMART teachers", None),
    Row("distilled-smart-5", "the same, two plain teachers more, 5 epochs", None),
    Row("distilled-smart-4", "SMART student of two SMART and two plain teachers", None),
    Row("distilled-smart-strong", "strong SMART student of the two SMART teachers", None),
    Row("distilled-smart-ball", "steered SMART student of the two SMART teachers", None),
    Row("distilled-noise", "student of the two SMART teachers, SMART with noise alone, no dropout", None),
]
PUBLISHED_ENSEMBLE = 0.786  # of 7 models, weighted average, dev score
ENCODERS = {"simcse": "", "simcse-length": "--normalize_length {length}"}
PRESETS = {  # flags of multitask.py and of simcse.py; how many characters `normalize_length` means; the seeds
    "sample": ("--data data/sample --epochs 2 --batch_size 16 --train_examples 300",
               "--max_sentences 1000", 60, [11711]),
    "minilm": ("--data data/cs224n-quora-14k --epochs 3 --bf16", "", 128, [11711, 11712, 11713]),
    "paper": ("--data data/cs224n --bert bert-base-uncased --epochs 10 --batch_size 64 --lr 2e-5",
              "", 256, [11711, 11712, 11713]),
}  # fmt: skip


def row_flags(args, row, seed):
    """The command line of a row's run, a list of str, without `--resume`. Args: args, the flags of `reproduce.py`."""
    _split(getattr(args, "simcse_flags", ""))  # an open quote there shall not wait for its turn
    base = "" if row is PLAIN else BASE_FLAGS
    text = f"{PRESETS[args.preset][0]} {args.flags} --option finetune {base} {row.flags} --seed {seed}"
    encoder = ["--bert", str(Path(args.out, row.encoder, "encoder"))] if row.encoder else []
    return [*_split(text), *encoder, "--out", str(Path(args.out, f"{row.name}-{seed}"))]


def encoder_flags(args, name):
    """The command line of a SimCSE stage: on the data, the device and from the encoder of the other runs."""
    parser = Parser(add_help=False)
    for flag in ("--data", "--bert", "--device"):
        parser.add_argument(flag)
    parser.add_argument("--bf16", action=BooleanOptionalAction)
    parser.add_argument("--use_gpu", action="store_true")
    shared, _ = parser.parse_known_args(row_flags(args, PLAIN, 0))
    given = [f"--{flag}" if value is True else f"--{flag}={value}" for flag, value in vars(shared).items() if value]
    _, common, length, _ = PRESETS[args.preset]
    own = f"{common} {ENCODERS[name].format(length=length)} {args.simcse_flags}"
    return [*given, *_split(own), "--out", str(Path(args.out, name))]


def _split(text):
    """The words of a command line."""
    try:
        return shlex.split(text)
    except ValueError as error:
        raise UserError(f"--flags or --simcse_flags has {str(error).lower()}: {text!r:.80}; quote them anew") from None


# ----- the command line of reproduce.py


def parse_reproduce(argv):
    """The flags of `reproduce.py`, checked, and what follows from them: `again`, the command as typed; `runs` and
    `predictions`, the folders of evidence and of test predictions.
    """
    parser = Parser(prog="reproduce.py", description="The tables, run by run, and the evidence of runs.")
    add = parser.add_argument
    add("--table", type=int, choices=(1, 2, 3), help="1 settings, 2 methods, 3 many models as one (runs nothing)")
    add("--preset", choices=tuple(PRESETS), default="sample", help="how much is trained: data, epochs, seeds")
    add("--rows", nargs="+", metavar="ROW", help="run only these rows (default: all of the table)")
    add("--seeds", type=positive(int, 0), nargs="+", default=None, help="(default: those of the preset)")
    add("--flags", default="", metavar="TEXT", help='more flags of multitask.py for every run: --flags="--data DIR"')
    add("--simcse_flags", default="", metavar="TEXT", help="more flags of simcse.py for its stages, likewise")
    add("--out", type=place, metavar="DIR", help="folder of the runs (default: runs/tables/PRESET)")
    add("--results", type=place, default="results", metavar="DIR", help="folder of the tables and of the evidence")
    add("--report", action="store_true", help="write the table from the evidence, and run nothing")
    add("--keep", type=place, metavar="RUN",
        help="make the evidence of this run, a run of multitask.py or a soup, as --row")  # fmt: skip
    add("--row", metavar="NAME", help="with --keep: of which row; one of the tables, or a new name")
    add("--data", type=place, metavar="DIR",
        help="where evidence has the task files from (default: where they were in training)")  # fmt: skip
    add("--data_name", metavar="NAME", help="what the evidence calls the data (default: the name of their folder)")
    add("--commit", help="with --keep: of the code that trained it (default: the one that is checked out)")
    add("--device", metavar="NAME", help="what to call the machine (default: the name of its processor or GPU)")
    add("--seconds", type=positive(int, 0), default=0, help="with --keep: how long it took")
    args = parser.parse_args(argv)
    check_reproduce(args)
    args.again = shlex.join(["reproduce.py", *(sys.argv[1:] if argv is None else argv)])
    args.out, args.seeds = args.out or f"runs/tables/{args.preset}", args.seeds or PRESETS[args.preset][-1]
    suffix = "" if args.preset == "minilm" else f"-{args.preset}"
    args.runs, args.predictions = (Path(args.results, f"{name}{suffix}") for name in ("runs", "predictions"))
    return args


def check_reproduce(args):
    """Raises UserError for flags that lack something, and for flags that do nothing."""
    if not args.table and not (args.keep and args.row):
        raise UserError("say which table with --table 1, 2 or 3, or make evidence with --keep RUN --row NAME")
    if args.keep and not args.row:
        raise UserError("--keep does not know of which row this run is; add --row NAME, and leave out --table")
    if args.row and not re.fullmatch(r"\w[\w.+-]*", args.row):
        raise UserError(f"--row {args.row!r:.80} cannot name a folder; take letters, digits and hyphens")
    if args.data_name and not re.fullmatch(r"\w[\w.+-]*", args.data_name):
        raise UserError(f"--data_name {args.data_name!r:.80} cannot name a folder; take letters, digits and hyphens")
    if twice := [seed for seed in args.seeds or () if args.seeds.count(seed) > 1]:
        raise UserError(f"--seeds names {twice[0]} twice, and a seed has one run; name it once")
    for name in ("flags", "simcse_flags"):
        if barred := [word for word in _split(getattr(args, name)) if word.partition("=")[0] in BARRED]:
            raise UserError(f"--{name} has {barred[0]!r:.40}, which a table sets itself or cannot use; leave it out")
    reads = not args.keep and (args.report or args.table == 3)
    for idle, names, where in (
        (args.keep, ("table", "rows", "report", "seeds", "simcse_flags"), "beside --keep"),
        (not args.keep, ("row", "commit", "seconds"), "without --keep"),
        (args.table == 3, ("flags",), "for table 3, which is made from all evidence"),
        (
            reads,
            ("rows", "seeds", "simcse_flags", "data", "data_name", "device"),
            "where nothing is run (--report, table 3)",
        ),
    ):
        if given := [name for name in names if idle and getattr(args, name)]:
            raise UserError(f"--{given[0]} does nothing {where}; leave it out")
