"""PCA against the SVD, t-SNE against loops and finite differences, and figures with all that a reader needs."""

import argparse
import json
import math
import sys

import numpy as np
import pytest
import tiny
import torch

import visualize
from evaluate import outputs
from pca_tsne import conditional_p, kl_gradient, pca, squared_distances, tsne
from support.console import UserError
from tasks import TASKS, DataSet, data_path, read_examples
from tokenizer import Tokenizer

SST = TASKS["sst"]


def clusters(k, n=40, m=50, distance=8.0, seed=0):
    """k round clusters of n points in m dimensions, centres `distance` apart: points (k n, m) and clusters (k n,)."""
    rng = np.random.default_rng(seed)
    centres = np.eye(k, m) * distance / math.sqrt(2)
    return np.repeat(centres, n, 0) + rng.normal(size=(k * n, m)), np.repeat(np.arange(k), n)


def own_neighbours(y, cluster, k=10):
    """The share of the k nearest neighbours of the points that are of a point's own cluster."""
    squared = squared_distances(np.asarray(y, np.float64))
    np.fill_diagonal(squared, np.inf)
    return (cluster[squared.argsort(1)[:, :k]] == cluster[:, None]).mean()


# ----- PCA and t-SNE


def test_pca_is_the_svd_of_the_centred_points_and_its_signs_are_fixed():
    x = np.random.default_rng(0).normal(size=(40, 7)) * [1, 9, 3, 2, 5, 4, 1] + 100
    centred = x - x.mean(0)
    _, values, vectors = np.linalg.svd(centred, full_matrices=False)
    for d in (1, 2, 7):
        found = pca(x, d)
        assert found.shape == (40, d)
        np.testing.assert_allclose(np.abs(found), np.abs(centred @ vectors[:d].T), atol=1e-9)
        np.testing.assert_allclose(found.std(0, ddof=1), values[:d] / math.sqrt(39))
        axes = np.linalg.lstsq(centred, found, rcond=None)[0]  # (7, d), each the direction of a component
        assert (axes[np.abs(axes).argmax(0), range(d)] > 0).all()
    np.testing.assert_allclose(pca(-x), -pca(x))


def conditional_p_by_loops(x, perplexity):
    """The formula of pca_tsne.py, each σ_i by a bisection of its own."""
    n = len(x)
    result = np.zeros((n, n))
    for i in range(n):
        low, high = 1e-6, 1e6
        for _ in range(200):
            sigma = math.sqrt(low * high)
            row = [math.exp(-((x[i] - x[j]) ** 2).sum() / (2 * sigma**2)) if j != i else 0.0 for j in range(n)]
            p = [value / (sum(row) or 1) for value in row]
            entropy = -sum(value * math.log(value) for value in p if value)
            low, high = (low, sigma) if entropy > math.log(perplexity) else (sigma, high)
        result[i] = p
    return result


def test_conditional_p_is_the_double_loop():
    x = np.random.default_rng(1).normal(size=(15, 4)) * 3
    found = conditional_p(squared_distances(x), 4.0)
    np.testing.assert_allclose(found, conditional_p_by_loops(x, 4.0), atol=1e-5)
    assert (np.diag(found) == 0).all()


@pytest.mark.parametrize("size", [1e-4, 1.0, 1e4])
@pytest.mark.parametrize("perplexity", [2.0, 30.0])
def test_the_perplexity_is_reached_at_any_scale(size, perplexity):
    rng = np.random.default_rng(2)
    x = rng.normal(size=(120, 5)) * np.exp(2 * rng.normal(size=(120, 1))) * size  # dense here and sparse there
    x[0] += 1e5 * size  # and one far from all others
    p = conditional_p(squared_distances(x), perplexity)
    np.testing.assert_allclose(p.sum(1), 1)
    entropy = -(p * np.log(np.where(p > 0, p, 1))).sum(1)
    np.testing.assert_allclose(np.exp(entropy), perplexity, rtol=1e-4)


def test_the_gradient_is_that_of_the_divergence():
    rng = np.random.default_rng(3)
    p = conditional_p(squared_distances(rng.normal(size=(12, 5))), 4.0)
    p = (p + p.T) / 24
    y = rng.normal(size=(12, 2))

    def divergence(y):
        near = [[1 / (1 + ((a - b) ** 2).sum()) if a is not b else 0.0 for b in y] for a in y]
        q = np.array(near) / np.sum(near)
        return sum(p[i, j] * math.log(p[i, j] / q[i, j]) for i in range(12) for j in range(12) if i != j)

    found, h = kl_gradient(p, y), 1e-6
    for i in range(12):
        for axis in range(2):
            step = np.zeros_like(y)
            step[i, axis] = h
            slope = (divergence([*(y + step)]) - divergence([*(y - step)])) / (2 * h)
            assert found[i, axis] == pytest.approx(slope, abs=1e-8)


@pytest.mark.parametrize("k", [3, 8])
def test_tsne_separates_clusters_and_says_the_same_again(k):
    x, cluster = clusters(k)
    y = tsne(x)
    assert y.shape == (40 * k, 2)
    assert own_neighbours(y, cluster) == 1
    centres = np.array([y[cluster == c].mean(0) for c in range(k)])
    assert (((y[:, None] - centres) ** 2).sum(2).argmin(1) == cluster).all()
    np.testing.assert_array_equal(y, tsne(x))
    if k == 8:
        assert own_neighbours(pca(x), cluster) < 0.8  # two directions cannot hold eight clusters


def test_tsne_of_points_that_coincide_or_are_few():
    x = np.repeat(np.random.default_rng(4).normal(size=(10, 6)), 6, 0)
    for points in (x, x[:4], np.zeros((20, 6)), np.linspace(0, 1, 50)[:, None] * np.ones(6)):
        y = tsne(points, iterations=300)
        assert np.isfinite(y).all()
        assert len(np.unique(y, axis=0)) == len(y)
    assert y.std(0).min() > 0.1  # points on a line do not stay on one


# ----- runs and models


def write_run(folder, seed=0, smart=None, epochs=3, **config):
    """The folder of a run with metrics, and of a random model where `seed` is not None."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(seed)
    flags = {"use_smart": bool(smart), "smart": smart, "max_examples": None, "sst_dev": None} | config
    (folder / "config.json").write_text(json.dumps(flags))
    lines = []
    for epoch in range(1, epochs + 1):
        values = dict(zip((*TASKS, "score"), rng.uniform(size=4), strict=True))
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
        run = write_run(folder / f"run{seed}", seed, data=str(data), max_examples=20)
        tiny.model(seed=seed, **shape).save(run / "best", Tokenizer(encoder))
    return folder


def flags_of(trained, **changes):
    flags = {"runs": [trained / "run0", trained / "run1"], "models": [1, 2], "method": "pca", "data": None}
    return argparse.Namespace(**(flags | {"perplexity": 5, "seed": 0, "device": "cpu"} | changes))


@pytest.mark.parametrize("shape", [{}, {"pal_size": 8, "pal_heads": 2}, {"use_means": True}])
def test_one_pass_gives_what_the_head_reads_and_what_it_says(trained, shape):
    model = tiny.model(dropout=0.3, **shape)
    examples = read_examples(data_path(trained / "data", SST, "dev"), SST)
    dataset = DataSet(examples, Tokenizer(trained / "encoder"))
    h, p = visualize.look(model, dataset, batch_size=7)
    assert h.shape == (30, 64 if "use_means" in shape else 32)
    np.testing.assert_allclose(p, outputs(model, SST, dataset), atol=1e-6)
    with torch.no_grad():
        logits = model.heads["sst"](torch.from_numpy(h))
    np.testing.assert_allclose(torch.softmax(logits, 1).numpy(), p, atol=1e-6)


def test_the_sentences_are_those_of_the_runs_or_of_data(trained, tmp_path):
    dev = read_examples(data_path(trained / "data", SST, "dev"), SST)
    assert visualize.dev_sentences(flags_of(trained)).ids == dev.sample(20).ids
    assert visualize.dev_sentences(flags_of(trained, data=trained / "data")).ids == dev.ids
    other = write_run(tmp_path / "other", data=str(tiny.task_files(tmp_path / "data", n=9, seed=1)))
    with pytest.raises(UserError, match="different dev sentences"):
        visualize.dev_sentences(flags_of(trained, runs=[trained / "run0", other]))


def test_an_ensemble_is_embeddings_side_by_side_and_probabilities_averaged(trained):
    flags = flags_of(trained)
    examples = visualize.dev_sentences(flags)
    one, two = visualize.map_models(flags, examples)
    (h, p), (other_h, other_p) = (
        visualize.look(model, DataSet(examples, tokenizer))
        for model, tokenizer in (visualize.MultitaskBert.load(run / "best") for run in flags.runs)
    )
    np.testing.assert_allclose(one["height"], p @ [0, 1, 2, 3, 4], atol=1e-6)
    np.testing.assert_allclose(two["height"], (p + other_p) / 2 @ [0, 1, 2, 3, 4], atol=1e-6)
    scaled = [a / np.mean([math.sqrt((row**2).sum()) for row in a]) for a in (h, other_h)]
    np.testing.assert_allclose(two["xy"], pca(np.hstack(scaled)), atol=1e-6)
    assert one["accuracy"] == np.mean(p.argmax(1) == examples.labels)
    assert two["accuracy"] == np.mean((p + other_p).argmax(1) == examples.labels)


# ----- figures


def texts(axes):
    return axes.get_xlabel(), axes.get_ylabel()


def test_the_smart_figure_has_a_mean_line_and_a_thin_one_per_run():
    pytest.importorskip("matplotlib")
    groups = {"weak": [[0.1, 0.2, 0.3], [0.3, 0.4]], "strong": [[0.5, 0.6, 0.7]]}
    (axes,) = visualize.draw_smart(groups).axes
    assert texts(axes) == ("epoch", "dev accuracy")
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["weak, mean of 2 runs", "strong"]
    lines = [list(line.get_ydata()) for line in axes.lines]
    assert lines[:2] == groups["weak"]
    assert lines[2] == pytest.approx([0.2, 0.3])
    assert lines[3:] == groups["strong"]
    assert list(axes.lines[3].get_xdata()) == [1, 2, 3]
    assert axes.lines[0].get_color() == axes.lines[2].get_color() != axes.lines[3].get_color()
    assert axes.lines[0].get_linewidth() < axes.lines[2].get_linewidth()


def test_the_curves_are_labelled_in_every_panel():
    pytest.importorskip("matplotlib")
    train = [{"step": i, "sst": float(i % 2), "sts": 1.0} for i in range(1, 101)]
    dev = [{"epoch": e, "sst": 0.1 * e, "para": 0.2 * e, "sts": 0.3, "score": 0.4} for e in (1, 2)]
    *panels, score = visualize.draw_curves({"a": (train, dev), "b": (train, dev)}).axes
    assert [axes.get_title() for axes in panels[:3]] == [*TASKS]
    assert [texts(axes) for axes in panels[:3]] == [("step", "training loss")] * 3
    assert [text.get_text() for text in panels[3].get_legend().get_texts()] == ["a", "b"]
    metrics = [("epoch", f"dev {task.metric}") for task in TASKS.values()]
    assert [texts(axes) for axes in (*panels[4:], score)] == [*metrics, ("epoch", "dev score")]
    raw, smooth = (line.get_ydata() for line in panels[0].lines[:2])
    assert list(raw) == [line["sst"] for line in train]
    assert smooth[50] == pytest.approx(np.mean(raw[45:56]))
    assert list(panels[5].lines[0].get_ydata()) == [0.2, 0.4]


def test_the_map_has_labels_a_legend_and_a_named_colour_bar(trained):
    pytest.importorskip("matplotlib")
    flags = flags_of(trained, method="tsne")
    examples = visualize.dev_sentences(flags)
    panels = visualize.map_models(flags, examples)
    drawn = visualize.draw_embeddings(panels, examples.labels, "tsne")
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


def test_the_command_writes_png_files(trained, tmp_path, monkeypatch, capsys):
    pytest.importorskip("matplotlib")
    drawn = {}
    for name in ("draw_smart", "draw_curves"):
        draw = getattr(visualize, name)
        monkeypatch.setattr(
            visualize, name, lambda data, name=name, draw=draw: drawn.update({name: data}) or draw(data)
        )
    weak, strong = write_run(tmp_path / "weak", 1, "weak"), write_run(tmp_path / "strong", 2, "strong")
    plain = write_run(tmp_path / "plain", 3)
    wanted = {
        "smart": ["--weak", weak, "--strong", strong, "--plain", plain],
        "embeddings": ["--runs", trained / "run0", trained / "run1", "--method", "pca", "--device", "cpu"],
        "curves": [weak, plain],
    }
    for name, flags in wanted.items():
        out = tmp_path / "new" / f"{name}.png"
        visualize.main([str(flag) for flag in (name, *flags, "--out", out)])
        assert f"wrote {out}" in capsys.readouterr().out
        content = out.read_bytes()
        assert content.startswith(b"\x89PNG")
        assert int.from_bytes(content[16:20], "big") == 900  # pixels, in the header
    assert len([*(tmp_path / "new").iterdir()]) == 3
    labels = ("with weak SMART", "with strong SMART", "without SMART")
    accuracies = [[[line["sst"] for line in dev_lines(run)]] for run in (weak, strong, plain)]
    assert drawn["draw_smart"] == dict(zip(labels, accuracies, strict=True))
    assert [*drawn["draw_curves"]] == ["weak", "plain"]
    assert drawn["draw_curves"]["plain"][1] == dev_lines(plain)


def test_wrong_requests_get_one_sentence(trained, tmp_path, refused, monkeypatch):
    weak, young = write_run(tmp_path / "weak", 1, "weak"), write_run(tmp_path / "young", epochs=0)
    (tmp_path / "few").mkdir()
    data_path(tmp_path / "few", SST, "dev").write_text("\tid\tsentence\tsentiment\n0\ta\tlan\t1\n1\tb\tmer\t2\n")
    draw = visualize.main
    out, run = ["--out", tmp_path / "a.png"], trained / "run0"
    refused(draw, [], "smart,embeddings,curves")
    with monkeypatch.context() as without:
        without.setitem(sys.modules, "matplotlib", None)
        refused(draw, ["curves", weak, *out], "matplotlib", "pip install matplotlib")
    pytest.importorskip("matplotlib")
    refused(draw, ["curves", tmp_path / "none", *out], "none", "holds no run")
    refused(draw, ["curves", young, *out], "young", "no train lines")
    refused(draw, ["smart", "--weak", weak, "--strong", weak, *out], "weak", "with weak SMART, not with strong")
    refused(draw, ["smart", "--weak", run, "--strong", weak, *out], "run0", "without SMART")
    refused(draw, ["smart", "--weak", weak, *out], "--strong")
    refused(draw, ["curves", weak, "--out", tmp_path / "a.pdf"], "a.pdf", ".png")
    (tmp_path / "file").write_text("")
    refused(draw, ["curves", weak, "--out", tmp_path / "file" / "a.png"], "file")
    (tmp_path / "folder.png").mkdir()
    refused(draw, ["curves", weak, "--out", tmp_path / "folder.png"], "folder.png")
    refused(draw, ["embeddings", "--runs", run, "--models", 1, 2, *out], "--models 2", "there are 1")
    refused(draw, ["embeddings", "--runs", run, "--models", 0, *out], "greater than 0")
    refused(draw, ["embeddings", "--runs", weak, *out], "weak is not a run of multitask.py")
    refused(draw, ["embeddings", "--runs", weak, "--data", trained / "data", *out], "not a run of multitask.py")
    refused(draw, ["embeddings", "--runs", run, "--data", tmp_path, *out], "does not exist")
    refused(draw, ["embeddings", "--runs", run, "--data", tmp_path / "few", *out], "too few sentences")
    bare = write_run(tmp_path / "bare", data=str(trained / "data"))
    refused(draw, ["embeddings", "--runs", bare, *out], "holds no trained model")
    assert not [*tmp_path.rglob("*.part")]
    assert not (tmp_path / "a.png").exists()
