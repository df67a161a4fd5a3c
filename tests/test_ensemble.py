import json
import shutil
from fractions import Fraction

import numpy as np
import pytest
import tiny
import torch
from tiny import assert_refused, run

import ensemble
import multitask
import reproduce
import visualize
from ensemble import choose, combine, held_out, metric_of, tune
from evaluate import METRICS, dev_score, to_predictions
from predict import examples_of, outputs_of
from tasks import TASKS

CPU = torch.device("cpu")


def random_outputs(task, models, n, rng, levels=None):
    """Outputs as of `evaluate.model_outputs`. Args: levels, few different values, so that there are ties."""
    if not task.classes:
        return [(rng.integers(0, levels or 10**6, n) / (levels or 10**6)).astype(np.float32) for _ in range(models)]
    raw = [rng.integers(1, (levels or 10**6) + 1, (n, task.classes)).astype(np.float64) for _ in range(models)]
    return [(r / r.sum(1, keepdims=True)).astype(np.float32) for r in raw]


def random_labels(task, n, rng):
    return (rng.integers(0, task.classes, n) if task.classes else rng.uniform(0, 5, n)).astype(np.float32)


# ----- combinations against their definitions, example by example, in exact numbers


def exact(values):
    return [Fraction(float(v)) for v in values]


def slow_average(values, weights):
    """Σ W_i f_i / Σ W_i of one example: f_i is a list of class probabilities."""
    return [sum(w * f[c] for w, f in zip(weights, values, strict=True)) / sum(weights) for c in range(len(values[0]))]


def slow_vote(values, weights):
    """The class that wins, of one example."""
    votes = [Fraction(0)] * len(values[0])
    for w, f in zip(weights, values, strict=True):
        votes[f.index(max(f))] += w
    mean = slow_average(values, weights)
    return max(range(len(votes)), key=lambda c: (votes[c], mean[c], -c))


def slow_median(values, weights):
    """The mean of the smallest and the largest m with no more than half of the weight below m, and above m."""
    half = Fraction(sum(weights)) / 2
    good = []
    for m in values:
        below = sum(w for w, v in zip(weights, values, strict=True) if v < m)
        above = sum(w for w, v in zip(weights, values, strict=True) if v > m)
        if below <= half and above <= half:
            good.append(m)
    return (min(good) + max(good)) / 2


@pytest.mark.parametrize("levels", [None, 3])
@pytest.mark.parametrize("name", TASKS)
def test_combinations_are_their_definitions(name, levels):
    task, rng = TASKS[name], np.random.default_rng(0)
    for models in (1, 2, 3, 6):
        for weights in ([1] * models, rng.integers(1, 4, models).tolist(), rng.uniform(0.1, 3, models).tolist()):
            values = random_outputs(task, models, 60, rng, levels)
            average, vote = (combine(task, values, weights, method) for method in ("average", "vote"))
            assert average.shape == vote.shape == values[0].shape
            assert average.dtype == vote.dtype == np.float32
            exact_weights = exact(weights)
            for i in range(60):
                rows = [exact(v[i]) if task.classes else exact([v[i]]) for v in values]
                assert average[i] == pytest.approx(np.array(slow_average(rows, exact_weights), float), abs=1e-6)
                if task.classes:
                    assert vote[i].argmax() == slow_vote(rows, exact_weights)
                else:
                    assert vote[i] == pytest.approx(float(slow_median([f for (f,) in rows], exact_weights)), abs=1e-6)


def test_ties_of_a_vote_are_settled_by_probability_then_by_the_first_class():
    para, sst = TASKS["para"], TASKS["sst"]
    values = [np.array([[0.9, 0.1], [0.6, 0.4]], np.float32), np.array([[0.4, 0.6], [0.1, 0.9]], np.float32)]
    assert to_predictions(para, combine(para, values, [1, 1], "vote")).tolist() == [0, 1]
    assert to_predictions(para, combine(para, values, [1, 2], "vote")).tolist() == [1, 1]
    values = [np.array([[p, 1 - p]], np.float32) for p in (0.49, 0.49, 0.9)]
    assert to_predictions(para, combine(para, values, [0.1, 0.2, 0.3], "vote")).tolist() == [0]  # 0.1 + 0.2 is 0.3
    assert to_predictions(para, combine(para, values, [1, 1, 1], "vote")).tolist() == [1]
    assert to_predictions(para, combine(para, values, [1, 1, 1], "average")).tolist() == [0]
    turns = [np.roll(np.array([[0.5, 0.3, 0.2, 0.0, 0.0]], np.float32), k, 1) for k in range(5)]
    assert to_predictions(sst, combine(sst, turns, [1] * 5, "vote")).tolist() == [0]


def test_the_weighted_median():
    median = lambda values, weights: combine(TASKS["sts"], list(np.float32(values)[:, None]), weights, "vote")  # noqa: E731
    assert median([4, 1, 2], [1, 1, 1]) == [2]
    assert median([4, 1, 2, 3], [1, 1, 1, 1]) == [2.5]
    assert median([4, 1, 2], [3, 1, 1]) == [4]
    assert median([4, 1, 2], [2, 1, 1]) == [3]  # half of the weight is at 4: the mean of 2 and 4
    assert median([4, 1, 2], [0.3, 0.1, 0.2]) == [3]
    assert median([4, 1, 2], [1, 0, 0]) == [4]


@pytest.mark.parametrize("method", ["average", "vote"])
@pytest.mark.parametrize("name", TASKS)
def test_one_model_and_equal_models_say_what_the_model_says(name, method):
    task, rng = TASKS[name], np.random.default_rng(0)
    (value,) = random_outputs(task, 1, 50, rng)
    assert np.array_equal(to_predictions(task, combine(task, [value], [0.3], method)), to_predictions(task, value))
    assert np.array_equal(
        to_predictions(task, combine(task, [value] * 3, [0.1, 0.2, 0.7], method)), to_predictions(task, value)
    )
    assert choose(task, [value] * 3, random_labels(task, 50, rng), [1, 1, 1], method) == [0]


# ----- greedy selection and tuned weights


def slow_choose(task, values, labels, weights, method):
    metric = lambda members: METRICS[task.metric](  # noqa: E731
        to_predictions(task, combine(task, [values[i] for i in members], [weights[i] for i in members], method)), labels
    )
    ranked = list(range(len(values)))
    for a in range(len(ranked)):  # bubble sort: stable
        for b in range(len(ranked) - 1 - a):
            if metric([ranked[b]]) < metric([ranked[b + 1]]):
                ranked[b], ranked[b + 1] = ranked[b + 1], ranked[b]
    kept = ranked[:1]
    for i in ranked[1:]:
        if metric([*kept, i]) > metric(kept):
            kept = [*kept, i]
    return kept


@pytest.mark.parametrize("method", ["average", "vote"])
@pytest.mark.parametrize("name", TASKS)
def test_greedy_is_its_definition_and_never_worse_than_the_best_member(name, method):
    task, rng, several = TASKS[name], np.random.default_rng(0), 0
    for _ in range(60):
        models, n = int(rng.integers(1, 7)), int(rng.integers(1, 40))
        values = random_outputs(task, models, n, rng, rng.choice([None, 3]))
        labels = random_labels(task, n, rng)
        weights = rng.choice([np.ones(models), rng.uniform(0.1, 3, models)]).tolist()
        kept = choose(task, values, labels, weights, method)
        assert kept == slow_choose(task, values, labels, weights, method)
        found = [{name: value} for value in values]
        _, members, _ = ensemble.ensemble({name: labels}, found, weights, method, greedy=True)
        assert members == {name: {i: weights[i] for i in kept}}
        reached = metric_of(task, [values[i] for i in kept], labels, [weights[i] for i in kept], method)
        assert reached >= max(METRICS[task.metric](to_predictions(task, v), labels) for v in values)
        several += len(kept) > 1
    assert several > 3


@pytest.mark.parametrize("method", ["average", "vote"])
@pytest.mark.parametrize("name", TASKS)
def test_tuned_weights_are_used_only_where_they_win_on_the_half_that_they_have_not_seen(name, method):
    task, rng, wins = TASKS[name], np.random.default_rng(0), []
    for _ in range(12):
        n = int(rng.integers(30, 90))
        labels = random_labels(task, n, rng)
        noise = random_outputs(task, 3, n, rng)
        good = np.eye(task.classes)[labels.astype(int)] * 0.3 if task.classes else labels / 5
        values = [(noise[0] + good * rng.choice([0, 1])).astype(np.float32), *noise[1:]]
        rows = np.random.default_rng(0).permutation(n)
        first, second = rows[: (n + 1) // 2], rows[(n + 1) // 2 :]
        on = lambda rows, w: metric_of(task, [v[rows] for v in values], labels[rows], w, method)  # noqa: B023, E731
        weights, after, before, use = tune(task, values, labels, method)
        assert set(weights) <= set(ensemble.GRID)
        assert any(weights)
        assert on(first, weights) >= on(first, [1, 1, 1])
        for i in range(3):  # no single weight can be changed for the better
            others = [[*weights[:i], w, *weights[i + 1 :]] for w in ensemble.GRID]
            assert on(first, weights) >= max(on(first, other) for other in others if any(other))
        assert (after, before) == (on(second, weights), on(second, [1, 1, 1]))
        assert use == (after > before and on(np.arange(n), weights) >= on(np.arange(n), [1, 1, 1]))

        found, gold = [{name: v} for v in values], {name: labels}
        metrics, kept, tuned = ensemble.ensemble(gold, found, [1.0] * 3, method, greedy=True, tune_weights=True)
        assert metrics[name] >= max(METRICS[task.metric](to_predictions(task, v), labels) for v in values)
        if name in tuned and not tuned[name][3]:
            assert set(kept[name].values()) == {1.0}
        metrics, kept, tuned = ensemble.ensemble(gold, found, [1.0] * 3, method, tune_weights=True)
        assert kept[name] == ({i: w for i, w in enumerate(weights) if w} if use else dict.fromkeys(range(3), 1.0))
        wins.append(use)
    assert True in wins
    assert False in wins


def test_weights_that_win_on_both_halves_and_lose_on_the_whole_are_not_used():
    labels = np.float32([4, 5, 0, 0, 2, 3])
    values = [np.float32([4, 2, 0, 1, 2, 2]), np.float32([5, 2, 3, 3, 0, 4])]
    weights, after, before, use = tune(TASKS["sts"], values, labels, "average")
    assert weights == [0, 1]
    assert after > before + 0.1
    assert not use


def test_held_out_scores_each_half_with_the_members_chosen_on_the_other():
    rng, n, seen = np.random.default_rng(0), 31, []
    labels = {name: random_labels(task, n, rng) for name, task in TASKS.items()}
    outputs = {name: random_outputs(task, 4, n, rng) for name, task in TASKS.items()}
    found = [{name: values[i] for name, values in outputs.items()} for i in range(4)]

    def pick(gold, values):
        seen.append({name: set(of) for name, of in gold.items()})
        kept = {}
        for name, task in TASKS.items():
            kept[name] = dict.fromkeys(choose(task, [v[name] for v in values], gold[name], [1] * 4, "vote"), 1.0)
        return kept

    expected = {name: [] for name in TASKS}
    for seed in range(3):
        order = np.random.default_rng(seed)
        halves = {}
        for name in TASKS:
            shuffled = order.permutation(n)
            halves[name] = [shuffled[:16], shuffled[16:]]
        for a, b in ((0, 1), (1, 0)):
            for name, task in TASKS.items():
                here, there = halves[name][a], halves[name][b]
                members = choose(task, [v[here] for v in outputs[name]], labels[name][here], [1] * 4, "vote")
                values = combine(task, [outputs[name][i][there] for i in members], [1] * len(members), "vote")
                expected[name].append(METRICS[task.metric](to_predictions(task, values), labels[name][there]))
    found_scores = held_out(pick, labels, found, "vote", halvings=3)
    assert found_scores == pytest.approx({name: np.mean(values) for name, values in expected.items()})
    assert len(seen) == 6


def test_a_choice_among_models_of_noise_gains_on_what_it_has_seen_only():
    rng, sst = np.random.default_rng(1), TASKS["sst"]
    labels = {"sst": random_labels(sst, 400, rng)}
    found = [{"sst": values} for values in random_outputs(sst, 30, 400, rng)]
    pick = lambda gold, values: {  # noqa: E731
        "sst": dict.fromkeys(choose(sst, [v["sst"] for v in values], gold["sst"], [1] * 30, "average"), 1.0)
    }
    chosen = metric_of(sst, [found[i]["sst"] for i in pick(labels, found)["sst"]], labels["sst"],
                       [1] * len(pick(labels, found)["sst"]), "average")  # fmt: skip
    assert chosen > 0.25
    assert held_out(pick, labels, found, "average")["sst"] < 0.23


# ----- trained runs


def said_by(runs, split="dev"):
    """The examples of runs, and what each run says of them."""
    examples = examples_of(runs, None, split)
    return examples, [outputs_of(run, examples, split, CPU) for run in runs]


def test_the_command_line_as_a_user_meets_it(copied):
    names = [copied / name for name in "abd"]
    done = run("ensemble.py", *names, "--greedy", "--out", copied / "out")
    assert done.returncode == 0, done.stderr
    lines = [line for line in done.stdout.splitlines() if line.startswith("|")]
    assert [line.split("|")[1].strip() for line in lines[2:]] == [*map(str, names), "greedy average"]
    cells = [[float(cell) for cell in line.split("|")[2:-1]] for line in lines[2:]]
    for column in zip(*cells, strict=True):
        assert column[-1] >= max(column[:-1])  # each task's own members, so the dev score too
    dev, found = said_by(names)
    labels = {name: of.labels for name, of in dev.items()}
    metrics, kept, _ = ensemble.ensemble(labels, found, [1.0] * 3, greedy=True)
    assert cells[-1] == pytest.approx([*metrics.values(), dev_score(metrics)], abs=5e-4)
    for name, members in kept.items():
        people = ", ".join(str(names[i]) for i in members)
        assert f"{name}: {len(members)} of 3 models: {people}" in done.stdout
        values = combine(TASKS[name], [found[i][name] for i in members], [1.0] * len(members), "average")
        written = (copied / "out" / "predictions" / f"{name}-dev-output.csv").read_text().splitlines()
        assert written[0] == f"id \t {TASKS[name].output} "
        form = "{} , {} " if TASKS[name].classes else "{} , {:.4f} "
        said = zip(dev[name].ids, to_predictions(TASKS[name], values), strict=True)
        assert written[1:] == [form.format(*line) for line in said]


def test_predictions_for_test_of_those_tasks_that_have_a_test_file(copied, loads, capsys):
    names = [str(copied / name) for name in "abd"]
    (copied / "data" / "quora-test-student.csv").unlink()
    flags = [*names, "--method", "vote", "--weights", "1", "2", "0.5", "--split", "test", "--out", str(copied / "out")]
    ensemble.main(flags)
    said = capsys.readouterr()
    assert said.err.count("quora-test-student.csv does not exist: no test predictions for para") == 1
    assert "(sst, sts)" in said.out
    assert f"{names[1]} (weight 2)" in said.out
    written = sorted(path.name for path in (copied / "out" / "predictions").iterdir())
    assert written == ["sst-test-output.csv", "sts-test-output.csv"]
    values = [of["sst"] for of in said_by(names, "test")[1]]
    winners = combine(TASKS["sst"], values, [1, 2, 0.5], "vote").argmax(1)
    written = (copied / "out" / "predictions" / "sst-test-output.csv").read_text().splitlines()[1:]
    assert [line.split(" , ")[1] for line in written] == [f"{c} " for c in winners]
    loads.clear()
    ensemble.main(flags)
    assert loads == []


def test_who_takes_no_part_in_a_task_is_not_asked_about_its_test(copied):
    names = [copied / name for name in "abd"]
    ensemble.main([*map(str, names), "--greedy", "--split", "test", "--out", str(copied / "out")])
    dev, found = said_by(names)
    _, kept, _ = ensemble.ensemble({name: of.labels for name, of in dev.items()}, found, [1.0] * 3, greedy=True)
    for i, name in enumerate(names):
        asked = {path.name.split("-test-")[0] for path in (name / "outputs").glob("*-test-*.safetensors")}
        assert asked == {task for task, members in kept.items() if i in members}


def test_tuned_weights_are_reported_beside_equal_ones(trained, tmp_path, capsys):
    ensemble.main([*(str(trained / name) for name in "abd"), "--tune_weights", "--out", str(tmp_path / "out")])
    said = capsys.readouterr().out
    assert "beat equal ones on the other half" in said
    assert said.count("| yes ") + said.count("| no ") == len(TASKS)
    ensemble.main([str(trained / "a"), "--out", str(tmp_path / "out")])  # an ensemble of one


def test_other_data_are_named_and_said_to_be_other(copied, capsys):
    (copied / "other").mkdir()
    tiny.task_files(copied / "other", n=8, seed=9)
    out = ["--out", str(copied / "out")]
    ensemble.main([str(copied / "a"), str(copied / "b"), *out])
    assert "was trained with" not in capsys.readouterr().err
    ensemble.main([str(copied / "a"), str(copied / "b"), *out, "--data", str(copied / "other")])
    assert capsys.readouterr().err.count("was trained with") == 2
    assert len((copied / "out" / "predictions" / "sst-dev-output.csv").read_text().splitlines()) == 9
    config = copied / "b" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"data": str(copied / "other")}))
    ensemble.main([str(copied / "a"), str(copied / "b"), *out])
    assert f"{copied}/b was trained with --data {copied}/other" in capsys.readouterr().err
    assert len((copied / "out" / "predictions" / "sst-dev-output.csv").read_text().splitlines()) == 41


def test_the_same_dev_files_under_other_names_are_no_other_data(copied, capsys, monkeypatch):
    monkeypatch.chdir(copied)
    (copied / "link").symlink_to("data")
    shutil.copy("data/ids-sst-train.csv", "mine.csv")
    own = {
        "a": {"data": "./link/"},
        "b": {"data": "data", "sst_train": "mine.csv", "para_dev": f"{copied}/data/quora-dev.csv"},
    }
    for name, more in own.items():
        config = copied / name / "config.json"
        config.write_text(json.dumps(json.loads(config.read_text()) | more))
    for more in ([], ["--data", "data"]):
        ensemble.main(["a", "b", "c", "--out", "out", *more])
        assert "was trained with" not in capsys.readouterr().err


def test_a_run_that_is_not_finished_is_scored_and_said_to_be_none(copied, capsys):
    config = copied / "b" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"epochs": 8}))
    runs = [str(copied / name) for name in "abc"]
    (copied / "c" / "metrics.jsonl").unlink()  # nothing says what it is
    for more in ([], ["--method", "soup"]):
        ensemble.main([*runs, "--out", str(copied / f"out{len(more)}"), *more])
        lines = [line for line in capsys.readouterr().err.splitlines() if "not finished" in line]
        go_on = f"go on with it: python multitask.py --resume --out {copied}/b"
        assert lines == [f"scoring {copied}/b on dev (not finished, 3 of 8 epochs; {go_on})"]
    ensemble.main([str(copied / "out2"), "--out", str(copied / "again")])  # a soup has no epochs
    assert "not finished" not in capsys.readouterr().err


# ----- mistakes


def test_a_wrong_request_ends_with_code_2_and_no_traceback(tmp_path):
    assert_refused(run("ensemble.py", tmp_path / "none"), tmp_path / "none", "holds no run")


def test_wrong_requests_get_one_sentence(copied, refused):
    a, b, main = copied / "a", copied / "b", ensemble.main
    refused(main, [], "RUN")
    refused(main, [a, copied / "none"], copied / "none", "holds no run")
    refused(main, [a, copied / "data"], copied / "data", "holds no run")
    refused(main, [a, b, copied / "b" / ".." / "a"], "a is named twice")
    refused(main, [a, b, "--weights", "1"], "1 weights to 2 runs")
    refused(main, [a, b, "--weights", "1", "0"], "greater than 0")
    refused(main, [a, b, "--weights", "1", "-1"], "greater than 0")
    refused(main, [a, b, "--weights", "1", "nan"], "greater than 0")
    refused(main, [a, "--greedy"], "--greedy has nothing to choose")
    refused(main, [a, "--tune_weights"], "--tune_weights has nothing to choose")
    refused(main, [a, b, "--tune_weights", "--weights", "1", "2"], "--tune_weights", "--weights")
    refused(main, [a, b, "--tune_weights", "--method", "soup"], "--tune_weights")
    refused(main, [a, b, "--method", "mean"], "mean", "average")
    refused(main, [a, b, "--out", copied / "c"], "already holds a run")
    refused(main, [a, b, "--data", copied / "none"], "does not exist")
    if not torch.cuda.is_available():
        refused(main, [a, b, "--use_gpu"], "no CUDA device")

    for path in copied.glob("data/*test*"):
        path.unlink()
    refused(main, [a, b, "--split", "test"], "no test file at all")
    for path in copied.glob("data/*-dev.csv"):
        path.write_text("\n".join(path.read_text().splitlines()[:2]) + "\n")
    refused(main, [a, b, "--tune_weights"], "one dev example")
    shutil.rmtree(b / "best")
    refused(main, [a, b], b, "holds no trained model any more")
    config = copied / "c" / "config.json"
    config.write_text(json.dumps({"data": str(copied / "data"), "out": "c"}))  # as of another program of the project
    refused(main, [a, copied / "c"], copied / "c", "no run of multitask.py")
    assert not (copied / "runs").exists()


def test_every_program_that_reads_a_run_reads_its_flags_so(copied, refused):
    a, b, out = copied / "a", copied / "b", ["--out", copied / "out"]
    config = json.loads((b / "config.json").read_text())
    (b / "config.json").write_text(json.dumps(config | {"kernels": 7}))
    for main, argv in (
        (ensemble.main, [a, b, *out]),
        (ensemble.main, [a, b, "--data", copied / "data", "--method", "soup", *out]),
        (visualize.main, ["curves", b, "--out", copied / "a.png"]),
        (visualize.main, ["smart", "--weak", b, "--strong", a, "--out", copied / "a.png"]),
        (visualize.main, ["embeddings", "--runs", b, "--out", copied / "a.png"]),
        (reproduce.main, ["--keep", b, "--row", "mine", "--results", copied / "results"]),
        (multitask.main, ["--resume", "--out", b]),
        (multitask.main, ["--teacher", a, b, "--bert", a / "best", "--data", copied / "data", *out]),
    ):
        refused(main, argv, b / "config.json", "is damaged", "--kernels")
    assert not (copied / "out").exists()
