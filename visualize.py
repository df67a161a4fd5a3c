"""Look at runs: SMART's effect, maps of sentences with the predicted sentiment as height, training curves.

    python visualize.py smart --weak RUN [RUN ...] --strong RUN [RUN ...] [--plain RUN ...] --out smart.png
    python visualize.py embeddings --runs RUN [RUN ...] [--models 1 2 5] [--method pca] --out embeddings.png
    python visualize.py curves RUN [RUN ...] --out curves.png

RUN is the folder of a run of `multitask.py`. `embeddings` shows the SST dev sentences of the run, or of --data, as one
model sees them and as ensembles do: the first 1, 2, 5 of the runs. `pca_tsne.py` has the maths. Figures are PNG files
of 900 pixels' width; they need matplotlib, which nothing else here does.
"""

import importlib.util
from pathlib import Path

import numpy as np
import torch

from evaluate import probabilities, score
from model import MultitaskBert
from pca_tsne import pca, tsne
from support import files, run_folder
from support.console import Parser, UserError, command
from support.files import replacing
from support.flags import add_device, choose_device, positive
from tasks import TASKS, DataSet, data_path, read_examples

SST = TASKS["sst"]
METHODS = {"pca": "PCA", "tsne": "t-SNE"}
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")  # Okabe & Ito (2008)
LIGHT = {f"axes3d.{axis}axis.panecolor": "none" for axis in "xyz"} | {"grid.color": "0.9"}


# ----- what runs recorded


def config_of(run):
    """The flags that a run was started with, a dict."""
    path = Path(run) / "config.json"
    if not path.exists():
        raise UserError(f"{run} holds no run; train one with multitask.py, or name another folder")
    return files.read_json(path)


def lines_of(run, kind):
    """The `train` or `dev` lines of a run's metrics, a list of dicts."""
    config_of(run)
    lines = [line for line in run_folder.read_metrics(run) if line.get("kind") == kind and line.keys() & TASKS.keys()]
    if not lines:
        raise UserError(f"{run} has no {kind} lines of the tasks; let it finish an epoch, or name another run")
    return lines


def sst_accuracies(run, wanted):
    """SST dev accuracies, one per epoch. Args: wanted, "with weak SMART", "with strong SMART" or "without SMART"."""
    config = config_of(run)
    found = f"with {config.get('smart') or 'weak'} SMART" if config.get("use_smart") else "without SMART"
    if found != wanted:
        raise UserError(f"{run} was trained {found}, not {wanted}; name it with another flag")
    return [line["sst"] for line in lines_of(run, "dev")]


def smooth(values):
    """n values -> n means, of each value and up to n / 20 before and after it."""
    reach = len(values) // 20
    return [np.mean(values[max(0, i - reach) : i + reach + 1]) for i in range(len(values))]


# ----- what models make of sentences


@torch.inference_mode()
def look(model, dataset, batch_size=64):
    """The SST side of a model: what its head reads, (n, H) or (n, 2H), and class probabilities (n, 5), float32."""
    model.eval()
    device = next(model.parameters()).device
    order, pooled, p = [], [], []
    for numbers in dataset.by_length(batch_size):
        batch = dataset.batch(numbers).to(device)
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            h = model.pooled(SST.name, model.bert.embed(batch), batch)
            logits = model.heads[SST.name](h)
        order += numbers
        pooled.append(h.float().cpu())
        p.append(probabilities(SST, logits.float()).cpu())
    back = np.argsort(order)
    return torch.cat(pooled).numpy()[back], torch.cat(p).numpy()[back]


def dev_sentences(args):
    """The SST dev examples of --data, or those that the runs were assessed with."""
    wanted = {}
    for run in args.runs:
        config = config_of(run)
        if not {"data", "max_examples"} <= config.keys():
            raise UserError(f"{run} is not a run of multitask.py; name one that is")
        path = Path(config.get("sst_dev") or data_path(config["data"], SST, "dev"))
        wanted[path, config["max_examples"]] = run
    if args.data:
        wanted = {(data_path(args.data, SST, "dev"), None): args.data}
    if len(wanted) > 1:
        first, second = list(wanted.values())[:2]
        raise UserError(f"{first} and {second} have different dev sentences; say with --data which ones to show")
    ((path, most),) = wanted
    examples = read_examples(path, SST).sample(most)
    if len(examples) < 4:
        raise UserError(f"{path} has too few sentences for a map; name a folder with 4 or more of them with --data")
    return examples


def map_models(args, examples):
    """A dict for each of args.models: `models`, the number k; `xy` (n, 2); `height` (n,); `accuracy`.

    The embedding of k models is theirs side by side, each scaled to a mean norm of 1. Their probabilities p are
    averaged, and the height of a sentence is the expected class Σ_c c p_c, 0 to 4.
    """
    seen = []
    for run in args.runs:
        model, tokenizer = MultitaskBert.load(run_folder.best_folder(run))
        seen.append(look(model.to(choose_device(args)), DataSet(examples, tokenizer)))
    panels = []
    for k in args.models:
        h = np.concatenate([h / np.linalg.norm(h, axis=1).mean() for h, _ in seen[:k]], 1)
        p = np.mean([p for _, p in seen[:k]], 0)
        xy = pca(h) if args.method == "pca" else tsne(h, args.perplexity, seed=args.seed)
        height, accuracy = p @ np.arange(SST.classes), score(SST, p, examples.labels)
        panels.append({"models": k, "xy": xy, "height": height, "accuracy": accuracy})
    return panels


# ----- figures: each `draw_` function returns a matplotlib `Figure`


def figure(height):
    """An empty figure of 900 pixels' width. Args: height, in inches of 150 pixels."""
    from matplotlib.figure import Figure

    return Figure(figsize=(6, height), dpi=150, layout="constrained")


def dress(axes, title, x, y):
    """Title, labels and a light look for flat axes; ticks of x are whole numbers."""
    axes.set_title(title, fontsize=9)
    axes.set_xlabel(x, fontsize=8)
    axes.set_ylabel(y, fontsize=8)
    axes.tick_params(labelsize=8, colors="0.3")
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.grid(color="0.9", linewidth=0.6)
    axes.set_axisbelow(True)
    for side, spine in axes.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_color("0.6")


def draw_smart(groups):
    """SST dev accuracy per epoch. Args: groups, {label: a list of runs, each its accuracies after every epoch}."""
    drawn = figure(3.3)
    axes = drawn.subplots()
    dress(axes, "Sentiment (SST)", "epoch", "dev accuracy")
    for (label, curves), colour in zip(groups.items(), COLOURS, strict=False):
        common = min(map(len, curves))  # the epochs that all runs have
        if len(curves) > 1:
            label += f", mean of {len(curves)} runs"
            for curve in curves:
                axes.plot(range(1, len(curve) + 1), curve, color=colour, linewidth=0.8, alpha=0.45)
        average = np.mean([curve[:common] for curve in curves], 0)
        axes.plot(range(1, common + 1), average, color=colour, linewidth=2, marker="o", markersize=4, label=label)
    axes.legend(fontsize=8, frameon=False)
    return drawn


def draw_curves(records):
    """Above, each task's training loss; below it, its dev metric; and the dev score.

    Args: records, {name of a run: (its train lines, its dev lines)}. Losses are smoothed, the thin line is not.
    """
    drawn = figure(3.8)
    grid = drawn.subplots(2, len(TASKS) + 1)
    for axes, task in zip(grid.T, TASKS.values(), strict=False):
        dress(axes[0], task.name, "step", "training loss")
        dress(axes[1], "", "epoch", f"dev {task.metric}")
    dress(grid[1, -1], "", "epoch", "dev score")
    grid[0, -1].axis("off")
    for i, (name, (train, dev)) in enumerate(records.items()):
        colour, style = COLOURS[i % len(COLOURS)], ("-", "--", ":")[i // len(COLOURS) % 3]
        for axes, key in zip(grid[0], TASKS, strict=False):
            steps, losses = ([line[x] for line in train if key in line] for x in ("step", key))
            axes.plot(steps, losses, color=colour, linewidth=0.6, alpha=0.3)
            axes.plot(steps, smooth(losses), style, color=colour, linewidth=1.5)
        for axes, key in zip(grid[1], (*TASKS, "score"), strict=True):
            epochs, values = ([line[x] for line in dev if key in line] for x in ("epoch", key))
            axes.plot(epochs, values, style, color=colour, linewidth=1.5, marker="o", markersize=3, label=name)
    grid[0, -1].legend(*grid[1, 0].get_legend_handles_labels(), fontsize=7, frameon=False, loc="center")
    return drawn


def draw_embeddings(panels, gold, method):
    """A column for each of `map_models`: the map with the prediction as height, over the prediction by gold label.

    On the floor lies the map once more, coloured by gold label. Args: gold, labels (n,); method, "pca" or "tsne".
    """
    from matplotlib import rc_context

    drawn, columns = figure(5), len(panels)
    grid = drawn.add_gridspec(2, columns, height_ratios=(1.3, 1))
    strips = [drawn.add_subplot(grid[1, i]) for i in range(columns)]
    colour = {"cmap": "managua", "vmin": SST.low, "vmax": SST.high, "linewidths": 0}  # Crameri (2018), for all eyes
    jitter = np.random.default_rng(0).uniform(-0.36, 0.36, len(gold))
    for i, (panel, strip) in enumerate(zip(panels, strips, strict=True)):
        (x, y), height, k = panel["xy"].T, panel["height"], panel["models"]
        with rc_context(LIGHT):
            space = drawn.add_axes(((i - 0.07) / columns, 0.52, 1 / columns, 0.43), projection="3d")
        space.patch.set_visible(False)  # would cover its neighbour
        model = "one model" if k == 1 else f"{k}-model ensemble"
        space.set_title(f"{model}\ndev accuracy {panel['accuracy']:.3f}", fontsize=9, y=0.95)
        space.scatter(x, y, -1, c=gold, s=1.5, alpha=0.5, depthshade=False, **colour)
        space.scatter(x, y, height, c=height, s=4, depthshade=False, **colour)
        space.set(zlim=(-1, SST.high), zticks=range(SST.classes), xticklabels=[], yticklabels=[])
        space.set_xlabel(f"{METHODS[method]} 1", fontsize=7, labelpad=-14)
        space.set_ylabel(f"{METHODS[method]} 2", fontsize=7, labelpad=-12)
        space.set_zlabel("predicted", fontsize=7, labelpad=-11)
        space.tick_params(labelsize=7, pad=-3)
        space.view_init(elev=18, azim=-70)
        space.set_box_aspect((1.6, 1.2, 1.1), zoom=0.99)

        dress(strip, "", "gold label", "" if i else "predicted")
        points = strip.scatter(gold + jitter, height, c=height, s=3, **colour)
        for label in np.unique(gold):
            strip.plot([label - 0.4, label + 0.4], [np.median(height[gold == label])] * 2, color="black")
        strip.set(xticks=range(SST.classes), ylim=(SST.low, SST.high))
    strips[0].legend(strips[0].lines[:1], ["median"], fontsize=7, frameon=False, loc="upper left")
    bar = drawn.colorbar(points, ax=strips, location="bottom", aspect=50, shrink=0.9, ticks=range(SST.classes))
    bar.ax.set_xticklabels(SST.names, fontsize=8)
    bar.set_label("predicted sentiment; on the floors, the gold labels of the same sentences", fontsize=8)
    return drawn


# ----- the command line


def arguments():
    parser = Parser(prog="visualize.py", description="Figures of runs of multitask.py, as PNG files.")
    figures = parser.add_subparsers(dest="figure", required=True, metavar="{smart,embeddings,curves}")

    add = figures.add_parser("smart", help="SST dev accuracy per epoch with weak and strong SMART").add_argument
    add("--weak", nargs="+", required=True, metavar="RUN", help="runs with --use_smart --smart weak")
    add("--strong", nargs="+", required=True, metavar="RUN", help="runs with --use_smart --smart strong")
    add("--plain", nargs="+", default=[], metavar="RUN", help="runs without SMART")
    add("--out", default="smart.png", metavar="FILE")

    embeddings = figures.add_parser("embeddings", help="maps of the SST dev sentences, predicted sentiment as height")
    add = embeddings.add_argument
    add("--runs", nargs="+", required=True, metavar="RUN", help="the models, the first k of them an ensemble")
    add("--models", nargs="+", type=positive(int), default=None, metavar="K",
        help="a panel for each number of models (default: those of 1 2 5 that there are runs for)")  # fmt: skip
    add("--method", choices=tuple(METHODS), default="tsne")
    add("--perplexity", type=positive(float, 2), default=30.0, help="of t-SNE: how many neighbours count")
    add("--seed", type=positive(int, 0), default=0, help="of t-SNE")
    add("--data", default=None, metavar="DIR", help="folder of the task files (default: the dev sentences of the runs)")
    add("--out", default="embeddings.png", metavar="FILE")
    add_device(embeddings)

    add = figures.add_parser("curves", help="training losses and dev metrics").add_argument
    add("runs", nargs="+", metavar="RUN")
    add("--out", default="curves.png", metavar="FILE")
    return parser


def check(args):
    """Raises UserError for what no figure can be drawn of, before the models take their time."""
    if importlib.util.find_spec("matplotlib") is None:
        raise UserError("figures need matplotlib, which is not installed; install it with: pip install matplotlib")
    if not args.out.endswith(".png"):
        raise UserError(f"--out {args.out} is not the name of a PNG file; let it end in .png")
    if args.figure == "embeddings":
        args.models = args.models or [k for k in (1, 2, 5) if k <= len(args.runs)]
        if max(args.models) > len(args.runs):
            raise UserError(f"--models {max(args.models)} needs as many --runs, and there are {len(args.runs)}")
        args.runs = args.runs[: max(args.models)]


@command
def main(argv=None):
    args = arguments().parse_args(argv)
    check(args)
    if args.figure == "smart":
        groups = {"with weak SMART": args.weak, "with strong SMART": args.strong, "without SMART": args.plain}
        drawn = draw_smart({k: [sst_accuracies(run, k) for run in group] for k, group in groups.items() if group})
    elif args.figure == "curves":
        names = [Path(run).resolve().name for run in args.runs]
        names = names if len(set(names)) == len(names) else args.runs
        records = [(lines_of(run, "train"), lines_of(run, "dev")) for run in args.runs]
        drawn = draw_curves(dict(zip(names, records, strict=True)))
    else:
        examples = dev_sentences(args)
        drawn = draw_embeddings(map_models(args, examples), examples.labels, args.method)
    with replacing(args.out) as file:
        drawn.savefig(file, format="png")
    print(f"wrote {args.out}")


if __name__ == "__main__":
    main()
