"""Lines of task files: each is used or reported, and what is used is what was written."""

import csv
import io
import random

import pytest

from support import task_files
from support.console import UserError
from support.task_files import read_rows, split
from tasks import TASKS, read_examples

HEADER = "\tid\tsentence\tsentiment\n"


def rows_of(tmp_path, text):
    path = tmp_path / "file"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return [(list(numbers), fields or fault) for numbers, fields, fault in read_rows(path)]


@pytest.mark.parametrize(
    ("line", "fields"),
    [
        ("a\tb", ["a", "b"]),
        ("a\t", ["a", ""]),
        ('"he said ""so"" twice"\tb', ['he said "so" twice', "b"]),
        ('"a\tb"\tc', ["a\tb", "c"]),
        ('""\tb', ["", "b"]),
        ('""""\tb', ['"', "b"]),
        ('a "b" c\t5"', ['a "b" c', '5"']),
        ('"a" \tb', ["a", "b"]),
        (f"{'x' * 200_000}\tb", ["x" * 200_000, "b"]),
        (f'"{"x" * 200_000}"\tb', ["x" * 200_000, "b"]),
    ],
)
def test_a_line_has_these_fields(line, fields):
    assert split(line) == (fields, None)
    assert next(csv.reader([line], delimiter="\t")) == [*fields] if len(line) < 1000 and '" ' not in line else True


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("", "blank"),
        (" \t ", "blank"),
        ("a\0\tb", "NUL"),
        ('"', "never closes"),
        ('a\t"b', "never closes"),
        ('a\t"b\tc', "never closes"),
        ('"a" b\tc', "before its end"),
        ('""a\tb', "before its end"),
    ],
)
def test_a_line_has_no_fields_for_this_reason(line, reason):
    fields, fault = split(line)
    assert fields is None
    assert reason in fault


def test_a_stray_quote_costs_its_own_line_however_many_follow(tmp_path):
    text = HEADER + '0\ta\t"Great film\t3\n1\tb\tgood\t1\n\n2\tc\tbad "\t0\n3\td\t"so ""so"""\t2\n4\te\t"\t2\n'
    found = rows_of(tmp_path, text)
    assert [numbers for numbers, _ in found] == [[i] for i in range(1, 8)]
    assert [row for _, row in found if isinstance(row, str)] == [task_files.OPEN, "it is blank", task_files.OPEN]
    assert [row[2] for _, row in found[1:] if isinstance(row, list)] == ["good", 'bad "', 'so "so"']


def test_a_field_that_spans_lines_is_read_where_it_cannot_be_mistaken(tmp_path):
    text = HEADER + '0\ta\t"two\n\nlines ""here"""\t3\n1\tb\tgood\t1\n2\tc\t"one\ttab\nno"\t1\n3\td\t"one\ntwo"\n'
    found = rows_of(tmp_path, text)
    assert found[1] == ([2, 3, 4], ["0", "a", 'two\n\nlines "here"', "3"])
    assert found[2] == ([5], ["1", "b", "good", "1"])
    assert [numbers for numbers, _ in found[3:]] == [[6], [7], [8], [9]]  # a tab inside; a column too few
    assert len(rows_of(tmp_path, HEADER + '0\ta\t"one\nx""\ty"\t3\n')) == 3  # a tab inside, behind a quote


@pytest.mark.parametrize("ending", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_endings_of_lines_and_a_byte_order_mark_make_no_difference(tmp_path, ending, mark):
    text = mark + 'id\tsentence\n"a"\t"b\tc"\nd\te\n'.replace("\n", ending)
    assert [row for _, row in rows_of(tmp_path, text)] == [["id", "sentence"], ["a", "b\tc"], ["d", "e"]]
    assert len(rows_of(tmp_path, text.removesuffix(ending))) == 3


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        ((HEADER + "0\ta\tfilm\t3\n").encode("utf-16"), "UTF-8"),
        ((HEADER + "0\ta\tfilm\t3\n").encode("utf-16-le"), "UTF-8"),
        ((HEADER + "0\ta\tfilm\t3\n").encode("utf-32-be"), "UTF-8"),
        (HEADER.encode() + "0\ta\tcafé\t3\n".encode("latin-1"), "line 2, is not UTF-8"),
        (HEADER.encode() + b"0\ta\t\xed\xa0\x80\t3\n", "line 2, is not UTF-8"),  # half of a surrogate pair
        (b'\tid\t"sentence\tsentiment\n0\ta\tfilm\t3\n', "line 1: a quote opens"),
        (b"\n" + HEADER.encode(), "line 1: it is blank"),
        (b"id\tid\tsentence\tsentiment\n", "more than one column 'id'"),
        (b"x" * (task_files.LONGEST_LINE + 5), "longer than"),
    ],
)
def test_what_is_no_task_file_is_one_sentence(tmp_path, raw, reason):
    path = tmp_path / "file"
    path.write_bytes(raw)
    with pytest.raises(UserError, match=reason) as refused:
        read_examples(path, TASKS["sst"])
    assert str(path) in str(refused.value)
    assert len(str(refused.value)) - len(str(path)) < 200


def random_line(rng, number):
    """(the text of a line, the row that its writer meant, or None where it is nothing that a writer would write)."""
    words = rng.choices(
        ["good", "film", "", 'so "so"', '"', '""', "a\tb", "\ufeff", "é", "'", "x" * 300], k=rng.randint(1, 5)
    )
    text = " ".join(words).strip() or "plain"
    row = [str(number), f"id{number}", text, str(rng.randrange(5))]
    kind = rng.random()
    if kind < 0.5:  # a proper writer
        quoting = rng.choice([csv.QUOTE_MINIMAL, csv.QUOTE_ALL])
        file = io.StringIO()
        csv.writer(file, delimiter="\t", lineterminator="", quoting=quoting).writerow(row)
        return file.getvalue(), row
    if kind < 0.7:  # somebody who knows nothing of quotes
        raw = "\t".join(row)
        return raw, row if "\t" not in text and not text.startswith('"') else None
    if kind < 0.8:
        return rng.choice(["", " ", "\t", "\t\t\t", '"', '"\t"', "\ufeff", '"""', '"x\t', 'x"\t3']), None
    raw = list("\t".join(row))
    raw.insert(rng.randrange(len(raw)), rng.choice('"\t'))  # a slip of the finger
    return "".join(raw), None


@pytest.mark.parametrize("seed", range(3))
def test_of_3000_lines_each_is_used_or_reported_and_what_is_used_is_what_was_written(tmp_path, capsys, seed):
    rng = random.Random(seed)
    lines = [random_line(rng, number) for number in range(2, 3001)]
    lines.append(("3001\tid3001\tfilm\t3", ["3001", "id3001", "film", "3"]))  # blank ones at the end are not counted
    text = "\ufeff" + HEADER + "\n".join(line for line, _ in lines) + "\n"
    found = rows_of(tmp_path, text)
    assert [number for numbers, _ in found for number in numbers] == list(range(1, 3002))
    meant = {number: row for number, (_, row) in enumerate(lines, 2)}
    used = {numbers[0]: row for numbers, row in found[1:] if isinstance(row, list) and len(row) == 4}
    for number, row in meant.items():
        if row is not None:
            assert used.pop(number) == row
    examples = read_examples(tmp_path / "file", TASKS["sst"])
    said = capsys.readouterr().err
    left_out, total = map(int, said.splitlines()[-1].split(": ")[-1].split(" lines")[0].split(" of "))
    assert total == 3000
    assert left_out + len(examples) == total
    sentences = {row[1]: row[2] for row in meant.values() if row}
    for name, sentence in zip(examples.ids, examples.sentences, strict=True):
        assert sentences.get(name, sentence) == sentence


def test_one_quote_before_any_of_the_lines_is_never_silent(tmp_path, capsys):
    rng = random.Random(1)
    path = tmp_path / "file"
    rows = [f"{i}\tid{i}\t{rng.choice(['film', 'a b c', '5'])} {i}\t{i % 5}" for i in range(60)]
    for place in range(60):
        broken = rows.copy()
        broken[place] = broken[place].replace("\t", '\t"', 2).replace('\t"', "\t", 1)
        path.write_text(HEADER + "\n".join(broken) + "\n")
        assert len(read_examples(path, TASKS["sst"])) == 59
        assert f"line {place + 2}: " in capsys.readouterr().err


def test_blank_lines_at_the_end_are_left_out_in_silence(tmp_path, capsys):
    path = tmp_path / "file"
    for end, said in (("\n\t\t\t\n \n", []), ("\n\nx\n\n", ["line 3: it is blank", "line 4: 1 col", "2 of 3 lines"])):
        path.write_text(HEADER + "0\ta\tgood\t1" + end)
        assert len(read_examples(path, TASKS["sst"])) == 1
        lines = capsys.readouterr().err.splitlines()
        assert len(lines) == len(said)
        assert all(word in line for word, line in zip(said, lines, strict=True))


def test_many_open_quotes_take_no_time(tmp_path):
    for line in ('"x', "x", '"""', '"" x', 'a\t"b'):
        assert len(rows_of(tmp_path, "id\ttext\n" + f"{line}\n" * 5_000)) > 2_500
