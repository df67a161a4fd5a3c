"""Which library multiplies: both give the same numbers, what was measured is kept, and a state carries it."""

import json
import os
import subprocess
import sys

import pytest
import tiny
import torch

import multitask
from kernels.cpu import libraries
from support import training_run


@pytest.fixture(autouse=True)
def as_before():
    before = libraries.choice()
    yield
    libraries.use(before)


def every_first():
    return {name: ways[0] for name, ways in libraries.WAYS.items()}


@pytest.mark.parametrize("library", libraries.LIBRARIES)
@pytest.mark.parametrize(("size_in", "out"), [(24, 60), (60, 24)])
def test_all_products_are_the_same_in_both_libraries(size_in, out, library):
    torch.manual_seed(0)
    x, dy, weight = torch.randn(7, size_in), torch.randn(7, out), torch.randn(out, size_in)
    libraries.use(dict.fromkeys(libraries.PRODUCTS, library))
    torch.testing.assert_close(libraries.multiply("forward", x, weight), x @ weight.T)
    torch.testing.assert_close(libraries.multiply("dx", dy, weight), dy @ weight)
    torch.testing.assert_close(libraries.multiply("dw", dy, x), dy.T @ x)


def test_what_was_measured_is_kept_and_measured_once(tmp_path, monkeypatch):
    path, wanted = tmp_path / "models" / "products.json", every_first()
    calls = []
    monkeypatch.setattr(libraries, "measure", lambda: calls.append(1) or dict(wanted))
    for _ in range(2):
        libraries.use(libraries.usual())
        libraries.choose(path)
        assert libraries.choice() == wanted
    assert len(calls) == libraries.AVAILABLE


@pytest.mark.parametrize("damage", ["", "[]", "{", '{"x": 1}', "\xff", "[" * 100_000, "of older code"])
def test_a_damaged_file_is_measured_again_and_a_folder_that_cannot_be_written_does_not_matter(tmp_path, damage):
    path = tmp_path / "products.json"
    if damage == "of older code":
        libraries.choose(path)
        kept = json.loads(path.read_text()) if path.exists() else {}
        damage = json.dumps({key: {"forward wide": "mkl"} for key in kept})
    path.write_text(damage, encoding="latin-1")
    libraries.choose(path)
    assert all(value in libraries.WAYS[name] for name, value in libraries.choice().items())
    kept = json.loads(path.read_text()) if libraries.AVAILABLE else {}
    assert all(made.keys() == libraries.WAYS.keys() for made in kept.values() if isinstance(made, dict))
    libraries.choose(path / "below a file" / "products.json")


def test_a_choice_of_elsewhere_is_taken_as_far_as_it_makes_sense():
    forward, dx = "forward 384 to 1536", "dx 384 to 1536"
    libraries.use({forward: "a library of the future", dx: "mkl", "no product": "mkl", "gelu": "mkl"})
    assert libraries.choice()[dx] == "mkl" and "no product" not in libraries.choice()
    assert libraries.choice()[forward] in libraries.LIBRARIES and libraries.choice()["gelu"] in libraries.WAYS["gelu"]


def test_a_product_goes_to_the_library_of_the_measured_one_which_it_resembles_most():
    libraries.use(dict.fromkeys(libraries.PRODUCTS, "mkl") | {"dx 3072 to 768": "onednn", "dx 384 to 1536": "onednn"})
    sizes = (3072, 768), (1024, 600), (768, 768), (384, 1152), (384, 384), (96, 384), (1536, 384), (4096, 1024)
    expected = ["onednn", "onednn", "mkl", "onednn", "onednn", "onednn", "mkl", "onednn"]
    expected = expected if libraries.AVAILABLE else ["mkl"] * len(sizes)
    assert [libraries.library("dx", *size) for size in sizes] == expected


def test_the_faster_way_is_taken_where_it_is_clearly_faster(monkeypatch):
    clock = iter(range(10**6))

    def slow(n):
        return lambda *args: [next(clock) for _ in range(n)] and torch.ones(1)

    monkeypatch.setattr(libraries.time, "perf_counter", lambda: next(clock))
    for mkl, onednn, expected in ((100, 10, "onednn"), (10, 100, "mkl")):
        monkeypatch.setattr(libraries, "_by_torch", slow(mkl))
        monkeypatch.setattr(libraries, "_by_onednn", slow(onednn))
        monkeypatch.setattr(libraries, "onednn", slow(5))
        found = libraries.measure(T=2, rounds=1)
        assert {found[name] for name in libraries.PRODUCTS} == {expected}


def test_measuring_answers_for_every_product():
    found = libraries.measure(T=8, rounds=1)
    assert all(found[name] in ways for name, ways in libraries.WAYS.items()) and len(found) == len(libraries.WAYS)


def test_a_resumed_run_goes_on_with_the_libraries_of_its_state(tmp_path, monkeypatch):
    """Whatever the processor at hand would choose: another choice would round otherwise."""
    started = every_first()
    monkeypatch.setattr(libraries, "choose", lambda path: libraries.use(started))
    folder, files = tiny.folder(tmp_path / "bert"), tiny.task_files(tmp_path / "data")
    flags = ["--bert", folder, "--data", files, "--out", tmp_path / "run", "--epochs", "1", "--batch_size", "8"]
    with monkeypatch.context() as patch:
        patch.setattr(training_run, "Interrupt", tiny.StopAfter(2))
        with pytest.raises(SystemExit):
            multitask.main([str(flag) for flag in flags])
    measured = {name: ways[-1] for name, ways in libraries.WAYS.items()}
    monkeypatch.setattr(libraries, "choose", lambda path: libraries.use(measured))
    multitask.main(["--resume", "--out", str(tmp_path / "run")])
    assert libraries.choice() == started
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [line["products"] for line in lines if line["kind"] == "start"] == [started]


@pytest.mark.skipif(not libraries.AVAILABLE, reason="this PyTorch has no oneDNN")
def test_shapes_that_onednn_met_do_not_fill_the_memory():
    code = """import torch
from bench.measure import largest_memory
from kernels.cpu import libraries
weight, most = torch.ones(384, 384), []
for T in range(300, 800):
    libraries.onednn(torch.ones(T, 384), weight)
    most.append(largest_memory())
print(most[-1] - most[50])"""
    environment = {k: v for k, v in os.environ.items() if "CACHE_CAPACITY" not in k}  # this process has set them
    grown = subprocess.check_output([sys.executable, "-c", code], cwd=tiny.ROOT, env=environment)
    assert float(grown) < 150  # MB: without limits it takes some 400
