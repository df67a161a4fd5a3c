"""A small share of `make fuzz`."""

from types import SimpleNamespace

import pytest
from fuzz import fuzz, main

from bench import measure


def test_two_thousand_damaged_inputs_bring_nothing_but_sentences():
    counts, findings = fuzz(2_000, seed=1)
    assert sum(counts.values()) == 2_000
    assert findings == []


def test_flags_are_checked(refused):
    refused(main, ["--inputs", "0"], "--inputs: 0 is not greater than 0", "python tests/fuzz.py --help")


def test_a_reader_that_fails_otherwise_is_found(monkeypatch):
    monkeypatch.setattr("fuzz.read_options", lambda place: 1 / 0)
    counts, findings = fuzz(50, seed=0)
    assert counts["multitask.json"] == len(findings) > 0
    assert findings[0][1].startswith("ZeroDivisionError")


@pytest.mark.parametrize(("platform", "said"), [("linux", 3 * 2**10), ("darwin", 3 * 2**20)])
def test_the_largest_memory_is_in_megabytes_on_every_system(monkeypatch, platform, said):
    monkeypatch.setattr(measure.resource, "getrusage", lambda who: SimpleNamespace(ru_maxrss=said))
    monkeypatch.setattr(measure.sys, "platform", platform)
    assert measure.largest_memory() == 3
