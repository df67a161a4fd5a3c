"""Look at runs: SMART's effect, maps of sentences with the predicted sentiment as height, training curves.

    python visualize.py smart --weak RUN [RUN ...] --strong RUN [RUN ...] [--plain RUN ...] --out smart.png
    python visualize.py embeddings --runs RUN [RUN ...] [--models 1 2 5] [--method pca] --out embeddings.png
    python visualize.py curves RUN [RUN ...] --out curves.png

RUN is the folder of a run of `multitask.py`, or its evidence in results/runs. `embeddings` shows the SST dev sentences
as one model sees them and as ensembles do. For a fair comparison take runs of one kind: seeds of a row, or rows of
equal quality. The model with the median accuracy comes first, those near it next. `pca_tsne.py` has the maths. Figures
are PNG files of 900 pixels' width, wider for curves of more than three tasks; they need matplotlib.
"""

import support.interrupt  # noqa: F401, from here on Ctrl-C prints one line

import importlib.util

import numpy as np
import torch

from evaluate import check_finite, probabilities, score
from kernels import precision
from model import MultitaskBert
from pca_tsne import pca, tsne
from predict import examples_of, flags_of, outputs_of
from support import evidence, folders, metrics_file, run_folder
from support.console import Parser, UserError, command
from support.figures import COLOURS, STYLES, draw_curves, draw_maps, draw_smart, names_of, save
from support.flag_types import place, positive
from support.flags import add_device, choose_device
from support.places import check_figure
from tasks import TASKS, DataSet

SST = TASKS["sst"]
METHODS = {"pca": "PCA", "tsne": "t-SNE"}
# principal components of the embeddings that maps are made from, and evidence keeps: 97 % of the variance of a plain
# model's; 45 % with --use_means, where the mean of hidden states is spread over all of its dimensions
COMPONENTS = 16


# ----- what runs recorded


def lines_of(run, kind, names):
    """The `train` or `dev` lines of a run's metrics that have a task and all of these names, a list of dicts."""
    epochs = flags_of(run).get("epochs")
    every = [line for line in metrics_file.read(run) if line["kind"] == kind and line.keys() & TASKS.keys()]
    lines = [line for line in every if line.keys() >= {*names}]
    if not lines and epochs == 0:
        raise UserError(f"{run} is a soup, which has no epochs; name one of its members")
    if not lines:
        raise UserError(f"{run} has no {kind} lines of the tasks; let it finish an epoch, or name another run")
    return lines


def sst_accuracies(run, wanted):
    """SST dev accuracies, one per epoch. Args: wanted, "with weak SMART", "with strong SMART" or "without SMART"."""
    config = flags_of(run)
    found = f"with {config.get('smart') or 'weak'} SMART" if config.get("use_smart") else "without SMART"
    if found != wanted:
        raise UserError(f"{run} was trained {found}, not {wanted}; name it with another flag")
    return [line["sst"] for line in lines_of(run, "dev", ["sst"])]


# ----- what models make of sentences


@torch.inference_mode()
def look(model, dataset, batch_size=64):
    """The SST side of a model: what its head reads, (n, H) or (n, 2H), and class probabilities (n, 5), float32.

    Raises UserError where one of them is not finite.
    """
    model.eval()
    device = next(model.parameters()).device
    order, pooled, p = [], [], []
    for numbers in dataset.by_length(batch_size):
        batch = dataset.batch(numbers).to(device)
        with precision.autocast(device):
            (h,) = model.features(SST.name, model.bert.embed(batch), batch)
            logits = model.heads[SST.name](h)
        order += numbers
        pooled.append(h.float().cpu())
        p.append(probabilities(SST, logits.float()).cpu())
    back = np.argsort(order)
    return tuple(check_finite(model.bert, SST.name, torch.cat(parts).numpy()[back]) for parts in (pooled, p))


def components(h):
    """(n, m) -> (n, at most `COMPONENTS`): sentence embeddings, scaled to a mean norm of 1, as principal components."""
    return pca(h / np.linalg.norm(h, axis=1).mean(), min(COMPONENTS, *h.shape))


def view(run, examples, device):
    """What a run's best model makes of SST examples: `components` of what its head reads, and probabilities (n, 5)."""
    if evidence.is_evidence(run):
        p = outputs_of(run, {SST.name: examples}, "dev", device)[SST.name]
        found = evidence.more_of(run, "sst-dev-components")
        if len(found) != len(examples) or found.ndim != 2:
            raise UserError(f"{run} has components of other than {len(examples)} sentences; {evidence.REMEDY}")
        return found, p
    model, tokenizer = MultitaskBert.load(folders.model_folder(run))
    h, p = look(model.to(device), DataSet(examples, tokenizer))
    return components(h), p


def map_models(args, examples):
    """A dict for each of args.models: `models`, the number k; `xy` (n, 2); `height` (n,); `accuracy`.

    The embedding of k models is theirs side by side. Their probabilities p are averaged, and the height of a sentence
    is the expected class Σ_c c p_c, 0 to 4.
    """
    seen = [view(run, examples, choose_device(args)) for run in args.runs]
    accuracies = [score(SST, p, examples.labels) for _, p in seen]
    typical = np.argsort(np.abs(np.array(accuracies) - np.median(accuracies)), kind="stable")
    panels = []
    for k in args.models:
        h = np.concatenate([seen[i][0] for i in typical[:k]], 1)
        p = np.mean([seen[i][1] for i in typical[:k]], 0)
        xy = pca(h) if args.method == "pca" else tsne(h, args.perplexity, seed=args.seed)
        height, accuracy = p @ np.arange(SST.classes), score(SST, p, examples.labels)
        if (xy[:, 0] - xy[:, 0].mean()) @ height < 0:
            xy = xy * [-1, 1]  # a map has no left or right: here the prediction rises to the right, in every panel
        panels.append({"models": k, "xy": xy, "height": height, "accuracy": accuracy})
    return panels


# ----- the command line


def arguments():
    parser = Parser(prog="visualize.py", description="Figures of runs of multitask.py, as PNG files.")
    figures = parser.add_subparsers(dest="figure", required=True, metavar="{smart,embeddings,curves}")

    add = figures.add_parser("smart", help="SST dev accuracy per epoch with weak and strong SMART").add_argument
    add("--weak", type=place, nargs="+", required=True, metavar="RUN", help="runs with --use_smart --smart weak")
    add("--strong", type=place, nargs="+", required=True, metavar="RUN", help="runs with --use_smart --smart strong")
    add("--plain", type=place, nargs="+", default=[], metavar="RUN", help="runs without SMART")
    add("--out", type=place, default="smart.png", metavar="FILE", help="the figure")

    embeddings = figures.add_parser("embeddings", help="maps of the SST dev sentences, predicted sentiment as height")
    add = embeddings.add_argument
    add("--runs", type=place, nargs="+", required=True, metavar="RUN", help="the models, k of them an ensemble")
    add("--models", nargs="+", type=positive(int), default=None, metavar="K",
        help="a panel for each number of models (default: those of 1 2 5 that there are runs for)")  # fmt: skip
    add("--method", choices=tuple(METHODS), default="tsne", help="how a map is made")
    add("--perplexity", type=positive(float, 2), default=30.0, help="of t-SNE: how many neighbours count")
    add("--seed", type=positive(int, 0), default=0, help="of t-SNE")
    add("--data", type=place, metavar="DIR", help="folder of the task files (default: the data of the first RUN)")
    add("--out", type=place, default="embeddings.png", metavar="FILE", help="the figure")
    add_device(embeddings)

    add = figures.add_parser("curves", help="training losses and dev metrics").add_argument
    add("runs", type=place, nargs="+", metavar="RUN")
    add("--out", type=place, default="curves.png", metavar="FILE", help="the figure")
    return parser


def check(args):
    """Raises UserError for what no figure can be drawn of, before the models take their time."""
    if importlib.util.find_spec("matplotlib") is None:
        raise UserError("figures need matplotlib, which is not installed; install it with: pip install matplotlib")
    for runs in (args.weak, args.strong, args.plain) if args.figure == "smart" else (args.runs,):
        run_folder.check_named_once(runs)
    check_figure("--out", args.out)
    if args.figure == "curves" and len(args.runs) > (most := len(COLOURS) * len(STYLES)):
        raise UserError(f"{len(args.runs)} curves cannot be told apart, {most} can; name fewer runs")
    if args.figure == "embeddings":
        if args.method == "pca" and (args.perplexity, args.seed) != (30.0, 0):
            raise UserError("--perplexity and --seed are of t-SNE, and --method is pca; leave them out")
        args.models = args.models or [k for k in (1, 2, 5) if k <= len(args.runs)]
        if max(args.models) > len(args.runs):
            raise UserError(f"--models {max(args.models)} needs as many --runs, not {len(args.runs)}; name more")
        if len(args.models) > 5:  # their titles would overlap
            raise UserError(f"--models asks for {len(args.models)} maps, and a figure has room for 5; name fewer")


@command
def main(argv=None):
    args = arguments().parse_args(argv)
    check(args)
    if args.figure == "smart":
        groups = {"with weak SMART": args.weak, "with strong SMART": args.strong, "without SMART": args.plain}
        drawn = draw_smart({k: [sst_accuracies(run, k) for run in group] for k, group in groups.items() if group})
    elif args.figure == "curves":
        records = [(lines_of(run, "train", []), lines_of(run, "dev", ["epoch", "score"])) for run in args.runs]
        records = dict(zip(names_of(args.runs), records, strict=True))
        drawn = draw_curves(records, {task.name: task.metric for task in TASKS.values()})
    else:
        examples = examples_of(args.runs, args.data, "dev")[SST.name]
        if len(examples) < 4:
            raise UserError("there are too few SST dev sentences for a map; name a folder with 4 or more with --data")
        drawn = draw_maps(map_models(args, examples), examples.labels, SST.names, METHODS[args.method])
    save(drawn, args.out)
    print(f"wrote {args.out}")


if __name__ == "__main__":
    main()
