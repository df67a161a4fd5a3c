"""Many dimensions to two, by hand: PCA and t-SNE, in numpy. `visualize.py` draws maps of sentences with them.

PCA turns the n points x_i so that the first coordinate has the largest variance, the second the largest of what is
left, and so on. With C = Σ_i (x_i - mean)(x_i - mean)ᵀ / (n - 1), the variance along a unit vector v is vᵀ C v, and the
vectors wanted are the eigenvectors of C with the largest eigenvalues.

t-SNE (van der Maaten & Hinton, 2008) keeps neighbours together instead, and lets the rest fall where it may. p_j|i says
how likely x_i is to pick x_j as its neighbour; p_ij is the same for a pair. q_ij says how near two points y_i and y_j
of the map are. Both p and q are distributions over all pairs:

    p_j|i = e^{-β_i ‖x_i - x_j‖²} / Σ_{k≠i} e^{-β_i ‖x_i - x_k‖²}      p_ij = (p_j|i + p_i|j) / 2n
    q_ij  = (1 + ‖y_i - y_j‖²)^-1 / Σ_{k≠l} (1 + ‖y_k - y_l‖²)^-1      Student-t: its long tail leaves room in the map

and gradient descent on KL(P ‖ Q) = Σ p_ij log p_ij / q_ij finds the map. β_i = 1 / (2 σ_i²), where σ_i is the width of
the Gaussian around x_i. It is chosen so that the entropy of p_·|i is the log of a given perplexity: the number of
neighbours that count. What a map tells is which points are neighbours. The sizes of clusters, and the distances between
clusters, mean little.
"""

import numpy as np


def pca(x, d=2):
    """The first d principal components: (n, m) -> float64 (n, d), with d at most m.

    An eigenvector's sign is free; here its entry of largest absolute value is positive.
    """
    x = np.asarray(x, dtype=np.float64)
    x = x - x.mean(0)
    covariance = x.T @ x / max(1, len(x) - 1)
    _, vectors = np.linalg.eigh(covariance)  # eigenvalues ascend
    vectors = vectors[:, ::-1][:, :d]  # (m, d)
    largest = np.abs(vectors).argmax(0)
    return x @ (vectors * np.sign(vectors[largest, range(vectors.shape[1])]))


def squared_distances(x):
    """(n, m) -> ‖x_i - x_j‖² (n, n), of the dtype of x, from one matrix product: ‖x_i‖² + ‖x_j‖² - 2 x_i · x_j."""
    norms = (x * x).sum(1)
    squared = x @ (-2 * x.T)
    squared += norms
    squared += norms[:, None]
    return np.maximum(squared, 0, out=squared)


def conditional_p(squared, perplexity, steps=64, tolerance=1e-6):
    """p_j|i as row i of a float64 array (n, n), the diagonal 0. Args: squared, ‖x_i - x_j‖² (n, n); perplexity < n - 1.

    β_i by bisection, for all rows at once: doubled until the entropy is too small, then halved intervals.
    """
    others = ~np.eye(len(squared), dtype=bool)
    nearest = np.where(others, squared, np.inf).min(1, keepdims=True)
    squared = np.where(others, squared - nearest, 0.0)  # p is the same, and the largest e^{...} of each row is 1
    beta = np.full((len(squared), 1), 1 / max(squared.mean(), 1e-12))
    low, high = np.zeros_like(beta), np.full_like(beta, np.inf)
    for _ in range(steps):
        p = np.exp(-beta * squared) * others
        total = p.sum(1, keepdims=True)
        p /= total
        entropy = np.log(total) + beta * (p * squared).sum(1, keepdims=True)  # -Σ p log p
        excess = entropy - np.log(perplexity)
        if (np.abs(excess) < tolerance).all():
            break
        low, high = np.where(excess > 0, beta, low), np.where(excess > 0, high, beta)
        beta = np.where(np.isinf(high), 2 * beta, (low + high) / 2)
    return p


def kl_gradient(p, y):
    """∂ KL(P ‖ Q) / ∂y_i = 4 Σ_j (p_ij - q_ij) (y_i - y_j) / (1 + ‖y_i - y_j‖²), (n, 2), of the dtype of p and y.

    With W_ij = (p_ij - q_ij) / (1 + ‖y_i - y_j‖²) the sum is y_i Σ_j W_ij - Σ_j W_ij y_j: row sums and a product.
    """
    near = squared_distances(y)
    near += 1
    np.reciprocal(near, out=near)
    np.fill_diagonal(near, 0)
    w = (p - near / near.sum()) * near  # (p - q) times the last factor
    return 4 * (w.sum(1, keepdims=True) * y - w @ y)


def tsne(x, perplexity=30, iterations=750, exaggeration=12, early=250, seed=0):
    """Exact t-SNE: (n, m) -> float32 (n, 2). Time and memory grow as n²; a perplexity above (n - 1) / 3 counts as that.

    x is first reduced to 50 principal components. The first two of them, made small, are the start, which gives the map
    a global order that random starts lack (Kobak & Berens, 2019); the seed's noise, smaller still, separates what
    coincides. For the first `early` steps P is multiplied by `exaggeration`, so that clusters form tight and can pass
    each other. Momentum is 0.5 in these and 0.8 after. Each coordinate has a gain on its step, which grows by 0.2 while
    the step goes on downhill and shrinks by a factor 0.8 when it turns (Jacobs, 1988), as in van der Maaten's code. The
    learning rate is n / exaggeration (Belkina et al., 2019), divided by 4 since their gradient omits the factor 4, and
    at least 50.
    """
    n = len(x)
    x = pca(x, min(50, np.shape(x)[1]))
    p = conditional_p(squared_distances(x), min(perplexity, (n - 1) / 3))
    p = ((p + p.T) / (2 * n)).astype(np.float32)
    y = x[:, :2] * (1e-4 / max(x[:, 0].std(), 1e-12)) + 1e-6 * np.random.default_rng(seed).standard_normal((n, 2))
    y = y.astype(np.float32)
    rate = max(n / exaggeration / 4, 50)
    velocity, gains = np.zeros_like(y), np.ones_like(y)
    for p_now, momentum, steps in ((exaggeration * p, 0.5, min(early, iterations)), (p, 0.8, iterations - early)):
        for _ in range(steps):
            gradient = kl_gradient(p_now, y)
            onward = (gradient > 0) != (velocity > 0)  # the step to come goes where the last one went
            gains = np.maximum(np.where(onward, gains + 0.2, gains * 0.8), 0.01).astype(np.float32)
            velocity = momentum * velocity - rate * gains * gradient
            y += velocity
            y -= y.mean(0)
    return y
