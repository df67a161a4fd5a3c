import json
import shutil
from fractions import Fraction

import numpy as np
import pytest
import torch
from conftest import assert_refused, run, tiny_config, write_task_files

import ensemble
import multitask
import predict
from bert import Bert
from ensemble import choose, combine, data_flags, metric_of, outputs_of, tune
from evaluate import METRICS, decide, dev_score, score
from model import MultitaskBert
from soup import choose_soup, dev_score_of, soup
from support.safetensors import read_safetensors, write_safetensors
from tasks import TASKS, load_examples

CPU = torch.device("cpu")


def random_outputs(task, models, n, rng, levels=None):
    """Outputs as of `evaluate.outputs`. Args: levels, few different values, so that there are ties."""
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
    assert decide(para, combine(para, values, [1, 1], "vote")).tolist() == [0, 1]
    assert decide(para, combine(para, values, [1, 2], "vote")).tolist() == [1, 1]
    values = [np.array([[p, 1 - p]], np.float32) for p in (0.49, 0.49, 0.9)]
    assert decide(para, combine(para, values, [0.1, 0.2, 0.3], "vote")).tolist() == [0]  # 0.1 + 0.2 is 0.3
    assert decide(para, combine(para, values, [1, 1, 1], "vote")).tolist() == [1]
    assert decide(para, combine(para, values, [1, 1, 1], "average")).tolist() == [0]
    turns = [np.roll(np.array([[0.5, 0.3, 0.2, 0.0, 0.0]], np.float32), k, 1) for k in range(5)]
    assert decide(sst, combine(sst, turns, [1] * 5, "vote")).tolist() == [0]


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
    assert np.array_equal(decide(task, combine(task, [value], [0.3], method)), decide(task, value))
    assert np.array_equal(decide(task, combine(task, [value] * 3, [0.1, 0.2, 0.7], method)), decide(task, value))
    assert choose(task, [value] * 3, random_labels(task, 50, rng), [1, 1, 1], method) == [0]


# ----- greedy selection and tuned weights


def slow_choose(task, values, labels, weights, method):
    metric = lambda members: METRICS[task.metric](  # noqa: E731
        decide(task, combine(task, [values[i] for i in members], [weights[i] for i in members], method)), labels
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
        reached = metric_of(task, [values[i] for i in kept], labels, [weights[i] for i in kept], method)
        assert reached >= max(METRICS[task.metric](decide(task, v), labels) for v in values)
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

        examples = type("", (), {"labels": labels})
        found = [{name: (examples, v)} for v in values]
        metrics, kept, tuned = ensemble.ensemble(found, [1.0] * 3, method, greedy=True, tune_priors=True)
        assert metrics[name] >= max(METRICS[task.metric](decide(task, v), labels) for v in values)
        if name in tuned and not tuned[name][3]:
            assert set(kept[name].values()) == {1.0}
        metrics, kept, tuned = ensemble.ensemble(found, [1.0] * 3, method, tune_priors=True)
        assert kept[name] == ({i: w for i, w in enumerate(weights) if w} if use else dict.fromkeys(range(3), 1.0))
        wins.append(use)
    assert True in wins
    assert False in wins


# ----- trained runs


@pytest.fixture(scope="module")
def trained(tiny_encoder, tmp_path_factory):
    """Runs a, b and c from one start, and d: siamese, with PALs, another encoder; and their data."""
    folder = tmp_path_factory.mktemp("ensemble")
    data = folder / "data"
    data.mkdir()
    write_task_files(data, rows=40, seed=3)
    torch.manual_seed(1)
    for layers in (1, 2):  # weights large enough to tell sentences apart from the first step
        Bert(tiny_config(num_hidden_layers=layers, initializer_range=0.3)).save(folder / f"layers{layers}")
        shutil.copy(tiny_encoder / "vocab.txt", folder / f"layers{layers}")
    same = ["--bert", folder / "layers2"]
    other = ["--bert", folder / "layers1", "--pair_encoding", "siamese", "--use_pals", "--pal_size", "12"]
    for name, own in {"a": same, "b": [*same, "--lr", "2e-3"], "c": [*same, "--extra_sst"], "d": other}.items():
        flags = ["--data", data, "--batch_size", "8", "--epochs", "3", "--head_lr", "3e-3", *own]
        multitask.main([str(flag) for flag in [*flags, "--out", folder / name]])
        shutil.rmtree(folder / name / "last")
    return folder


@pytest.fixture
def copied(trained, tmp_path):
    """The same in a folder of the test's own, without cached outputs."""
    for name in ("a", "b", "c", "d", "data"):
        shutil.copytree(trained / name, tmp_path / name, ignore=shutil.ignore_patterns("outputs"))
    for name in "abcd":
        config = json.loads((tmp_path / name / "config.json").read_text())
        (tmp_path / name / "config.json").write_text(json.dumps(config | {"data": str(tmp_path / "data")}))
    return tmp_path


@pytest.fixture
def loads(monkeypatch):
    """The folders of the models that were loaded."""
    seen, load = [], MultitaskBert.load
    monkeypatch.setattr(MultitaskBert, "load", lambda folder: seen.append(folder) or load(folder))
    return seen


def dev_of(folder):
    return {name: files["dev"] for name, files in load_examples(data_flags(folder), ("dev",)).items()}


def tensors_of(run):
    best = run / "best"
    return {f"{p.name} {name}": t for p in best.glob("*.safetensors") for name, t in read_safetensors(p).items()}


def bits(tensors):
    return {name: tensor.numpy().tobytes() for name, tensor in tensors.items()}


def test_outputs_are_computed_once(copied, loads):
    first = outputs_of(copied / "d", data_flags(copied / "a"), "dev", CPU)
    assert len(loads) == 1
    again = outputs_of(copied / "d", data_flags(copied / "a"), "dev", CPU)
    assert len(loads) == 1
    model, _ = MultitaskBert.load(copied / "d" / "best")
    line = json.loads((copied / "d" / "metrics.jsonl").read_text().splitlines()[-1])
    assert first.keys() == again.keys() == TASKS.keys()
    for name, (examples, values) in again.items():
        assert values.dtype == np.float32
        assert np.array_equal(values, first[name][1])
        assert len(examples) == len(values) == 40
        assert model.heads[name].hidden[0].weight.shape[1] == model.bert.config.hidden_size * (1 + TASKS[name].pair)
    metrics = {name: score(TASKS[name], values, examples.labels) for name, (examples, values) in again.items()}
    lines = [json.loads(line) for line in (copied / "d" / "metrics.jsonl").read_text().splitlines()]
    best = max((line for line in lines if line["kind"] == "dev"), key=lambda line: line["score"])
    assert metrics == pytest.approx({name: best[name] for name in TASKS}, abs=1e-6)
    assert line["kind"] == "dev"


def test_outputs_are_computed_again_where_model_or_data_changed_or_the_file_is_damaged(copied, loads):
    data = data_flags(copied / "a")

    def loaded():
        before = len(loads)
        found = outputs_of(copied / "a", data, "dev", CPU)
        return found, len(loads) - before

    original, count = loaded()
    assert count == 1
    path = copied / "a" / "outputs" / "sst-dev.safetensors"
    whole = path.read_bytes()
    for damaged in (whole[:-1], whole[:20], b"", whole[:-1] + bytes([whole[-1] ^ 1]), b"\xff" * 300):
        path.write_bytes(damaged)
        found, count = loaded()
        assert count == 1
        assert np.array_equal(found["sst"][1], original["sst"][1])
        assert path.read_bytes() == whole
    assert loaded()[1] == 0

    for file in ("heads.safetensors", "model.safetensors"):
        file = copied / "a" / "best" / file
        tensors = {name: t.clone() for name, t in read_safetensors(file).items()}
        write_safetensors(file, {name: t + 0.1 for name, t in tensors.items()})
        found, count = loaded()
        assert count == 1
        assert not np.array_equal(found["sst"][1], original["sst"][1])
    for file in ("tokenizer.json", "multitask.json", "config.json"):
        file = copied / "a" / "best" / file
        file.write_text(file.read_text() + "\n")
        assert loaded()[1] == 1
    assert loaded()[1] == 0

    file = copied / "data" / "sts-dev.csv"
    file.write_text(file.read_text().replace("film", "dog", 1))
    assert loaded()[1] == 1
    data.max_examples = 10
    found, count = loaded()
    assert count == 1
    assert len(found["para"][1]) == 10
    assert loaded()[1] == 0


def test_outputs_that_cannot_be_kept_are_no_reason_to_stop(copied, loads, capsys):
    (copied / "a" / "outputs").write_text("a file where the folder should be")
    assert outputs_of(copied / "a", data_flags(copied / "a"), "dev", CPU).keys() == TASKS.keys()
    assert "cannot be kept" in capsys.readouterr().err


def test_the_command_line_as_a_user_meets_it(copied):
    names = [copied / name for name in "abd"]
    done = run("ensemble.py", *names, "--greedy", "--out", copied / "out")
    assert done.returncode == 0, done.stderr
    lines = [line for line in done.stdout.splitlines() if line.startswith("|")]
    assert [line.split("|")[1].strip() for line in lines[2:]] == [*map(str, names), "greedy average"]
    cells = [[float(cell) for cell in line.split("|")[2:-1]] for line in lines[2:]]
    for column in zip(*cells, strict=True):
        assert column[-1] >= max(column[:-1])  # each task's own members, so the dev score too
    found = [outputs_of(name, data_flags(names[0]), "dev", CPU) for name in names]
    metrics, kept, _ = ensemble.ensemble(found, [1.0] * 3, greedy=True)
    assert cells[-1] == pytest.approx([*metrics.values(), dev_score(metrics)], abs=5e-4)
    for name, members in kept.items():
        people = ", ".join(str(names[i]) for i in members)
        assert f"{name}: {len(members)} of 3 models: {people}" in done.stdout
        values = combine(TASKS[name], [found[i][name][1] for i in members], [1.0] * len(members), "average")
        examples = found[0][name][0]
        written = (copied / "out" / "predictions" / f"{name}-dev-output.csv").read_text().splitlines()
        assert written[0] == f"id \t {TASKS[name].output} "
        form = "{} , {} " if TASKS[name].classes else "{} , {:.4f} "
        said = zip(examples.ids, decide(TASKS[name], values), strict=True)
        assert written[1:] == [form.format(*line) for line in said]


def test_predictions_for_test_of_those_tasks_that_have_a_test_file(copied, loads, capsys):
    names = [str(copied / name) for name in "abd"]
    (copied / "data" / "quora-test-student.csv").unlink()
    flags = [*names, "--method", "vote", "--priors", "1", "2", "0.5", "--split", "test", "--out", str(copied / "out")]
    ensemble.main(flags)
    said = capsys.readouterr()
    assert said.err.count("quora-test-student.csv does not exist: no test predictions for para") == 1
    assert "(sst, sts)" in said.out
    assert f"{names[1]} (weight 2)" in said.out
    written = sorted(path.name for path in (copied / "out" / "predictions").iterdir())
    assert written == ["sst-test-output.csv", "sts-test-output.csv"]
    data = data_flags(names[0])
    values = [outputs_of(name, data, "test", CPU)["sst"][1] for name in names]
    winners = combine(TASKS["sst"], values, [1, 2, 0.5], "vote").argmax(1)
    written = (copied / "out" / "predictions" / "sst-test-output.csv").read_text().splitlines()[1:]
    assert [line.split(" , ")[1] for line in written] == [f"{c} " for c in winners]
    loads.clear()
    ensemble.main(flags)
    assert loads == []


def test_who_takes_no_part_in_a_task_is_not_asked_about_its_test(copied):
    names = [copied / name for name in "abd"]
    ensemble.main([*map(str, names), "--greedy", "--split", "test", "--out", str(copied / "out")])
    found = [outputs_of(name, data_flags(names[0]), "dev", CPU) for name in names]
    _, kept, _ = ensemble.ensemble(found, [1.0] * 3, greedy=True)
    for i, name in enumerate(names):
        asked = {path.name for path in (name / "outputs").glob("*-test.safetensors")}
        assert asked == {f"{task}-test.safetensors" for task, members in kept.items() if i in members}


def test_tuned_weights_are_reported_beside_equal_ones(trained, tmp_path, capsys):
    ensemble.main([*(str(trained / name) for name in "abd"), "--tune_priors", "--out", str(tmp_path / "out")])
    said = capsys.readouterr().out
    assert "beat equal ones on the other half" in said
    assert said.count("| yes ") + said.count("| no ") == 3
    ensemble.main([str(trained / "a"), "--out", str(tmp_path / "out")])  # an ensemble of one


def test_other_data_are_named_and_said_to_be_other(copied, capsys):
    (copied / "other").mkdir()
    write_task_files(copied / "other", rows=8, seed=9)
    out = ["--out", str(copied / "out")]
    ensemble.main([str(copied / "a"), str(copied / "b"), *out])
    assert "other data" not in capsys.readouterr().err
    ensemble.main([str(copied / "a"), str(copied / "b"), *out, "--data", str(copied / "other")])
    assert capsys.readouterr().err.count("was trained on other data") == 2
    assert len((copied / "out" / "predictions" / "sst-dev-output.csv").read_text().splitlines()) == 9
    config = copied / "b" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"data": str(copied / "other")}))
    ensemble.main([str(copied / "a"), str(copied / "b"), *out])
    assert f"{copied}/b was trained on other data" in capsys.readouterr().err
    assert len((copied / "out" / "predictions" / "sst-dev-output.csv").read_text().splitlines()) == 41


# ----- soups


def test_a_soup_is_the_weighted_mean_of_the_weights(trained):
    folders = [trained / name / "best" for name in "abc"]
    model, _ = soup(folders, [1, 2, 0.5])
    states = [MultitaskBert.load(folder)[0].state_dict() for folder in folders]
    for name, tensor in model.state_dict().items():
        a, b, c = (state[name].double() for state in states)
        assert tensor.dtype == torch.float32
        assert torch.allclose(tensor.double(), (a + 2 * b + 0.5 * c) / 3.5, rtol=1e-7, atol=0)
    assert not torch.equal(states[0]["heads.sst.output.weight"], states[1]["heads.sst.output.weight"])


@pytest.mark.parametrize("name", ["a", "d"])
def test_a_soup_of_one_model_is_that_model_bit_for_bit(copied, name, capsys):
    file = copied / name / "best" / "heads.safetensors"
    tensors = {key: t.clone() for key, t in read_safetensors(file).items()}
    tensors["sst.output.bias"][:2] = torch.tensor([-0.0, 1e-45])  # neither a sign nor a denormal number is lost
    write_safetensors(file, tensors)
    flags = ["--method", "soup", "--priors", "0.3", "--out", str(copied / "soup")]
    ensemble.main([str(copied / name), *flags])
    assert bits(tensors_of(copied / "soup")) == bits(tensors_of(copied / name))
    same, _ = soup([copied / name / "best"] * 3, [0.1, 0.2, 0.3])
    model, _ = MultitaskBert.load(copied / name / "best")
    assert bits(same.state_dict()) == bits(model.state_dict())
    row = lambda who: next(line for line in said if line.startswith(f"| {who} ")).split("|")[2:]  # noqa: E731
    said = capsys.readouterr().out.splitlines()
    assert row("soup") == row(copied / name)


def test_a_soup_is_a_run_like_any_other(copied, capsys, loads):
    names = [str(copied / name) for name in "ab"]
    config = copied / "a" / "config.json"  # predictions that the run wrote elsewhere are the run's
    config.write_text(
        json.dumps(json.loads(config.read_text()) | {"sst_dev_out": str(copied / "elsewhere"), "seed": 99})
    )
    out = copied / "soup"
    ensemble.main([*names, "--method", "soup", "--split", "test", "--out", str(out)])
    said, warned = capsys.readouterr()
    assert "began with other --bert or --seed" in warned
    assert f"soup: 2 of 2 models: {names[0]}, {names[1]}" in said
    row = [float(cell) for cell in said.splitlines()[4].split("|")[2:-1]]
    assert {p.name for p in (out / "predictions").iterdir()} == {f"{t}-test-output.csv" for t in TASKS}
    (line,) = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert line["kind"] == "dev"
    assert [line[key] for key in (*TASKS, "score")] == pytest.approx(row, abs=5e-4)

    before = bits(tensors_of(out))
    for flag in ("--eval_only", "--resume"):  # there is nothing left to train
        multitask.main([flag, "--out", str(out)])
        again = [line.split("|")[-2].strip() for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
        assert [float(cell) for cell in again[2:]] == row
        assert len(list((out / "predictions").iterdir())) == 6
        assert bits(tensors_of(out)) == before
    assert not (copied / "elsewhere").exists()
    predict.main(["--run", str(out), "A good film."])
    ensemble.main([*names, str(out), str(copied / "d"), "--out", str(copied / "out")])
    assert f"| {out} " in capsys.readouterr().out


def test_a_greedy_soup_keeps_what_does_not_hurt_it(trained, monkeypatch):
    folders, dev = [trained / name / "best" for name in "abc"], dev_of(trained / "a")
    weights = [1.0, 2.0, 1.0]
    scores = [dev_score_of(*MultitaskBert.load(folder), dev) for folder in folders]
    kept = choose_soup(folders, weights, scores, dev, CPU)

    ranked = sorted(range(3), key=lambda i: scores[i], reverse=True)
    expected = ranked[:1]
    of = lambda members: dev_score_of(*soup([folders[i] for i in members], [weights[i] for i in members]), dev)  # noqa: E731
    for i in ranked[1:]:
        if of([*expected, i]) >= of(expected):
            expected = [*expected, i]
    assert kept == expected
    assert of(kept) >= max(scores)
    # an ingredient that changes nothing is kept: at least as good is good enough
    assert choose_soup([folders[0]] * 3, weights, [scores[0]] * 3, dev, CPU) == [0, 1, 2]


def test_soups_of_different_models_are_refused(copied, refused):
    out = ["--method", "soup", "--out", copied / "soup"]
    refused(ensemble.main, [copied / "a", copied / "b", copied / "d", *out], copied / "a", copied / "d", "heads, PALs")
    config = copied / "b" / "best" / "config.json"  # the same shapes, another function
    changed = json.loads(config.read_text())
    config.write_text(json.dumps(changed | {"num_attention_heads": 2}))
    refused(ensemble.main, [copied / "a", copied / "b", *out], copied / "a", copied / "b", "encoders")
    config.write_text(json.dumps(changed | {"hidden_dropout_prob": 0.3}))  # a matter of training only
    vocabulary = copied / "c" / "best" / "tokenizer.json"
    vocabulary.write_text(vocabulary.read_text().replace('"film"', '"movie"'))
    refused(ensemble.main, [copied / "a", copied / "b", copied / "c", *out], copied / "c", "vocabularies")
    assert not (copied / "soup").exists()
    ensemble.main([str(flag) for flag in [copied / "a", copied / "b", *out]])


# ----- mistakes


def test_a_wrong_request_ends_with_code_2_and_no_traceback(tmp_path):
    assert_refused(run("ensemble.py", tmp_path / "none"), tmp_path / "none", "holds no run")


def test_wrong_requests_get_one_sentence(copied, refused):
    a, b, main = copied / "a", copied / "b", ensemble.main
    refused(main, [], "RUN")
    refused(main, [a, copied / "none"], copied / "none", "holds no run")
    refused(main, [a, copied / "data"], copied / "data", "holds no run")
    refused(main, [a, b, copied / "b" / ".." / "a"], "a is named twice")
    refused(main, [a, b, "--priors", "1"], "1 weights to 2 runs")
    refused(main, [a, b, "--priors", "1", "0"], "greater than 0")
    refused(main, [a, b, "--priors", "1", "-1"], "greater than 0")
    refused(main, [a, b, "--priors", "1", "nan"], "greater than 0")
    refused(main, [a, "--greedy"], "--greedy has nothing to choose")
    refused(main, [a, "--tune_priors"], "--tune_priors has nothing to choose")
    refused(main, [a, b, "--tune_priors", "--priors", "1", "2"], "--tune_priors", "--priors")
    refused(main, [a, b, "--tune_priors", "--method", "soup"], "--tune_priors")
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
    refused(main, [a, b, "--tune_priors"], "one dev example")
    shutil.rmtree(b / "best")
    refused(main, [a, b], b, "holds no trained model yet")
    config = copied / "c" / "config.json"
    config.write_text(json.dumps({"data": str(copied / "data")}))  # as of another program of the project
    refused(main, [a, copied / "c"], copied / "c", "no run of multitask.py")
    assert not (copied / "runs").exists()
