"""What a run keeps, what it refuses to go on with, and who may write to it."""

import argparse
import contextlib
import json
import os
import pty
import shutil
import signal
import subprocess
import sys
import threading

import pytest
import tiny
import torch
from tiny import ROOT

import multitask
from support import metrics_file, run_folder, training_run
from support.console import UserError
from support.safetensors import open_safetensors, read_safetensors, write_safetensors
from support.training_run import TrainingRun
from tasks import TASKS, data_path

FLAGS = {"lr": 1e-4, "out": "somewhere", "save_every": 10}
EXTRA = "average.0"


def a_state(seed=0):
    """A model with its optimizer after three steps, and one more tensor."""
    model = tiny.model(seed=seed)
    optimizer = tiny.optimizer(model)
    for _ in range(3):
        model("sst", tiny.batch()).square().sum().backward()
        optimizer.step({"shared": 0.01, "sst": 0.01})
    return model, optimizer, {EXTRA: torch.full((5,), float(seed))}


@pytest.fixture
def saved(tmp_path):
    position = {"step": 3, "best": 0.5, "data": {"sst": "ab"}}
    run_folder.save_state(tmp_path, *a_state(), FLAGS, position)
    return tmp_path, position


def test_a_state_comes_back_whole(saved):
    folder, position = saved
    model, optimizer, extra = a_state(seed=1)
    assert run_folder.load_state(folder, model, optimizer, extra, FLAGS | {"out": "moved"}, 10) == position
    wanted, own, average = a_state()
    for a, b in zip(model.parameters(), wanted.parameters(), strict=True):
        assert torch.equal(a, b)
    for a, b in zip(optimizer.flat_parameters(), own.flat_parameters(), strict=True):
        assert torch.equal(a.m, b.m) and torch.equal(a.v, b.v)
    assert optimizer.steps == own.steps
    assert torch.equal(extra[EXTRA], average[EXTRA])


def changed(name, value):
    """The position with another value."""
    return lambda tensors, texts: texts.update(position=json.dumps(json.loads(texts["position"]) | {name: value}))


def moments(change):
    def damage(tensors, texts):
        name = next(name for name in tensors if name.startswith("m.heads"))
        tensors[name] = change(tensors[name])

    return damage


DAMAGE = {  # with a checksum that is right, but for the first
    "a bit": ("damaged", lambda tensors, texts: tensors[EXTRA].add_(1)),
    "a step below 0": ("damaged", changed("step", -5)),
    "a step past the end": ("damaged", changed("step", 10**9)),
    "a step that is no number": ("damaged", changed("step", "3")),
    "a best score of NaN": ("damaged", changed("best", float("nan"))),
    "a best score of infinity": ("damaged", changed("best", float("inf"))),
    "no position": ("damaged", lambda tensors, texts: texts.pop("position")),
    "no JSON": ("damaged", lambda tensors, texts: texts.update(optimizer_steps="[" * 10**5)),
    "steps of other groups": ("damaged", lambda tensors, texts: texts.update(optimizer_steps='{"shared": 3}')),
    "more steps than the run has": (
        "damaged", lambda tensors, texts: texts.update(optimizer_steps=texts["optimizer_steps"].replace("3", "4")),
    ),
    "no random state": ("damaged", lambda tensors, texts: tensors.pop("random.cpu")),
    "half a random state": ("damaged", lambda tensors, texts: tensors.update({"random.cpu": torch.zeros(9).byte()})),
    "moments of one number": ("belongs to another model", moments(lambda m: m.flatten()[:1])),
    "moments of whole numbers": ("belongs to another model", moments(torch.Tensor.int)),
    "a tensor less": ("belongs to another model", lambda tensors, texts: tensors.pop(EXTRA)),
    "a tensor more": ("belongs to another model", lambda tensors, texts: tensors.update(more=torch.zeros(1))),
    "other flags": ("was written with --lr 0.5, not 0.0001", lambda tensors, texts: texts.update(flags='{"lr": 0.5}')),
}  # fmt: skip


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_damaged_state_is_refused_before_anything_is_taken_over(saved, kind):
    folder, _ = saved
    tensors, texts = open_safetensors(run_folder.state_path(folder))
    tensors = {name: tensor.clone() for name, tensor in tensors.items()}
    says, damage = DAMAGE[kind]
    damage(tensors, texts)
    if kind != "a bit":
        texts["checksum"] = run_folder._checksum(tensors, texts)
    write_safetensors(run_folder.state_path(folder), tensors, texts)
    model, optimizer, extra = a_state(seed=1)
    before = {name: tensor.clone() for name, tensor in run_folder._tensors(model, optimizer, extra).items()}
    with pytest.raises(UserError, match=says) as refusal:
        run_folder.load_state(folder, model, optimizer, extra, FLAGS, 10)
    assert len(str(refusal.value)) < 300 + len(str(folder))
    after = run_folder._tensors(model, optimizer, extra)
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_a_state_of_before_there_were_checksums_loads(saved):
    folder, position = saved
    tensors, texts = open_safetensors(run_folder.state_path(folder))
    texts = {name: texts[name] for name in ("position", "optimizer_steps")}
    write_safetensors(run_folder.state_path(folder), {n: t.clone() for n, t in tensors.items()}, texts)
    assert run_folder.load_state(folder, *a_state(seed=1), FLAGS, 10) == position


# ----- one writer


def test_a_run_has_one_writer_and_any_number_of_readers(finished, refused):
    out, _ = finished
    holder = f"import sys, time; sys.path.insert(0, {str(ROOT)!r}); from support import run_folder;"
    holder += f"file = run_folder.lock({str(out)!r}); print('locked', flush=True); time.sleep(60)"
    process = subprocess.Popen([sys.executable, "-c", holder], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout.readline() == "locked\n"
        refused(multitask.main, ["--resume", "--out", out], "another process", out, "another --out")
        multitask.main(["--eval_only", "--out", str(out)])
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    multitask.main(["--resume", "--out", str(out)])  # the lock died with its process


def test_who_presses_ctrl_c_reads_that_the_run_saves_and_that_a_second_one_does_not(capfd, monkeypatch):
    with training_run.Interrupt() as interrupt:
        for _ in range(2):  # the second within two seconds is the same one
            os.kill(os.getpid(), signal.SIGINT)
        assert capfd.readouterr().err.count("this saves, then stops; a second Ctrl-C stops at once") == 1
        monkeypatch.setattr(interrupt, "since", interrupt.since - 3)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


def test_a_thread_other_than_the_main_one_trains_and_leaves_signals_alone():
    before, seen = signal.getsignal(signal.SIGTERM), []

    def work():
        with training_run.Interrupt() as interrupt:
            seen.append((interrupt.asked, signal.getsignal(signal.SIGTERM)))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [(False, before)]


def test_a_terminal_that_is_closed_asks_a_run_to_save_unless_nohup_was_asked_for():
    reader, terminal = pty.openpty()
    with training_run.Interrupt() as interrupt:
        interrupt.terminals = [terminal]
        os.close(reader)
        with pytest.raises(OSError, match="Input/output"):
            os.write(terminal, b"step 1")
        os.kill(os.getpid(), signal.SIGHUP)
        assert interrupt.asked
        os.write(terminal, b"step 2")
    os.close(terminal)
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    with training_run.Interrupt() as interrupt:
        os.kill(os.getpid(), signal.SIGHUP)
        assert not interrupt.asked
    signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize("then", ["removed", "moved", "removed and begun anew"])
def test_a_folder_that_is_moved_or_removed_while_a_run_trains_ends_it(world, tmp_path, refused, then):
    out = tmp_path / "run"

    class Acts(tiny.StopAfter):
        @property
        def asked(self):
            self.left -= 1
            if self.left == 0:
                shutil.move(out, tmp_path / "moved")
                if then != "moved":
                    shutil.rmtree(tmp_path / "moved")
                if then == "removed and begun anew":
                    other.enter_context(run_folder.lock(out))
            return False

    with contextlib.ExitStack() as other, pytest.MonkeyPatch.context() as patch:
        patch.setattr(training_run, "Interrupt", Acts(2))
        refused(multitask.main, [*world, "--out", out], out, "was moved or removed", "another --out")
    assert [path.name for path in tmp_path.rglob("run/*")] == ["lock"] * (then == "removed and begun anew")
    if then == "moved":
        multitask.main(["--resume", "--out", str(tmp_path / "moved")])


def test_a_lock_that_somebody_deleted_costs_nothing(tmp_path):
    with run_folder.lock(tmp_path) as file:
        (tmp_path / "lock").unlink()
        run_folder.check_lock(file, tmp_path)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """The flags of a short run, without --out."""
    path = tmp_path_factory.mktemp("world")
    bert, files = tiny.folder(path / "bert", dropout=0.1), tiny.task_files(path / "data")
    return f"--bert {bert} --data {files} --batch_size 4 --epochs 2".split()


@pytest.fixture
def finished(world, tmp_path):
    """(folder, flags) of a run that is over."""
    multitask.main([*world, "--out", str(tmp_path / "run")])
    return tmp_path / "run", world


# ----- starts that fail, and what was lost


def test_a_start_that_fails_leaves_no_run(world, tmp_path, monkeypatch, refused):
    out = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(multitask.Trainer, "step", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            multitask.main([*world, "--out", str(out)])
    assert not (out / "config.json").exists()
    shutil.copytree(world[1], tmp_path / "bert")
    config = json.loads((tmp_path / "bert" / "config.json").read_text()) | {"type_vocab_size": 1}
    (tmp_path / "bert" / "config.json").write_text(json.dumps(config))
    tensors = read_safetensors(tmp_path / "bert" / "model.safetensors")
    name = "embeddings.token_type_embeddings.weight"
    write_safetensors(tmp_path / "bert" / "model.safetensors", tensors | {name: tensors[name][:1]})
    one_segment = ["--bert", tmp_path / "bert", *world[2:], "--out", out]
    refused(multitask.main, one_segment, "one segment", "--pair_encoding siamese")
    multitask.main([*map(str, one_segment), "--pair_encoding", "siamese"])


def test_a_best_model_that_was_deleted_comes_back_from_the_last_state(finished, refused, capsys):
    out, _ = finished
    shutil.rmtree(out / "best")
    refused(multitask.main, ["--eval_only", "--out", out], "no trained model", f"--resume --out {out}")
    multitask.main(["--resume", "--out", str(out)])
    assert "best is gone: the model of step 18 takes its place" in capsys.readouterr().err
    state = read_safetensors(run_folder.state_path(out))
    heads = read_safetensors(out / "best" / "heads.safetensors")
    assert all(torch.equal(tensor, state[f"model.heads.{name}"]) for name, tensor in heads.items())


def test_a_finished_run_without_its_last_state_is_scored(finished, refused, capsys):
    out, flags = finished
    capsys.readouterr()
    multitask.main(["--eval_only", "--out", str(out)])
    said = capsys.readouterr()
    before = {path: path.read_bytes() for path in (out / "metrics.jsonl", *out.glob("*/*")) if "last" not in path.parts}
    shutil.rmtree(out / "last")  # as a copy that leaves it out
    multitask.main([*flags, "--out", str(out), "--resume"])
    assert capsys.readouterr() == said
    assert {path: path.read_bytes() for path in before} == before and not (out / "last").exists()
    shutil.rmtree(out / "best")
    refused(multitask.main, ["--resume", "--out", out], "holds no trained model any more")


def test_a_finished_run_whose_encoder_or_teacher_is_gone_is_scored(finished, world, tmp_path, refused, capsys):
    teacher, flags = finished
    out, encoder, more = (tmp_path / name for name in ("student", "encoder", "more"))
    shutil.copytree(world[1], encoder)
    more.mkdir()
    shutil.copy(tiny.data_path(world[3], tiny.TASKS["sst"], "test"), more / "ids-sst-unlabelled.csv")
    argv = f"--bert {encoder} --teacher {teacher} --unlabelled {more} --out {out}".split()
    multitask.main([*argv, *flags[2:]])
    capsys.readouterr()
    multitask.main(["--eval_only", "--out", str(out)])
    said = capsys.readouterr()
    for gone in (encoder / "model.safetensors", encoder, teacher / "best", teacher, more):
        gone.rename(tmp_path / "aside")
        multitask.main(["--resume", "--out", str(out)])
        assert capsys.readouterr() == said, gone
        (tmp_path / "aside").rename(gone)
    encoder.rename(tmp_path / "aside")
    shutil.rmtree(out / "best")  # only training can write it again
    refused(multitask.main, ["--resume", "--out", out], f"there is no folder '{encoder}'")


def test_a_run_whose_state_was_deleted_is_not_trained_over(finished, refused):
    out, _ = finished
    metrics = [line for line in (out / "metrics.jsonl").read_text().splitlines(True) if '"step": 18' not in line]
    (out / "metrics.jsonl").write_text("".join(metrics))  # its last epoch has not ended
    before = {path: path.read_bytes() for path in (out / "metrics.jsonl", *out.glob("best/*"))}
    run_folder.state_path(out).unlink()  # as a copy without it, or a full disk
    refused(multitask.main, ["--resume", "--out", out], f"{out} has trained", "--eval_only", "another --out")
    shutil.rmtree(out / "last")  # as `jobs.run` does
    refused(multitask.main, ["--resume", "--out", out], f"{out} has trained", "--eval_only", "another --out")
    multitask.main(["--eval_only", "--out", str(out)])
    shutil.move(out / "best", out / "moved")
    refused(multitask.main, ["--resume", "--out", out], "its last state is gone; another --out")
    shutil.move(out / "moved", out / "best")
    assert {path: path.read_bytes() for path in before} == before


@pytest.mark.parametrize(("module", "name"), [(metrics_file, "append"), (run_folder, "save_state")])
def test_a_run_that_was_killed_before_its_first_save_starts_again(finished, tmp_path, monkeypatch, module, name):
    whole, flags = finished
    out = tmp_path / "killed"
    with monkeypatch.context() as patch:  # while it begins, and after its first epoch, when dev line and best/ exist
        patch.setattr(module, name, lambda *_, **__: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            multitask.main([*flags, "--out", str(out)])
    assert (out / "best").exists() == (name == "save_state")
    multitask.main([*flags, "--out", str(out), "--resume"])
    assert tiny.metrics(out) == tiny.metrics(whole)


@pytest.mark.parametrize("name", ["metrics.jsonl", "predictions/sst-dev-output.csv", "best/model", "last/notes"])
def test_a_new_run_overwrites_nothing_of_others(world, tmp_path, refused, name):
    mine = [tmp_path / "run" / "lock", tmp_path / "run" / name]
    mine[1].parent.mkdir(parents=True)
    for path in mine:
        path.write_text("mine")
    first = tmp_path / "run" / name.split("/")[0]
    refused(multitask.main, [*world, "--resume", "--out", tmp_path / "run"], first.name, "is there")
    assert [path.read_text() for path in mine] == ["mine", "mine"]


def test_a_best_folder_that_is_a_link_to_another_disk_is_filled(world, tmp_path):
    (tmp_path / "disk" / "target").mkdir(parents=True)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "best").symlink_to(tmp_path / "disk" / "target")
    multitask.main([*world, "--out", str(tmp_path / "run")])
    assert (tmp_path / "disk" / "target" / "heads.safetensors").exists()
    assert [path.name for path in (tmp_path / "disk").iterdir()] == ["target"]


def test_a_config_with_values_of_another_kind_is_refused(finished, refused):
    out, _ = finished
    config = json.loads((out / "config.json").read_text())
    for name, value in {"epochs": "many", "lr": -1, "batch_size": [4], "use_smart": "yes", "sampling": 3}.items():
        (out / "config.json").write_text(json.dumps(config | {name: value}))
        refused(multitask.main, ["--resume", "--out", out], "config.json is damaged", f"--{name}")


def test_damaged_lines_of_metrics_are_left_out_with_a_word(tmp_path, capsys):
    good = [{"kind": "train", "step": 1}, {"kind": "dev", "step": 2, "score": 0.5}]
    bad = ["", "[1]", '{"kind": "train"}', '{"kind": "train", "step": "3"}', "[" * 10**5, "\x00", "caf\udce9"]
    lines = [json.dumps(good[0]), *bad, json.dumps(good[1]), '{"kind": "tr']
    (tmp_path / "metrics.jsonl").write_text("\n".join(lines), errors="surrogateescape")
    assert metrics_file.read(tmp_path) == good
    assert f"{len(bad)} lines without metrics" in capsys.readouterr().err
    metrics_file.rewind(tmp_path, 1)
    assert (tmp_path / "metrics.jsonl").read_text(errors="surrogateescape").splitlines() == lines[:-2]  # none is lost
    assert capsys.readouterr().err == ""


def test_what_cannot_be_allocated_is_refused_before(world, tmp_path, refused):
    for flags in ("--classifier_size 1000000000", "--classifier_layers 1000000000", "--batch_size 1000000000000"):
        flag = flags.split()[0]
        refused(multitask.main, [*world, "--out", tmp_path / "run", *flags.split()], flag)
    refused(multitask.main, [*world, "--out", tmp_path / "run", "--use_pals", "--pal_size", "1200000000"], "--pal_size")
    assert not (tmp_path / "run" / "config.json").exists()


# ----- what is recorded


class OneStep:
    """A plan of a single step."""

    epoch_steps = 1

    def __len__(self):
        return 1

    def steps(self, done):
        yield 1, {}


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.parametrize(("step", "says"), [(1, "no weight has moved yet"), (2, "lower --lr")])
def test_a_value_that_is_not_finite_is_named_and_no_false_cause_given(tmp_path, step, says, value):
    args, model = argparse.Namespace(out=str(tmp_path / "run"), save_every=1), tiny.model()
    run = TrainingRun(args, OneStep(), model, tiny.optimizer(model), data={}, save_model=None)
    with run, pytest.raises(UserError, match=f"loss of sst became {value} at step {step}; .*{says}"):
        for _ in run.steps():
            run.step = step
            run.record({"losses": {"sst": torch.tensor(value)}, "norm": torch.tensor(1.0)})


class FiveSteps(OneStep):
    def __init__(self, epoch_steps):
        self.epoch_steps = epoch_steps

    def __len__(self):
        return 5

    def steps(self, done):
        return (((i // self.epoch_steps) + 1, {}) for i in range(done, 5))


def five_steps(folder, epoch_steps=1, save_every=10, stop_at=()):
    """A run of five steps: (itself, finished; the steps at which its model was kept as the best one)."""
    args, model, kept = argparse.Namespace(out=str(folder), save_every=save_every), tiny.model(), []

    def keep(best):
        kept.append(run.step)
        (best / "model").write_text("")

    run = TrainingRun(args, FiveSteps(epoch_steps), model, tiny.optimizer(model), data={}, save_model=keep)
    run.step = "before"
    with run:
        for step, *_ in run.steps():
            run.interrupt.asked = step in stop_at
            run.record({"losses": {"sst": torch.tensor(1.0)}, "norm": torch.tensor(1.0)})
            if run.epoch_ends:
                run.evaluated({}, [0.5, 0.7, 0.6, 0.65, 0.7][step - 1])
    return run, kept


def test_the_best_model_is_the_first_with_the_highest_score(tmp_path):
    run, kept = five_steps(tmp_path / "run", stop_at=[5])
    assert kept == [1, 2]
    assert run.finished  # Ctrl-C in the last step stops nothing


def test_what_takes_the_place_of_a_deleted_best_model_gives_way_to_any_other(tmp_path):
    run, _ = five_steps(tmp_path / "run", stop_at=[2])
    assert (run.step, run.finished) == (2, False)
    shutil.rmtree(run.best)
    assert five_steps(tmp_path / "run")[1] == ["before", 3, 4, 5]


def test_the_state_is_saved_every_so_many_steps_and_after_each_epoch(tmp_path, monkeypatch):
    saved = []
    monkeypatch.setattr(run_folder, "save_state", lambda *state: saved.append(state[-1]["step"]))
    five_steps(tmp_path / "run", epoch_steps=5, save_every=2)
    assert saved == [2, 4, 5]


def test_conflicts_are_counted_over_an_epoch_that_was_stopped(world, tmp_path, monkeypatch, capsys):
    flags = [*world, "--gradient_surgery", "--out", str(tmp_path / "run")]
    with monkeypatch.context() as patch:
        patch.setattr(training_run, "Interrupt", tiny.StopAfter(2))
        with pytest.raises(SystemExit):
            multitask.main(flags)
    multitask.main(["--resume", "--out", str(tmp_path / "run")])
    said = [line for line in capsys.readouterr().out.splitlines() if "in conflict" in line]
    lines = [line for line in tiny.metrics(tmp_path / "run") if line["kind"] == "train"]
    assert [line["step"] for line in lines] == [2, 3, 6]
    for epoch, text in enumerate(said, 1):
        own = [line for line in lines if line["epoch"] == epoch]
        for pair in ("sst-para", "sst-sts", "para-sts"):
            share = sum(line[f"conflict {pair}"] * line["steps"] for line in own) / sum(line["steps"] for line in own)
            assert f"{pair} {share:.0%}" in text
    assert len(said) == 2


def test_what_a_run_reads_may_move_and_may_not_change(tmp_path, monkeypatch, refused):
    bert, data, run = tiny.folder(tmp_path / "bert"), tiny.task_files(tmp_path / "data"), tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(training_run, "Interrupt", tiny.StopAfter(2))
        with pytest.raises(SystemExit):
            multitask.main(f"--bert {bert} --data {data} --epochs 1 --batch_size 8 --out {run}".split())
    bert, data = bert.rename(tmp_path / "encoder"), data.rename(tmp_path / "files")
    resume = f"--resume --out {run} --bert {bert} --data {data}".split()
    for split in ("train", "dev"):
        path = data_path(data, TASKS["sst"], split)
        before = path.read_text()
        path.write_text(before.replace("good", "bad"))
        changed = {"train": "sst, sst tokens are", "dev": "sst dev is"}[split]
        refused(multitask.main, resume, f"{changed} not what {run} was started with", "(with make: OUT=DIR)")
        path.write_text(before)
    words = bert / "tokenizer.json"
    before = words.read_text()
    words.write_text(before.replace('"good"', '"X"').replace('"bad"', '"good"').replace('"X"', '"bad"'))
    refused(multitask.main, resume, "sst tokens, para tokens, sts tokens are not what")
    words.write_text(before)
    heads = bert / "config.json"
    before = heads.read_text()
    heads.write_text(before.replace('"num_attention_heads": 4', '"num_attention_heads": 8'))
    refused(multitask.main, resume, f"encoder is not what {run} was started with", "--bert")
    heads.write_text(before)
    refused(multitask.main, [*resume, "--use_means"], f"{run} was started with --use_means False", "to resume, or")
    multitask.main(resume)
    path = data_path(data, TASKS["sts"], "dev")
    path.write_text(path.read_text().replace("good", "bad"))
    new_run = "another --out (with make: OUT=DIR) starts a new run"
    refused(multitask.main, resume, f"{run} is finished, and sts dev is not what it was started with; {new_run}")
    finished = f"{run} is finished, and was started with --use_means False, not True; leave the flag out to score it; "
    refused(multitask.main, [*resume, "--use_means"], finished + new_run)
    moved = data.rename(tmp_path / "data")
    refused(multitask.main, ["--eval_only", "--out", run], "does not exist", "--data")
    multitask.main(f"--eval_only --out {run} --data {moved} --sst_dev_out {tmp_path}/elsewhere.csv".split())
    assert (tmp_path / "elsewhere.csv").read_text().startswith("id ")


# ----- --kernels


def test_plain_kernels_train_to_the_same_losses_and_are_the_runs_own(world, tmp_path, refused):
    flags = [*world, "--hidden_dropout_prob", "0", "--skip_test"]
    for kernels in ("auto", "plain"):
        multitask.main([*flags, "--kernels", kernels, "--out", str(tmp_path / kernels)])
    auto, plain = (tiny.metrics(tmp_path / name) for name in ("auto", "plain"))
    for a, b in zip(auto, plain, strict=True):
        if a["kind"] == "train":
            assert [b[task] for task in TASKS] == pytest.approx([a[task] for task in TASKS], rel=0.01)
    refused(multitask.main, ["--resume", "--kernels", "auto", "--out", tmp_path / "plain"], "--kernels plain, not auto")
    config = json.loads((tmp_path / "auto" / "config.json").read_text())
    del config["kernels"]  # as in a run from before there was the flag
    (tmp_path / "auto" / "config.json").write_text(json.dumps(config))
    refused(multitask.main, ["--resume", "--kernels", "plain", "--out", tmp_path / "auto"], "--kernels auto, not plain")
    multitask.main(["--resume", "--out", str(tmp_path / "auto")])
    refused(multitask.main, [*flags, "--kernels", "plain", "--bf16", "--out", tmp_path / "both"], "--kernels", "--bf16")
