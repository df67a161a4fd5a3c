"""The command line, as a user meets it."""

import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import tiny
import torch
from test_bert import random_batch
from tiny import ROOT, assert_refused, run

import multitask
import predict
import reproduce
import simcse
from bert import Bert
from evaluate import probabilities
from model import Head, MultitaskBert, task_loss
from support import flags as flags_of_run
from support.safetensors import read_safetensors
from tasks import TASKS


def weights_of(folder):
    """All tensors that a run ended with: the last state's model and optimizer, and the best model's."""
    tensors = {}
    for path in sorted(folder.glob("last/*.safetensors")) + sorted(folder.glob("best/*.safetensors")):
        tensors |= {f"{path.name} {name}": t.clone() for name, t in read_safetensors(path).items()}
    return tensors


def assert_same_end(a, b):
    first, second = weights_of(a), weights_of(b)
    assert first.keys() == second.keys()
    assert [name for name in first if not torch.equal(first[name], second[name])] == []


@pytest.fixture(scope="module")
def finished(tiny_encoder, task_files, tmp_path_factory):
    """A run of two epochs, its flags, and what it printed."""
    out = tmp_path_factory.mktemp("runs") / "run"
    flags = ["--bert", tiny_encoder, "--data", task_files, "--batch_size", "8", "--epochs", "2", "--extra_sst"]
    done = run("multitask.py", *flags, "--out", out)
    assert done.returncode == 0, done.stderr
    return out, flags, done


def test_the_init_seed_draws_the_first_weights_and_the_seed_the_rest(tiny_encoder, task_files, tmp_path, monkeypatch):
    starts = []
    drawn = torch.initial_seed  # of dropout
    monkeypatch.setattr(multitask, "train", lambda args, model, *_: starts.append((drawn(), model.state_dict())))
    given = f"--bert {tiny_encoder} --data {task_files} --out {tmp_path} --use_pals --pal_size 12"
    for seeds in ("--seed 3", "--seed 4 --init_seed 3", "--seed 4"):
        with pytest.raises(SystemExit):
            multitask.main(f"{given} {seeds}".split())
    (one, first), (two, second), (three, third) = starts
    assert (one, two, three) == (3, 4, 4)
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not all(torch.equal(first[name], third[name]) for name in first)


def test_a_run_leaves_what_it_promises(finished):
    out, _, done = finished
    for task in TASKS:
        assert f"| {task} " in done.stdout
    assert "dev score" in done.stdout
    assert {p.name for p in out.iterdir()} == {"config.json", "metrics.jsonl", "last", "best", "predictions", "lock"}
    start, *lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert (start["kind"], start["step"]) == ("start", 0)
    assert {(line["kind"], line["epoch"]) for line in lines} == {("train", 1), ("dev", 1), ("train", 2), ("dev", 2)}
    for line in lines:
        assert line.keys() >= ({"step", "score", *TASKS} if line["kind"] == "dev" else {"step", "gradient norm"})
    for task in TASKS:
        for split in ("dev", "test"):
            text = (out / "predictions" / f"{task}-{split}-output.csv").read_text().splitlines()
            assert text[0].startswith("id \t Predicted_")
            assert len(text) == 25


def test_eval_only_says_the_same_again(finished):
    out, _, done = finished
    shutil.rmtree(out / "predictions")
    again = run("multitask.py", "--eval_only", "--out", out)
    assert again.returncode == 0, again.stderr
    table = [line for line in done.stdout.splitlines() if line.startswith("|")]
    assert table == [line for line in again.stdout.splitlines() if line.startswith("|")]
    assert len(list((out / "predictions").iterdir())) == 2 * len(TASKS)


def test_a_run_on_fewer_examples_is_scored_on_all_and_leaves_test_to_eval_only(flags, tmp_path, capsys):
    flags = [*map(str, flags), "--epochs", "1", "--train_examples", "10", "--skip_test"]
    multitask.main(flags)
    said = capsys.readouterr().out
    assert "sst 10, para 10, sts 10" in said
    assert "| 24 " in said
    assert {p.name for p in (tmp_path / "run" / "predictions").iterdir()} == {f"{t}-dev-output.csv" for t in TASKS}
    multitask.main(["--eval_only", "--out", str(tmp_path / "run")])
    assert len(list((tmp_path / "run" / "predictions").iterdir())) == 2 * len(TASKS)


def test_what_to_lower_are_the_rates_of_what_trains(flags, refused):
    pals = [*flags, "--use_pals", "--pal_size", "12", "--pal_lr", "9e18"]
    refused(multitask.main, pals, "start again with a lower --lr or --pal_lr or --head_lr")
    frozen = [*pals, "--option", "pretrain", "--out", flags[5].with_name("frozen")]
    refused(multitask.main, frozen, "start again with a lower --pal_lr or --head_lr")


def test_bfloat16_products_are_refused_where_there_are_none(flags, refused, monkeypatch):
    monkeypatch.setattr("support.flags.bfloat16_products", lambda: False)
    refused(multitask.main, [*flags, "--bf16"], "leave out --bf16, or add --no-bf16")


def test_a_run_of_another_machine_is_scored_with_what_this_one_has(finished, tmp_path, refused, monkeypatch):
    """How to compute is no property of a trained model."""
    for module in ("support.flags", "support.run_folder"):
        monkeypatch.setattr(f"{module}.bfloat16_products", lambda: False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    run = shutil.copytree(finished[0], tmp_path / "run")
    config = json.loads((run / "config.json").read_text())
    (run / "config.json").write_text(json.dumps(config | {"device": "cuda", "bf16": True}))
    multitask.main(["--eval_only", "--out", str(run)])
    multitask.main(["--eval_only", "--out", str(run), "--kernels", "plain"])
    with monkeypatch.context() as patch:  # as it was trained, where that can be
        patch.setattr("support.run_folder.bfloat16_products", lambda: True)
        score = ["--eval_only", "--out", str(run)]
        assert flags_of_run.parse_multitask(score, *predict.TABLES).bf16
        assert not flags_of_run.parse_multitask([*score, "--no-bf16"], *predict.TABLES).bf16
    refused(multitask.main, ["--eval_only", "--out", run, "--bf16"], "leave out --bf16")
    reproduce.main(["--keep", str(run), "--row", "mine", "--results", str(tmp_path / "results")])
    refused(multitask.main, ["--resume", "--out", run], "no CUDA device", "--device cpu")
    resume = ["--resume", "--out", run, "--device", "cpu"]
    refused(multitask.main, resume, "was started with --bf16", "another machine")
    refused(multitask.main, [*resume, "--no-bf16"], "was started with --bf16 True, not False")


def test_predict_answers_one_sentence_a_pair_a_file_and_a_dialogue(finished, tmp_path, capsys):
    out, _, _ = finished

    def said(*arguments):
        predict.main(["--run", str(out), *arguments])
        return capsys.readouterr().out

    one = said("A good film.")
    assert one.count("%") == 5
    pair = said("Good film?", "Bad film?")
    assert "paraphrase: " in pair
    assert "similarity: " in pair
    (tmp_path / "lines").write_text("A good film.\n\nGood film?\tBad film?\n")
    assert said("--file", str(tmp_path / "lines")) == one + pair
    command = [sys.executable, ROOT / "predict.py", "--run", out]
    talk = subprocess.run(command, input="A good film.\nGood film? || Bad film?\n\n", capture_output=True, text=True)
    assert talk.returncode == 0, talk.stderr
    assert one.splitlines()[1] in talk.stdout
    assert pair.splitlines()[1] in talk.stdout


@pytest.mark.parametrize("encoding", [[], ["--pair_encoding", "siamese"], ["--use_means"]])
def test_pretrain_leaves_the_encoder_bitwise_as_it_was(tiny_encoder, flags, tmp_path, encoding):
    done = run("multitask.py", *flags, "--option", "pretrain", "--epochs", "1", *encoding)
    assert done.returncode == 0, done.stderr
    before = read_safetensors(tiny_encoder / "model.safetensors")
    after = read_safetensors(tmp_path / "run" / "best" / "model.safetensors")
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert before.keys() == after.keys()


def test_a_run_killed_at_any_instant_resumes_to_the_same_weights(finished, tmp_path):
    """`make soak` does this twenty times with MiniLM."""
    out, flags, _ = finished
    command = [sys.executable, ROOT / "multitask.py", *map(str, flags), "--out", tmp_path / "run", "--save_every", "2"]
    rng, metrics = np.random.default_rng(0), tmp_path / "run" / "metrics.jsonl"
    version = lambda: metrics.stat().st_ino if metrics.exists() else None  # noqa: E731
    for _ in range(3):
        before = version()
        process = subprocess.Popen(
            [*command, "--resume"], cwd=ROOT, env=os.environ | {"OMP_NUM_THREADS": "1"},
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        while version() == before and process.poll() is None:  # its first step replaces the file: now it trains
            time.sleep(0.001)
        time.sleep(rng.uniform(0, 0.3))
        process.send_signal(signal.SIGKILL)
        process.wait()
    done = run("multitask.py", *flags, "--out", tmp_path / "run", "--resume")
    assert done.returncode == 0, done.stderr
    assert_same_end(out, tmp_path / "run")


def test_ctrl_c_saves_and_says_how_to_go_on(finished, tmp_path):
    out, flags, _ = finished
    command = [sys.executable, ROOT / "multitask.py", *map(str, flags), "--out", tmp_path / "run"]
    process = subprocess.Popen(
        command, cwd=ROOT, env=os.environ | {"OMP_NUM_THREADS": "1"}, stdout=subprocess.PIPE, text=True
    )
    while not (tmp_path / "run" / "metrics.jsonl").exists():
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    said, _ = process.communicate(timeout=60)
    assert process.returncode == 130
    assert f"python multitask.py --resume --out {tmp_path}/run" in said
    done = run("multitask.py", "--resume", "--out", tmp_path / "run")
    assert done.returncode == 0, done.stderr
    assert_same_end(out, tmp_path / "run")


def test_a_finished_run_is_not_overwritten_and_resumes_to_itself(finished):
    out, flags, _ = finished
    assert_refused(run("multitask.py", *flags, "--out", out), "already holds a run", "--resume")
    before = weights_of(out)
    assert run("multitask.py", "--resume", "--out", out).returncode == 0
    after = weights_of(out)
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_a_wrong_request_ends_with_code_2_and_no_traceback(finished):
    out, _, _ = finished
    assert_refused(run("multitask.py", "--option", "finetun"), "finetun", "finetune")
    assert_refused(run("predict.py", "--run", out, "a", "b", "c"), "3 sentences")


def test_wrong_requests_get_one_sentence(finished, flags, tmp_path, refused):
    out, _, _ = finished

    (tmp_path / "wrong.csv").write_text("\tid\ttext\tsentiment\n0\ta\tb\t1\n")
    (tmp_path / "file").write_text("")
    (tmp_path / "bytes").write_bytes(b"caf\xe9")
    train = multitask.main
    refused(train, ["--no_such_flag"], "--no_such_flag")
    refused(train, ["--lr", "-1"], "--lr", "greater than 0")
    refused(train, ["--lr", "nan"], "--lr", "greater than 0")
    refused(train, ["--lr", "1e30"], "--lr", "too large")
    refused(train, ["--epochs", "0"], "--epochs 0")
    refused(train, [*flags, "--classifier_layers", "0", "--classifier_size", "7"], "--classifier_size does nothing")
    refused(train, ["--batch_size", "many"], "--batch_size", "not a whole number")
    refused(train, ["--hidden_dropout_prob", "1"], "below 1")
    refused(train, ["--resume", "--out", out, "--lr", "0.5"], "--lr", "was started with")
    refused(train, ["--eval_only", "--out", tmp_path / "none"], "holds no run")
    refused(train, [*flags, "--data", tmp_path], "does not exist", "make data")
    refused(train, [*flags, "--bert", tmp_path / "none"], "there is no folder")
    refused(train, [*flags, "--bert", tmp_path], "no config.json")
    if not torch.cuda.is_available():
        refused(train, [*flags, "--use_gpu"], "no CUDA device")
    refused(train, [*flags, "--sst_train", tmp_path / "wrong.csv"], "no column 'sentence'")
    refused(train, [*flags, "--sts_dev", "typo.csv"], "--sts_dev typo.csv does not exist; name the file by its path")
    refused(train, [*flags, "--out", tmp_path / "file" / "run"], "file")
    refused(predict.main, ["--run", tmp_path, "A film."], "holds no run")
    refused(predict.main, ["--run", out, ""], "not empty")
    refused(predict.main, ["--run", out, "--file", tmp_path / "bytes"], "UTF-8")
    refused(train, ["--seed", "9" * 400], "--seed", "too large")
    refused(predict.main, ["--run", out, "--file", tmp_path / "none"], "none")


def test_what_flags_name_is_looked_at_before_an_encoder_is_fetched(tmp_path, task_files, refused, monkeypatch):
    for program in (multitask, simcse):
        monkeypatch.setattr(program, "find_model", lambda name: 1 / 0)
    folder = tmp_path / "ids-sst-train.csv"
    folder.mkdir()
    (tmp_path / "empty").write_text("")
    for program, argv, *words in (
        (multitask, ["--data", tmp_path / "none"], "does not exist", "--data"),
        (multitask, ["--data", tmp_path / "empty"], "does not exist", "--data"),
        (multitask, ["--data", tmp_path], f"{folder} is a folder, not a file"),
        (multitask, ["--data", task_files, "--para_dev", tmp_path / "empty"], "has no column 'id'"),
        (multitask, ["--data", task_files, "--teacher", "nope"], "--teacher nope does not exist"),
        (simcse, ["--data", tmp_path / "none"], "does not exist", "--data"),
        (simcse, ["--data", tmp_path / "empty"], "does not exist", "--data"),
        (simcse, ["--data", task_files, "--corpus", "nope"], "nope does not exist"),
        (simcse, ["--data", task_files, "--pairs", tmp_path / "empty"], "has no usable line"),
    ):
        refused(program.main, [*argv, "--out", tmp_path / "run", "--device", "cpu"], *words)
    with pytest.raises(ZeroDivisionError):  # what is skipped is not looked at
        multitask.main(["--data", str(task_files), "--skip_test", "--sst_test", "nope", "--out", str(tmp_path / "run")])


def test_a_run_of_another_model_is_refused(finished, tmp_path, tiny_encoder):
    out, _, _ = finished
    shutil.copytree(out, tmp_path / "run")
    Bert(tiny.config(num_hidden_layers=1)).save(tmp_path / "encoder")
    shutil.copy(tiny_encoder / "vocab.txt", tmp_path / "encoder")
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    config["bert"] = str(tmp_path / "encoder")
    (tmp_path / "run" / "config.json").write_text(json.dumps(config))
    assert_refused(run("multitask.py", "--resume", "--out", tmp_path / "run"), "belongs to another model")


def test_a_full_disk_is_one_sentence_and_loses_nothing(finished, tmp_path):
    out, flags, _ = finished
    command = " ".join(map(str, [sys.executable, ROOT / "multitask.py", *flags, "--out", tmp_path / "run"]))
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(  # no file may grow beyond 200 KB: to the program, that is a disk that is full
        ["bash", "-c", f"trap '' XFSZ; ulimit -f 200; exec {command}"],
        capture_output=True,
        text=True,
        env=env,
        cwd=ROOT,
    )
    assert_refused(done, "state.safetensors")
    assert not list((tmp_path / "run").rglob("*.part"))
    done = run("multitask.py", *flags, "--out", tmp_path / "run", "--resume")
    assert done.returncode == 0, done.stderr
    assert_same_end(out, tmp_path / "run")


def test_a_loss_that_is_not_finite_stops_the_run_and_names_task_and_step(flags, tmp_path):
    done = run("multitask.py", *flags, "--lr", "1e18", "--head_lr", "1e18", "--clip", "0")
    assert_refused(done, "became", "at step", "--lr")


def test_losses_are_their_formulas():
    torch.manual_seed(0)
    z, labels = torch.randn(6, 5, dtype=torch.float64), torch.tensor([0.0, 4, 2, 1, 3, 3])
    expected = -sum(torch.log(torch.softmax(z[i], 0)[int(labels[i])]) for i in range(6)) / 6
    assert torch.allclose(task_loss(TASKS["sst"], z, labels).double(), expected, atol=1e-6)
    z, labels = torch.randn(6, 1), torch.tensor([0.0, 1, 1, 0, 0, 1])
    p = torch.sigmoid(z[:, 0])
    assert torch.allclose(
        task_loss(TASKS["para"], z, labels), -(labels * p.log() + (1 - labels) * (1 - p).log()).mean()
    )
    assert torch.allclose(task_loss(TASKS["sts"], z, labels), ((z[:, 0] - labels) ** 2).mean())


def test_a_head_is_linear_gelu_linear_gelu_linear():
    torch.manual_seed(0)
    head = Head(6, 7, 3, 2, 0.1).eval()
    assert [tuple(layer.weight.shape) for layer in head.hidden] == [(7, 6), (7, 7)]
    x = torch.randn(4, 6)
    y = x
    for layer in head.hidden:
        y = torch.nn.functional.gelu(y @ layer.weight.T + layer.bias)
    assert torch.allclose(head(x), y @ head.output.weight.T + head.output.bias, atol=1e-6)


def test_a_head_drops_out_its_input_and_each_hidden_layer_in_training_only(monkeypatch):
    seen = []
    monkeypatch.setattr("model.dropout", lambda x, p: seen.append((x.shape[1], p)) or x)
    head = Head(6, 7, 3, 2, 0.1)
    head(torch.randn(4, 6))
    assert seen == [(6, 0.1), (7, 0.1), (7, 0.1)]
    head.eval()(torch.randn(4, 6))
    assert {p for _, p in seen[3:]} == {0.0}
    assert MultitaskBert(Bert(tiny.config(dropout=0.3))).heads["sts"].p == 0.3


def test_a_head_starts_as_he_et_al_say_and_its_logits_near_0():
    torch.manual_seed(0)
    head = Head(200, 100, 50, 1, 0.1)
    assert head.hidden[0].weight.std().item() == pytest.approx((2 / 200) ** 0.5, rel=0.05)
    assert head.output.weight.std().item() == pytest.approx(0.02, rel=0.05)
    assert not head.hidden[0].bias.any() and not head.output.bias.any()


@pytest.mark.parametrize("encoding", [{}, {"pair_encoding": "siamese"}, {"use_means": True}])
def test_a_loss_reaches_the_encoder_and_what_is_the_task_s_own(encoding):
    model = tiny.model(**encoding, pal_size=12, pal_heads=4)
    for task in TASKS:
        torch.nn.init.normal_(model.pals[task].decode.weight)
        model.zero_grad()
        model(task, tiny.batch((5, 3, 7, 4, 6, 2))).square().sum().backward()
        reached = {name for name, p in model.named_parameters() if p.grad is not None and p.grad.any()}
        groups = model.parameter_groups()
        assert reached == {name for group in ("shared", task, f"pals.{task}") for name, _ in groups[group]}


def test_a_siamese_pair_is_the_two_vectors_side_by_side():
    torch.manual_seed(0)
    model = MultitaskBert(Bert(tiny.config(initializer_range=0.3)), "siamese").eval()
    batch = random_batch((4, 6, 5, 3))  # two pairs: first sentences, then second ones
    with torch.no_grad():
        _, pooled = model.bert(batch)
        expected = model.heads["sts"](torch.cat((pooled[:2], pooled[2:]), 1))
        assert torch.allclose(model("sts", batch), expected, atol=1e-6)
        assert model("sst", batch).shape == (4, 5)


def test_means_stand_beside_cls_for_one_sentence_and_are_compared_by_cosine_for_a_number():
    torch.manual_seed(0)
    model = MultitaskBert(Bert(tiny.config(initializer_range=0.3)), use_means=True).eval()
    batch = random_batch((9, 8, 4, 6, 5, 3))  # for sts two pairs: joint sequences, first sentences, second ones
    with torch.no_grad():
        hidden, pooled = model.bert(batch)
        starts = batch.cu_seqlens.tolist()
        means = [hidden[a:b].double().mean(0) for a, b in itertools.pairwise(starts)]
        normed = torch.stack([(m - m.mean()) / m.std(correction=0) for m in means]).float()
        expected = model.heads["sst"](torch.cat((pooled, normed), 1))
        assert torch.allclose(model("sst", batch), expected, atol=1e-4)
        assert torch.allclose(model("para", batch), model.heads["para"](pooled), atol=1e-5)  # classes: six joint pairs
        cosines = [u @ v / (u.norm() * v.norm()) for u, v in ((means[2], means[4]), (means[3], means[5]))]
        head = Head.forward(model.heads["sts"], pooled[:2])
        twice = torch.cat((head, 5 * torch.stack(cosines).float()[:, None]), 1)
        assert torch.allclose(model("sts", batch), twice, atol=1e-5)
    assert torch.allclose(probabilities(TASKS["sts"], twice), (twice[:, 0] + twice[:, 1]) / 2)
    labels = torch.tensor([1.0, 4.0])
    squares = [(twice[i, j] - labels[i]) ** 2 for i in range(2) for j in range(2)]
    assert torch.allclose(task_loss(TASKS["sts"], twice, labels), sum(squares) / 4)


def test_a_run_in_the_interpreter_of_triton_says_so(monkeypatch, capsys):
    for on in (True, False):
        monkeypatch.setattr(multitask.kernels, "INTERPRET", on)
        multitask.describe(None, tiny.model(), {}, torch.device("cpu"))
        assert ("on cpu, with TRITON_INTERPRET=1\n" in capsys.readouterr().out) == on
