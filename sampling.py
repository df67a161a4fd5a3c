"""Which examples each training step takes: how often a task is taken, and in which order its examples come.

    p_i ∝ N_i^α        the share of the steps of task i, which has N_i examples (Stickland & Murray, 2019, section 4)

    proportional    α = 1                            a task with twice the examples takes twice the steps
    sqrt            α = 1/2
    uniform         α = 0                            all tasks alike, shuffled
    round_robin     α = 0                            all tasks alike, in turn
    annealed        α = 1 - 0.8 (e - 1) / (E - 1)    epochs e = 1 .. E: from proportional to nearly uniform

The plan of a run is a function of its flags. No list of steps is kept: what each step takes can be found again from its
number, so a run that resumes goes on with the examples that it would have seen.
"""

import collections
import hashlib
import itertools

import numpy as np

SAMPLINGS = ("proportional", "sqrt", "annealed", "uniform", "round_robin")


def task_probabilities(sizes, sampling, epoch, epochs):
    """p_i of each task in an epoch, see above. Args: sizes, N_i by task. Returns a dict of floats that sum to 1."""
    if sampling == "annealed":
        alpha = 1 - 0.8 * (epoch - 1) / (epochs - 1) if epochs > 1 else 1.0
    else:
        alpha = {"round_robin": 0.0, "uniform": 0.0, "sqrt": 0.5, "proportional": 1.0}[sampling]
    weights = {name: n**alpha for name, n in sizes.items()}
    return {name: weight / sum(weights.values()) for name, weight in weights.items()}


def task_counts(sizes, sampling, epoch, epochs, steps):
    """How many of the `steps` steps of an epoch each task takes: p_i · steps, rounded to sum to `steps`, at least 1.

    A task of 12 examples beside one of 14,000 has its step too, at the cost of the task with the most steps. There must
    be at least as many steps as tasks. Returns a dict of int that sum to `steps`.
    """
    names = list(sizes)
    if sampling == "round_robin":
        return {name: len(range(i, steps, len(names))) for i, name in enumerate(names)}
    p = task_probabilities(sizes, sampling, epoch, epochs)
    counts = {name: int(p[name] * steps) for name in names}
    by_remainder = sorted(names, key=lambda name: counts[name] - p[name] * steps)
    for name in by_remainder[: steps - sum(counts.values())]:
        counts[name] += 1
    for name in names:
        if counts[name] == 0:
            counts[max(names, key=counts.get)] -= 1
            counts[name] = 1
    return counts


def task_order(sizes, sampling, epoch, epochs, steps, seed):
    """Which task each of the `steps` steps of an epoch takes: a list of names.

    `round_robin` takes the tasks in turn. The others shuffle the counts of `task_counts`: tasks are not drawn, so each
    has exactly its share. With `proportional`, an epoch is then one pass over every task, to within a batch.
    """
    names = list(sizes)
    if sampling == "round_robin":
        return [names[i % len(names)] for i in range(steps)]
    counts = task_counts(sizes, sampling, epoch, epochs, steps)
    order = [name for name in names for _ in range(counts[name])]
    np.random.default_rng([seed, epoch]).shuffle(order)
    return order


def example_stream(n, seed, skip=0):
    """Indices of n examples without end: one random order of all of them, then another, and so on.

    Args: seed, a list of int; skip, how many indices to leave out at the start.
    """
    order, place = divmod(skip, n)
    while True:
        yield from np.random.default_rng([*seed, order]).permutation(n)[place:].tolist()
        order, place = order + 1, 0


def in_fold(ids, fold):
    """Which examples are in a fold, one of N parts, by a hash of their ids: the same ones in every run (`distill.py`).

    Args: ids, n str; fold, "K/N", K = 1 .. N, or None for none. Returns bool (n,).
    """
    if fold is None:
        return np.zeros(len(ids), bool)
    k, n = map(int, fold.split("/"))
    return np.array([int(hashlib.sha256(i.encode()).hexdigest(), 16) % n == k - 1 for i in ids])


class Plan:
    """All steps of a training run. `len(plan)` is their number, `plan.epoch_steps` that of each epoch."""

    def __init__(self, sizes, batch_size, epochs, sampling="proportional", seed=0, extra=(), all_tasks=False):
        """Args: sizes, examples of each task by name; sampling, see above; extra, names of tasks that get one more pass
        at the end of each epoch (`--extra_sst`); all_tasks, True where a step takes a batch of each task (gradient
        surgery), False where it takes one task. An epoch has as many examples either way: those of all tasks
        together, to the nearest whole step, and at least one step for each task.
        """
        self.sizes, self.batch_size, self.epochs, self.seed = sizes, batch_size, epochs, seed
        self.sampling, self.all_tasks = sampling, all_tasks
        batches = _batches(sizes, batch_size)
        self.main_steps = round(batches / len(sizes)) if all_tasks else batches
        self.extra = [(name,) for name in extra for _ in range(_batches({name: sizes[name]}, batch_size))]
        self.epoch_steps = self.main_steps + len(self.extra)

    def __len__(self):
        return self.epochs * self.epoch_steps

    def tasks(self, epoch):
        """The tasks of each step of an epoch (from 1): a list of tuples of names."""
        if self.all_tasks:
            return [tuple(self.sizes)] * self.main_steps + self.extra
        order = task_order(self.sizes, self.sampling, epoch, self.epochs, self.main_steps, self.seed)
        return [(name,) for name in order] + self.extra

    def steps(self, done=0):
        """The steps after the first `done`, in order: (epoch from 1, {task: list of batch_size example indices}).

        Each task's examples come in one random order after another, across epochs, so every batch is full.
        """
        epochs, place = divmod(done, self.epoch_steps)
        taken = self._taken_by(epochs)
        if place:
            taken.update(name for names in self.tasks(epochs + 1)[:place] for name in names)
        streams = {
            name: example_stream(n, [self.seed, i], taken[name] * self.batch_size)
            for i, (name, n) in enumerate(self.sizes.items())
        }
        for epoch in range(epochs + 1, self.epochs + 1):
            for names in self.tasks(epoch)[place:]:
                yield epoch, {name: list(itertools.islice(streams[name], self.batch_size)) for name in names}
            place = 0

    def _taken_by(self, epochs):
        """How many batches of each task the first `epochs` epochs take: a Counter."""
        if self.sampling == "annealed":
            counts = [self._counts(epoch) for epoch in range(1, epochs + 1)]
            return sum(counts, collections.Counter())
        return collections.Counter({name: n * epochs for name, n in self._counts(1).items()})  # all epochs are alike

    def _counts(self, epoch):
        """How many batches of each task an epoch takes."""
        if self.all_tasks:
            counts = dict.fromkeys(self.sizes, self.main_steps)
        else:
            counts = task_counts(self.sizes, self.sampling, epoch, self.epochs, self.main_steps)
        return collections.Counter(counts) + collections.Counter(name for (name,) in self.extra)


def _batches(sizes, batch_size):
    """Batches in all tasks together, to the nearest whole one, at least one for each."""
    return max(len(sizes), round(sum(sizes.values()) / batch_size))
