"""PCA against the SVD, t-SNE against loops and finite differences."""

import math

import numpy as np
import pytest

from pca_tsne import conditional_p, kl_gradient, pca, squared_distances, tsne


def clusters(k, n=40, m=50, distance=8.0, seed=0):
    """k round clusters of n points in m dimensions, centres `distance` apart: points (k n, m) and clusters (k n,)."""
    rng = np.random.default_rng(seed)
    centres = np.eye(k, m) * distance / math.sqrt(2)
    return np.repeat(centres, n, 0) + rng.normal(size=(k * n, m)), np.repeat(np.arange(k), n)


def own_neighbours(y, cluster, k=10):
    """The share of the k nearest neighbours of the points that are of a point's own cluster."""
    squared = squared_distances(np.asarray(y, np.float64))
    np.fill_diagonal(squared, np.inf)
    return (cluster[squared.argsort(1)[:, :k]] == cluster[:, None]).mean()


def test_pca_is_the_svd_of_the_centred_points_and_its_signs_are_fixed():
    x = np.random.default_rng(0).normal(size=(40, 7)) * [1, 9, 3, 2, 5, 4, 1] + 100
    centred = x - x.mean(0)
    _, values, vectors = np.linalg.svd(centred, full_matrices=False)
    for d in (1, 2, 7):
        found = pca(x, d)
        assert found.shape == (40, d)
        np.testing.assert_allclose(np.abs(found), np.abs(centred @ vectors[:d].T), atol=1e-9)
        np.testing.assert_allclose(found.std(0, ddof=1), values[:d] / math.sqrt(39))
        axes = np.linalg.lstsq(centred, found, rcond=None)[0]  # (7, d), each the direction of a component
        assert (axes[np.abs(axes).argmax(0), range(d)] > 0).all()
    np.testing.assert_allclose(pca(-x), -pca(x))


def conditional_p_by_loops(x, perplexity):
    """The formula of pca_tsne.py, each σ_i by a bisection of its own."""
    n = len(x)
    result = np.zeros((n, n))
    for i in range(n):
        low, high = 1e-6, 1e6
        for _ in range(200):
            sigma = math.sqrt(low * high)
            row = [math.exp(-((x[i] - x[j]) ** 2).sum() / (2 * sigma**2)) if j != i else 0.0 for j in range(n)]
            p = [value / (sum(row) or 1) for value in row]
            entropy = -sum(value * math.log(value) for value in p if value)
            low, high = (low, sigma) if entropy > math.log(perplexity) else (sigma, high)
        result[i] = p
    return result


def test_conditional_p_is_the_double_loop():
    x = np.random.default_rng(1).normal(size=(15, 4)) * 3
    found = conditional_p(squared_distances(x), 4.0)
    np.testing.assert_allclose(found, conditional_p_by_loops(x, 4.0), atol=1e-5)
    assert (np.diag(found) == 0).all()


@pytest.mark.parametrize("size", [1e-4, 1.0, 1e4])
@pytest.mark.parametrize("perplexity", [2.0, 30.0])
def test_the_perplexity_is_reached_at_any_scale(size, perplexity):
    rng = np.random.default_rng(2)
    x = rng.normal(size=(120, 5)) * np.exp(2 * rng.normal(size=(120, 1))) * size  # dense here and sparse there
    x[0] += 1e5 * size  # and one far from all others
    p = conditional_p(squared_distances(x), perplexity)
    np.testing.assert_allclose(p.sum(1), 1)
    entropy = -(p * np.log(np.where(p > 0, p, 1))).sum(1)
    np.testing.assert_allclose(np.exp(entropy), perplexity, rtol=1e-4)


def test_the_gradient_is_that_of_the_divergence():
    rng = np.random.default_rng(3)
    p = conditional_p(squared_distances(rng.normal(size=(12, 5))), 4.0)
    p = (p + p.T) / 24
    y = rng.normal(size=(12, 2))

    def divergence(y):
        near = [[1 / (1 + ((a - b) ** 2).sum()) if a is not b else 0.0 for b in y] for a in y]
        q = np.array(near) / np.sum(near)
        return sum(p[i, j] * math.log(p[i, j] / q[i, j]) for i in range(12) for j in range(12) if i != j)

    found, h = kl_gradient(p, y), 1e-6
    for i in range(12):
        for axis in range(2):
            step = np.zeros_like(y)
            step[i, axis] = h
            slope = (divergence([*(y + step)]) - divergence([*(y - step)])) / (2 * h)
            assert found[i, axis] == pytest.approx(slope, abs=1e-8)


def tsne_by_steps(x, perplexity, iterations, exaggeration, early, seed):
    """The algorithm of `tsne`'s docstring in float64, each coordinate with a step and a gain of its own."""
    n = len(x)
    p = conditional_p_by_loops(x, perplexity)
    p = (p + p.T) / (2 * n)
    y = pca(x)
    y = y / y[:, 0].std() * 1e-4 + 1e-6 * np.random.default_rng(seed).standard_normal((n, 2))
    velocity, gains, rate = np.zeros((n, 2)), np.ones((n, 2)), max(n / exaggeration / 4, 50)
    for t in range(iterations):
        difference = y[:, None] - y  # (n, n, 2)
        near = 1 / (1 + (difference**2).sum(2)) - np.eye(n)
        w = (p * (exaggeration if t < early else 1) - near / near.sum()) * near
        gradient = 4 * (w[:, :, None] * difference).sum(1)
        for place in np.ndindex(n, 2):
            onward = (gradient[place] > 0) != (velocity[place] > 0)
            gains[place] = max(gains[place] + 0.2 if onward else gains[place] * 0.8, 0.01)
            momentum = 0.5 if t < early else 0.8
            velocity[place] = momentum * velocity[place] - rate * gains[place] * gradient[place]
        y = y + velocity
        y = y - y.mean(0)
    return y


@pytest.mark.parametrize(("exaggeration", "seed"), [(12, 0), (0.04, 1)])  # learning rates 50 and 62.5
def test_tsne_takes_the_steps_of_the_algorithm(exaggeration, seed):
    x = np.random.default_rng(5).normal(size=(10, 4))
    found, slow = (form(x, 2.0, 20, exaggeration, 10, seed) for form in (tsne, tsne_by_steps))
    np.testing.assert_allclose(found, slow, atol=1e-4 * np.abs(slow).max())
    np.testing.assert_array_equal(tsne(x, 30, 2), tsne(x, 3, 2))  # (n - 1) / 3 at most


@pytest.mark.parametrize("k", [3, 8])
def test_tsne_separates_clusters_and_says_the_same_again(k):
    x, cluster = clusters(k)
    y = tsne(x)
    assert y.shape == (40 * k, 2)
    assert own_neighbours(y, cluster) == 1
    centres = np.array([y[cluster == c].mean(0) for c in range(k)])
    assert (((y[:, None] - centres) ** 2).sum(2).argmin(1) == cluster).all()
    np.testing.assert_array_equal(y, tsne(x))
    if k == 8:
        assert own_neighbours(pca(x), cluster) < 0.8  # two directions cannot hold eight clusters


def test_tsne_of_points_that_coincide_or_are_few():
    x = np.repeat(np.random.default_rng(4).normal(size=(10, 6)), 6, 0)
    for points in (x, x[:4], np.zeros((20, 6)), np.linspace(0, 1, 50)[:, None] * np.ones(6)):
        y = tsne(points, iterations=300)
        assert np.isfinite(y).all()
        assert len(np.unique(y, axis=0)) == len(y)
    assert y.std(0).min() > 0.1  # points on a line do not stay on one
