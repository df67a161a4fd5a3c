"""Projected attention layers, PALs (Stickland & Murray, 2019, section 3.2): a small part of every layer for each task.

Beside the feed-forward half of each BERT layer, a task adds a narrow self-attention of its own, its task-specific
function TS:

    layer(h) = LN(h_att + FFN(h_att) + TS(h)),        TS(h) = V_D MH(V_E h)         h_att, FFN and LN as in `bert.py`

    V_E   (d_s, H)     from H = 768 down to d_s = 204     one for each task, shared by its layers
    MH                 12 heads of size 17, with query, key and value matrices (d_s, d_s) for each task and layer, but
                       no output projection, unlike SA in `bert.py`
    V_D   (H, d_s)     back up to H                       one for each task, shared by its layers

where h (T, H) is the layer's input (not h_att); V_E and V_D act on each token's row. TS is the `adapter` of `bert.py`.

V_D starts at zero, so TS(h) = 0: a model to which PALs were just added computes bit for bit what it did before
(outside training: in training PALs draw dropout masks of their own). The gradient is not zero: that of V_D is the
outer product of the gradient that comes in and MH(V_E h), summed over the tokens. The gradients of all other matrices
pass through V_D. So in the first step only V_D (and its bias) has a gradient, and from the second step on all have one
(but the keys' biases, which softmax does not see).

They train at `--pal_lr`, by default the encoder's 1e-4. At the rate of the heads, 1e-3, V_E and V_D, which act in
all layers, move too far: the similarity task then predicts the same number for every pair (r = -0.04 instead of 0.8).

The authors' released code differs in three places: it has 6 heads of size 34, a GELU after V_D, and a V_D that starts
at random. Ours has the 12 heads of size 17 of the report that this project re-creates (`results/README.md`), and no
GELU there, as in the paper's formula.

What it costs for bert-base, per task, all five matrices with biases, as in the authors' code:

    V_E, V_D               2 · 768 · 204 + 204 + 768      =   314,316
    query, key, value     12 · 3 · (204 · 204 + 204)      = 1,505,520
                                                            1,819,836      (1,811,520 without any bias)

1.7 % of the encoder, for each task. The price in time is higher, because narrow matrices use a processor badly: 1.25
times the plain step for MiniLM on one CPU core (`results/speed.md`), where d_s is over half of its width.
"""

from torch import nn

from bert import Linear, initialize
from kernels import attention
from support.console import UserError


class Pals(nn.Module):
    """The projected attention layers of one task, for all layers of an encoder."""

    def __init__(self, config, size=204, heads=12):
        """Args: config, the encoder's `BertConfig`; size, d_s; heads, a divisor of it, else UserError."""
        super().__init__()
        if size % heads:
            raise UserError(f"--pal_size {size} is no multiple of --pal_heads {heads}; choose 204 and 12, for instance")
        self.heads = heads
        self.attention_dropout = config.attention_probs_dropout_prob
        self.encode = Linear(config.hidden_size, size)  # V_E
        self.decode = Linear(size, config.hidden_size)  # V_D
        self.qkv = nn.ModuleList(Linear(size, 3 * size) for _ in range(config.num_hidden_layers))
        initialize(self, config.initializer_range)
        nn.init.zeros_(self.decode.weight)

    def forward(self, i, h, batch):
        """TS(h) of layer i. h (T, H), of the `Batch` -> (T, H)."""
        qkv = self.qkv[i](self.encode(h))  # (T, 3 d_s)
        p = self.attention_dropout if self.training else 0.0
        a = attention(qkv, batch.cu_seqlens, batch.max_seqlen, self.heads, p)  # (T, d_s)
        return self.decode(a)  # (T, H)
