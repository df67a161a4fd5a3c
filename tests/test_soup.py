"""Soups against the mean of their ingredients' tensors, greedy soups against the recipe, and soups as runs."""

import itertools
import json
import shutil
from types import SimpleNamespace

import pytest
import torch

import ensemble
import multitask
import predict
import soup as recipe
from model import MultitaskBert
from predict import examples_of
from soup import choose_soup, dev_score_of, soup, write_config
from support import ensemble_flags, run_folder
from support.safetensors import read_safetensors, write_safetensors
from tasks import TASKS

CPU = torch.device("cpu")


def tensors_of(run):
    best = run / "best"
    return {f"{p.name} {name}": t for p in best.glob("*.safetensors") for name, t in read_safetensors(p).items()}


def bits(tensors):
    return {name: tensor.numpy().tobytes() for name, tensor in tensors.items()}


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
    flags = ["--method", "soup", "--weights", "0.3", "--out", str(copied / "soup")]
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
    assert "began with other --bert or --init_seed" in warned
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
        assert len(list((out / "predictions").iterdir())) == 2 * len(TASKS)
        assert bits(tensors_of(out)) == before
    assert not (copied / "elsewhere").exists()
    predict.main(["--run", str(out), "A good film."])
    ensemble.main([*names, str(out), str(copied / "d"), "--out", str(copied / "out")])
    assert f"| {out} " in capsys.readouterr().out


def test_one_encoder_spelled_in_two_ways_is_one_start(copied, capsys, trained):
    config = copied / "b" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"bert": f"{trained}/./layers2/"}))
    ensemble.main([*(str(copied / name) for name in "ab"), "--method", "soup", "--out", str(copied / "soup")])
    assert "began with other" not in capsys.readouterr().err


def test_runs_of_one_init_seed_have_one_start(copied, capsys, trained):
    config = copied / "b" / "config.json"
    own = json.loads(config.read_text())
    config.write_text(json.dumps(own | {"seed": 99, "init_seed": own["seed"]}))
    ensemble.main([*(str(copied / name) for name in "ab"), "--method", "soup", "--out", str(copied / "soup")])
    assert "began with other" not in capsys.readouterr().err


def test_a_greedy_soup_keeps_what_does_not_hurt_it(trained, monkeypatch):
    folders, dev = [trained / name / "best" for name in "abc"], examples_of([trained / "a"], None, "dev")
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


def test_a_greedy_soup_is_compared_with_the_last_one_and_weighted_like_the_whole(monkeypatch):
    found = {("b", 2, "c", 3): 0.6, ("b", 2, "c", 3, "a", 1): 0.55}  # below 0.6, above the 0.5 of b alone
    made = lambda folders, weights: (SimpleNamespace(to=lambda _: zip(folders, weights, strict=True)), None)  # noqa: E731
    monkeypatch.setattr("soup.soup", made)
    monkeypatch.setattr("soup.dev_score_of", lambda pairs, *_: found[tuple(itertools.chain(*pairs))])
    assert choose_soup(["a", "b", "c"], [1, 2, 3], [0.3, 0.5, 0.4], None, CPU) == [1, 2]


def test_the_run_of_a_greedy_soup_has_the_flags_of_its_first_member_and_no_teachers(copied):
    own = {"a": {"fold": "1/2", "max_examples": 30}}
    own |= {"b": {"teacher": ["gone"], "unlabelled": "gone", "distill_lambda": 0.5}}
    for name, more in own.items():
        config = copied / name / "config.json"
        config.write_text(json.dumps(json.loads(config.read_text()) | more))
    args = SimpleNamespace(runs=[str(copied / name) for name in "abc"], out=str(copied / "soup"), data=None)
    (copied / "soup").mkdir()
    configs = [predict.flags_of(run) for run in args.runs]
    write_config(args, {1: 1.0, 2: 1.0}, configs)
    of = lambda name: json.loads((copied / name / "config.json").read_text())  # noqa: E731
    found, first = of("soup"), {name: value for name, value in of("b").items() if name not in own["b"]}
    assert found == first | {"out": args.out, "epochs": 0, "max_examples": 30}  # scored on the data of the first run
    assert (found["fold"], found["lr"]) == (None, 2e-3)
    for members, fold in (([0], "1/2"), ([0, 1], None)):  # what none of them has seen
        write_config(args, dict.fromkeys(members, 1.0), configs)
        assert of("soup")["fold"] == fold
    write_config(args, {1: 1.0, 2: 1.0}, configs)
    shutil.copytree(copied / "b" / "best", copied / "soup" / "best")
    multitask.main(["--resume", "--out", args.out])


def test_a_soup_replaces_nothing_but_a_soup_that_was_killed(copied, refused, monkeypatch):
    flags = [str(copied / "a"), "--method", "soup", "--out", str(copied / "soup")]
    with monkeypatch.context() as patch:
        patch.setattr(recipe, "write_records", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            ensemble.main(flags)
    assert (copied / "soup" / "best").exists()
    ensemble.main(flags)
    refused(ensemble.main, flags, "already holds a run")
    for name in ("metrics.jsonl", "best/precious.txt"):
        shutil.rmtree(copied / "soup")
        path = copied / "soup" / name
        path.parent.mkdir(parents=True)
        path.write_text("mine")
        refused(ensemble.main, flags, f"{copied}/soup/{name.split('/')[0]} is there", "move it away")
        assert path.read_text() == "mine"


def test_a_soup_is_refused_where_another_process_makes_a_run_or_just_made_one(copied, refused, monkeypatch):
    flags = [str(copied / "a"), "--method", "soup", "--out", str(copied / "soup")]
    with run_folder.lock(copied / "soup"):  # of a training that has not taken its first step
        refused(ensemble.main, flags, "another process trains in", "choose another --out")
    assert [path.name for path in (copied / "soup").iterdir()] == ["lock"]
    ensemble.main(flags)
    before = (copied / "soup" / "metrics.jsonl").read_text()
    # both began at once
    monkeypatch.setattr(ensemble_flags.folders, "check_vacant_for_ensemble", lambda *_, **__: None)
    refused(ensemble.main, flags, "already holds a run")
    assert (copied / "soup" / "metrics.jsonl").read_text() == before


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
