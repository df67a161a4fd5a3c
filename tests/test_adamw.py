import pytest
import torch

from adamw import AdamW, linear_schedule


def parameters(seed=0):
    torch.manual_seed(seed)
    shapes = {"a": (40, 30), "bias": (40,), "big": (700, 500), "norm": (30,)}
    return {name: torch.nn.Parameter(torch.randn(shape)) for name, shape in shapes.items()}


@pytest.mark.parametrize("clip", [0.0, 1.0, 1e6])
def test_a_hundred_steps_equal_those_of_torch(clip):
    ours, theirs = parameters(), parameters()
    optimizer = AdamW({"all": list(ours.items())}, weight_decay=0.1, clip=clip)
    reference = torch.optim.AdamW(
        [
            {"params": [theirs["a"], theirs["big"]], "weight_decay": 0.1},
            {"params": [theirs["bias"], theirs["norm"]], "weight_decay": 0.0},
        ],
        eps=1e-8,
    )
    torch.manual_seed(1)
    for step in range(100):
        lr = 1e-3 * linear_schedule(step, 100, 0.1)
        optimizer.zero_grad()
        for name in ours:
            grad = torch.randn_like(ours[name]) * 10 ** torch.randn(1)
            ours[name].grad += grad
            theirs[name].grad = grad.clone()
        if clip:
            expected = torch.nn.utils.clip_grad_norm_(theirs.values(), clip)
        norm = optimizer.step({"all": lr})
        if clip:
            assert torch.allclose(norm, expected, rtol=1e-4)
        for group in reference.param_groups:
            group["lr"] = lr
        reference.step()
    for name in ours:
        assert (ours[name] - theirs[name]).abs().max() < 1e-6


def test_a_group_that_takes_no_part_stays_as_it_is_and_counts_its_own_steps():
    ours, theirs = parameters(), parameters()
    groups = {"shared": [("a", ours["a"])], "task": [("big", ours["big"])]}
    optimizer = AdamW(groups, clip=0.0)
    reference = torch.optim.AdamW([theirs["a"], theirs["big"]], lr=1e-3, weight_decay=0.01)
    torch.manual_seed(1)
    for step in range(6):
        optimizer.zero_grad()
        reference.zero_grad()
        used = ["a", "big"] if step in (1, 4) else ["a"]
        for name in used:
            grad = torch.randn_like(ours[name])
            ours[name].grad += grad
            theirs[name].grad = grad
        before = ours["big"].clone()
        optimizer.step(dict.fromkeys(("shared", "task")[: len(used)], 0.001))
        reference.step()
        assert ("big" in used) != torch.equal(ours["big"], before)
    for name in ("a", "big"):
        assert (ours[name] - theirs[name]).abs().max() < 1e-6


def test_frozen_parameters_are_left_out():
    ours = parameters()
    ours["a"].requires_grad_(False)
    before = ours["a"].clone()
    optimizer = AdamW({"all": list(ours.items())})
    assert [name for flat in optimizer.flat_parameters() for name in flat.names] == ["big", "bias", "norm"]
    ours["big"].grad += 1
    optimizer.step({"all": 1.0})
    assert torch.equal(ours["a"], before)
    ours["big"].requires_grad_(False)
    assert AdamW({"none": [("a", ours["a"])]}).step({"none": 1.0}) == 0


def test_a_restored_optimizer_goes_on_the_same():
    ours, again = parameters(), parameters()
    first, second = (AdamW({"all": list(p.items())}) for p in (ours, again))

    def steps(optimizer, params, seeds):
        for seed in seeds:
            torch.manual_seed(seed)
            optimizer.zero_grad()
            for p in params.values():
                p.grad += torch.randn_like(p)
            optimizer.step({"all": 1e-3})

    steps(first, ours, range(5))
    tensors, counts = first.state_dict()
    tensors = {name: t.clone() for name, t in tensors.items()}
    with torch.no_grad():
        for name in again:
            again[name].copy_(ours[name])
    for name, view in second.state_dict()[0].items():
        view.copy_(tensors[name])
    second.resume(counts)
    steps(first, ours, range(5, 9))
    steps(second, again, range(5, 9))
    for name in ours:
        assert torch.equal(ours[name], again[name])


def test_the_schedule_rises_and_falls_linearly():
    rates = [linear_schedule(step, 100, 0.1) for step in range(100)]
    assert max(rates) == rates[10] == 1.0
    assert rates[0] == pytest.approx(1 / 11)
    assert rates[55] == pytest.approx(0.5)
    assert rates[99] == pytest.approx(1 / 90)
    assert linear_schedule(0, 100, 0.0) == 1.0
    assert linear_schedule(0, 1, 0.5) > 0
