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


@pytest.mark.parametrize(
    ("text", "columns", "says"),
    [
        ("good film\tbad film\t4\nold dog\tnew cat\t2.5\n", (2, 3), "column 3 of .* holds numbers, not sentences"),
        (
            "sentence1\tsentence2\tsimilarity\ngood film\tbad film\t4\n",
            (2, 3),
            "column 'similarity' of .* no sentences",
        ),
        ("gold_label\tsentence1\tsentence2\nneutral\ta b\tc d\n", (2, 3), "column 'gold_label' of .* no sentences"),
        ("\ufeffpairID\tPremise\tHypothesis\nx1\ta b\tc d\n", (2, 3), "column 'pairID' of .* no sentences"),
        ("premise\thypothesis\tlabel\na b\tc d\tyes\n", (2, 3), "column 'label' of .* no sentences"),
        ("Sentence A\tSentence B\tlabels\na b\tc d\tyes\n", (2, 3), "column 'labels' of .* no sentences"),
        ("text_1\ttext_2\trelatedness_score\na b\tc d\t80 %\n", (2, 3), "'relatedness_score' of .* no sentences"),
        ("0\tgood film\tbad film\n1\told dog\tnew cat\nx\ty\tz\n", (2, 3), "column 1 of .* holds numbers"),
        ("4\n-2,5\n.5e3\nword\n", (1,), "column 1 of .* holds numbers"),
        ("\ufeff\n <!DOCTYPE html>\n<p>a b</p>\n", (1,), "is a web page, not sentences"),
        ("version https://git-lfs.github.com/spec/v1\noid 1\n", (1,), "is a pointer of Git LFS"),
        ('{"text": "a b"}\n{"text": "c d"}\n', (1,), "is JSON, not sentences"),
        ("\tid\tsentence\tsentiment\n0\tx\tgood film\t4\n", (1,), "no usable line: .* --pairs; .* --data"),
    ],
)
def test_what_holds_no_sentences_is_refused(tmp_path, text, columns, says):
    (tmp_path / "f").write_text(text)
    with pytest.raises(UserError, match=says):
        corpora.TextFile(tmp_path / "f", columns)


def test_lines_that_stand_there_twice_and_names_of_columns_are_left_out(tmp_path, capsys):
    (tmp_path / "f").write_text("sent0\tsent1\na 1\tb\nc\td\na 1 \tb\nc\te\nc\td\n")
    corpus = corpora.TextFile(tmp_path / "f", (2, 3))
    assert [corpus[i] for i in range(len(corpus))] == [("a 1", "b"), ("c", "d"), ("c", "e")]
    said = capsys.readouterr().out
    assert "'sent0 / sent1' left out, the names of columns" in said
    assert "2 lines left out, they stand in it already" in said


@pytest.mark.parametrize("header", ["Sentence 1\tSentence 2", "sent0\tsent1", "premise\thypothesis", "text_a\tTEXT_B"])
def test_only_known_names_of_columns_are_left_out(tmp_path, header):
    (tmp_path / "f").write_text(f"{header}\ngood\tfine\nlabel\ttag\n")
    corpus = corpora.TextFile(tmp_path / "f", (2, 3))
    assert [corpus[i] for i in range(len(corpus))] == [("good", "fine"), ("label", "tag")]
    for first in ("good\tfine", "label\ttag", "sentence\tphrase", "id\tego", "text\twording"):
        (tmp_path / "f").write_text(f"{first}\nbad\tpoor\n")
        assert corpora.TextFile(tmp_path / "f", (2, 3))[0] == tuple(first.split("\t"))


def test_a_file_that_changes_in_use_is_refused_and_one_that_was_touched_is_not(tmp_path):
    path = tmp_path / "f"
    path.write_text("one\ntwo\n")
    corpus = corpora.TextFile(path, (1,))
    assert corpus[0] == ("one",)
    os.utime(path, (0, 0))
    assert corpus[1] == ("two",)
    for text in (b"", b"one\nsix\n", "one\ntwo\n".encode("utf-16")):
        path.write_bytes(text)
        with pytest.raises(UserError, match="has changed while it was in use"):
            corpus[0]
    path.write_text("one\ntwo\n")
    assert corpus[0] == ("one",)
    (tmp_path / "other").write_text("an editor's new file")
    (tmp_path / "other").rename(path)
    assert corpus[1] == ("two",)


def test_pipes_folders_and_holes_are_refused_at_once(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with open(tmp_path / "hole", "wb") as file:
        file.truncate(2**32)
    for name, reason in {"pipe": "a pipe", ".": "a folder", "hole": "more than", "none": "does not exist"}.items():
        with pytest.raises(UserError, match=reason):
            corpora.TextFile(tmp_path / name, (1,))
