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


def test_a_line_feed_far_from_the_start_makes_no_old_mac(tmp_path):
    (tmp_path / "f").write_bytes(b"x" * 999 + b"\r\nfilm\r\n")
    assert len(corpora.TextFile(tmp_path / "f", (1,))) == 2


@pytest.mark.parametrize("raw", ["café\n".encode("latin-1"), "film\n".encode("utf-16"), b"a\n\xed\xa0\x80\n"])
def test_what_is_no_utf8_is_refused(tmp_path, raw):
    (tmp_path / "f").write_bytes(raw)
    with pytest.raises(UserError, match="not UTF-8 text"):
        corpora.TextFile(tmp_path / "f", (1,))


LABELS = "".join(f"{('entailment', 'neutral', 'contradiction')[i % 3]}\tgood {i}\tbad {i}\n" for i in range(12))


@pytest.mark.parametrize(
    ("text", "columns", "says"),
    [
        (
            "good film\tbad film\t4\nold dog\tnew cat\t2.5\n",
            (2, 3),
            "column 3 of .* holds numbers or ids, not sentences",
        ),
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
        ("q0\ta b\tc d\n2020-01-10\te f\tg h\nx\ty z\tu v\n", (2, 3), "column 1 of .* holds numbers or ids"),
        ("a b\tc d\t80 %\ne f\tg h\t4/5\ni\tj\tfour\n", (2, 3), "column 3 of .* holds numbers or ids"),
        (LABELS, (2, 3), "column 1 of .* has 3 different texts in 12 lines .such as 'contra.*leave it out"),
        ("".join(f"a {i}\tb {i}\tnot alike\n" for i in range(4)), (2, 3), "column 3 of .* has 1 different texts"),
        ("".join(f"one anchor\tb {i}\n" for i in range(9)), (2, 3), "column 1 of .* has 1 different texts"),
        ('id,"text",label\n1,"a b",4\n', (1,), "is CSV, not sentences"),
        ("text;sentiment\na b;4\n", (1,), "is CSV"),
        (",Sentence,X\n0,a b,4\n", (1,), "is CSV"),
        ('17,"a b",4\n', (1,), "is CSV"),
        ('[\n  "a b",\n  "c d"\n]\n', (1,), "is JSON"),
        ('[["a b", "c d"], ["e", "f"]]', (1,), "is JSON"),
        ("<doc id='1'>\na b\n</doc>\n", (1,), "is XML"),
        ("<items><item>a b</item></items>\n", (1,), "is XML"),
        ("<p>a b</p>\n", (1,), "is a web page"),
        ("%PDF-1.4\na b\n", (1,), "is PDF"),
        ("{\\rtf1\\ansi a b}\n", (1,), "is RTF"),
        ("#!/bin/sh\nls\n", (1,), "is a program"),
        ("#!/bin/bash -e\r\nls\n", (1,), "is a program"),
        ("#!/usr/bin/env python3\nls\n", (1,), "is a program"),
        ("<html lang='en'><body>a b\n", (1,), "is a web page"),
        ("<div class='a'>\na b\n", (1,), "is a web page"),
        ('"id","qid1","question1"\r\n"0","1","How, so?"\r\n', (1,), "is CSV"),
        ('[{"text": "a b"}, {"text": "c', (1,), "is JSON"),
        ('{\n  "text": "a b",\n  "label": NaN\n}\n', (1,), "is JSON"),
        ('["a b", "c d"' + ', "e f"' * 500 + "]", (1,), "is JSON"),
        ("[" * 900 + '"a"', (1,), "is JSON"),
        ('["' + "\\u00e9" * 500 + '"]', (1,), "is JSON"),
        ('text,label\n"a\nb",1\n', (1,), "is CSV"),
        ("id \t Predicted_Sentiment \nx , 0 \n", (1,), "is a file of predictions"),
        ("\ufeff\n <!DOCTYPE html>\n<p>a b</p>\n", (1,), "is a web page, not sentences"),
        ("version https://git-lfs.github.com/spec/v1\noid 1\n", (1,), "is a pointer of Git LFS"),
        ('{"text": "a b"}\n{"text": "c d"}\n', (1,), "is JSON, not sentences"),
        ("one\rtwo\r", (1,), "ends its lines as old Macs did"),
        ("a b\ra c" * 500, (1,), "ends its lines as old Macs did"),
        ("\tid\tsentence\tsentiment\n0\tx\tgood film\t4\n", (1,), "no usable line: .* --pairs; .* --data"),
    ],
)
def test_what_holds_no_sentences_is_refused(tmp_path, text, columns, says):
    (tmp_path / "f").write_text(text)
    with pytest.raises(UserError, match=says):
        corpora.TextFile(tmp_path / "f", columns)


@pytest.mark.parametrize(
    ("text", "columns"),
    [
        ("4\n-2,5\n.5e3\nword\n", [1]),
        ("---\n- -\n***\na b\n", [1]),
        ("two and two\t4\ntwo and three\t5\n", [2]),
        ("two and two\t4\t5\ntwo and three\t5\t6\n", [2, 3]),
        ("\U0001f600\n\U0001f622 \u2764\n#metoo\n#covid19\n", []),
    ],
)
def test_numbers_or_ids_are_read_with_a_word_where_too_little_is_left_without(tmp_path, capsys, text, columns):
    (tmp_path / "f").write_text(text)
    assert len(corpora.TextFile(tmp_path / "f", (1, 2, 3))) == text.count("\n")
    said = "column {} of {} holds numbers or ids; they are read as sentences\n"
    assert capsys.readouterr().err == "".join(said.format(i, tmp_path / "f") for i in columns)


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


@pytest.mark.parametrize(
    ("text", "rows"),
    [
        ('"a ""b"" c"\t"d"\n"e" f\t"g\n', [('a "b" c', "d"), ('"e" f', '"g')]),  # quoted as CSV, and not
        ('"a b\tc d"\n', [('"a b', 'c d"')]),
        ("a b\tc\na b\td\na b\te\n", [("a b", "c"), ("a b", "d"), ("a b", "e")]),
        ("a b\tc d\n" * 9 + "e\tf\n", [("a b", "c d"), ("e", "f")]),
        ("good\tfine\nbad\tpoor\n", [("good", "fine"), ("bad", "poor")]),
        ("sentence\na b\n", [("a b",)]),
        ("label\nindex\n", [("label",), ("index",)]),
        ("<unk> a b\n<user> <url> c\n", [("<unk> a b",), ("<user> <url> c",)]),
        ("<unk>\n<user><user> c\n", [("<unk>",), ("<user><user> c",)]),
        ("<p, q> is a pair\n<!> wow\n", [("<p, q> is a pair",), ("<!> wow",)]),
        ('["I am", "you are"] are forms\nDavid,\n', [('["I am", "you are"] are forms',), ("David,",)]),
        ("Stupid;\nAvoid,\n", [("Stupid;",), ("Avoid,",)]),
        ('"No."\n"Yes," he said.\n', [('"No."',), ('"Yes," he said.',)]),
        ("%\na b\n%\nc d\n%\n", [("%",), ("a b",), ("c d",)]),
        (
            "".join(f"How do I {t} it?\tvariant {i}\n" * 1 for t in "ab" for i in range(4)),
            [(f"How do I {t} it?", f"variant {i}") for t in "ab" for i in range(4)],
        ),
        ('[ " a b " , c ]\n{ d }\n', [('[ " a b " , c ]',), ("{ d }",)]),
        ("Text, questions, labels\nyes,no\n", [("Text, questions, labels",), ("yes,no",)]),
        ("hi,kid\nok then\n", [("hi,kid",), ("ok then",)]),
        ("hi,david\nok,then\n", [("hi,david",), ("ok,then",)]),
        ("no,no,stupid\nok\n", [("no,no,stupid",), ("ok",)]),
        ("ok;stupid\n", [("ok;stupid",)]),
        ("<p> anyone here\n<table> hi\n", [("<p> anyone here",), ("<table> hi",)]),
        ("<div> hi <p> bye\n", [("<div> hi <p> bye",)]),
        ("<i><b>Great</b></i> film\nno\n", [("<i><b>Great</b></i> film",), ("no",)]),
        ("#!/bin/bash is the first line\nno\n", [("#!/bin/bash is the first line",), ("no",)]),
        ('{ "hi" } said she\nno\n', [('{ "hi" } said she',), ("no",)]),
        ('["Bob"]: hi\n["Al"]: ho\n', [('["Bob"]: hi',), ('["Al"]: ho',)]),
        ('[1] "a b"\n[laughs] "c"\n', [('[1] "a b"',), ('[laughs] "c"',)]),
        ("2020年我去了北京\n好\n", [("2020年我去了北京",), ("好",)]),
        ("a b\n***\nc d\n", [("a b",), ("***",), ("c d",)]),
        ("a b\tc d\t\ne\tf\t \t\r\n", [("a b", "c d"), ("e", "f")]),
        ("a b\t\n", [("a b",)]),
    ],
)
def test_odd_sentences_are_sentences(tmp_path, text, rows):
    (tmp_path / "f").write_text(text)
    corpus = corpora.TextFile(tmp_path / "f", (len(rows[0]),))
    assert [corpus[i] for i in range(len(corpus))] == rows


@pytest.mark.parametrize(("columns", "numbers"), [((1,), "1"), ((2, 3), "2 or 3")])
def test_how_many_sentences_a_line_needs_is_said_in_words(tmp_path, capsys, columns, numbers):
    (tmp_path / "f").write_text("a\tb\tc\td\n")
    with pytest.raises(UserError, match="no usable line"):
        corpora.TextFile(tmp_path / "f", columns)
    assert f"1 lines left out, they do not have {numbers} sentences" in capsys.readouterr().out


def test_lines_that_teach_nothing_are_counted(tmp_path, capsys):
    (tmp_path / "f").write_text("a b\tc\t4\nd e\tf\tg h\nd\te\td\n")
    corpora.TextFile(tmp_path / "f", (2, 3))
    assert capsys.readouterr().err == f"{tmp_path / 'f'}: 1 of 3 lines have one text in two columns\n"


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
