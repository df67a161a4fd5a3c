"""The embedding on a CPU: a sparse gradient for the table of words.

The table has 30,522 rows and a batch touches a few hundred. Where a dense gradient already stands in the parameter
(`adamw.py` keeps one), autograd adds a sparse one to just those rows. A dense one would be 47 MB of zeros for MiniLM,
made and added in every step (1.1 ms in place of 18).
"""

import torch.nn.functional as F


def embed(ids, positions, segments, tables, norm):
    """The CPU's form of `plain.embed`."""
    word, position, segment = tables
    sparse = word.grad is not None and not word.grad.is_sparse
    x = F.embedding(ids, word, sparse=sparse)
    x = x + F.embedding(positions, position) + F.embedding(segments, segment)
    return F.layer_norm(x, norm.weight.shape, norm.weight, norm.bias, norm.eps)
