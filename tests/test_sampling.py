"""Task sampling: what is drawn against the probabilities of the formula, over 100,000 draws an epoch."""

import collections

import pytest

from sampling import Plan, task_order, task_probabilities

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


def test_annealing_ends_nearly_uniform_and_starts_proportional():
    first, last = (task_probabilities(SIZES, "annealed", e, 5) for e in (1, 5))
    assert first == pytest.approx(task_probabilities(SIZES, "proportional", 1, 1))
    assert last["para"] / last["sts"] == pytest.approx((SIZES["para"] / SIZES["sts"]) ** 0.2)


def test_an_order_depends_on_seed_and_epoch_only():
    orders = [task_order(SIZES, "sqrt", epoch, 5, 1000, seed) for epoch, seed in ((1, 0), (1, 0), (2, 0), (1, 1))]
    assert orders[0] == orders[1]
    assert orders[0] != orders[2] != orders[3] != orders[0]


def test_joint_steps_have_a_batch_of_every_task_and_as_many_examples_an_epoch():
    steps = list(Plan({"a": 10, "b": 20, "c": 6}, 4, 2, seed=0, extra=("a",), joint=True).steps())
    of_all = [batches for epoch, batches in steps if epoch == 1 and len(batches) == 3]
    of_one = [batches for epoch, batches in steps if epoch == 1 and len(batches) == 1]
    assert len(of_all) == round(36 / 4 / 3)
    assert len(of_one) == round(10 / 4)
    assert all(list(batches) == ["a"] for batches in of_one)
    assert all(len(indices) == 4 for _, batches in steps for indices in batches.values())
    drawn = [i for _, batches in steps for i in batches["a"]]
    assert sorted(drawn[:10]) == list(range(10))  # a whole pass before anything comes again
