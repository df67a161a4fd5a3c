"""SMART: every term against a slow form written from the paper, and the four traps."""

import argparse
import copy
import inspect
import math

import pytest
import tiny
import torch
import torch.nn.functional as F

from model import task_loss
from multitask import Trainer
from predict import TABLES
from smart import PRESETS, Smart, divergence, normal_noise, project
from support.flags import parse_multitask
from tasks import TASKS, load_data
from tokenizer import Tokenizer, pack


def settings(**changes):
    values = {"lambda_s": 1.0, "sigma": 1e-5, "eta": 1e-3, "T_x": 1, "S": 1, "beta": 0.99, "seed": 0}
    values |= PRESETS["weak"] | {"smart_projection": "unit"} | changes
    return argparse.Namespace(**values)


# ----- slow forms


def slow_divergence(task, a, b):
    """ℓ_s of one example, a list of logits each, from the definition of the Kullback-Leibler divergence."""
    if len(a) == 2 * task.n_logits:  # predicted twice
        halves = ((z[: task.n_logits], z[task.n_logits :]) for z in (a, b))
        return sum(slow_divergence(task, x, y) for x, y in zip(*halves, strict=True)) / 2
    if not task.classes:
        return (a[0] - b[0]) ** 2
    if task.classes == 2:
        a, b = [torch.zeros_like(a[0]), a[0]], [torch.zeros_like(b[0]), b[0]]
    p, q = ([z.exp() / sum(y.exp() for y in zs) for z in zs] for zs in (a, b))
    forward = sum(pc * (pc / qc).log() for pc, qc in zip(p, q, strict=True))
    return forward + sum(qc * (qc / pc).log() for pc, qc in zip(p, q, strict=True))


def slow_mean_divergence(task, a, b):
    return sum(slow_divergence(task, list(x), list(y)) for x, y in zip(a, b, strict=True)) / len(a)


def slow_project(delta, epsilon, projection):
    out = delta.clone()
    for t, row in enumerate(delta):
        largest = max(abs(v) for v in row.tolist())
        for i, v in enumerate(row.tolist()):
            out[t, i] = max(-epsilon, min(epsilon, v)) if projection == "ball" else v / (largest + epsilon)
    return out


def slow_step(model, average, task, batch, noise, args):
    """(L's logits, R_s, D_Breg) of one step, dropout off."""
    x = model.bert.embed(batch)
    logits = model.classify(task.name, x, batch)
    delta = args.sigma * noise
    for _ in range(args.T_x):
        moved = (x + delta).detach().requires_grad_()
        f = model.classify(task.name, moved, batch)
        distance = slow_mean_divergence(task, f, logits.detach()) * len(f)
        (g,) = torch.autograd.grad(distance, moved)
        delta = slow_project(delta + args.eta * g, args.epsilon, args.smart_projection)
    smoothness = slow_mean_divergence(task, model.classify(task.name, x + delta, batch), logits)
    with torch.no_grad():
        before = average(task.name, batch)
    return logits, smoothness, slow_mean_divergence(task, logits, before)


# ----- each part


@pytest.mark.parametrize(("name", "columns"), [("sst", 5), ("para", 1), ("sts", 1), ("sts", 2)])
def test_divergence_is_the_definition(name, columns):
    task = TASKS[name]
    torch.manual_seed(0)
    a, b = 3 * torch.randn(2, 6, columns)
    slow = [slow_divergence(task, list(x), list(y)) for x, y in zip(a.double(), b.double(), strict=True)]
    torch.testing.assert_close(divergence(task, a, b).double(), torch.stack(slow), rtol=1e-5, atol=1e-6)
    assert torch.equal(divergence(task, a, a), torch.zeros(6))


@pytest.mark.parametrize("projection", ["ball", "unit"])
def test_projection_is_what_its_name_says(projection):
    delta = 1e-5 * torch.randn(7, 32)
    found = project(delta, 1e-6, projection)
    torch.testing.assert_close(found, slow_project(delta, 1e-6, projection))
    largest = found.abs().amax(1)
    assert (largest <= 1e-6 * 1.0001).all() if projection == "ball" else ((largest > 0.8) & (largest < 1)).all()


def test_noise_is_normal_and_the_same_however_a_batch_is_shared():
    encoded = [(torch.arange(5, 5 + n).numpy(), n) for n in (30, 20, 40, 25)]
    whole = normal_noise(pack(encoded), 64, [0, 7], 0, len(encoded))
    parts = [
        normal_noise(pack(encoded[:1]), 64, [0, 7], 0, 1),
        normal_noise(pack(encoded[1:]), 64, [0, 7], 1, len(encoded) - 1),
    ]
    assert torch.equal(whole, torch.cat(parts))
    assert not torch.equal(whole, normal_noise(pack(encoded), 64, [0, 8], 0, len(encoded)))
    pairs = normal_noise(pack(encoded), 64, [0, 7], 0, 2)  # two examples: first sentences, then second ones
    assert torch.equal(pairs[:50], whole[:50])  # 30 and 20 tokens
    assert not torch.equal(pairs[50:80], pairs[:30])
    assert abs(whole.mean()) < 0.05
    assert abs(whole.std() - 1) < 0.05


@pytest.mark.parametrize("name", ["sst", "para", "sts"])
@pytest.mark.parametrize(("projection", "T_x"), [("ball", 2), ("unit", 2), ("unit", 0)])
def test_three_steps_are_those_of_the_slow_form(name, projection, T_x):
    # a large radius under "ball": with the default one, float32 leaves nothing to compare
    args = settings(smart_projection=projection, epsilon=0.05, sigma=0.02, eta=0.5, T_x=T_x, mu=0.7, beta=0.6)
    task, batch = TASKS[name], tiny.batch()
    fast = tiny.model()
    slow, average = copy.deepcopy(fast), copy.deepcopy(fast)
    optimizers = tiny.optimizer(fast), tiny.optimizer(slow)
    smart = Smart(fast, optimizers[0], args)
    labels = torch.tensor([1.0, 0, 1, 0])
    for step in (1, 2, 3):
        found = smart.forward(task, batch, step)
        expected = slow_step(slow, average, task, batch, normal_noise(batch, 32, [0, step], 0, len(batch)), args)
        for a, b in zip(found, expected, strict=True):
            torch.testing.assert_close(a, b, rtol=2e-3, atol=1e-6)
        assert found[1] > 0
        assert (found[2] > 0) == (step > 1)
        for (logits, smoothness, bregman), optimizer in zip((found, expected), optimizers, strict=True):
            optimizer.zero_grad()
            loss = task_loss(task, logits, labels) + args.lambda_s * smoothness + args.mu * bregman
            loss.backward()
            with torch.no_grad():  # plain descent: Adam would blow up the rounding of gradients that are zero
                for flat in optimizer.flat_parameters():
                    flat.param.sub_(flat.grad, alpha=0.02)
        gradients = [[f.grad for f in optimizer.flat_parameters()] for optimizer in optimizers]
        for a, b in zip(*gradients, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-2, atol=1e-3 * float(b.abs().max() + 1e-8))
        smart.after_step(step)
        with torch.no_grad():
            for a, p in zip(average.parameters(), slow.parameters(), strict=True):
                a.copy_(args.beta * a + (1 - args.beta) * p)
        for a, b in zip(smart.average_model.parameters(), average.parameters(), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-5)


def test_the_average_moves_every_S_steps():
    model = tiny.model()
    optimizer = tiny.optimizer(model)
    smart = Smart(model, optimizer, settings(S=3, beta=0.5))
    start = [p.clone() for p in model.parameters()]
    for step in (1, 2, 3):
        for flat in optimizer.flat_parameters():
            flat.param.add_(1)
        smart.after_step(step)
        for p, first in zip(smart.average_model.parameters(), start, strict=True):
            torch.testing.assert_close(p, first + (1.5 if step == 3 else 0))


def test_a_training_step_adds_both_penalties_by_their_weights_and_moves_the_average(tmp_path):
    flags = f"--bert {tiny.folder(tmp_path / 'bert')} --data {tiny.task_files(tmp_path / 'data')} --out {tmp_path} "
    flags += "--use_smart --lambda_s 3 --mu 5 --beta 0.5 --smart_projection ball --epsilon 0.1 --sigma 0.1 --eta 1"
    args = parse_multitask(flags.split(), *TABLES)
    model = tiny.model()
    trainer = Trainer(args, model, load_data(args, Tokenizer(args.bert)))
    (average, param), *_ = trainer.smart.pairs
    start, rows = param.clone(), [0, 1, 2, 3]
    trainer.step(1, 1.0, {"sst": rows})
    torch.testing.assert_close(average, (start + param) / 2)
    trainer.optimizer.zero_grad()
    trainer.backward(2, "sst", rows)
    found = [flat.grad.clone() for flat in trainer.optimizer.flat_parameters()]
    trainer.optimizer.zero_grad()
    data = trainer.datasets["sst"]["train"]
    logits, smoothness, bregman = trainer.smart.forward(TASKS["sst"], data.batch(rows), 2)
    (task_loss(TASKS["sst"], logits, data.labels(rows)) + 3 * smoothness + 5 * bregman).backward()
    for gradient, flat in zip(found, trainer.optimizer.flat_parameters(), strict=True):
        torch.testing.assert_close(gradient, flat.grad)
    assert smoothness > 0 and bregman > 0


def test_the_presets_are_those_of_the_text():
    text = " ".join(inspect.getmodule(Smart).__doc__.split())
    assert len(PRESETS) == 2
    for name, of in PRESETS.items():
        assert f"{name}` is μ = {of['mu']:g}, ε = {of['epsilon']:g}".replace("e-0", "e-") in text


# ----- the traps


def test_without_noise_the_penalty_is_exactly_zero_although_dropout_is_on():
    for name in TASKS:
        model = tiny.model(dropout=0.4, pal_size=12, pal_heads=4).train()
        torch.nn.init.normal_(model.pals[name].decode.weight, std=0.3)
        smart = Smart(model, tiny.optimizer(model), settings(sigma=0.0))
        logits, smoothness, bregman = smart.forward(TASKS[name], tiny.batch(), 1)
        assert smoothness == 0
        assert bregman == 0
        assert not torch.equal(logits, model(name, tiny.batch()))  # dropout is on


@pytest.mark.parametrize("name", ["sst", "para", "sts"])
def test_under_ball_the_penalty_grows_with_epsilon(name):
    model = tiny.model(dropout=0.1).train()
    penalties = []
    for epsilon in (1e-6, 1e-4, 1e-3, 1e-2, 1e-1):
        torch.manual_seed(0)
        smart = Smart(model, tiny.optimizer(model), settings(smart_projection="ball", epsilon=epsilon, sigma=1.0))
        penalties.append(smart.forward(TASKS[name], tiny.batch(), 1)[1].item())
    assert penalties == sorted(penalties)
    assert penalties[-1] > 1e3 * penalties[1] > 0


def bregman_gradient(smart, model, optimizer):
    optimizer.zero_grad()
    smart.forward(TASKS["sst"], tiny.batch(), 1)[2].backward()
    return max(flat.grad.abs().max().item() for flat in optimizer.flat_parameters())


def test_the_plain_bregman_term_has_no_gradient_on_the_first_step_ever_and_momentum_has():
    for beta in (0.0, 0.99):
        model = tiny.model(dropout=0.1).train()
        optimizer = tiny.optimizer(model)
        smart = Smart(model, optimizer, settings(beta=beta, lambda_s=0.0))
        assert smart.forward(TASKS["sst"], tiny.batch(), 1)[1] == 0  # R_s is not wanted
        assert bregman_gradient(smart, model, optimizer) == 0
        optimizer.zero_grad()
        model("sst", tiny.batch()).sin().sum().backward()
        optimizer.step(dict.fromkeys(optimizer.groups, 0.01))
        smart.after_step(1)
        assert (bregman_gradient(smart, model, optimizer) == 0) == (beta == 0)


def test_autocast_outside_does_not_reach_the_penalties():
    model = tiny.model(dropout=0.1).train()
    smart = Smart(model, tiny.optimizer(model), settings())
    torch.manual_seed(0)
    plain = smart.forward(TASKS["sst"], tiny.batch(), 1)
    torch.manual_seed(0)
    with torch.autocast("cpu", torch.bfloat16):
        cast = smart.forward(TASKS["sst"], tiny.batch(), 1)
    assert all(torch.equal(a, b) for a, b in zip(plain, cast, strict=True))


def test_the_divergence_of_nearly_equal_outputs_keeps_its_digits():
    a, b = torch.tensor([[0.3]]), torch.tensor([[0.3 + 3e-5]])
    assert divergence(TASKS["para"], a, b).item() == pytest.approx(
        F.sigmoid(a).item() * (1 - F.sigmoid(a).item()) * 9e-10, rel=0.02
    )


def test_the_search_leaves_no_gradient_in_the_weights():
    model = tiny.model()
    optimizer = tiny.optimizer(model)
    smart = Smart(model, optimizer, settings(T_x=3, mu=0.0))
    _, smoothness, bregman = smart.forward(TASKS["sts"], tiny.batch(), 1)
    assert smoothness > 0 == bregman
    assert all(not flat.grad.any() for flat in optimizer.flat_parameters())
    assert all(p.requires_grad for p in model.parameters())
    assert smart.passes() == (5, 5)
    assert smart.state() == {}


@pytest.mark.parametrize("option", ["finetune", "pretrain"])
def test_a_run_resumes_bit_for_bit_the_average_included(tmp_path, monkeypatch, option):
    bert, files = tiny.folder(tmp_path / "bert", dropout=0.1), tiny.task_files(tmp_path / "data")
    flags = (
        f"--bert {bert} --data {files} --batch_size 4 --epochs 1 --use_smart --smart strong --option {option}".split()
    )
    whole, parts = tiny.last_states(tmp_path, flags, monkeypatch)
    assert any(name.startswith("average.") for name in whole)
    assert whole.keys() == parts.keys()
    assert all(torch.equal(whole[name], parts[name]) for name in whole)
    lines, again = (tiny.metrics(tmp_path / name) for name in ("whole", "parts"))
    assert lines[-1] == again[-1]
    assert lines[-1]["kind"] == "dev"
    assert lines[0]["smoothness"] > 0
    assert math.isfinite(lines[0]["bregman"])
