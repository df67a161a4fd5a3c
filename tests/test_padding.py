"""How much of a batch is padding, and its picture."""

import os
import runpy

import numpy as np
import pytest

from bench import padding
from support import figures, places
from support.console import UserError


def test_padding_is_counted_in_whole_batches_or_in_the_one_that_there_is():
    lengths = np.array([1, 3, 2, 2, 9])
    assert padding.padding_share(lengths, 2) == pytest.approx(1 - 8 / 10)
    assert padding.padding_share(lengths[:2], 32) == pytest.approx(1 - 4 / 6)


def test_the_picture_is_drawn_with_any_name_and_whatever_backend_is_asked_for(tmp_path, monkeypatch):
    monkeypatch.setenv("MPLBACKEND", "junk")
    runpy.run_path(figures.__file__)
    assert os.environ["MPLBACKEND"] == "agg"
    pytest.importorskip("matplotlib")
    padding.draw(np.array([3, 1, 2]), tmp_path / "x.PNG")
    places.check_figure("--out", str(tmp_path / "x.PNG"))  # ours, which may be drawn again
    figures.figure(1).savefig(tmp_path / "own.png")
    with pytest.raises(UserError, match="no earlier output"):
        places.check_figure("--out", str(tmp_path / "own.png"))
