"""Task sampling: what is drawn against the probabilities of the formula, over 100,000 draws an epoch."""

import collections
import itertools
import time
from types import SimpleNamespace

import numpy as np
import pytest

from multitask import training_plan
from sampling import SAMPLINGS, Plan, example_stream, task_counts, task_order, task_probabilities

SIZES = {"sst": 8544, "para": 141498, "sts": 6040}


def formula(sampling, epoch, epochs):
    """p_i ∝ N_i^α."""
    alpha = {"proportional": 1, "sqrt": 0.5, "uniform": 0, "round_robin": 0}.get(sampling)
    if sampling == "annealed":
        alpha = 1 if epochs == 1 else 1 - 0.8 * (epoch - 1) / (epochs - 1)
    weights = [n**alpha for n in SIZES.values()]
    return [w / sum(weights) for w in weights]


@pytest.mark.parametrize("sampling", ["proportional", "sqrt", "uniform", "round_robin", "annealed"])
@pytest.mark.parametrize("epochs", [1, 5])
def test_frequencies_are_the_probabilities_of_the_formula(sampling, epochs):
    for epoch in range(1, epochs + 1):
        order = task_order(SIZES, sampling, epoch, epochs, 100_000, seed=3)
        counts = collections.Counter(order)
        for name, p in zip(SIZES, formula(sampling, epoch, epochs), strict=True):
            assert abs(counts[name] / 100_000 - p) < 2e-5
            assert task_probabilities(SIZES, sampling, epoch, epochs)[name] == pytest.approx(p)
            half = collections.Counter(order[:50_000])[name] / 50_000  # shuffled: every part looks like the whole
            assert abs(half - p) < 0.01


def test_of_two_shares_the_one_with_the_larger_remainder_is_rounded_up():
    assert task_counts({"a": 109, "b": 201}, "proportional", 1, 1, 31) == {"a": 11, "b": 20}  # of 10.9 and 20.1


def test_annealing_ends_nearly_uniform_and_starts_proportional():
    first, last = (task_probabilities(SIZES, "annealed", e, 5) for e in (1, 5))
    assert first == pytest.approx(task_probabilities(SIZES, "proportional", 1, 1))
    assert last["para"] / last["sts"] == pytest.approx((SIZES["para"] / SIZES["sts"]) ** 0.2)


def test_an_order_depends_on_seed_and_epoch_only():
    orders = [task_order(SIZES, "sqrt", epoch, 5, 1000, seed) for epoch, seed in ((1, 0), (1, 0), (2, 0), (1, 1))]
    assert orders[0] == orders[1]
    assert orders[0] != orders[2] != orders[3] != orders[0]


def test_joint_steps_have_a_batch_of_every_task_and_as_many_examples_an_epoch():
    steps = list(Plan({"a": 10, "b": 20, "c": 6}, 4, 2, seed=0, extra=("a",), all_tasks=True).steps())
    of_all = [batches for epoch, batches in steps if epoch == 1 and len(batches) == 3]
    of_one = [batches for epoch, batches in steps if epoch == 1 and len(batches) == 1]
    assert len(of_all) == round(36 / 4 / 3)
    assert len(of_one) == round(10 / 4)
    assert all(list(batches) == ["a"] for batches in of_one)
    assert all(len(indices) == 4 for _, batches in steps for indices in batches.values())
    drawn = [i for _, batches in steps for i in batches["a"]]
    assert sorted(drawn[:10]) == list(range(10))  # a whole pass before anything comes again


# ----- the plan of a run


def listed(sizes, batch_size, epochs, sampling, seed, extra, joint):
    """The plan in its simplest form, all steps in a list."""

    def stream(n, i):
        for order in itertools.count():
            yield from np.random.default_rng([seed, i, order]).permutation(n).tolist()

    streams = {name: stream(n, i) for i, (name, n) in enumerate(sizes.items())}
    batches = round(sum(sizes.values()) / batch_size)
    steps = []
    for epoch in range(1, epochs + 1):
        if joint:
            tasks = [list(sizes)] * round(batches / len(sizes))
        else:
            tasks = [[name] for name in task_order(sizes, sampling, epoch, epochs, batches, seed)]
        tasks += [[name] for name in extra for _ in range(round(sizes[name] / batch_size))]
        for names in tasks:
            steps.append((epoch, {name: list(itertools.islice(streams[name], batch_size)) for name in names}))
    return steps


@pytest.mark.parametrize("sampling", SAMPLINGS)
@pytest.mark.parametrize("extra", [(), ("b",)])
@pytest.mark.parametrize("joint", [False, True])
def test_a_plan_is_the_list_of_all_steps_from_any_step_on(sampling, extra, joint):
    sizes = {"a": 100, "b": 37, "c": 60}
    plan, steps = Plan(sizes, 8, 5, sampling, 3, extra, joint), listed(sizes, 8, 5, sampling, 3, extra, joint)
    assert len(plan) == len(steps) == 5 * plan.epoch_steps
    for done in (0, 1, plan.epoch_steps - 1, plan.epoch_steps, len(steps) // 2, len(steps)):
        assert list(plan.steps(done)) == steps[done:]


def test_the_plan_of_a_run_is_that_of_its_flags():
    sizes, examples = {"sst": 40, "para": 90, "sts": 20}, lambda n: {"train": range(n)}
    args = SimpleNamespace(batch_size=4, epochs=2, sampling="sqrt", seed=7, extra_sst=True, gradient_surgery=False)
    plan = training_plan(args, {name: examples(n) for name, n in sizes.items()})
    assert list(plan.steps()) == list(Plan(sizes, 4, 2, "sqrt", 7, ("sst",)).steps())


def test_a_stream_is_found_at_any_place():
    whole = list(itertools.islice(example_stream(7, [1, 2]), 500))
    assert all(sorted(whole[i : i + 7]) == list(range(7)) for i in range(0, 490, 7))
    for skip in (0, 3, 7, 48, 49, 50, 200, 343, 400):
        assert list(itertools.islice(example_stream(7, [1, 2], skip), 20)) == whole[skip : skip + 20]
    orders = [tuple(whole[i : i + 7]) for i in range(0, 490, 7)]
    assert len(set(orders)) > 60


def test_a_million_epochs_start_and_resume_at_once():
    started = time.process_time()
    plan = Plan({"sst": 8544, "para": 14141, "sts": 6040}, 32, 10**6)
    assert len(plan) == 898 * 10**6
    for done in (0, len(plan) // 2 + 5):
        epoch, batches = next(plan.steps(done))
        assert epoch == 1 + done // 898
        assert [len(indices) for indices in batches.values()] == [32]
    assert time.process_time() - started < 5


@pytest.mark.parametrize("sampling", SAMPLINGS)
@pytest.mark.parametrize("sizes", [{"a": 14000, "b": 12, "c": 13}, {"a": 2, "b": 3, "c": 1}])
def test_every_task_has_a_step_in_every_epoch(sampling, sizes):
    plan = Plan(sizes, 32, 3, sampling)
    assert plan.epoch_steps == max(3, round(sum(sizes.values()) / 32))
    steps = list(plan.steps())
    for epoch in (1, 2, 3):
        assert {name for e, batches in steps for name in batches if e == epoch} == sizes.keys()
