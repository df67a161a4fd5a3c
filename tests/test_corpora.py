"""Text files that somebody else wrote, as a corpus of sentences."""

import os

import pytest

from support import corpora
from support.console import UserError


def test_a_byte_order_mark_and_other_line_endings_make_no_difference(tmp_path):
    for i, text in enumerate(("one\ntwo é\n", "\ufeffone\r\ntwo é", "one\n\n \n\ufefftwo é\n")):
        (tmp_path / f"f{i}").write_bytes(text.encode())
        corpus = corpora.TextFile(tmp_path / f"f{i}", (1,))
        assert [corpus[i] for i in range(len(corpus))] == [("one",), ("two é",)]


@pytest.mark.parametrize("raw", ["café\n".encode("latin-1"), "film\n".encode("utf-16"), b"a\n\xed\xa0\x80\n"])
def test_what_is_no_utf8_is_refused(tmp_path, raw):
    (tmp_path / "f").write_bytes(raw)
    with pytest.raises(UserError, match="not UTF-8 text"):
        corpora.TextFile(tmp_path / "f", (1,))


def test_pipes_folders_and_holes_are_refused_at_once(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with open(tmp_path / "hole", "wb") as file:
        file.truncate(2**32)
    for name, reason in {"pipe": "a pipe", ".": "a folder", "hole": "more than", "none": "does not exist"}.items():
        with pytest.raises(UserError, match=reason):
            corpora.TextFile(tmp_path / name, (1,))
