"""The encoder: BERT (Devlin et al., 2019) over a packed batch.

    x     = LN(word[ids] + position[positions] + segment[segments])          embed:   (T,) -> (T, H)
    h_0   = dropout(x)                                                       encode:  (T, H) -> (T, H)
    h_att = LN(h + dropout(SA(h)))                                                    in each of L layers
    h'    = LN(h_att + dropout(FFN(h_att)) + adapter(h))
    pool  = tanh(W h_[CLS] + b)                                              pool:    (B, H) -> (B, H)

SA is multi-head self-attention with an output projection. FFN is Linear (from H to F numbers), GELU, Linear (from F to
H). LN is LayerNorm. `adapter` is a small network beside the whole layer: it reads the layer's input, and its output is
added before the last LayerNorm (`pals.py` has one). Without it this is plain BERT. T is the number of tokens in the
batch, B of sequences, H the hidden size, L the number of layers. `kernels/plain.py` defines every operation that is
called here.

Three things differ from the formulas or from other implementations. The results are the same, to rounding:

  * query, key and value are one matrix (3H, H) instead of three, so one larger product instead of three;
  * `add_norm` adds the bias of the product before it, in one pass over memory with dropout, residual and LayerNorm;
  * where the caller needs only the [CLS] rows, the last layer computes only those (`Layer.forward_cls`). On a CPU that
    saves nearly all of that layer's work, 1/6 of MiniLM's.

A pre-norm BERT takes four changes (a, f, biases and `adapted` as in `Layer`). `forward` and `forward_cls` give
`attention_norm(h)` to the map to query, key and value, and hand h itself to `after_attention`. There h_att is h +
dropout(a + bias), `feed_forward` takes `output_norm(h_att)`, and h_att + dropout(f + bias) is returned, with `adapted`
added where there is one. `Bert.encode` ends with one more `LayerNorm`, which has a row in `_OUTER` of `weights.py`.
Published weights do not fit: `simcse.py --layers 6 --hidden 384` needs none. And what it saves is no longer for
`transformers`, which would compute plain BERT with these weights.
"""

from dataclasses import asdict, dataclass, fields
from pathlib import Path

import torch
from torch import nn

from kernels import (
    add_norm,
    attention,
    cls_attention,
    dropout,
    dropout_seeds,
    embed,
    feed_forward,
    layer_norm,
    linear,
)
from support.checks import read_bert_config
from support.files import write_json
from support.safetensors import write_safetensors
from weights import from_huggingface_names, read_model, to_huggingface_names


@dataclass
class BertConfig:
    """The numbers of a model, under the names of the usual `config.json`. Defaults are bert-base-uncased's."""

    vocab_size: int = 30522
    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    max_position_embeddings: int = 512
    type_vocab_size: int = 2
    layer_norm_eps: float = 1e-12
    hidden_dropout_prob: float = 0.1
    attention_probs_dropout_prob: float = 0.1
    initializer_range: float = 0.02

    @classmethod
    def load(cls, folder):
        """From `config.json` of a model folder. Raises UserError for no BERT encoder, or one too large."""
        return cls(**read_bert_config(folder, {f.name: (f.type, f.default) for f in fields(cls)}))

    def save(self, folder):
        """Writes `config.json`, which `transformers` reads."""
        values = {"architectures": ["BertModel"], "model_type": "bert", "hidden_act": "gelu", "pad_token_id": 0}
        write_json(Path(folder) / "config.json", values | asdict(self))


class Linear(nn.Module):
    """x (T, in) -> x Wᵀ + b (T, out), with `weight` W (out, in) and `bias` b (out,)."""

    def __init__(self, size_in, size_out):
        super().__init__()
        self.weight, self.bias = parameter(size_out, size_in), parameter(size_out)

    def forward(self, x):
        return linear(x, self.weight, self.bias)


class LayerNorm(nn.Module):
    """x (T, H) -> γ x̂ + β (T, H), x̂ each row with mean 0 and variance 1: `weight` γ, `bias` β (H,), and ε."""

    def __init__(self, size, eps):
        super().__init__()
        self.weight, self.bias, self.eps = parameter(size), parameter(size), eps

    def forward(self, x):
        return layer_norm(x, self.weight, self.bias, self.eps)


class Embedding(nn.Module):
    """A table: one row of H numbers for each word, position or segment."""

    def __init__(self, rows, size):
        super().__init__()
        self.weight = parameter(rows, size)


def parameter(*shape):
    """A parameter without values yet: `initialize` draws them, or a file has them."""
    return nn.Parameter(torch.empty(shape))


def initialize(module, std):
    """Matrices ~ N(0, std²), biases 0, LayerNorms 1 and 0."""
    for part in module.modules():
        if isinstance(part, Linear | Embedding):
            nn.init.normal_(part.weight, std=std)
        if isinstance(part, LayerNorm):
            nn.init.ones_(part.weight)
        if isinstance(part, Linear | LayerNorm):
            nn.init.zeros_(part.bias)


class Layer(nn.Module):
    """One transformer layer."""

    def __init__(self, config):
        super().__init__()
        H, F = config.hidden_size, config.intermediate_size
        self.heads = config.num_attention_heads
        self.p_attention, self.p_hidden = config.attention_probs_dropout_prob, config.hidden_dropout_prob
        self.qkv = Linear(H, 3 * H)
        self.attention_output = Linear(H, H)
        self.attention_norm = LayerNorm(H, config.layer_norm_eps)
        self.up = Linear(H, F)
        self.down = Linear(F, H)
        self.output_norm = LayerNorm(H, config.layer_norm_eps)

    def forward(self, h, batch, adapted=None):
        """h (T, H) -> (T, H). Args: batch, the `Batch`; adapted, what an adapter makes of h, (T, H), or None."""
        p = self.p_attention if self.training else 0.0
        qkv = self.qkv(h)  # (T, 3H)
        a = attention(qkv, batch.cu_seqlens, batch.max_seqlen, self.heads, p)  # (T, H)
        return self.after_attention(a, h, adapted)

    def forward_cls(self, h, batch, adapted=None):
        """`forward` for the [CLS] rows only: h (T, H) -> (B, H). Their queries still meet the keys of all tokens."""
        p = self.p_attention if self.training else 0.0
        qkv = self.qkv.weight, self.qkv.bias
        a = cls_attention(h, *qkv, batch.cu_seqlens, batch.max_seqlen, self.heads, p)  # (B, H)
        rows = batch.cls_rows
        adapted = None if adapted is None else adapted.index_select(0, rows)
        return self.after_attention(a, h.index_select(0, rows), adapted)

    def after_attention(self, a, h, adapted):
        """The rest of a layer. Args: a, the heads side by side; h, its input; adapted; (n, H) each. Returns (n, H)."""
        p = self.p_hidden if self.training else 0.0
        a = linear(a, self.attention_output.weight)  # (n, H), its bias comes with `add_norm`
        h_att = add_norm(a, self.attention_output.bias, h, self.attention_norm, p)  # (n, H)
        f = feed_forward(h_att, self.up.weight, self.up.bias, self.down.weight)  # (n, H)
        return add_norm(f, self.down.bias, h_att, self.output_norm, p, adapted)  # (n, H)


class Bert(nn.Module):
    """The encoder of BERT."""

    def __init__(self, config, initialized=True):
        """A random encoder. Args: initialized, False where the caller is about to set all weights."""
        super().__init__()
        self.config = config
        self.source = "random weights"  # or the folder that the weights were loaded from
        H = config.hidden_size
        self.word = Embedding(config.vocab_size, H)
        self.position = Embedding(config.max_position_embeddings, H)
        self.segment = Embedding(config.type_vocab_size, H)
        self.embedding_norm = LayerNorm(H, config.layer_norm_eps)
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.num_hidden_layers))
        self.pooler = Linear(H, H)
        if initialized:
            initialize(self, config.initializer_range)

    def embed(self, batch):
        """A `Batch` of T tokens -> x (T, H). Dropout comes in `encode`: SMART (`smart.py`) moves x before it."""
        tables = self.word.weight, self.position.weight, self.segment.weight
        return embed(batch.ids, batch.positions, batch.segments, tables, self.embedding_norm)

    def encode(self, x, batch, adapter=None, cls_only=False):
        """x (T, H), as `embed` gives it, to the last layer's hidden states.

        Args: adapter, a function (layer number, h (T, H), batch) -> (T, H), or None; cls_only, True where only the
        [CLS] rows are wanted. Returns (T, H), or (B, H).
        """
        h = dropout(x, self.config.hidden_dropout_prob if self.training else 0.0)
        with dropout_seeds(h):  # on a GPU one draw seeds the masks of all layers
            for i, layer in enumerate(self.layers):
                adapted = None if adapter is None else adapter(i, h, batch)
                last = i + 1 == len(self.layers)
                h = layer.forward_cls(h, batch, adapted) if cls_only and last else layer(h, batch, adapted)
        return h

    def pool(self, h_cls):
        """(B, H), the [CLS] rows of the last hidden states -> (B, H)."""
        return torch.tanh(self.pooler(h_cls))

    def forward(self, batch, adapter=None):
        """A `Batch` -> the last hidden states (T, H) and the pooled [CLS] rows (B, H)."""
        h = self.encode(self.embed(batch), batch, adapter)
        return h, self.pool(h.index_select(0, batch.cls_rows))

    @classmethod
    def load(cls, folder, **overrides):
        """From a model folder in the usual layout. Args: overrides, values for `BertConfig` (dropout, for instance).

        Raises UserError where a weight is missing (but for the pooler's) or has another shape than `config.json` says.
        """
        config = BertConfig.load(folder)
        for name, value in overrides.items():
            setattr(config, name, value)
        bert = cls(config, initialized=False)
        bert.source = folder
        shapes = {name: p.shape for name, p in bert.named_parameters()}
        bert.load_state_dict(
            from_huggingface_names(read_model(folder), shapes, config.initializer_range, folder), assign=True
        )
        return bert

    def save(self, folder, config=None):
        """Writes `config.json` and `model.safetensors`, for `transformers`.

        Args: config, None for the encoder's own; SimCSE saves another dropout than it trained with.
        """
        (config or self.config).save(folder)
        write_safetensors(Path(folder) / "model.safetensors", to_huggingface_names(self.state_dict()), {"format": "pt"})


def sequence_means(h, batch):
    """h (T, H), hidden states of a `Batch` of B sequences -> float32 (B, H), the mean of each sequence's rows."""
    lengths = batch.cu_seqlens.diff().long()
    return torch.segment_reduce(h.float(), "mean", lengths=lengths, unsafe=True)  # a check would wait for the GPU
