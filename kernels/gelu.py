"""Bias and GELU in one call (Hendrycks & Gimpel, 2016, the exact form that BERT uses).

    y = z Φ(z),  z = x + b,  Φ(z) = (1 + erf(z / √2)) / 2

Its derivative, which the backward pass needs, is dy/dz = Φ(z) + z φ(z), φ(z) = exp(-z²/2) / √(2π).
"""

import torch.nn.functional as F


def bias_gelu(x, bias):
    """x (T, F), bias (F,) -> (T, F), same dtype."""
    return F.gelu(x + bias)
