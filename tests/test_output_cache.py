"""Kept outputs: computed once, again where anything they came from has changed, and never needed."""

import os

import numpy as np
import pytest

from support.output_cache import cached_outputs, values_digest


@pytest.fixture
def world(tmp_path):
    """A run that holds files of a model, what a model would say, and which tasks were asked: `.asked`."""

    class World:
        def __init__(self):
            self.run, self.asked = tmp_path / "run", []
            self.values = {"sst": np.eye(5, dtype=np.float32), "sts": np.float32([1.5, -2, 0])}
            self.data = {"sst": "a", "sts": "b"}

        def outputs(self, **data):
            return cached_outputs(self.run, "dev", self.data | data, self.compute)

        def compute(self, names):
            self.asked.append(names)
            return {name: self.values[name] for name in names}

    world = World()
    best = world.run / "best"
    best.mkdir(parents=True)
    for name in ("multitask.json", "config.json", "model.safetensors", "heads.safetensors", "tokenizer.json"):
        (best / name).write_bytes(b"content")
    return world


def test_outputs_are_computed_once(world):
    for _ in range(3):
        found = world.outputs()
        assert found.keys() == world.values.keys()
        for name, values in found.items():
            assert values.dtype == np.float32
            assert np.array_equal(values, world.values[name])
    assert world.asked == [["sst", "sts"]]


def test_only_what_has_changed_is_computed_again(world):
    world.outputs()
    world.outputs(sts="c")
    assert world.asked[1:] == [["sts"]]
    for name in ("model.safetensors", "heads.safetensors", "tokenizer.json", "multitask.json", "config.json"):
        file = world.run / "best" / name
        file.write_bytes(file.read_bytes() + b"!")
        world.asked.clear()
        world.outputs(sts="c")
        assert world.asked == [["sst", "sts"]]
    (world.run / "best" / "pals.safetensors").write_bytes(b"new")
    world.outputs(sts="c")
    world.outputs(sts="c")
    assert len(world.asked) == 2


def test_a_digest_changes_with_shape_type_and_the_file_that_holds_it(world):
    zeros = np.zeros(4, np.float32), np.zeros((2, 2), np.float32), np.zeros(4, np.int32)
    assert len({values_digest(array) for array in zeros}) == 3
    world.outputs()
    (world.run / "best" / "heads.safetensors").rename(world.run / "best" / "pals.safetensors")
    world.outputs()
    assert len(world.asked) == 2


def test_other_examples_leave_what_was_kept_and_the_oldest_of_many_goes(world):
    folder = world.run / "outputs"
    for i, digest in enumerate("bcdebcdefcdef"):
        world.outputs(sts=digest)
        os.utime(folder / f"sts-dev-{digest}.safetensors", (i, i))
    assert len(world.asked) == 5
    assert {path.name for path in folder.glob("sts-*")} == {f"sts-dev-{digest}.safetensors" for digest in "cdef"}
    assert {path.name for path in folder.glob("sst-*")} == {"sst-dev-a.safetensors"}


def test_a_damaged_file_is_written_again(world):
    world.outputs()
    path = world.run / "outputs" / "sst-dev-a.safetensors"
    whole = path.read_bytes()
    for damaged in (whole[:-1], whole[:20], b"", whole[:-1] + bytes([whole[-1] ^ 1]), b"\xff" * 300):
        path.write_bytes(damaged)
        world.asked.clear()
        assert np.array_equal(world.outputs()["sst"], world.values["sst"])
        assert world.asked == [["sst"]]
        assert path.read_bytes() == whole


def test_outputs_that_cannot_be_kept_are_no_reason_to_stop(world, capsys):
    (world.run / "outputs").write_text("a file where the folder should be")
    assert world.outputs().keys() == world.values.keys()
    assert "cannot be kept" in capsys.readouterr().err
