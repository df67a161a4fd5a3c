import json
import os

import pytest
import tiny
import torch

from bert import Bert, BertConfig
from support.checks import parameters_of
from support.console import UserError
from support.safetensors import read_safetensors, write_safetensors
from weights import read_model


@pytest.fixture
def model(tmp_path):
    """A folder with a random encoder, and its tensors."""
    Bert(tiny.config()).save(tmp_path)
    return tmp_path, {name: t.clone() for name, t in read_safetensors(tmp_path / "model.safetensors").items()}


def test_a_pickle_is_read_only_where_it_holds_nothing_but_tensors(tmp_path):
    torch.save({"w": torch.ones(2)}, tmp_path / "pytorch_model.bin")
    assert read_model(tmp_path)["w"].tolist() == [1, 1]
    marker = tmp_path / "executed"

    class Evil:
        def __reduce__(self):
            return os.mkdir, (str(marker),)

    torch.save({"w": Evil()}, tmp_path / "pytorch_model.bin")
    with pytest.raises(UserError, match="can be read safely"):
        read_model(tmp_path)
    assert not marker.exists()


def test_a_folder_without_weights_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"neither model\.safetensors nor pytorch_model\.bin"):
        read_model(tmp_path)


NAME = "encoder.layer.1.output.dense.weight"


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda t: t.index_fill(0, torch.tensor([3]), torch.nan), "NaN or infinity"),
        (lambda t: t.index_fill(1, torch.tensor([0]), -torch.inf), "NaN or infinity"),
        (lambda t: torch.full_like(t, 1e300, dtype=torch.float64), "NaN or infinity"),  # infinite as float32
        (lambda t: t.long(), "is int64"),
        (lambda t: t > 0, "is bool"),
    ],
)
@pytest.mark.parametrize("name", [NAME, "embeddings.word_embeddings.weight"])
def test_weights_that_are_no_finite_floats_are_refused(model, change, reason, name):
    folder, tensors = model
    write_safetensors(folder / "model.safetensors", tensors | {name: change(tensors[name])})
    with pytest.raises(UserError, match=f"{name} .*{reason}"):
        Bert.load(folder)


def test_a_pickled_tensor_without_values_is_refused(model):
    folder, tensors = model
    (folder / "model.safetensors").unlink()
    torch.save(tensors | {NAME: tensors[NAME].to("meta")}, folder / "pytorch_model.bin")
    with pytest.raises(UserError, match=f"{NAME} is without values"):
        Bert.load(folder)


def test_other_tensors_may_hold_what_they_like_and_floats_may_be_short(model):
    folder, tensors = model
    others = {"embeddings.position_ids": torch.arange(9), "cls.predictions.bias": torch.tensor([torch.nan])}
    short = {name: t.half() if "layer.0" in name else t.bfloat16() for name, t in tensors.items()}
    write_safetensors(folder / "model.safetensors", short | others)
    assert all(p.dtype == torch.float32 for p in Bert.load(folder).parameters())


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
def test_weights_in_parts_are_those_of_one_file(model, name):
    folder, tensors = model
    (folder / "model.safetensors").unlink()
    stem, _, kind = name.rpartition(".")
    files = {tensor: f"{stem}-{i % 3 + 1:05}-of-00003.{kind}" for i, tensor in enumerate(tensors)}
    for file in set(files.values()):
        part = {tensor: tensors[tensor] for tensor in tensors if files[tensor] == file}
        write_safetensors(folder / file, part) if kind == "safetensors" else torch.save(part, folder / file)
    index = folder / f"{name}.index.json"
    index.write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": files}))
    loaded = read_model(folder)
    assert loaded.keys() == tensors.keys()
    assert all(torch.equal(loaded[name], tensors[name]) for name in tensors)
    (folder / files[NAME]).unlink()
    with pytest.raises(UserError, match="a part of the weights"):
        read_model(folder)
    for map_ in ({}, [], {"a": "../model.safetensors"}, {"a": "/etc/passwd"}, {"a": 1}, {"a": [files[NAME]]}):
        index.write_text(json.dumps({"weight_map": map_}))
        with pytest.raises(UserError, match="index"):
            read_model(folder)


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n", "pointer of Git LFS"),
        (b"\n<!DOCTYPE html><title>404</title>", "a web page"),
        (b"<html>", "a web page"),
        (b"", "fetch"),
        (b"no weights, but text", "fetch"),
        (b"\x80\x02cbuiltins\neval\n.", "fetch"),
    ],
)
def test_what_is_no_weights_is_one_sentence_that_asks_for_no_trust(tmp_path, name, text, reason):
    (tmp_path / name).write_bytes(text)
    with pytest.raises(UserError, match=reason) as refused:
        read_model(tmp_path)
    assert "weights_only" not in str(refused.value)
    assert len(str(refused.value)) < 300 + len(str(tmp_path))


@pytest.mark.parametrize("value", [{"a": 1}, [torch.ones(1)], {1: torch.ones(1)}, torch.ones(1), None])
def test_a_checkpoint_that_is_no_dict_of_tensors_is_refused(tmp_path, value):
    torch.save(value, tmp_path / "pytorch_model.bin")
    with pytest.raises(UserError, match="not a dict of tensors"):
        read_model(tmp_path)


def test_a_pipe_in_place_of_weights_is_refused_at_once(tmp_path):
    os.mkfifo(tmp_path / "pytorch_model.bin")
    with pytest.raises(UserError, match="a pipe"):
        read_model(tmp_path)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"num_hidden_layers": 10**12}, "layers"),
        ({"num_hidden_layers": 10**6, "hidden_size": 1, "num_attention_heads": 1}, "layers"),
        ({"hidden_size": 12 * 10**30}, "memory"),
        ({"intermediate_size": 10**9}, "GB"),
        ({"vocab_size": 2**63}, "memory"),
        ({"max_position_embeddings": 10**400}, "too large a number"),
        ({"hidden_size": 33}, "multiple of num_attention_heads; fetch the model again"),
        ({"vocab_size": 0}, "cannot be 0"),
        ({"vocab_size": True}, "cannot be True"),
        ({"vocab_size": None}, "cannot be None"),
        ({"hidden_size": "32"}, "cannot be '32'"),
        ({"hidden_dropout_prob": 1}, "cannot be 1"),
        ({"layer_norm_eps": [1e-12]}, "cannot be a list"),
        ({"model_type": "x" * 100_000}, "is supported"),
        ({"model_type": "roberta"}, "only 'bert' is supported; name another model, such as all-MiniLM-L6-v2"),
        ({"hidden_act": {"a": 1}}, "is supported"),
    ],
)
def test_sizes_that_no_model_has_are_refused_before_anything_is_allocated(tmp_path, change, reason):
    config = tiny.config()
    config.save(tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(UserError, match=reason) as refused:
        BertConfig.load(tmp_path)
    assert len(str(refused.value)) < 300 + len(str(tmp_path))


def test_null_stands_for_the_usual_value(tmp_path):
    tiny.config().save(tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"is_decoder": None, "position_embedding_type": None}))
    assert BertConfig.load(tmp_path) == tiny.config()


def test_the_size_of_a_config_is_that_of_its_model():
    for config in (tiny.config(), tiny.config(type_vocab_size=1, num_hidden_layers=3, intermediate_size=77)):
        assert parameters_of(vars(config)) == sum(p.numel() for p in Bert(config).parameters())
