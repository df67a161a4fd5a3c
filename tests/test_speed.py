"""The benchmark beside the alternatives: what its second processes say, and where one of them ends early."""

import os

import pytest

from bench.speed import in_own_process
from support.console import UserError


def test_a_process_of_its_own_answers_fails_and_is_killed():
    assert in_own_process(int, "3") == 3
    with pytest.raises(ValueError, match="no number"):
        in_own_process(int, "no number")
    with pytest.raises(UserError, match=r"was killed.*--batch_size"):
        in_own_process(os._exit, 1)
