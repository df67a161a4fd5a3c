"""Distillation: targets, losses and folds against loops, and runs with teachers against runs without."""

import json
import math
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import tiny
import torch

import distill
import multitask
from evaluate import model_outputs
from kernels.cpu import libraries
from model import MultitaskBert, task_loss
from sampling import in_fold
from support import flags as flags_of_run
from support import run_folder
from support.folders import model_folder
from support.safetensors import read_safetensors
from tasks import SPLITS, TASKS, DataSet, data_path, load_examples

TABLES = TASKS, SPLITS, multitask.SAMPLINGS, multitask.PRESETS  # what the flags depend on


def random_batch(task, n=6, seed=0):
    """Logits, labels and teacher outputs of n examples, float64."""
    draw = torch.Generator().manual_seed(seed)
    logits = torch.randn(n, task.classes if task.classes > 2 else 1, generator=draw, dtype=torch.float64) * 3
    labels = torch.randint(task.classes or 6, (n,), generator=draw).double()
    teacher = torch.randn(n, task.classes or 1, generator=draw, dtype=torch.float64)
    return logits, labels, teacher.softmax(1) if task.classes else teacher[:, 0]


# ----- slow forms


def slow_target(task, label, teacher, weight):
    """Of one example: a list with the target of each class, or a number. Without a label the teacher's word."""
    if math.isnan(label):
        return teacher
    if not task.classes:
        return weight * label + (1 - weight) * teacher
    return [weight * (c == label) + (1 - weight) * teacher[c] for c in range(task.classes)]


def slow_loss(task, logits, target):
    """Of one example; logits, a list, of 2C where predicted twice."""
    if len(logits) == 2 * task.n_logits:
        return sum(slow_loss(task, z, target) for z in (logits[: task.n_logits], logits[task.n_logits :])) / 2
    if not task.classes:
        return (logits[0] - target) ** 2
    if task.classes == 2:
        p = 1 / (1 + math.exp(-logits[0]))
        return -target[0] * math.log(1 - p) - target[1] * math.log(p)
    total = sum(math.exp(z) for z in logits)
    return -sum(t * math.log(math.exp(z) / total) for t, z in zip(target, logits, strict=True))


# ----- the targets and the loss


@pytest.mark.parametrize("weight", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("unknown", [[], [1, 4]])
@pytest.mark.parametrize("task", TASKS.values(), ids=lambda task: task.name)
def test_targets_and_losses_are_those_of_a_loop_over_examples(task, weight, unknown):
    logits, labels, teacher = random_batch(task)
    labels[unknown] = math.nan
    if not task.classes:
        logits = torch.cat((logits, logits + 0.5), 1)  # predicted twice, as with --use_means
    targets = distill.mix(task, labels, teacher, weight)
    slow = [slow_target(task, y, t, weight) for y, t in zip(labels.tolist(), teacher.tolist(), strict=True)]
    assert torch.allclose(targets, torch.tensor(slow, dtype=torch.float64), rtol=1e-12)
    losses = [slow_loss(task, z, target) for z, target in zip(logits.tolist(), slow, strict=True)]
    assert distill.soft_loss(task, logits, targets).item() == pytest.approx(sum(losses) / len(losses), rel=1e-12)


@pytest.mark.parametrize("task", TASKS.values(), ids=lambda task: task.name)
def test_the_gradient_is_that_of_finite_differences_and_as_derived(task):
    logits, labels, teacher = random_batch(task)
    logits.requires_grad_()
    targets = distill.mix(task, labels, teacher, 0.3)
    assert torch.autograd.gradcheck(lambda z: distill.soft_loss(task, z, targets), logits)
    (g,) = torch.autograd.grad(distill.soft_loss(task, logits, targets) * len(logits), logits)
    derived = logits.softmax(1) - targets if task.classes > 2 else 2 * (logits - targets.reshape(len(logits), -1))
    if task.classes == 2:
        derived = logits.sigmoid() - targets[:, 1:]
    assert torch.allclose(g, derived, atol=1e-12)


@pytest.mark.parametrize("task", TASKS.values(), ids=lambda task: task.name)
def test_labels_alone_give_the_plain_loss_and_float32_stays_finite(task):
    logits, labels, teacher = (x.float() for x in random_batch(task))
    ours = distill.soft_loss(task, logits, distill.mix(task, labels, teacher, 1.0))
    assert ours.item() == pytest.approx(task_loss(task, logits, labels).item(), rel=1e-5)
    half, targets = logits.half(), distill.mix(task, labels, teacher, 0.5)
    assert distill.soft_loss(task, half, targets) == distill.soft_loss(task, half.float(), targets)
    extreme = distill.soft_loss(task, logits.sign() * 500, distill.mix(task, labels, teacher, 0.5))
    assert extreme.dtype == torch.float32
    assert extreme.isfinite()


def test_lambda_rises_in_a_line_from_0_at_the_first_step_to_1_at_the_last():
    assert [distill.annealed(t, 5) for t in range(1, 6)] == [0, 0.25, 0.5, 0.75, 1]
    assert distill.annealed(1, 1) == 0
    assert distill.annealed(283_003, 283_003) == 1


# ----- the teachers' outputs


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Runs a, b, and d: siamese, with PALs, another encoder; and their data."""
    folder = tmp_path_factory.mktemp("teachers")
    data = tiny.task_files(folder / "data", n=16, seed=3)
    for layers in (1, 2):
        tiny.folder(folder / f"layers{layers}", 0.1, num_hidden_layers=layers, initializer_range=0.3)
    other = ["--pair_encoding", "siamese", "--use_pals", "--pal_size", "12"]
    for name, layers, own in (("a", 1, []), ("b", 1, ["--lr", "2e-3"]), ("d", 2, other)):
        flags = ["--bert", folder / f"layers{layers}", "--data", data, "--batch_size", "8", "--epochs", "1", *own]
        multitask.main([str(flag) for flag in [*flags, "--out", folder / name]])
    return folder


@pytest.fixture
def world(trained, tmp_path):
    """The same in a folder of the test's own, and c, which is b again; without cached outputs."""
    for name in ("a", "b", "d", "layers1", "data"):
        shutil.copytree(trained / name, tmp_path / name, ignore=shutil.ignore_patterns("outputs"))
    shutil.copytree(tmp_path / "b", tmp_path / "c")
    return tmp_path


def asked(folder, runs, weight="annealed", steps=3):
    """`Teachers`, runs in the folder, and ten training examples of each task."""
    args = flags_of_run.parse_multitask(["--data", str(folder / "data"), "--out", str(folder / "none")], *TABLES)
    examples = {name: of["train"].sample(10) for name, of in load_examples(args, ("train",)).items()}
    datasets = {name: {"train": SimpleNamespace(examples=of)} for name, of in examples.items()}
    args = SimpleNamespace(teacher=[folder / run for run in runs], distill_lambda=weight, out=folder / "none")
    return distill.Teachers(args, datasets, range(steps), torch.device("cpu")), examples


def alone(run, task, examples):
    """What a run says of each example, asked one by one."""
    model, tokenizer = MultitaskBert.load(model_folder(run))
    single = [DataSet(examples.take([i]), tokenizer, model.encodings[task.name]) for i in range(len(examples))]
    return np.concatenate([model_outputs(model, task, dataset) for dataset in single])


def test_a_target_takes_the_mean_of_all_teachers_whatever_they_are_built_like(world, loads, capsys):
    """Runs a, and d: siamese, with PALs, another encoder."""
    before = torch.get_rng_state()
    ours, examples = asked(world, "ad")
    assert len(loads) == 2
    assert (torch.get_rng_state() == before).all()
    assert "the teachers on the training examples: sst 0." in capsys.readouterr().out
    for name, task in TASKS.items():
        mean = (alone(world / "a", task, examples[name]) + alone(world / "d", task, examples[name])) / 2
        assert np.allclose(ours.values[name].numpy(), mean, atol=1e-5)
        logits, labels, _ = random_batch(task, 3)
        teacher = torch.from_numpy(mean[[4, 0, 9]]).double()
        for step, weight in ((1, 0.0), (2, 0.5)):
            expected = distill.soft_loss(task, logits, distill.mix(task, labels, teacher, weight))
            assert torch.allclose(ours.loss_of(step, [4, 0, 9])(task, logits, labels), expected, atol=1e-4)
        assert ours.loss_of(3, [4, 0, 9]) is task_loss
    loads.clear()
    again, _ = asked(world, "ad", weight=1.0)
    assert loads == []  # what they say was kept
    assert all((again.values[name] == ours.values[name]).all() for name in TASKS)
    assert again.loss_of(1, [0]) is task_loss
    assert again.digests == ours.digests


def test_folds_part_the_examples_and_do_not_depend_on_their_order_or_number():
    ids = [f"id{i}" for i in range(3000)]
    folds = [in_fold(ids, f"{k}/3") for k in (1, 2, 3)]
    assert (sum(fold.astype(int) for fold in folds) == 1).all()
    assert all(abs(fold.sum() - 1000) < 120 for fold in folds)  # 4.6 standard deviations
    some = np.arange(2999, 0, -7)
    assert (in_fold([ids[i] for i in some], "2/3") == folds[1][some]).all()
    assert not in_fold(ids, None).any()


def test_a_teacher_that_is_not_finished_teaches_and_is_said_to_be_none(world, capsys):
    config = world / "b" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"epochs": 2}))
    asked(world, "ab")
    said = capsys.readouterr().err
    assert f"{world}/b speaks of 30 training examples (not finished, 1 of 2 epochs; go on with it" in said
    assert said.count("not finished") == 1


def with_fold(folder, run, fold):
    path = folder / run / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"fold": fold}))


def test_with_folds_an_example_takes_the_mean_of_those_that_have_not_seen_it(world):
    folds = {"a": "1/2", "b": "2/2", "c": "1/3"}
    for run, fold in folds.items():
        with_fold(world, run, fold)
    ours, examples = asked(world, folds)
    for name, task in TASKS.items():
        unseen = {run: in_fold(examples[name].ids, fold) for run, fold in folds.items()}
        assert (unseen["a"] & unseen["c"]).any()
        said = {run: alone(world / run, task, examples[name]) for run in folds}
        for i, value in enumerate(ours.values[name].numpy()):
            mean = np.mean([said[run][i] for run in folds if unseen[run][i]], 0)
            assert np.allclose(value, mean, atol=1e-5)


def test_who_has_seen_an_example_is_silent_where_somebody_has_not(world, capsys):
    """Run a has seen all labelled examples, b those outside its fold."""
    with_fold(world, "b", "1/2")
    _, examples = asked(world, "a")
    examples["sst"].labels[[2, 7]] = math.nan
    capsys.readouterr()
    a, b = distill.speakers([world / "a", world / "b"], examples)
    silent = 0
    for name, these in examples.items():
        for i, (label, left_out) in enumerate(zip(these.labels, in_fold(these.ids, "1/2"), strict=True)):
            wanted = (True, True) if math.isnan(label) else (False, True) if left_out else (True, True)
            silent += not math.isnan(label) and not left_out
            assert (a[name][i], b[name][i]) == wanted
    assert capsys.readouterr().out == f"{silent} of 30 training examples were seen by all teachers\n"


def test_a_run_with_a_fold_trains_on_the_others_only(world):
    args = ["--data", str(world / "data"), "--out", str(world / "none")]
    _, tokenizer = MultitaskBert.load(model_folder(world / "a"))
    ids = {}
    for fold in (None, "1/2", "2/2"):
        given = flags_of_run.parse_multitask(args + ["--fold", fold] * bool(fold), *TABLES)
        data = multitask.load_data(given, tokenizer)
        ids[fold] = [data["sts"]["train"].examples.ids, data["sts"]["dev"].examples.ids]
    assert sorted(ids["1/2"][0] + ids["2/2"][0]) == sorted(ids[None][0])
    assert 0 < len(ids["1/2"][0]) < len(ids[None][0])
    assert ids["1/2"][1] == ids["2/2"][1] == ids[None][1]


# ----- runs

LEARN = "--batch_size 8 --epochs 1"


def command(folder, more):
    return [*f"--bert {folder}/layers1 --data {folder}/data {LEARN}".split(), *more.split()]


def state(run):
    return read_safetensors(run / "last" / "state.safetensors")


def equal(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_each_step_asks_for_its_own_loss_of_its_own_examples(world, monkeypatch):
    seen = []

    class Watch(distill.Teachers):
        def loss_of(self, step, indices):
            def loss(task, logits, labels):
                seen.append((step, self.steps))
                examples = load_examples(flags, ("train",))[task.name]["train"]
                assert labels.tolist() == examples.labels[indices].tolist()
                return loss_of(task, logits, labels)

            loss_of = super().loss_of(step, indices)
            return loss

    argv = command(world, f"--teacher {world}/a --out {world}/student")
    flags = flags_of_run.parse_multitask(argv, *TABLES)
    monkeypatch.setattr(multitask, "Teachers", Watch)
    multitask.main(argv)
    assert seen == [(t, 6) for t in range(1, 7)]


@pytest.mark.parametrize("methods", ["", "--use_smart --use_means --use_pals --pal_size 12"])
def test_with_lambda_1_a_run_is_bit_for_bit_the_plain_run(world, methods, capsys):
    for name, more in {"plain": "", "one": "--distill_lambda 1", "student": ""}.items():
        teacher = f"--teacher {world}/a {world}/d " if name != "plain" else ""
        multitask.main(command(world, f"{teacher}{more} {methods} --out {world}/{name}"))
    plain, one, student = (state(world / name) for name in ("plain", "one", "student"))
    assert equal(plain, one)
    assert capsys.readouterr().err.count("the teachers change nothing") == 1
    assert not equal(plain, student)


@pytest.mark.parametrize("methods", ["--use_smart --use_pals --pal_size 12", "--gradient_surgery --use_means",
                                     "--pair_encoding siamese --distill_lambda 0.5 --fold 1/4"])  # fmt: skip
def test_a_resumed_run_ends_where_an_uninterrupted_one_does(world, monkeypatch, methods):
    methods += " --epochs 4" if "surgery" in methods else " --epochs 2"
    methods += f" --unlabelled {unlabelled(world)}" if "smart" in methods else ""
    whole, parts = tiny.last_states(world, command(world, f"--teacher {world}/a {world}/d {methods}"), monkeypatch)
    assert equal(whole, parts)


def unlabelled(folder):
    """A folder for --unlabelled: the test files, under other names."""
    (folder / "more").mkdir()
    for task in TASKS.values():
        shutil.copy(data_path(folder / "data", task, "test"), data_path(folder / "more", task, "unlabelled"))
    return folder / "more"


def test_examples_without_a_label_are_learnt_from_the_teachers_even_at_lambda_1(world, capsys):
    more = f"--teacher {world}/a {world}/d --distill_lambda 1"
    multitask.main(command(world, f"{more} --unlabelled {unlabelled(world)} --out {world}/student"))
    said, warned = capsys.readouterr()
    assert "the teachers change nothing" not in warned
    assert "training examples: sst 32, para 32, sts 32; on cpu" in said
    assert "48 of 96 training examples were seen by all teachers" in said
    lines = [line for line in tiny.metrics(world / "student") if line["kind"] == "train"]
    assert all(math.isfinite(line[name]) for line in lines for name in TASKS.keys() & line.keys())
    args = flags_of_run.parse_multitask(["--out", str(world / "student"), "--resume"], *TABLES)
    _, tokenizer = MultitaskBert.load(model_folder(world / "student"))
    data = multitask.load_data(args, tokenizer)
    teachers = distill.Teachers(args, data, range(4), torch.device("cpu"))
    for name, task in TASKS.items():
        examples = data[name]["train"].examples
        assert np.isnan(examples.labels).tolist() == [False] * 16 + [True] * 16
        logits, labels = random_batch(task, 2)[0], torch.from_numpy(examples.labels[[3, 20]])
        targets = torch.stack([distill.mix(task, labels[:1].double(), teachers.values[name][[3]], 1.0)[0],
                               teachers.values[name][20].double()])  # fmt: skip
        expected = distill.soft_loss(task, logits, targets)
        assert torch.allclose(teachers.loss_of(1, [3, 20])(task, logits, labels), expected, atol=1e-6)


def stopped(world, monkeypatch):
    """A student of a and b, stopped after two steps; the flags that go on with it."""
    out = ["--out", str(world / "student")]
    with monkeypatch.context() as patch:
        patch.setattr(tiny.training_run, "Interrupt", tiny.StopAfter(2))
        with pytest.raises(SystemExit):
            multitask.main(command(world, f"--teacher {world}/a {world}/b") + out)
    return [*out, "--resume"]


def test_a_resumed_run_needs_the_teachers_that_it_began_with(world, monkeypatch, refused):
    resume = stopped(world, monkeypatch)
    refused(multitask.main, [*resume, "--teacher", world / "a"], "was started with --teacher")
    (world / "b").rename(world / "moved")
    refused(multitask.main, resume, f"--teacher {world / 'b'}", "holds no run")
    shutil.copytree(world / "a", world / "b")
    refused(multitask.main, resume, "teacher 2, what the teachers", "--teacher (in the order of before), or choose")
    turned = [*resume, "--teacher", world / "moved", world / "a"]
    refused(multitask.main, turned, "teacher 1, teacher 2", "--teacher (in the order of before)")
    monkeypatch.chdir(world)
    multitask.main([*resume, "--teacher", "a", "--teacher=moved"])
    assert json.loads((world / "student" / "config.json").read_text())["teacher"] == ["a", "moved"]


def test_a_run_without_teachers_gets_none_later(world, refused):
    multitask.main([*command(world, "--epochs 1"), "--out", str(world / "alone")])
    refused(multitask.main, ["--resume", "--out", world / "alone", "--teacher", world / "a"], "--teacher None, not")


def test_a_resumed_run_is_told_where_its_teachers_say_something_else(world, monkeypatch, refused):
    resume = stopped(world, monkeypatch)
    said = distill.mean_outputs
    monkeypatch.setattr(distill, "mean_outputs", lambda *args: {n: v + (n == "para") for n, v in said(*args).items()})
    refused(multitask.main, resume, "what the teachers say of para is not what", "choose another --out")


def test_the_teachers_of_a_resumed_run_are_asked_with_the_libraries_that_it_began_with(world, monkeypatch):
    resume, began = stopped(world, monkeypatch), libraries.choice()
    monkeypatch.setattr(libraries, "choose", lambda path: None)
    monkeypatch.setattr(
        libraries, "_choice", {n: libraries.WAYS[n][of == libraries.WAYS[n][0]] for n, of in began.items()}
    )
    seen, said = [], distill.mean_outputs
    monkeypatch.setattr(distill, "mean_outputs", lambda *args: seen.append(libraries.choice()) or said(*args))
    multitask.main(resume)
    assert seen == [began]


def test_what_can_be_no_teacher_gets_one_sentence(world, refused):
    def refuse(more, *words):
        refused(multitask.main, command(world, f"{more} --out {world}/student"), *words)
        assert not (world / "student" / "config.json").exists()

    refuse(f"--teacher {world}/nowhere", "holds no run")
    refuse(f"--teacher {world}/a {world}/d/../a", "is named twice; name it once")
    (world / "simcse" / "encoder").mkdir(parents=True)
    refuse(f"--teacher {world}/simcse", "run of simcse.py")
    shutil.rmtree(world / "c" / "best")
    refuse(f"--teacher {world}/a {world}/c", "holds no trained model")
    with run_folder.lock(world / "a"):
        refuse(f"--teacher {world}/a", "still being trained", "wait for its end")
    (world / "evidence").mkdir()
    (world / "evidence" / "record.json").write_text("{}")
    refuse(f"--teacher {world}/evidence", "evidence of a run", "name the run itself")
    config = json.loads((world / "d" / "config.json").read_text())
    for fold in ("half", "1/0", ""):
        with_fold(world, "d", fold)
        refuse(f"--teacher {world}/a {world}/d", world / "d" / "config.json", "is not a fold such as 1/2")
    (world / "d" / "config.json").write_text(json.dumps({k: v for k, v in config.items() if k != "sts_train"}))
    refuse(f"--teacher {world}/d", "no run of multitask.py on the tasks")
    refuse("--distill_lambda 0.5", "add --teacher")
    refuse(f"--unlabelled {world}", "add --teacher")
    refuse(f"--teacher {world}/a --unlabelled {world}/data", "none of ids-sst-unlabelled.csv", "data/more.py")
    refuse(f"--teacher {world}/a --unlabelled {unlabelled(world)} --fold 1/2", "drop one of the two")
    (world / "more" / "quora-unlabelled.csv").unlink()
    (world / "more" / "quora-unlabelled.csv").symlink_to("nothing")
    refuse(f"--teacher {world}/a --unlabelled {world}/more", "unlabelled.csv is a link to", "which is not there")
    refuse(f"--teacher {world}/a --distill_lambda 1.5", "1.5 is too large; 1 is the most")
    refuse(f"--teacher {world}/a --cuda_graphs", "cannot record a step with --teacher; leave it out")
    for fold in ("0/2", "3/2", "1/1", "1", "half"):
        refuse(f"--fold {fold}", "is not a fold such as 1/2")
    refuse("--fold 1/2 --max_examples 1", "--fold 1/2 leaves out", "training example of sst; choose another")
    refuse("--fold 1/9999", "--fold 1/9999 leaves out no training example of sst")
