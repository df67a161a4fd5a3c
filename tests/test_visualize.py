"""Figures with all that a reader needs, from runs and from evidence alike."""

import argparse
import io
import json
import math
import sys
import warnings

import numpy as np
import pytest
import tiny
import torch

import predict
import visualize
from evaluate import model_outputs
from pca_tsne import pca
from predict import SOURCES, examples_of
from support import evidence, figures, keep_evidence
from tasks import TASKS, DataSet, data_path, read_examples
from tokenizer import Tokenizer

SST = TASKS["sst"]
METRICS = {name: task.metric for name, task in TASKS.items()}


def write_run(folder, seed=0, smart=None, epochs=3, **config):
    """The folder of a run with metrics, and of a random model where `seed` is not None."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(seed)
    flags = {"use_smart": bool(smart), "smart": smart, "seed": seed, "epochs": epochs, "bert": "tiny"}
    flags |= {"out": str(folder)}
    flags |= dict.fromkeys(SOURCES) | {"data": "data"} | config
    (folder / "config.json").write_text(json.dumps(flags))
    lines = []
    for epoch in range(1, epochs + 1):
        values = dict(zip((*TASKS, "score"), rng.uniform(size=len(TASKS) + 1), strict=True))
        lines.append({"kind": "train", "step": 20 * epoch - 10, "epoch": epoch, "sst": 1.0, "sts": 3.0})
        lines.append({"kind": "train", "step": 20 * epoch, "epoch": epoch} | values)
        lines.append({"kind": "dev", "step": 20 * epoch, "epoch": epoch} | values)
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def dev_lines(folder):
    lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return [line for line in lines if line["kind"] == "dev"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Two runs with models, one of them with PALs and siamese pairs."""
    folder = tmp_path_factory.mktemp("visualize")
    encoder, data = tiny.folder(folder / "encoder"), tiny.task_files(folder / "data", n=30)
    shapes = [{}, {"pair_encoding": "siamese", "pal_size": 8, "pal_heads": 2}]
    for seed, shape in enumerate(shapes):
        run = write_run(folder / f"run{seed}", seed, data=str(data))
        tiny.model(seed=seed, **shape).save(run / "best", Tokenizer(encoder))
    return folder


def flags_of(trained, **changes):
    flags = {"runs": [trained / "run0", trained / "run1"], "models": [1, 2], "method": "pca", "data": None}
    return argparse.Namespace(**(flags | {"perplexity": 5, "seed": 0, "device": "cpu"} | changes))


def dev_of(flags):
    return examples_of(flags.runs, flags.data, "dev")["sst"]


@pytest.mark.parametrize("shape", [{}, {"pal_size": 8, "pal_heads": 2}, {"use_means": True}])
def test_one_pass_gives_what_the_head_reads_and_what_it_says(trained, shape):
    model = tiny.model(dropout=0.3, **shape)
    examples = read_examples(data_path(trained / "data", SST, "dev"), SST)
    dataset = DataSet(examples, Tokenizer(trained / "encoder"))
    h, p = visualize.look(model, dataset, batch_size=7)
    assert h.shape == (30, 64 if "use_means" in shape else 32)
    np.testing.assert_allclose(p, model_outputs(model, SST, dataset), atol=1e-6)
    with torch.no_grad():
        logits = model.heads["sst"](torch.from_numpy(h))
    np.testing.assert_allclose(torch.softmax(logits, 1).numpy(), p, atol=1e-6)


def test_an_ensemble_is_embeddings_side_by_side_and_probabilities_averaged(trained):
    flags = flags_of(trained)
    examples = dev_of(flags)
    one, two = visualize.map_models(flags, examples)
    seen = [
        visualize.look(model, DataSet(examples, tokenizer))
        for model, tokenizer in (visualize.MultitaskBert.load(run / "best") for run in flags.runs)
    ]
    (h, p), (other_h, other_p) = seen  # of two models, both are as far from the median: the first comes first
    np.testing.assert_allclose(one["height"], p @ [0, 1, 2, 3, 4], atol=1e-6)
    np.testing.assert_allclose(two["height"], (p + other_p) / 2 @ [0, 1, 2, 3, 4], atol=1e-6)
    first = [pca(a / np.mean([math.sqrt((row**2).sum()) for row in a]), 16) for a in (h, other_h)]
    for panel, points in ((one, first[0][:, :2]), (two, pca(np.hstack(first)))):
        rises = np.corrcoef(points[:, 0], panel["height"])[0, 1] > 0
        np.testing.assert_allclose(panel["xy"], points * [1 if rises else -1, 1], atol=1e-6)
    assert one["accuracy"] == np.mean(p.argmax(1) == examples.labels)
    assert two["accuracy"] == np.mean((p + other_p).argmax(1) == examples.labels)


def test_the_typical_model_comes_first(trained, monkeypatch):
    examples = dev_of(flags_of(trained))
    gold, n = examples.labels.astype(int), len(examples)

    def view(run, examples, device):  # the given share of sentences right, and a map that names the run
        p = np.eye(5)[np.where(np.arange(n) < n * run, gold, (gold + 1) % 5)]
        return np.random.default_rng(round(10 * run)).normal(size=(n, 3)), p

    monkeypatch.setattr(visualize, "view", view)
    panels = visualize.map_models(flags_of(trained, runs=[0.9, 0.2, 0.5, 0.6, 0.4], models=[1, 5]), examples)
    assert panels[0]["accuracy"] == 0.5
    np.testing.assert_allclose(np.abs(panels[0]["xy"]), np.abs(pca(view(0.5, examples, None)[0])))


@pytest.fixture(scope="module")
def kept(trained, tmp_path_factory):
    """The evidence of the two runs."""
    root = tmp_path_factory.mktemp("evidence")
    flags = flags_of(trained)
    dev = dev_of(flags)
    for run in flags.runs:
        h, p = visualize.view(run, dev, "cpu")
        record = {"row": run.name, "seconds": 1, "commit": "abc", "device": "this"}
        paths, examples = {"sst-dev": data_path(trained / "data", SST, "dev")}, {"sst-dev": (dev.ids, dev.labels)}
        one, zero = np.ones(1, dtype=np.float32), np.zeros((1, 2), dtype=np.float32)
        examples |= {"para-dev": (["a"], one), "sts-dev": (["b"], one)}  # which no map is made of
        outputs = {"sst-dev": p, "para-dev": zero + 0.5, "sts-dev": one}
        keep_evidence.write(
            root, run, predict.flags_of(run), record, paths, examples, outputs, {"sst-dev-components": h}
        )
    return [str(folder) for folder in evidence.find(root)]


def test_evidence_gives_the_map_of_its_run(trained, kept):
    flags = flags_of(trained)
    of_runs = visualize.map_models(flags, dev_of(flags))
    flags.runs = kept
    examples = dev_of(flags)
    assert examples.sentences == []
    for one, other in zip(of_runs, visualize.map_models(flags, examples), strict=True):
        assert one["accuracy"] == other["accuracy"]
        np.testing.assert_allclose(one["height"], other["height"], atol=5e-3)
        np.testing.assert_allclose(one["xy"], other["xy"], atol=5e-3)


# ----- figures


def texts(axes):
    return axes.get_xlabel(), axes.get_ylabel()


def test_the_smart_figure_has_a_mean_line_and_a_thin_one_per_run():
    pytest.importorskip("matplotlib")
    groups = {"weak": [[0.1, 0.2, 0.3], [0.3, 0.4]], "strong": [[0.5, 0.6, 0.7]]}
    (axes,) = figures.draw_smart(groups).axes
    assert texts(axes) == ("epoch", "dev accuracy")
    assert [text.get_text() for text in axes.get_legend().get_texts()] == [
        "weak, mean of 2 runs: peak 0.300 at epoch 2",
        "strong: peak 0.700 at epoch 3",
    ]
    lines = [list(line.get_ydata()) for line in axes.lines]
    assert lines[:2] == groups["weak"]
    assert lines[2] == pytest.approx([0.2, 0.3])
    assert lines[4:5] == groups["strong"]
    assert list(axes.lines[4].get_xdata()) == [1, 2, 3]
    stars = [line for line in axes.lines if line.get_marker() == "*"]
    assert [(*line.get_xdata(), *line.get_ydata()) for line in stars] == [(2, pytest.approx(0.3)), (3, 0.7)]
    assert axes.lines[0].get_color() == axes.lines[2].get_color() != axes.lines[4].get_color()
    assert axes.lines[0].get_linewidth() < axes.lines[2].get_linewidth()


def test_the_curves_are_labelled_in_every_panel():
    pytest.importorskip("matplotlib")
    train = [{"step": i, "sst": float(i % 2), "sts": 1.0} for i in range(1, 101)]
    dev = [{"epoch": e, "sst": 0.1 * e, "para": 0.2 * e, "sts": 0.3, "score": 0.4} for e in (1, 2)]
    *panels, score = figures.draw_curves({"a": (train, dev), "b": (train, dev)}, METRICS).axes
    n = len(TASKS)
    assert [axes.get_title() for axes in panels[:n]] == [*TASKS]
    assert [texts(axes) for axes in panels[:n]] == [("step", "training loss")] * n
    assert [text.get_text() for text in panels[n].get_legend().get_texts()] == ["a", "b"]
    metrics = [("epoch", f"dev {task.metric}") for task in TASKS.values()]
    assert [texts(axes) for axes in (*panels[n + 1 :], score)] == [*metrics, ("epoch", "dev score")]
    raw, smooth = (line.get_ydata() for line in panels[0].lines[:2])
    assert list(raw) == [line["sst"] for line in train]
    assert smooth[50] == pytest.approx(np.mean(raw[45:56]))
    assert list(panels[n + 2].lines[0].get_ydata()) == [0.2, 0.4]


def test_curves_of_six_tasks_and_of_one_epoch_can_be_read():
    """Panels keep their width; one point is seen; ticks of x are whole numbers."""
    pytest.importorskip("matplotlib")
    values, widths = dict.fromkeys((*"abcdef", "score"), 0.123456), []
    for tasks in ("abc", "abcdef"):
        lines = [{"step": 19} | values], [{"epoch": 1} | values]
        drawn = figures.draw_curves({"run": lines}, dict.fromkeys(tasks, "pearson"))
        drawn.savefig(io.BytesIO(), format="png")
        widths.append(drawn.axes[0].get_window_extent().width)
        assert drawn.axes[0].lines[1].get_marker() == "o"
        first, last = drawn.axes[-1].get_xlim()
        assert all(tick == int(tick) for tick in drawn.axes[-1].get_xticks() if first <= tick <= last)
    assert widths[1] > 0.8 * widths[0]


def test_any_name_of_a_run_stands_in_the_legend_as_it_is():
    pytest.importorskip("matplotlib")
    names = {"a$_$b": r"a\$_\$b", "cost$5$x": r"cost\$5\$x", "_hidden": " _hidden", "漢\n": r"\u6f22\n", "é": "é"}
    line = {"step": 1, "epoch": 1, "sst": 0.5, "score": 0.5}
    drawn = figures.draw_curves({name: ([line], [line]) for name in names}, {"sst": "accuracy"})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        drawn.savefig(io.BytesIO(), format="png")
    (legend,) = filter(None, (axes.get_legend() for axes in drawn.axes))
    assert [text.get_text() for text in legend.get_texts()] == list(names.values())


def test_runs_of_one_name_are_told_apart_by_the_shortest_ends_of_their_paths(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    runs = ["plain/1", "means/1", "means/../x/a/2", "y/a/2", "3", f"/{'z' * 70}/4"]
    assert figures.names_of(runs) == ["plain/1", "means/1", "x/a/2", "y/a/2", "3", "4"]
    assert figures.names_of(["/1", "/x/1"]) == ["/1", "x/1"]


def test_long_names_leave_room_for_the_curves():
    pytest.importorskip("matplotlib")
    line = {"step": 1, "epoch": 1, **dict.fromkeys(METRICS, 0.5), "score": 0.5}
    for ends in ("12", "ab漢"):
        names = ["W" * 70 + end + "W" * (70 if ends == "ab漢" else 0) for end in ends]
        drawn = figures.draw_curves({name: ([line], [line]) for name in names}, METRICS)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            drawn.savefig(io.BytesIO(), format="png")
        (legend,) = filter(None, (axes.get_legend() for axes in drawn.axes))
        labels = [text.get_text() for text in legend.get_texts()]
        assert len(set(labels)) == len(ends)
        assert max(map(len, labels)) <= 35


def test_many_names_leave_room_for_the_curves_and_a_matplotlibrc_is_left_aside(monkeypatch):
    matplotlib = pytest.importorskip("matplotlib")
    monkeypatch.setitem(matplotlib.rcParams, "text.usetex", True)  # needs LaTeX
    monkeypatch.setitem(matplotlib.rcParams, "font.size", 40)
    line = {"step": 1, "epoch": 1, **dict.fromkeys(METRICS, 0.5), "score": 0.5}
    most = len(figures.COLOURS) * len(figures.STYLES)
    drawn = figures.draw_curves({f"run {i}": ([line], [line]) for i in range(most)}, METRICS)
    drawn.savefig(io.BytesIO(), format="png")
    (legend,) = filter(None, (axes.get_legend() for axes in drawn.axes))
    space, below = legend.get_window_extent(), drawn.axes[-1].get_window_extent()
    assert below.y1 < space.y0 and space.y1 <= drawn.bbox.y1 and below.height > space.height / 2


def test_the_map_has_labels_a_legend_and_a_named_colour_bar(trained):
    pytest.importorskip("matplotlib")
    flags = flags_of(trained, method="tsne")
    examples = dev_of(flags)
    panels = visualize.map_models(flags, examples)
    drawn = figures.draw_maps(panels, examples.labels, SST.names, "t-SNE")
    spaces = [axes for axes in drawn.axes if axes.name == "3d"]
    strips = [axes for axes in drawn.axes if axes.get_xlabel() == "gold label"]
    (bar,) = (axes for axes in drawn.axes if "predicted sentiment" in axes.get_xlabel())
    assert [text.get_text() for text in bar.get_xticklabels()] == [*SST.names]
    assert [text.get_text() for text in strips[0].get_legend().get_texts()] == ["median"]
    assert strips[0].get_ylabel() == "predicted"
    for axes, strip, panel, name in zip(spaces, strips, panels, ("one model", "2-model ensemble"), strict=True):
        assert axes.get_title() == f"{name}\ndev accuracy {panel['accuracy']:.3f}"
        assert (*texts(axes), axes.get_zlabel()) == ("t-SNE 1", "t-SNE 2", "predicted")
        _, points = axes.collections
        np.testing.assert_allclose(np.array(points._offsets3d), [*panel["xy"].T, panel["height"]], rtol=1e-6)
        medians = [np.median(panel["height"][examples.labels == c]) for c in np.unique(examples.labels)]
        assert [line.get_ydata()[0] for line in strip.lines] == pytest.approx(medians)


def test_the_command_writes_png_files(trained, kept, tmp_path, monkeypatch, capsys):
    pytest.importorskip("matplotlib")
    drawn = {}
    for name in ("draw_smart", "draw_curves"):
        draw = getattr(visualize, name)
        monkeypatch.setattr(visualize, name, lambda *of, name=name, draw=draw: drawn.update({name: of[0]}) or draw(*of))
    weak, strong = write_run(tmp_path / "weak", 1, "weak"), write_run(tmp_path / "strong", 2, "strong")
    plain = write_run(tmp_path / "plain", 3)
    wanted = {
        "smart": ["--weak", weak, "--strong", strong, "--plain", plain],
        "embeddings": ["--runs", trained / "run0", trained / "run1", "--method", "pca", "--device", "cpu"],
        "curves": [weak, plain],
        "of evidence": ["--runs", *kept],
    }
    for name, flags in wanted.items():
        out = tmp_path / "new" / f"{name}.png"
        figure = name if name != "of evidence" else "embeddings"
        visualize.main([str(flag) for flag in (figure, *flags, "--out", out)])
        assert f"wrote {out}" in capsys.readouterr().out
        content = out.read_bytes()
        assert content.startswith(b"\x89PNG")
        assert int.from_bytes(content[16:20], "big") == 900  # pixels, in the header
    assert len([*(tmp_path / "new").iterdir()]) == 4
    labels = ("with weak SMART", "with strong SMART", "without SMART")
    accuracies = [[[line["sst"] for line in dev_lines(run)]] for run in (weak, strong, plain)]
    assert drawn["draw_smart"] == dict(zip(labels, accuracies, strict=True))
    assert [*drawn["draw_curves"]] == ["weak", "plain"]
    assert drawn["draw_curves"]["plain"][1] == dev_lines(plain)


def test_wrong_requests_get_one_sentence(trained, tmp_path, refused, monkeypatch):
    weak, young = write_run(tmp_path / "weak", 1, "weak"), write_run(tmp_path / "young", epochs=0)
    (tmp_path / "few").mkdir()
    tiny.task_files(tmp_path / "few", n=2)
    draw = visualize.main
    out, run = ["--out", tmp_path / "a.png"], trained / "run0"
    refused(draw, [], "smart,embeddings,curves")
    with monkeypatch.context() as without:
        without.setitem(sys.modules, "matplotlib", None)
        refused(draw, ["curves", weak, *out], "matplotlib", "pip install matplotlib")
    pytest.importorskip("matplotlib")
    refused(draw, ["curves", tmp_path / "none", *out], "none", "holds no run")
    refused(draw, ["curves", young, *out], "young is a soup, which has no epochs")
    (weak / "metrics.jsonl").rename(tmp_path / "metrics.jsonl")
    refused(draw, ["curves", weak, *out], "weak", "no train lines")
    (tmp_path / "metrics.jsonl").rename(weak / "metrics.jsonl")
    (tmp_path / "loop").symlink_to("loop")
    refused(draw, ["curves", tmp_path / "loop", *out], "loop")
    refused(draw, ["smart", "--weak", weak, "--strong", weak, *out], "weak", "with weak SMART, not with strong")
    refused(draw, ["smart", "--weak", run, "--strong", weak, *out], "run0", "without SMART")
    refused(draw, ["smart", "--weak", weak, *out], "--strong")
    refused(draw, ["curves", weak, "--out", tmp_path / "a.pdf"], "a.pdf", ".png")
    (tmp_path / "file").write_text("")
    refused(draw, ["curves", weak, "--out", tmp_path / "file" / "a.png"], "file")
    (tmp_path / "folder.png").mkdir()
    refused(draw, ["curves", weak, "--out", tmp_path / "folder.png"], "folder.png")
    refused(draw, ["embeddings", "--runs", run, "--models", 1, 2, *out], "--models 2", "not 1; name more")
    refused(draw, ["embeddings", "--runs", run, "--models", 0, *out], "greater than 0")
    refused(draw, ["embeddings", "--runs", run, "--models", *[1] * 6, *out], "6 maps", "room for 5")
    refused(draw, ["curves", *(tmp_path / f"{i}" for i in range(22)), *out], "22 curves", "21 can; name fewer")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "config.json").write_text("{}")
    refused(draw, ["embeddings", "--runs", tmp_path / "other", *out], "other holds no run")
    refused(draw, ["embeddings", "--runs", run, "--data", tmp_path, *out], "does not exist")
    refused(draw, ["embeddings", "--runs", run, "--data", tmp_path / "few", *out], "too few SST dev sentences")
    bare = write_run(tmp_path / "bare", data=str(trained / "data"))
    refused(draw, ["embeddings", "--runs", bare, *out], "holds no trained model")
    assert not [*tmp_path.rglob("*.part")]
    assert not (tmp_path / "a.png").exists()
