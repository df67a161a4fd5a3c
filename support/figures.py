"""How the figures of `visualize.py` are drawn, with matplotlib: each `draw_` function returns a `Figure`, 900 pixels
wide, or for curves of more than three tasks wider."""

import os
from pathlib import Path

import numpy as np

from support.files import replacing
from support.places import FIGURE_TAG

os.environ["MPLBACKEND"] = "agg"  # draws into files; matplotlib cannot be imported with one that it does not know
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")  # Okabe & Ito (2008)
STYLES = ("-", "--", ":")  # after all colours once, twice
LIGHT = {f"axes3d.{axis}axis.panecolor": "none" for axis in "xyz"} | {"grid.color": "0.9"}


def figure(height, width=6):
    """An empty figure, whatever a `matplotlibrc` says. Args: height and width, in inches of 150 pixels."""
    from matplotlib import rcdefaults
    from matplotlib.figure import Figure

    rcdefaults()
    return Figure(figsize=(width, height), dpi=150, layout="constrained")


def save(drawn, path):
    """Writes a figure as a PNG file, with the tag by which `places.check_figure` knows our own."""
    with replacing(path) as file:
        drawn.savefig(file, format="png", metadata={"Software": FIGURE_TAG})


def names_of(runs):
    """A name for each folder: the shortest end of its path that no other path has."""
    paths = [Path(os.path.realpath(run)).parts for run in runs]
    ends = lambda n: [path[-n:] for path in paths]  # noqa: E731
    shortest = [next(n for n in range(1, len(path) + 1) if ends(n).count(path[-n:]) == 1) for path in paths]
    return [os.path.join(*path[-n:]) for path, n in zip(paths, shortest, strict=True)]


def plain(text, most=32):
    """A text that somebody chose, as matplotlib shows it as it is: "$" begins no formula, and "_" hides no entry.

    Characters that the font lacks are escaped. Of a long text the middle is left out, so that the curves have room.
    """
    from matplotlib.font_manager import FontProperties, findfont, get_font

    font = get_font(findfont(FontProperties()))
    shown = "".join(c if font.get_char_index(ord(c)) else ascii(c)[1:-1] for c in text)
    if len(shown) > most:
        shown = f"{shown[: most // 2 - 2]}...{shown[-(most // 2 - 1) :]}"
    return " " * shown.startswith("_") + shown.replace("$", r"\$")


def dress(axes, title, x, y):
    """Title, labels and a light look for flat axes; ticks of x are whole numbers, thousands as 1k, 2k."""
    axes.set_title(title, fontsize=9)
    axes.set_xlabel(x, fontsize=8)
    axes.set_ylabel(y, fontsize=8)
    axes.tick_params(labelsize=8, colors="0.3")
    axes.xaxis.get_major_locator().set_params(integer=True, nbins=4, min_n_ticks=1)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value / 1000:g}k" if value >= 1000 else f"{value:g}")
    axes.grid(color="0.9", linewidth=0.6)
    axes.set_axisbelow(True)
    for side, spine in axes.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_color("0.6")


def smooth(values):
    """n values -> n means, of each value and up to n / 20 before and after it."""
    reach = len(values) // 20
    return [np.mean(values[max(0, i - reach) : i + reach + 1]) for i in range(len(values))]


def draw_smart(groups):
    """SST dev accuracy per epoch, the peak of each group marked.

    Args: groups, {label: a list of runs, each its accuracies after every epoch}.
    """
    drawn = figure(3.3)
    axes = drawn.subplots()
    dress(axes, "Sentiment (SST)", "epoch", "dev accuracy")
    axes.xaxis.get_major_locator().set_params(nbins=10)
    for (label, curves), colour in zip(groups.items(), COLOURS, strict=False):
        common = min(map(len, curves))  # the epochs that all runs have
        if len(curves) > 1:
            label += f", mean of {len(curves)} runs"
            for curve in curves:
                axes.plot(range(1, len(curve) + 1), curve, color=colour, linewidth=0.8, alpha=0.45)
        average = np.mean([curve[:common] for curve in curves], 0)
        peak = int(average.argmax())
        label += f": peak {average[peak]:.3f} at epoch {peak + 1}"
        axes.plot(range(1, common + 1), average, color=colour, linewidth=2, marker="o", markersize=4, label=label)
        axes.plot(peak + 1, average[peak], color=colour, marker="*", markersize=14, markeredgecolor="white")
    axes.legend(fontsize=8, frameon=False)
    return drawn


def draw_curves(records, metrics):
    """Above, each task's training loss; below it, its dev metric; and the dev score.

    Args: records, {name of a run: (its train lines, its dev lines)}; metrics, {task: name of its metric}. Losses are
    smoothed, the thin line is not.
    """
    columns = len(metrics) + 1
    drawn = figure(max(3.8, 0.7 + 0.3 * len(records)), max(6, 1.5 * columns))  # the legend has half of the height
    grid = drawn.subplots(2, columns)
    for axes, (task, metric) in zip(grid.T, metrics.items(), strict=False):
        dress(axes[0], task, "step", "training loss")
        dress(axes[1], "", "epoch", f"dev {metric}")
    dress(grid[1, -1], "", "epoch", "dev score")
    grid[0, -1].axis("off")
    labels = [plain(name) for name in records]
    if len(set(labels)) < len(labels):  # what tells them apart was left out
        labels = [f"{i}: {label}" for i, label in enumerate(labels, 1)]
    for i, (label, (train, dev)) in enumerate(zip(labels, records.values(), strict=True)):
        colour, style = COLOURS[i % len(COLOURS)], STYLES[i // len(COLOURS) % len(STYLES)]
        for axes, key in zip(grid[0], metrics, strict=False):
            steps, losses = ([line[x] for line in train if key in line] for x in ("step", key))
            axes.plot(steps, losses, color=colour, linewidth=0.6, alpha=0.3)
            marker = "o" if len(steps) == 1 else ""  # a line of one point is invisible
            axes.plot(steps, smooth(losses), style, color=colour, linewidth=1.5, marker=marker, markersize=3)
        for axes, key in zip(grid[1], (*metrics, "score"), strict=True):
            epochs, values = ([line[x] for line in dev if key in line] for x in ("epoch", key))
            axes.plot(epochs, values, style, color=colour, linewidth=1.5, marker="o", markersize=3, label=label)
    grid[0, -1].legend(*grid[1, 0].get_legend_handles_labels(), fontsize=7, frameon=False, loc="center")
    return drawn


def draw_maps(panels, gold, names, method):
    """A column for each panel: the map with the prediction as height, over the prediction by gold label.

    On the floor lies the map once more, coloured by gold label. Args: panels, as of `visualize.map_models`; gold,
    labels (n,), 0 to C - 1; names, of the C classes; method, the map's name for the axes.
    """
    from matplotlib import rc_context

    drawn, columns, top = figure(5), len(panels), len(names) - 1
    grid = drawn.add_gridspec(2, columns, height_ratios=(1.3, 1))
    strips = [drawn.add_subplot(grid[1, i]) for i in range(columns)]
    colour = {"cmap": "managua", "vmin": 0, "vmax": top, "linewidths": 0}  # Crameri (2018), for all eyes
    jitter = np.random.default_rng(0).uniform(-0.36, 0.36, len(gold))
    for i, (panel, strip) in enumerate(zip(panels, strips, strict=True)):
        (x, y), height, k = panel["xy"].T, panel["height"], panel["models"]
        with rc_context(LIGHT):
            space = drawn.add_axes(((i - 0.05) / columns, 0.52, 1 / columns, 0.43), projection="3d")
        space.patch.set_visible(False)  # would cover its neighbour
        model = "one model" if k == 1 else f"{k}-model ensemble"
        space.set_title(f"{model}\ndev accuracy {panel['accuracy']:.3f}", fontsize=9, y=0.95)
        space.scatter(x, y, -1, c=gold, s=1.5, alpha=0.5, depthshade=False, **colour)
        space.scatter(x, y, height, c=height, s=4, depthshade=False, **colour)
        space.set(zlim=(-1, top), zticks=range(top + 1), xticklabels=[], yticklabels=[])
        space.set_xlabel(f"{method} 1", fontsize=7, labelpad=-14)
        space.set_ylabel(f"{method} 2", fontsize=7, labelpad=-12)
        space.set_zlabel("predicted", fontsize=7, labelpad=-11)
        space.tick_params(labelsize=7, pad=-3)
        space.view_init(elev=18, azim=-70)
        space.set_box_aspect((1.6, 1.2, 1.1), zoom=0.93)

        dress(strip, "", "gold label", "" if i else "predicted")
        points = strip.scatter(gold + jitter, height, c=height, s=3, **colour)
        for label in np.unique(gold):
            strip.plot([label - 0.4, label + 0.4], [np.median(height[gold == label])] * 2, color="black")
        strip.set(xticks=range(top + 1), ylim=(0, top))
    strips[0].legend(strips[0].lines[:1], ["median"], fontsize=7, frameon=False, loc="upper left")
    bar = drawn.colorbar(points, ax=strips, location="bottom", aspect=50, shrink=0.9, ticks=range(top + 1))
    bar.ax.set_xticklabels(names, fontsize=8)
    bar.set_label("predicted sentiment; on the floors, the gold labels of the same sentences", fontsize=8)
    return drawn
