"""Gradient surgery, PCGrad (Yu et al., 2020, algorithm 1): tasks that pull the shared encoder in opposite directions.

A step draws one batch of EACH task, and has one gradient g_i of the shared parameters from each. Two tasks conflict
where g_i · g_j < 0: a step along one undoes the other. Each g_i is then projected onto the plane orthogonal to g_j,

    for each task i:   p ← g_i
        for each other task j, in random order:
            if p · g_j < 0:   p ← p - (p · g_j) / ‖g_j‖² g_j
        g_i^PC ← p                                              g = Σ_i g_i^PC

The parameters of a head or of PALs belong to one task. No other task has a gradient there, so they keep their own.

Every p is a weighted sum of the n = 3 gradients, p = Σ_k c_k g_k. So p is stored as three numbers c_k, and never as a
vector of 110 million. With the Gram matrix G_ij = g_i · g_j,

    p · g_j = Σ_k c_k G_kj            p ← p - a g_j   is   c_j ← c_j - a,   a = p · g_j / G_jj

The gradients themselves are read only for G and for the final sum.

A task that has nothing left to learn has gradients so small that their products underflow in float32: G_jj is then 0,
or has lost its digits, and must not divide. Products are taken in float64 where any G_jj is below `TINY`.

Surgery takes 1.15 times the plain time a batch for MiniLM on one CPU core (`results/speed.md`), and n more
copies of the shared gradient.
"""

import itertools

import numpy as np
import torch

from support import distributed

NOTHING = 1e-70  # a gradient of norm 1e-35 has lost its direction to rounding: nothing is projected onto it
TINY = 1e-30  # well above 1e-38, where float32 ends: below it, squares of single entries are lost


def project(gram, generator):
    """The coefficients of Σ_i g_i^PC in the gradients themselves.

    Args: gram (n, n) float64 array, G_ij = g_i · g_j; generator, a numpy Generator, which draws the order of the
    projections. Returns (n,) float64: g = Σ_k c_k g_k.
    """
    n = len(gram)
    total = np.zeros(n)
    for i in range(n):
        c = np.zeros(n)
        c[i] = 1.0
        for j in generator.permutation([j for j in range(n) if j != i]):
            dot = c @ gram[:, j]
            if dot < 0 and gram[j, j] > NOTHING:
                c[j] -= dot / gram[j, j]
        total += c
    return total


def gram_matrix(gradients):
    """G (n, n), float64. Args: gradients, of each task a list of flat float32 tensors."""
    n = len(gradients)
    gram = np.zeros((n, n))
    for dtype in (torch.float32, torch.float64):  # float64 only where float32 underflows
        for i, j in itertools.combinations_with_replacement(range(n), 2):
            parts = zip(gradients[i], gradients[j], strict=True)
            gram[i, j] = gram[j, i] = sum(torch.dot(a.to(dtype), b.to(dtype)).item() for a, b in parts)
        if gram.diagonal().min() > TINY:
            break
    return gram


class Surgery:
    """PCGrad on the "shared" group of an `AdamW`."""

    def __init__(self, optimizer, seed):
        self.flats = optimizer.flat_parameters(("shared",))
        self.seed = seed
        self.gradients = {}  # task -> its flat gradients in the step so far

    def take(self, task):
        """Call after a task's backward pass: keeps its shared gradient aside, and clears it for the next task."""
        self.gradients[task] = [distributed.sum_(flat.grad).clone() for flat in self.flats]
        for flat in self.flats:
            flat.grad.zero_()

    def combine(self, step):
        """Call after the last task: writes Σ_i g_i^PC to where the optimizer reads the gradient.

        The order of projections depends on the seed and the step only. Returns which pairs of tasks were in conflict
        before any projection: {"sst-para": True, ...}.
        """
        names, gradients = list(self.gradients), list(self.gradients.values())
        gram = gram_matrix(gradients)
        coefficients = project(gram, np.random.default_rng([self.seed, step]))
        for k, flat in enumerate(self.flats):
            for c, gradient in zip(coefficients.tolist(), gradients, strict=True):
                flat.grad.add_(gradient[k], alpha=c)
        self.gradients = {}
        pairs = itertools.combinations(range(len(names)), 2)
        return {f"{names[i]}-{names[j]}": bool(gram[i, j] < 0) for i, j in pairs}
