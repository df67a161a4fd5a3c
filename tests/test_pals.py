"""PALs: the formula with loops over sentences and heads, the identity at the start, what trains and what does not."""

import itertools

import pytest
import tiny
import torch
import torch.nn.functional as F

import multitask
from bert import Bert, BertConfig
from pals import Pals
from support.console import UserError
from support.safetensors import read_safetensors


def attention_by_loops(query, key, value, heads, cu_seqlens):
    out = torch.zeros_like(query)
    d, bounds = query.shape[1] // heads, cu_seqlens.tolist()
    for start, end in itertools.pairwise(bounds):
        for head in range(heads):
            columns = slice(head * d, (head + 1) * d)
            for t in range(start, end):
                scores = torch.stack([query[t, columns] @ key[s, columns] / d**0.5 for s in range(start, end)])
                weights = torch.softmax(scores, 0)
                out[t, columns] = sum(w * value[s, columns] for w, s in zip(weights, range(start, end), strict=True))
    return out


def layer_norm(norm, x):
    return F.layer_norm(x, x.shape[1:], norm.weight, norm.bias, norm.eps)


def layer_by_loops(layer, pals, i, h, cu_seqlens):
    """LN(h_att + FFN(h_att) + V_D SA(V_E h)), every term written out."""
    q, k, v = (h @ w.t() + b for w, b in zip(layer.qkv.weight.chunk(3), layer.qkv.bias.chunk(3), strict=True))
    attended = layer.attention_output(attention_by_loops(q, k, v, layer.heads, cu_seqlens))
    h_att = layer_norm(layer.attention_norm, h + attended)
    ffn = layer.down(F.gelu(layer.up(h_att)))
    e = pals.encode(h)
    q, k, v = (e @ w.t() + b for w, b in zip(pals.qkv[i].weight.chunk(3), pals.qkv[i].bias.chunk(3), strict=True))
    ts = pals.decode(attention_by_loops(q, k, v, pals.heads, cu_seqlens))
    return layer_norm(layer.output_norm, h_att + ffn + ts)


@pytest.mark.parametrize(("size", "heads"), [(12, 4), (51, 3), (17, 1)])
def test_a_layer_with_pals_is_the_formula(size, heads):
    bert = tiny.model().bert
    pals = Pals(bert.config, size, heads)
    for p in pals.parameters():
        torch.nn.init.normal_(p, std=0.3)
    batch = tiny.batch()
    h = torch.randn(len(batch.ids), 32)
    for i, layer in enumerate(bert.layers):
        slow = layer_by_loops(layer, pals, i, h, batch.cu_seqlens)
        torch.testing.assert_close(layer(h, batch, pals(i, h, batch)), slow, rtol=1e-4, atol=1e-5)


def test_the_encoder_runs_every_layer_with_its_own_matrices():
    model = tiny.model(pal_size=12, pal_heads=4)
    for p in model.pals.parameters():
        torch.nn.init.normal_(p, std=0.3)
    batch = tiny.batch()
    h = model.bert.embed(batch)
    for i, layer in enumerate(model.bert.layers):
        h = layer_by_loops(layer, model.pals["sts"], i, h, batch.cu_seqlens)
    slow = model.heads["sts"](model.bert.pool(h[batch.cls_rows]))
    torch.testing.assert_close(model("sts", batch), slow, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("encoding", [{}, {"pair_encoding": "siamese"}, {"use_means": True}])
def test_fresh_pals_leave_the_logits_bitwise_as_they_were(encoding):
    without = tiny.model(**encoding)
    added = multitask.MultitaskBert(without.bert, **encoding, pal_size=12, pal_heads=4)
    added.heads.load_state_dict(without.heads.state_dict())
    for task in ("sst", "para", "sts"):
        batch = tiny.batch((5, 3, 7, 4, 6, 2))
        assert torch.equal(added(task, batch), without(task, batch))
        torch.nn.init.normal_(added.pals[task].decode.weight)
        assert not torch.allclose(added(task, batch), without(task, batch))


def test_pals_start_as_small_as_the_encoder():
    own = Pals(tiny.config(initializer_range=0.01), 120, 4)
    assert own.encode.weight.std().item() == pytest.approx(0.01, rel=0.1)
    assert own.qkv[1].weight.std().item() == pytest.approx(0.01, rel=0.1)


def test_pals_drop_out_attention_in_training_only(monkeypatch):
    seen, batch, h = [], tiny.batch(), torch.randn(19, 32)
    monkeypatch.setattr("pals.attention", lambda qkv, *rest: seen.append(rest[-1]) or qkv[:, :12])
    own = Pals(tiny.config(dropout=0.1, attention_probs_dropout_prob=0.2), 12, 4)
    own(0, h, batch)
    own.eval()(0, h, batch)
    assert seen == [0.2, 0.0]


def test_bert_base_has_the_published_number_of_pal_parameters():
    with torch.device("meta"):
        pals = Pals(BertConfig())
    assert sum(p.numel() for p in pals.parameters()) == 1_819_836


def test_a_width_that_the_heads_do_not_divide_is_refused():
    with pytest.raises(UserError, match="no multiple"):
        Pals(tiny.config(), 10, 4)


def test_a_step_moves_the_pals_of_its_task_only():
    model = tiny.model(pal_size=12, pal_heads=4)
    optimizer = tiny.optimizer(model)
    before = {name: p.clone() for name, p in model.pals.named_parameters()}
    for _ in range(2):  # the first moves V_D alone: until then nothing else has a gradient
        optimizer.zero_grad()
        model("para", tiny.batch()).square().sum().backward()
        optimizer.step({"shared": 0.01, "para": 0.01, "pals.para": 0.01})
    for name, p in model.pals.named_parameters():
        assert torch.equal(p, before[name]) != name.startswith("para."), name


def test_encoder_head_and_pals_have_a_rate_each_and_the_step_is_as_the_flags_say(tmp_path, monkeypatch):
    rates, settings, step = [], set(), multitask.AdamW.step

    def note(optimizer, lr):
        rates.append(lr)
        settings.add((optimizer.weight_decay, optimizer.clip))
        return step(optimizer, lr)

    monkeypatch.setattr(multitask.AdamW, "step", note)
    bert, files = tiny.folder(tmp_path / "bert"), tiny.task_files(tmp_path / "data")
    flags = f"--bert {bert} --data {files} --out {tmp_path / 'run'} --epochs 1 --warmup 0 --lr 1e-5 --head_lr 2e-5"
    flags += " --weight_decay 0.3 --clip 0.7 --hidden_dropout_prob 0.2"
    multitask.main(f"{flags} --use_pals --pal_size 12 --pal_heads 4 --pal_lr 3e-5".split())
    assert settings == {(0.3, 0.7)}
    assert BertConfig.load(tmp_path / "run" / "best").hidden_dropout_prob == 0.2
    task = next(name for name in ("sst", "para", "sts") if name in rates[0])
    assert rates[0] == {"shared": 1e-5, task: 2e-5, f"pals.{task}": 3e-5}
    assert [of["shared"] for of in rates] == pytest.approx([1e-5 * (1 - t / len(rates)) for t in range(len(rates))])


def test_frozen_with_pals_the_encoder_stays_bitwise_and_pals_come_back_from_disk(tmp_path):
    bert, out = tiny.folder(tmp_path / "bert"), tmp_path / "run"
    files = tiny.task_files(tmp_path / "data")
    flags = f"--bert {bert} --data {files} --out {out} --batch_size 4 --epochs 2 --head_lr 0.01"
    multitask.main(f"{flags} --option pretrain --use_pals --pal_size 12 --pal_heads 4".split())
    start, end = Bert.load(bert).state_dict(), Bert.load(out / "best").state_dict()
    assert all(torch.equal(start[name], end[name]) for name in start)
    pals = read_safetensors(out / "best" / "pals.safetensors")
    assert all(pals[f"{task}.decode.weight"].abs().sum() > 0 for task in ("sst", "para", "sts"))
    model, _ = multitask.MultitaskBert.load(out / "best")
    assert all(torch.equal(tensor, pals[name]) for name, tensor in model.pals.state_dict().items())
