"""The encoder: BERT (Devlin et al., 2019) over a packed batch.

    x     = LN(word[ids] + position[positions] + segment[segments])          embed:   (T,) -> (T, H)
    h_0   = dropout(x)
    h_att = LN(h + dropout(SA(h)))                                           encode:  L layers, (T, H) -> (T, H)
    h'    = LN(h_att + dropout(FFN(h_att)) + side(h))
    pool  = tanh(W h_[CLS] + b)                                              pool:    (B, H) -> (B, H)

SA is multi-head self-attention with an output projection, FFN is Linear (from H to F numbers), GELU, Linear (F to H).
`side` is whatever someone wants to add beside the feed-forward half of a layer; without one this is plain BERT. T is
the number of tokens in the batch, B of sequences, H the hidden size, L the number of layers.

Two things differ from the usual implementation, neither in the result:

  * query, key and value are one matrix (3H, H) instead of three, so one larger product instead of three;
  * where only the [CLS] rows of the last hidden states are wanted, the last layer computes only those, on the CPU
    without anybody's keys and values (`cls_attention`): 1/6 of MiniLM's work is for rows that nobody reads.
"""

import json
import sys
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import torch
from torch import nn

from console import UserError
from kernels.add_norm import add_norm
from kernels.attention import attention, plan
from kernels.cls_attention import cls_attention
from kernels.dropout import dropout
from kernels.embed import embed
from kernels.gelu import feed_forward
from kernels.linear import linear
from weights import read_model, replacing, write_safetensors


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
        """From `config.json` of a model folder. Raises UserError for a model that is not a BERT encoder."""
        path = Path(folder) / "config.json"
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise UserError(f"{folder} has no config.json; name the folder of a BERT model") from None
        except ValueError as error:
            raise UserError(f"{path} is not valid JSON ({error}); fetch the model again") from None
        if not isinstance(values, dict):
            raise UserError(f"{path} is not a JSON object; fetch the model again")
        for key, wanted in {"model_type": "bert", "hidden_act": "gelu", "position_embedding_type": "absolute"}.items():
            if values.get(key, wanted) != wanted:
                raise UserError(f"{path} says {key} = {values[key]!r}, and only {wanted!r} is supported")
        numbers = {f.name: values[f.name] for f in fields(cls) if f.name in values}
        for field in fields(cls):
            value = numbers.get(field.name, field.default)
            right = (
                type(value) is int and value >= 1 if field.type is int else type(value) in (int, float) and value >= 0
            )
            if not right or (field.name.endswith("_prob") and value >= 1):
                raise UserError(f"{path}: {field.name} cannot be {value!r}; fetch the model again")
        config = cls(**numbers)
        if config.hidden_size % config.num_attention_heads:
            raise UserError(f"{path}: hidden_size {config.hidden_size} is no multiple of num_attention_heads")
        return config

    def save(self, folder):
        """Writes `config.json`, which `transformers` reads."""
        values = {"architectures": ["BertModel"], "model_type": "bert", "hidden_act": "gelu", "pad_token_id": 0}
        with replacing(Path(folder) / "config.json") as file:
            file.write(json.dumps(values | asdict(self), indent=2).encode() + b"\n")


class Layer(nn.Module):
    """One transformer layer."""

    def __init__(self, config):
        super().__init__()
        H, F = config.hidden_size, config.intermediate_size
        self.heads = config.num_attention_heads
        self.attention_dropout = config.attention_probs_dropout_prob
        self.dropout = config.hidden_dropout_prob
        self.qkv = nn.Linear(H, 3 * H)
        self.attention_output = nn.Linear(H, H)
        self.attention_norm = nn.LayerNorm(H, eps=config.layer_norm_eps)
        self.up = nn.Linear(H, F)
        self.down = nn.Linear(F, H)
        self.output_norm = nn.LayerNorm(H, eps=config.layer_norm_eps)

    def forward(self, h, bounds, side=None, cls_only=False):
        """h (T, H) -> (T, H), or with `cls_only` (B, H), the rows of the first tokens.

        Args: bounds, where sentences start and end, prepared by `plan` for `attention`; side, (T, H) or None.
        """
        p, p_attention = (self.dropout, self.attention_dropout) if self.training else (0.0, 0.0)
        if cls_only:
            a = cls_attention(h, self.qkv.weight, self.qkv.bias, bounds, self.heads, p_attention)  # (B, H)
            rows = bounds.cu_seqlens[:-1].long()
            h, side = h[rows], None if side is None else side[rows]
        else:
            qkv = linear(h, self.qkv.weight, self.qkv.bias)  # (T, 3H)
            a = attention(qkv, bounds, self.heads, p_attention)  # (T, H)
        a = linear(a, self.attention_output.weight)  # (T, H), or (B, H) from here on; `add_norm` adds the bias
        h = add_norm(a, self.attention_output.bias, h, self.attention_norm, p)
        f = feed_forward(h, self.up.weight, self.up.bias, self.down.weight)
        return add_norm(f, self.down.bias, h, self.output_norm, p, side)


class Bert(nn.Module):
    """The encoder of BERT."""

    def __init__(self, config):
        super().__init__()
        self.config = config
        H = config.hidden_size
        self.word = nn.Embedding(config.vocab_size, H)
        self.position = nn.Embedding(config.max_position_embeddings, H)
        self.segment = nn.Embedding(config.type_vocab_size, H)
        self.embedding_norm = nn.LayerNorm(H, eps=config.layer_norm_eps)
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.num_hidden_layers))
        self.pooler = nn.Linear(H, H)
        initialize(self, config.initializer_range)

    def embed(self, batch):
        """A `Batch` of T tokens -> x (T, H), before dropout."""
        tables = (self.word.weight, self.position.weight, self.segment.weight)
        return embed(batch.ids, batch.positions, batch.segments, tables, self.embedding_norm)

    def encode(self, x, batch, side=None, cls_only=False):
        """x (T, H), as `embed` gives it, to the last layer's hidden states.

        Args: side, a function (layer number, h (T, H), bounds) -> (T, H), or None; cls_only, True where only the [CLS]
        rows are wanted. Returns (T, H), or (B, H).
        """
        bounds = plan(batch.cu_seqlens, batch.max_seqlen)
        h = dropout(x, self.config.hidden_dropout_prob if self.training else 0.0)
        for i, layer in enumerate(self.layers):
            beside = None if side is None else side(i, h, bounds)
            h = layer(h, bounds, beside, cls_only and i + 1 == len(self.layers))
        return h

    def pool(self, h_cls):
        """(B, H), the [CLS] rows of the last hidden states -> (B, H)."""
        return torch.tanh(linear(h_cls, self.pooler.weight, self.pooler.bias))

    def forward(self, batch, side=None):
        """A `Batch` -> the last hidden states (T, H) and the pooled [CLS] rows (B, H)."""
        h = self.encode(self.embed(batch), batch, side)
        return h, self.pool(h[batch.cls_rows])

    @classmethod
    def load(cls, folder, **overrides):
        """From a model folder in the usual layout. Args: overrides, values for `BertConfig` (dropout, for instance).

        Raises UserError where a weight (but the pooler's) is missing or has another shape than `config.json` says.
        """
        config = BertConfig.load(folder)
        for name, value in overrides.items():
            setattr(config, name, value)
        with torch.device("meta"):  # allocate nothing: every parameter is about to be replaced
            bert = cls(config)
        state = from_usual_names(read_model(folder), config, folder)
        bert.load_state_dict(state, assign=True)
        return bert

    def save(self, folder):
        """Writes `config.json` and `model.safetensors`, which `transformers` opens as a `BertModel`."""
        self.config.save(folder)
        write_safetensors(Path(folder) / "model.safetensors", to_usual_names(self), {"format": "pt"})


def sentence_means(h, batch):
    """h (T, H), hidden states of a `Batch` of B sequences -> float32 (B, H), the mean of each sequence's rows."""
    lengths = batch.cu_seqlens.diff().long()
    sentence = torch.repeat_interleave(torch.arange(len(batch), device=h.device), lengths)  # (T,)
    return h.new_zeros(len(batch), h.shape[1], dtype=torch.float32).index_add(0, sentence, h.float()) / lengths[:, None]


def initialize(module, std):
    """Weights of all matrices ~ N(0, std²), biases 0, as BERT starts its pretraining (LayerNorms are born 1 and 0)."""
    for part in module.modules():
        if isinstance(part, nn.Linear | nn.Embedding):
            nn.init.normal_(part.weight, std=std)
        if isinstance(part, nn.Linear):
            nn.init.zeros_(part.bias)


# ----- the names that everyone else uses

_OUTER = {
    "word": "embeddings.word_embeddings",
    "position": "embeddings.position_embeddings",
    "segment": "embeddings.token_type_embeddings",
    "embedding_norm": "embeddings.LayerNorm",
    "pooler": "pooler.dense",
}
_INNER = {
    "attention_output": "attention.output.dense",
    "attention_norm": "attention.output.LayerNorm",
    "up": "intermediate.dense",
    "down": "output.dense",
    "output_norm": "output.LayerNorm",
}


def _usual_names(name):
    """Our name of a parameter -> the usual one, or the usual three where query, key and value are fused."""
    module, _, kind = name.rpartition(".")
    if module in _OUTER:
        return [f"{_OUTER[module]}.{kind}"]
    _, i, inner = module.split(".")
    if inner == "qkv":
        return [f"encoder.layer.{i}.attention.self.{part}.{kind}" for part in ("query", "key", "value")]
    return [f"encoder.layer.{i}.{_INNER[inner]}.{kind}"]


def to_usual_names(bert):
    """The encoder's tensors as `transformers` names them."""
    tensors = {}
    for name, tensor in bert.state_dict().items():
        names = _usual_names(name)
        tensors.update(zip(names, tensor.chunk(len(names)), strict=True))
    return tensors


def from_usual_names(tensors, config, source):
    """A state dict for `Bert` from the usual names, with `bert.` before them or not, gamma/beta or weight/bias.

    Tensors that the encoder does not have (a language-model head, say) are left alone; a missing pooler starts at
    random. Raises UserError where another one is missing or a shape is wrong; `source`, the folder, is named in it.
    """
    found = {}
    for name, tensor in tensors.items():
        name = name.removeprefix("bert.").replace("LayerNorm.gamma", "LayerNorm.weight")
        found[name.replace("LayerNorm.beta", "LayerNorm.bias")] = tensor
    with torch.device("meta"):
        wanted = {name: p.shape for name, p in Bert(config).named_parameters()}
    state = {}
    for name, shape in wanted.items():
        names = _usual_names(name)
        missing = [n for n in names if n not in found]
        if missing and name.startswith("pooler"):  # many encoders are published without one: start it afresh
            print(f"{source} has no {names[0]}: it starts at random", file=sys.stderr)
            state[name] = torch.randn(shape) * config.initializer_range if len(shape) == 2 else torch.zeros(shape)
            continue
        if missing:
            raise UserError(f"{source} has no weight {missing[0]}; it is not what its config.json describes")
        part = (shape[0] // len(names), *shape[1:])
        for n in names:
            if found[n].shape != part:
                raise UserError(f"{source}: {n} is {tuple(found[n].shape)}, where config.json asks for {part}")
        state[name] = torch.cat([found[n] for n in names]).float()
    return state
