"""A small share of `make fuzz`."""

from fuzz import fuzz


def test_two_thousand_damaged_inputs_bring_nothing_but_sentences():
    counts, findings = fuzz(2_000, seed=1)
    assert sum(counts.values()) == 2_000
    assert findings == []


def test_a_reader_that_fails_otherwise_is_found(monkeypatch):
    monkeypatch.setattr("fuzz.read_options", lambda place: 1 / 0)
    counts, findings = fuzz(50, seed=0)
    assert counts["multitask.json"] == len(findings) > 0
    assert findings[0][1].startswith("ZeroDivisionError")
