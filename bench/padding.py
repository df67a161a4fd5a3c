"""How much of a padded batch is padding: prints it for each task, and draws one batch both ways.

    python -m bench.padding                                   the sample data
    python -m bench.padding --data DIR --out picture.png

A padded batch has (sentences) x (longest sentence) places. The packed batch of this project has a place for each token.
"""

import numpy as np

from support.console import Parser, command, table
from support.downloads import MINILM, find_model
from support.figures import figure, save
from support.flag_types import BATCH, place, positive
from support.places import check_figure
from tasks import TASKS, DataSet, data_path, read_examples
from tokenizer import Tokenizer

BLUE, GREY, INK = "#3b6ea8", "#dcdcdc", "#333333"


def token_counts(folder, task, tokenizer):
    """(n,) int: the tokens of each training example of a task."""
    dataset = DataSet(read_examples(data_path(folder, task, "train"), task), tokenizer)
    return np.array([len(ids) for ids, _ in dataset.encoded[0]])


def padding_share(lengths, batch_size):
    """The share of padding in padded batches of these examples, in the order given. Args: lengths (n,). A float."""
    whole = max(len(lengths) // batch_size, 1)  # of fewer examples, the one batch that there is
    batches = [lengths[i * batch_size : (i + 1) * batch_size] for i in range(whole)]
    return 1 - sum(b.sum() for b in batches) / sum(len(b) * b.max() for b in batches)


def draw(lengths, path):
    """One batch, padded on the left and packed on the right. Args: lengths (B,), tokens of each sentence."""
    from matplotlib.colors import ListedColormap

    drawn = figure(2.6)
    drawn.set_figwidth(9)
    axes = drawn.subplots(1, 2)
    B, longest, T = len(lengths), int(lengths.max()), int(lengths.sum())
    padded = np.arange(longest)[None, :] < lengths[:, None]  # (B, longest), True for a token
    packed = np.zeros((-(-T // longest), longest))  # the one long row, folded to the width of the left picture
    packed.flat[:T] = 1
    sentence = np.repeat(np.arange(B), lengths) % 2  # neighbours get two shades
    shades = np.full(packed.shape, np.nan)
    shades.flat[:T] = sentence
    colours = ListedColormap([BLUE, "#7fa6d1"])
    rows = np.where(padded, (np.arange(B) % 2)[:, None], np.nan)
    titles = (
        f"padded: {B} x {longest} = {B * longest} places, {1 - T / (B * longest):.0%} of them padding",
        f"packed: one row of {T} tokens (folded here), no padding, no mask",
    )
    for axis, values, title in zip(axes, (rows, shades), titles, strict=True):
        axis.set_facecolor(GREY if axis is axes[0] else "white")
        axis.imshow(values, aspect="auto", cmap=colours, extent=(0, longest, B, 0) if axis is axes[0] else
                    (0, longest, len(packed), 0))  # fmt: skip
        axis.set_ylim(B, 0)
        axis.set_title(title, fontsize=9, color=INK, loc="left")
        axis.set_xticks([]), axis.set_yticks([])
        for side in axis.spines.values():
            side.set_visible(False)
    save(drawn, path)


@command
def main(argv=None):
    parser = Parser(prog="python -m bench.padding", description="How much of a padded batch is padding.")
    parser.add_argument("--data", type=place, default="data/sample", metavar="DIR", help="folder of the task files")
    parser.add_argument("--batch_size", type=positive(int, 2, BATCH), default=32)
    parser.add_argument("--out", type=place, metavar="FILE", help="draw one batch of sst into a PNG file")
    args = parser.parse_args(argv)
    if args.out:
        check_figure("--out", args.out)
    tokenizer, rng, rows = Tokenizer(find_model(MINILM)), np.random.default_rng(0), []
    for name, task in TASKS.items():
        lengths = token_counts(args.data, task, tokenizer)
        mixed = rng.permutation(lengths)
        grouped = np.sort(lengths)
        rows.append([name, float(lengths.mean()), *(padding_share(x, args.batch_size) for x in (mixed, grouped))])
        if args.out and name == "sst":
            draw(mixed[: args.batch_size], args.out)
    print(table(["task", "tokens an example", "padding, shuffled", "padding, sorted by length"], rows))


if __name__ == "__main__":
    main()
