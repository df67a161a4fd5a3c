import json
import os
import random
import time
import tracemalloc

import pytest
import torch

from support.console import UserError
from support.files import replacing
from support.safetensors import DTYPES, UNUSED, open_safetensors, read_safetensors, write_safetensors

# what the safetensors library (0.8.0) writes for {"a": [[1, 2], [3, 4]] float32, "b": [5, -6] int16}, {"k": "v"}
GOLDEN = (
    b'\x90\0\0\0\0\0\0\0{"__metadata__":{"k":"v"},"a":{"dtype":"F32","shape":[2,2],"data_offsets":[0,16]},'
    b'"b":{"dtype":"I16","shape":[2],"data_offsets":[16,20]}}       '
)


def some_tensors():
    torch.manual_seed(0)
    tensors = {f"of {name}": (torch.randn(3, 5) * 10).to(dtype) for name, dtype in DTYPES.items()}
    return tensors | {"scalar": torch.tensor(3.5), "empty": torch.empty(0, 4), "nothing": torch.empty(0)}


def test_what_is_written_is_read_back(tmp_path):
    tensors = some_tensors()
    write_safetensors(tmp_path / "file", tensors, {"key": "value"})
    back, metadata = open_safetensors(tmp_path / "file")
    assert metadata == {"key": "value"}
    assert back.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert back[name].dtype == tensor.dtype
        assert back[name].shape == tensor.shape
        assert torch.equal(back[name], tensor)


def test_non_contiguous_tensors_are_written_row_by_row(tmp_path):
    tensor = torch.arange(12.0).view(3, 4).t()
    write_safetensors(tmp_path / "file", {"t": tensor})
    assert torch.equal(read_safetensors(tmp_path / "file")["t"], tensor)


def test_the_bytes_are_those_of_the_safetensors_library(tmp_path):
    data = torch.tensor([1.0, 2, 3, 4]).numpy().tobytes() + torch.tensor([5, -6], dtype=torch.int16).numpy().tobytes()
    write_safetensors(
        tmp_path / "ours",
        {"b": torch.tensor([5, -6], dtype=torch.int16), "a": torch.tensor([[1.0, 2], [3, 4]])},
        {"k": "v"},
    )
    assert (tmp_path / "ours").read_bytes() == GOLDEN + data
    (tmp_path / "theirs").write_bytes(GOLDEN + data)
    assert read_safetensors(tmp_path / "theirs")["b"].tolist() == [5, -6]


def test_a_tensor_that_is_not_aligned_is_read(tmp_path):
    header = (
        b'{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"b":{"dtype":"F32","shape":[2],"data_offsets":[1,9]}}'
    )
    data = b"\x07" + torch.tensor([1.5, -2.0]).numpy().tobytes()
    (tmp_path / "file").write_bytes(len(header).to_bytes(8, "little") + header + data)
    assert read_safetensors(tmp_path / "file")["b"].tolist() == [1.5, -2.0]


def test_opening_reads_nothing_and_writing_to_a_tensor_leaves_the_file(tmp_path):
    size = 2_000_000_000
    write_safetensors(tmp_path / "small", {"t": torch.zeros(1000)})
    header = json.dumps({"t": {"dtype": "U8", "shape": [size], "data_offsets": [0, size]}}).encode()
    with open(tmp_path / "large", "wb") as file:  # a hole in the file: no disk is used
        file.write(len(header).to_bytes(8, "little") + header)
        file.truncate(8 + len(header) + size)
    start = time.process_time()
    assert len(read_safetensors(tmp_path / "large")["t"]) == size
    assert time.process_time() - start < 0.2
    read_safetensors(tmp_path / "small")["t"].add_(1)
    assert read_safetensors(tmp_path / "small")["t"].sum() == 0


def entry(**changes):
    return {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]} | changes


@pytest.mark.parametrize(
    ("header", "reason"),
    [
        ([], "not a JSON object"),
        ({"t": []}, "lacks dtype"),
        ({"t": {"dtype": "F32"}}, "lacks dtype"),
        ({"t": entry(dtype="F31")}, "unknown dtype"),
        ({"t": entry(dtype=["F32"])}, "unknown dtype"),
        ({"t": entry(shape=[-2])}, "whole numbers"),
        ({"t": entry(shape=[2.0])}, "whole numbers"),
        ({"t": entry(shape=[True, 2])}, "whole numbers"),
        ({"t": entry(shape=[3])}, "does not fit"),
        ({"t": entry(shape=[2**62, 2**62])}, "too large"),
        ({"t": entry(shape=[0, 2**70])}, "too large"),
        ({"t": entry(shape=[0, 2**40, 2**40], data_offsets=[0, 0])}, "too large"),
        ({"t": entry(shape=[2**40, 0, 2**40], dtype="U16", data_offsets=[0, 0])}, "too large"),
        ({"t": entry(shape=[3], dtype="F4", data_offsets=[0, 1])}, "does not fit"),
        ({"t": entry(shape=[1] * 100 + [2])}, "whole numbers"),
        ({"t": entry(data_offsets=[8, 16])}, "does not fit"),
        ({"t": entry(), "u": entry()}, "overlap"),
        ({"t": entry(shape=[1], data_offsets=[4, 8])}, "hole"),
        ({"t": entry(shape=[1], data_offsets=[0, 4])}, "4"),
        ({"__metadata__": {"k": 1}, "t": entry()}, "metadata"),
    ],
)
def test_a_header_that_lies_is_refused(tmp_path, header, reason):
    text = json.dumps(header).encode()
    (tmp_path / "file").write_bytes(len(text).to_bytes(8, "little") + text + b"\0" * 8)
    with pytest.raises(UserError, match=reason):
        read_safetensors(tmp_path / "file")


@pytest.mark.parametrize(
    "text", [b"[" * 100_000, b'{"a":' * 50_000, b"\xff\xfe", b"{", b'{"t":1,"t":1}', b"9" * 90_000]
)
def test_a_header_that_is_no_json_is_refused(tmp_path, text):
    (tmp_path / "file").write_bytes(len(text).to_bytes(8, "little") + text)
    with pytest.raises(UserError, match="not a valid safetensors file"):
        read_safetensors(tmp_path / "file")


def test_two_thousand_damaged_files_each_give_one_clear_error_at_once(tmp_path):
    path = tmp_path / "file"
    write_safetensors(path, some_tensors(), {"key": "value"})
    good = path.read_bytes()
    header_end = 8 + int.from_bytes(good[:8], "little")
    rng = random.Random(0)
    refused, slowest = 0, 0.0
    for _ in range(2_000):
        damaged = bytearray(good)
        if rng.random() < 0.3:
            del damaged[rng.randrange(len(damaged)) :]
        else:
            for _ in range(rng.randint(1, 4)):
                place = rng.randrange(8 if rng.random() < 0.2 else header_end)
                damaged[place] = rng.choice((rng.randrange(256), ord(rng.choice('0123456789"{}[],:-'))))
        path.write_bytes(damaged)
        start = time.process_time()
        try:
            for tensor in read_safetensors(path).values():  # a changed name, say, leaves a valid file
                assert tensor.numel() * tensor.element_size() <= len(good)
        except UserError as error:
            refused += 1
            assert str(path) in str(error)
            assert len(str(error)) < 1000
        slowest = max(slowest, time.process_time() - start)
    assert refused > 1_600
    assert slowest < 1.0


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "file"
    path.write_text("old")
    with pytest.raises(ZeroDivisionError), replacing(path) as file:
        file.write(b"half")
        raise ZeroDivisionError
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["file"]


def refused(path, header, size=None):
    """Writes a header, and after it a hole up to `size` bytes; returns what reading says, and its seconds."""
    with open(path, "wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        file.truncate(size or 8 + len(header))
    start = time.process_time()
    with pytest.raises(UserError) as error:
        read_safetensors(path)
    return str(error.value), time.process_time() - start


def test_a_header_that_would_take_gigabytes_to_parse_is_refused_at_once(tmp_path):
    entry = b'"%07d":{"dtype":"F32","shape":[0],"data_offsets":[0,0]}'
    many = b"{" + b",".join(entry % i for i in range(150_000)) + b"}"
    for header in (many, b"[" + b"[]," * 3_000_000 + b"0]", b"[" * 9_000_000, b'{"a":[' + b"1," * 4_000_000 + b"1]}"):
        tracemalloc.start()
        said, seconds = refused(tmp_path / "file", header)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert "more tensors than a model has" in said
        assert seconds < 1
        assert peak < 50_000_000


def test_a_sparse_file_of_4_gb_costs_nothing(tmp_path):
    for header in (b"", b"\0" * 100, b"{}"):
        _, seconds = refused(tmp_path / "file", header, 2**32)
        assert seconds < 0.5


def test_a_model_of_a_thousand_layers_is_read(tmp_path):
    names = [f"encoder.layer.{i}.attention.self.part{k}.weight" for i in range(1000) for k in range(16)]
    tensors = dict.fromkeys(names, torch.zeros(1))
    write_safetensors(tmp_path / "file", tensors)
    assert len(read_safetensors(tmp_path / "file")) == 16_000


@pytest.mark.parametrize("dtype", sorted(UNUSED))
def test_tensors_of_dtypes_that_nothing_here_uses_are_left_out(tmp_path, dtype):
    n = UNUSED[dtype]  # bytes of 8 numbers
    header = {"other": entry(dtype=dtype, shape=[8], data_offsets=[0, n]), "t": entry(data_offsets=[n, n + 8])}
    text = json.dumps(header).encode()
    data = b"\xff" * n + torch.tensor([1.5, 2.5]).numpy().tobytes()
    (tmp_path / "file").write_bytes(len(text).to_bytes(8, "little") + text + data)
    assert {name: t.tolist() for name, t in read_safetensors(tmp_path / "file").items()} == {"t": [1.5, 2.5]}


def test_what_is_no_file_is_refused_at_once(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path, tmp_path / "pipe", "/dev/zero"):
        with pytest.raises(UserError, match="name a file"):
            read_safetensors(path)
