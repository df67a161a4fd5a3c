"""Which library multiplies: both give the same numbers, what was measured is kept, and a state carries it."""

import json

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
    path, wanted = tmp_path / "products.json", dict.fromkeys(libraries.PRODUCTS, "mkl")
    calls = []
    monkeypatch.setattr(libraries, "measure", lambda: calls.append(1) or dict(wanted))
    for _ in range(2):
        libraries.use(libraries.usual())
        libraries.choose(path)
        assert libraries.choice() == wanted
    assert len(calls) == libraries.AVAILABLE


@pytest.mark.parametrize("damage", ["", "[]", "{", '{"x": 1}', "\xff"])
def test_a_damaged_file_is_measured_again_and_a_folder_that_cannot_be_written_does_not_matter(tmp_path, damage):
    path = tmp_path / "products.json"
    path.write_text(damage, encoding="latin-1")
    libraries.choose(path)
    assert all(value in libraries.LIBRARIES for value in libraries.choice().values())
    assert not libraries.AVAILABLE or isinstance(json.loads(path.read_text()), dict)
    libraries.choose(tmp_path / "nowhere" / "products.json")


def test_a_choice_of_elsewhere_is_taken_as_far_as_it_makes_sense():
    libraries.use({"forward wide": "a library of the future", "dx wide": "mkl", "no product": "mkl"})
    assert libraries.choice()["dx wide"] == "mkl" and "no product" not in libraries.choice()
    assert libraries.choice()["forward wide"] in libraries.LIBRARIES


def test_measuring_answers_for_every_product():
    found = libraries.measure(T=8, rounds=1)
    assert set(found) == set(libraries.PRODUCTS) and set(found.values()) <= set(libraries.LIBRARIES)


def test_a_resumed_run_goes_on_with_the_libraries_of_its_state(tmp_path, monkeypatch):
    """Whatever the processor at hand would choose: another choice would round otherwise."""
    started = dict.fromkeys(libraries.PRODUCTS, "mkl")
    monkeypatch.setattr(libraries, "choose", lambda path: libraries.use(started))
    folder, files = tiny.folder(tmp_path / "bert"), tiny.task_files(tmp_path / "data")
    flags = ["--bert", folder, "--data", files, "--out", tmp_path / "run", "--epochs", "1", "--batch_size", "8"]
    with monkeypatch.context() as patch:
        patch.setattr(training_run, "Interrupt", tiny.StopAfter(2))
        with pytest.raises(SystemExit):
            multitask.main([str(flag) for flag in flags])
    measured = dict.fromkeys(libraries.PRODUCTS, "onednn")
    monkeypatch.setattr(libraries, "choose", lambda path: libraries.use(measured))
    multitask.main(["--resume", "--out", str(tmp_path / "run")])
    assert libraries.choice() == started
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [line["products"] for line in lines if line["kind"] == "start"] == [started]
