import json

import numpy as np
import pytest
import tiny
import torch
from compare import GOLDEN, golden_batch, golden_places

import kernels
from bert import Bert, BertConfig
from support.console import UserError
from support.downloads import MINILM, find_model
from support.safetensors import read_safetensors, write_safetensors
from tokenizer import pack


def random_batch(lengths, seed=0):
    rng = np.random.default_rng(seed)
    return pack([(rng.integers(0, 120, n), n // 2 + 1) for n in lengths])


def test_minilm_gives_what_transformers_gives():
    """The golden values are those of `transformers`; `make compare` writes them and compares every value live."""
    golden = json.loads(GOLDEN.read_text())
    batch = golden_batch()
    with torch.no_grad():
        hidden, pooled = Bert.load(find_model(MINILM)).eval()(batch)
    rows, columns = golden_places(batch, hidden.shape[1]).T
    assert (hidden[rows, columns] - torch.tensor(golden["hidden"])).abs().max() < 1e-5
    assert (pooled[:, :4] - torch.tensor(golden["pooled"])).abs().max() < 1e-5


def slow_bert(bert, ids, segments):
    """The equations of bert.py's docstring for one sentence, one head after the other: (hidden states, pooled)."""
    p = dict(bert.named_parameters())

    def dense(x, name):
        return x @ p[f"{name}.weight"].T + p[f"{name}.bias"]

    def norm(x, name):
        x = (x - x.mean(-1, keepdim=True)) / (x.var(-1, keepdim=True, unbiased=False) + 1e-12).sqrt()
        return x * p[f"{name}.weight"] + p[f"{name}.bias"]

    positions = torch.arange(len(ids))
    h = norm(p["word.weight"][ids] + p["position.weight"][positions] + p["segment.weight"][segments], "embedding_norm")
    for i in range(len(bert.layers)):
        H, heads = h.shape[1], bert.config.num_attention_heads
        q, k, v = dense(h, f"layers.{i}.qkv").split(H, 1)
        of_heads = []
        for j in range(heads):
            part = slice(j * H // heads, (j + 1) * H // heads)
            scores = q[:, part] @ k[:, part].T / (H // heads) ** 0.5
            of_heads.append(torch.softmax(scores, 1) @ v[:, part])
        h_att = norm(h + dense(torch.cat(of_heads, 1), f"layers.{i}.attention_output"), f"layers.{i}.attention_norm")
        up = dense(h_att, f"layers.{i}.up")
        gelu = up * (1 + torch.erf(up / 2**0.5)) / 2
        h = norm(h_att + dense(gelu, f"layers.{i}.down"), f"layers.{i}.output_norm")
    return h, torch.tanh(dense(h[0], "pooler"))


@torch.no_grad()
def test_a_packed_batch_gives_each_sentence_what_the_equations_give_it_alone():
    torch.manual_seed(0)
    bert = Bert(tiny.config(initializer_range=0.3)).double().eval()
    batch = random_batch((5, 1, 30, 12, 31, 2))
    hidden, pooled = bert(batch)
    for b, (start, end) in enumerate(zip(batch.cu_seqlens, batch.cu_seqlens[1:], strict=False)):
        expected, expected_pooled = slow_bert(bert, batch.ids[start:end], batch.segments[start:end])
        assert torch.allclose(hidden[start:end], expected, atol=1e-10)
        assert torch.allclose(pooled[b], expected_pooled, atol=1e-10)


@torch.no_grad()
def test_wanted_rows_are_those_rows_of_everything():
    torch.manual_seed(0)
    bert = Bert(tiny.config(initializer_range=0.3)).eval()
    batch = random_batch((5, 1, 30, 12))
    x = bert.embed(batch)
    everything = bert.encode(x, batch)
    assert torch.allclose(bert.encode(x, batch, cls_only=True), everything[batch.cls_rows], atol=1e-6)


@torch.no_grad()
def test_a_side_is_added_beside_the_feed_forward_half_of_every_layer():
    torch.manual_seed(0)
    bert = Bert(tiny.config()).eval()
    batch = random_batch((5, 7))
    x, seen = bert.embed(batch), []

    def zero(i, h, bounds):
        seen.append((i, h.shape, bounds.max_seqlen))
        return torch.zeros_like(h)

    assert torch.equal(bert.encode(x, batch, zero), bert.encode(x, batch))
    assert seen == [(0, (12, 32), 7), (1, (12, 32), 7)]
    assert not torch.allclose(bert.encode(x, batch, lambda i, h, bounds: h), bert.encode(x, batch))


def test_in_training_each_place_of_dropout_has_its_probability_and_outside_none(monkeypatch):
    calls = []

    def note(name, place, form):
        monkeypatch.setattr(f"bert.{name}", lambda *inputs: calls.append((name, inputs[place])) or form(*inputs))

    for name, place in {"dropout": 1, "attention": 4, "cls_attention": 6, "add_norm": 4}.items():
        note(name, place, getattr(kernels, name))
    bert, batch = Bert(tiny.config(dropout=0.1, attention_probs_dropout_prob=0.2)), random_batch((5, 3))
    halves = [("add_norm", 0.1)] * 2
    bert.train().encode(bert.embed(batch), batch, cls_only=True)
    assert calls == [("dropout", 0.1), ("attention", 0.2), *halves, ("cls_attention", 0.2), *halves]
    calls.clear()
    bert.eval().encode(bert.embed(batch), batch, cls_only=True)
    assert {p for _, p in calls} == {0.0}


def test_gradients_equal_those_of_the_equations():
    torch.manual_seed(0)
    bert = Bert(tiny.config(initializer_range=0.3)).double().eval()
    batch = random_batch((6,))
    weights = torch.randn(6, 32, dtype=torch.float64)
    (bert(batch)[0] * weights).sum().backward()
    ours = {name: p.grad for name, p in bert.named_parameters() if p.grad is not None}
    bert.zero_grad()
    (slow_bert(bert, batch.ids, batch.segments)[0] * weights).sum().backward()
    theirs = {name: p.grad for name, p in bert.named_parameters() if p.grad is not None}
    assert ours.keys() == theirs.keys()
    for name in ours:
        assert torch.allclose(ours[name], theirs[name], atol=1e-9), name


def test_a_sparse_embedding_gradient_adds_up_to_the_dense_one():
    torch.manual_seed(0)
    bert = Bert(tiny.config()).eval()
    batch = random_batch((9, 4))
    bert(batch)[0].square().sum().backward()
    dense = bert.word.weight.grad.clone()
    bert.zero_grad()
    bert.word.weight.grad = torch.zeros_like(dense)
    bert(batch)[0].square().sum().backward()
    assert not bert.word.weight.grad.is_sparse
    assert torch.allclose(bert.word.weight.grad, dense, atol=1e-5)


def test_a_saved_encoder_loads_the_same_in_both_name_styles(tmp_path):
    torch.manual_seed(0)
    bert = Bert(tiny.config())
    bert.save(tmp_path)
    tensors = read_safetensors(tmp_path / "model.safetensors")
    assert "encoder.layer.1.attention.self.query.weight" in tensors
    old = {}
    for name, tensor in tensors.items():
        if "LayerNorm" in name:
            name = name.replace("weight", "gamma").replace("bias", "beta")
        old[f"bert.{name}"] = tensor.clone()
    old["cls.predictions.bias"] = torch.zeros(3)
    for write in (write_safetensors, lambda path, t: torch.save(t, path.with_name("pytorch_model.bin"))):
        loaded = Bert.load(tmp_path)
        for (name, a), b in zip(bert.state_dict().items(), loaded.state_dict().values(), strict=True):
            assert torch.equal(a, b), name
        (tmp_path / "model.safetensors").unlink(missing_ok=True)
        write(tmp_path / "model.safetensors", old)
    assert torch.equal(Bert.load(tmp_path).word.weight, bert.word.weight)


def test_an_encoder_without_a_pooler_starts_one_and_overrides_are_taken(tmp_path, capsys):
    torch.manual_seed(0)
    bert = Bert(tiny.config(initializer_range=0.01))
    bert.save(tmp_path)
    tensors = read_safetensors(tmp_path / "model.safetensors")
    tensors = {name: t.clone() for name, t in tensors.items() if not name.startswith("pooler")}
    write_safetensors(tmp_path / "model.safetensors", tensors)
    loaded = Bert.load(tmp_path, hidden_dropout_prob=0.3)
    assert capsys.readouterr().err.count("starts at random") == 2
    assert loaded.pooler.weight.std().item() == pytest.approx(0.01, rel=0.1)
    assert not loaded.pooler.bias.any()
    assert {layer.p_hidden for layer in loaded.layers} == {0.3}


def test_weights_that_do_not_fit_are_refused(tmp_path, capsys):
    bert = Bert(tiny.config())
    bert.save(tmp_path)
    tensors = {name: t.clone() for name, t in read_safetensors(tmp_path / "model.safetensors").items()}
    lost = tensors.pop("encoder.layer.0.output.dense.bias")
    write_safetensors(tmp_path / "model.safetensors", tensors)
    with pytest.raises(UserError, match=r"no weight encoder\.layer\.0\.output\.dense\.bias .*; name another model"):
        Bert.load(tmp_path)
    tensors["encoder.layer.0.output.dense.bias"] = lost[:5]
    write_safetensors(tmp_path / "model.safetensors", tensors)
    with pytest.raises(UserError, match=r"config\.json asks for \(32,\); fetch the model again"):
        Bert.load(tmp_path)
    tensors["encoder.layer.0.output.dense.bias"] = lost
    write_safetensors(
        tmp_path / "model.safetensors", tensors | {"bert.encoder.layer.0.output.dense.bias": lost.clone()}
    )
    with pytest.raises(UserError, match=r"two weights encoder\.layer\.0\.output\.dense\.bias"):
        Bert.load(tmp_path)
    write_safetensors(tmp_path / "model.safetensors", tensors | {"encoder.layer.2.output.dense.bias": lost.clone()})
    Bert.load(tmp_path)
    assert "no place for 1 weights (encoder.layer.2.output.dense.bias" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        ('{"model_type": "roberta"}', "model_type"),
        ('{"hidden_act": "relu"}', "hidden_act"),
        ('{"position_embedding_type": "relative_key"}', "position_embedding_type"),
        ('{"is_decoder": true}', "is_decoder"),
        ('{"hidden_size": 30, "num_attention_heads": 4}', "multiple"),
        ('{"hidden_size": "wide"}', "hidden_size"),
        ("{", "JSON"),
        ("[]", "JSON"),
    ],
)
def test_another_kind_of_model_is_refused(tmp_path, config, reason):
    (tmp_path / "config.json").write_text(config)
    with pytest.raises(UserError, match=reason):
        BertConfig.load(tmp_path)


def test_two_names_of_gelu_are_one(tmp_path):
    for name in ("gelu", "gelu_python"):
        (tmp_path / "config.json").write_text(f'{{"hidden_act": "{name}"}}')
        assert BertConfig.load(tmp_path) == BertConfig()


def test_a_random_encoder_has_small_matrices_no_biases_and_norms_that_do_nothing():
    torch.manual_seed(0)
    for name, p in Bert(BertConfig(300, 64, 2, 2, 256, 64)).named_parameters():
        if p.dim() == 2:
            assert abs(p.mean()) < 5e-3, name
            assert abs(p.std() - 0.02) < 4e-3, name
        else:
            assert torch.equal(p, torch.full_like(p, float("norm.weight" in name))), name


def test_the_docstring_defaults_are_bert_base():
    assert (BertConfig().layer_norm_eps, BertConfig().hidden_dropout_prob) == (1e-12, 0.1)
    assert BertConfig().attention_probs_dropout_prob == 0.1
    with torch.device("meta"):
        assert sum(p.numel() for p in Bert(BertConfig()).parameters()) == 109_482_240
