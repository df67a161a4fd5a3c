"""Which examples each training step takes: how often a task is drawn, and in which order its examples come."""

import itertools

import numpy as np


def task_shares(sizes, sampling, epoch, epochs):
    """The probability p_i of each task in an epoch: p_i ∝ N_i^α (Stickland & Murray, 2019, section 4).

    Args: sizes, examples N_i of each task by name; sampling, `proportional` (α = 1), `sqrt` (1/2), `uniform` and
    `round_robin` (0), or `annealed`: α = 1 - 0.8 (e - 1) / (E - 1), from proportional to nearly uniform over the
    epochs e = 1 .. E. Returns a dict of floats that sum to 1.
    """
    if sampling == "annealed":
        alpha = 1 - 0.8 * (epoch - 1) / (epochs - 1) if epochs > 1 else 1.0
    else:
        alpha = {"round_robin": 0.0, "uniform": 0.0, "sqrt": 0.5, "proportional": 1.0}[sampling]
    weights = {name: n**alpha for name, n in sizes.items()}
    return {name: weight / sum(weights.values()) for name, weight in weights.items()}


SAMPLINGS = ("proportional", "sqrt", "annealed", "uniform", "round_robin")


def task_order(sizes, sampling, epoch, epochs, steps, seed):
    """Which task each of the `steps` steps of an epoch takes: a list of names.

    `round_robin` takes the tasks in turn. The others give each task its share p_i of the steps, to the nearest whole
    step, and shuffle: a draw without the luck of the draw. With `proportional`, an epoch is then one pass over
    every task, to within a batch. The order depends on the arguments only, so a resumed run finds it again.
    """
    names = list(sizes)
    if sampling == "round_robin":
        return [names[i % len(names)] for i in range(steps)]
    shares = task_shares(sizes, sampling, epoch, epochs)
    counts = {name: int(shares[name] * steps) for name in names}
    by_remainder = sorted(names, key=lambda name: counts[name] - shares[name] * steps)
    for name in by_remainder[: steps - sum(counts.values())]:
        counts[name] += 1
    order = [name for name in names for _ in range(counts[name])]
    np.random.default_rng([seed, epoch]).shuffle(order)
    return order


def example_stream(n, seed):
    """Example numbers below n without end: one random order of all of them after another."""
    generator = np.random.default_rng(seed)
    while True:
        yield from generator.permutation(n).tolist()


def training_steps(sizes, batch_size, epochs, sampling="proportional", seed=0, extra=()):
    """All steps of a training run, in order: (epoch from 1, task name, list of batch_size example numbers).

    Args: sizes, examples of each task by name; sampling, see `task_order`; extra, names of tasks that get one more
    pass at the end of each epoch (`--extra_sst`). An epoch has as many steps as all tasks together have
    batches, to the nearest whole one. Each task's examples come in one random order after another, across epochs, so
    every batch is full. Steps depend on the arguments only: a run that resumes skips those it has done.
    """
    steps = epoch_steps(sizes, batch_size)
    streams = {name: example_stream(n, [seed, i]) for i, (name, n) in enumerate(sizes.items())}
    for epoch in range(1, epochs + 1):
        order = task_order(sizes, sampling, epoch, epochs, steps, seed)
        for name in extra:
            order += [name] * epoch_steps({name: sizes[name]}, batch_size)
        for name in order:
            yield epoch, name, list(itertools.islice(streams[name], batch_size))


def joint_steps(sizes, batch_size, epochs, seed=0, extra=()):
    """Like `training_steps`, with a batch of each task in every step: (epoch, {task: example numbers}).

    An epoch has as many examples in all, so fewer steps. The passes of `extra` have steps of their own.
    """
    streams = {name: example_stream(n, [seed, i]) for i, (name, n) in enumerate(sizes.items())}
    steps = max(1, round(epoch_steps(sizes, batch_size) / len(sizes)))
    for epoch in range(1, epochs + 1):
        groups = [list(sizes)] * steps
        for name in extra:
            groups += [[name]] * epoch_steps({name: sizes[name]}, batch_size)
        for names in groups:
            yield epoch, {name: list(itertools.islice(streams[name], batch_size)) for name in names}


def epoch_steps(sizes, batch_size):
    """Steps of an epoch: batches in all tasks together, to the nearest whole one, at least 1."""
    return max(1, round(sum(sizes.values()) / batch_size))
