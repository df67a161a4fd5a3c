"""The flags of `ensemble.py`."""

from support import folders, run_folder
from support.console import Parser, UserError
from support.flag_types import place, positive
from support.flags import add_device


def parse_ensemble(argv):
    """The flags of `ensemble.py`, checked."""
    parser = Parser(prog="ensemble.py", description="Combine finished runs.")
    add = parser.add_argument
    add("runs", type=place, nargs="+", metavar="RUN",
        help="folder of a run of multitask.py, or its evidence in results/runs")  # fmt: skip
    add("--method", choices=("average", "vote", "soup"), default="average", help="of outputs, of decisions, of weights")
    add("--greedy", action="store_true", help="only those that improve it on dev (task by task; a soup as a whole)")
    add("--weights", type=positive(float), nargs="+", metavar="W", help="of the RUNs (default: 1)")
    add("--tune_weights", action="store_true", help="search on half of dev, use if better on the rest")
    add("--split", choices=("dev", "test"), default="dev", help="what to predict (choices are made on dev)")
    add("--out", type=place, default="runs/ensemble", metavar="DIR", help="for predictions, or the soup")
    add("--data", type=place, metavar="DIR", help="folder of the task files (default: the data of the first RUN)")
    add_device(parser)
    args = parser.parse_args(argv)
    run_folder.check_named_once(args.runs, ", and give it a larger weight with --weights")
    if args.weights and len(args.weights) != len(args.runs):
        raise UserError(f"--weights gives {len(args.weights)} weights to {len(args.runs)} runs; give one for each")
    for flag in ("greedy", "tune_weights"):
        if getattr(args, flag) and len(args.runs) == 1:
            raise UserError(f"--{flag} has nothing to choose between with one run; name more of them")
    if args.tune_weights and (args.weights or args.method == "soup"):
        raise UserError("--tune_weights finds the weights of --method average or vote; leave out --weights and soups")
    folders.check_vacant_for_ensemble(args.out, soup=args.method == "soup")
    return args
