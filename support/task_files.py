"""The lines of a task file: each is read, or there is a reason why not, with its number.

A task file is tab-separated and quoted as CSV is (RFC 4180): a field that starts with a quote ends with one, and a
quote inside is written twice. But sentences that people wrote hold stray quotes. A usual CSV reader takes such a quote
for the start of a field that goes on over the next lines, and swallows them without a word. Here each line is decided
by itself, so a stray quote costs one line.

A field may still span lines, as CSV writers write it. It is read as one only where it cannot be mistaken: it has no tab
in it (so none of its lines is a row of its own), a quote closes it in its place, and the row has all its columns.
"""

import collections
import re
import sys
from pathlib import Path

from support.aliens import alien
from support.console import UserError, remedy_for_missing
from support.files import open_regular, read_text, target_of

LONGEST_LINE = 1 << 24  # bytes
MOST_LINES, LONGEST_FIELD = 100, 1 << 20  # lines and characters of a field that spans lines
QUOTED = re.compile(r'"((?:[^"]++|"")*+)(" *(?=\t|\Z))?')  # the closing quote stands before a tab or at the end
ID = re.compile(r"[\d.]+|(?=\D*\d)[0-9a-z]{6,}")  # a number, or one word as ids are
# no sentence: ASCII signs and digits alone, or one word with a digit in it, such as an id, a date, a number; no hashtag
NO_SENTENCE = re.compile(r"[ -@[-`{-~]*|(?!#)[!-/:-~]*+\d[!-~]*")
OPEN, BLANK = "a quote opens a field and never closes it", "it is blank"


def read_columns(path, needed, fault_of, note=""):
    """The columns of a task file that are needed, as lists of str, without the lines that cannot be used.

    Those are reported on stderr, but for blank ones at the end. Args: needed, names of columns; fault_of, a function
    that gets a row's needed values and says why it cannot be used, or None; note, what follows from a line left out.
    Raises UserError where the file does not exist, is no UTF-8 text, lacks a needed column, or has no usable row.
    """
    rows, faults, used, seen = [], [], 0, 0
    try:
        lines = read_rows(path)
        header = header_of(lines, path, needed)
        places = [header.index(column) for column in needed]
        for numbers, fields, fault in lines:
            if not fault and len(fields) != len(header):
                fault = f"{len(fields)} columns instead of {len(header)}" + ", it ends with a tab" * (not fields[-1])
            values = [] if fault else [fields[place].strip() for place in places]
            if fault := fault or fault_of(values):
                faults.append((numbers, fault))
            else:
                rows.append(values)
                used += len(numbers)
                seen = len(faults)
    except (FileNotFoundError, NotADirectoryError):
        raise _missing(path) from None
    while len(faults) > seen and faults[-1][1] == BLANK:
        faults.pop()
    report(path, faults, used, note)
    if not rows:
        raise UserError(f"{path} has no usable row; see the formats in the README")
    return list(map(list, zip(*rows, strict=True)))


def check_header(path, needed):
    """Raises UserError as `read_columns` does, as far as the first line tells."""
    try:
        header_of(read_rows(path), path, needed)
    except (FileNotFoundError, NotADirectoryError):
        raise _missing(path) from None


def _missing(path):
    """The UserError for a task file that is not there. Raises that of `target_of` for a link to nothing."""
    target_of(path)
    remedy = "name a folder of task files with --data; `make data` makes one (FLAGS=--quora_14k for Quora-14k)"
    return UserError(f"{path} does not exist; {remedy_for_missing(path, remedy)}")


def path_of(args, task, split, usual):
    """The task file that the flags of a run name, --TASK_SPLIT or else `usual`. Raises UserError where they name none.

    Args: task, its name.
    """
    given = getattr(args, f"{task}_{split}")
    if given and not Path(given).exists():
        raise UserError(f"--{task}_{split} {given} does not exist; name the file by its path")
    return Path(given or usual)


def read_rows(path):
    """The rows of a UTF-8 text file, with or without a byte order mark; the first is the header.

    Yields (numbers, fields, fault): the numbers of the lines that the row takes, from 1, a range; and either its
    fields, a list of str, or the reason why it cannot be read, a str. Every line is in one of the rows, in order.
    Raises UserError for a file that is no such text.
    """
    lines = _Ahead(_lines(path))
    number, columns = 1, None
    while (line := lines.peek(0)) is not None:
        fields, fault = split(line)
        count = 1
        if fault == OPEN and columns and (spanning := _spanning(lines, columns)):
            (count, fields), fault = spanning, None
        columns = columns or len(fields or ())
        yield range(number, number + count), fields, fault
        lines.drop(count)
        number += count


def sentences_of(line):
    """What stands between the tabs of a line, without what is empty: a list of str."""
    return [part.strip() for part in line.split("\t") if part.strip()]


def read_sentences(file, tasks):
    """The sentences of each line of a UTF-8 file or pipe, or of standard input ("-"); empty lines are left out.

    They may be quoted as in task files. Args: tasks, `tasks.TASKS`. Raises UserError for a file of another kind.
    """
    name = "standard input" if file == "-" else f"--file {file}"
    try:
        if file == "-":
            text = sys.stdin.buffer.read().decode("utf-8-sig")
        elif Path(file).is_fifo():  # such as <(...) of a shell
            text = Path(file).read_bytes().decode("utf-8-sig")
        else:
            text = read_text(file)
    except UnicodeDecodeError:
        raise UserError(f"{name} is not UTF-8 text; save it as UTF-8") from None
    rows = [[field.replace("\t", " ").strip() for field in fields_of(line)] for line in re.split("\r\n?|\n", text)]
    rows = [row for row in ([field for field in row if field] for row in rows) if row]
    if not rows:
        raise UserError(f"{name} holds no sentence; write one a line")
    if what := alien(text[:1000].encode()):
        raise UserError(f"{name} is {what}, not sentences; write one a line")
    pairs = [row for row in rows if len(row) == 2]
    for place, column in enumerate(zip(*pairs, strict=True), 1):
        if len(pairs) > 1 and all(map(ID.fullmatch, column)):
            print(f"column {place} of {name} holds numbers or ids; they are read as sentences", file=sys.stderr)
    for task in tasks.values():
        if {"id", *task.columns} <= {*rows[0]}:
            remedy = f"`multitask.py --eval_only --out RUN --{task.name}_test FILE` writes predictions of one"
            raise UserError(f"{name} is a task file; {remedy}")
    return rows


def fields_of(line):
    """The fields of one line, a list of str; where its quotes are none of a task file, what stands between its tabs."""
    fields, fault = split(line)
    return line.rstrip("\r\n").split("\t") if fault else fields


def split(line):
    """One line, or the lines that a quoted field spans, to its fields. Returns (fields, None) or (None, reason)."""
    line = line.rstrip("\r\n")
    if not line.strip():
        return None, BLANK
    if "\0" in line:
        return None, "it holds a NUL byte"
    fields, place = [], 0
    while place <= len(line):
        if line.startswith('"', place):
            quoted = QUOTED.match(line, place)
            if not quoted[2]:
                return None, OPEN if quoted.end() == len(line) else "a quote closes a field before its end"
            fields.append(quoted[1].replace('""', '"'))
            place = quoted.end() + 1
        else:
            end = line.find("\t", place)
            end = len(line) if end < 0 else end
            fields.append(line[place:end])
            place = end + 1
    return fields, None


def _spanning(lines, columns):
    """The row of the next lines, whose first leaves a quoted field open: (how many lines, fields), or None."""
    joined = lines.peek(0)
    for count in range(1, MOST_LINES):
        line = lines.peek(count)
        if line is None or "\t" in line.partition('"')[0]:
            return None
        joined += line
        fields, fault = split(joined) if '"' in line else (None, OPEN)
        if fields is not None:
            mistakable = any("\t" in field and ("\n" in field or "\r" in field) for field in fields)
            return None if mistakable or len(fields) != columns else (count + 1, fields)
        if fault != OPEN or len(joined) > LONGEST_FIELD:
            return None
    return None


class _Ahead:
    """An iterator in which one can look ahead."""

    def __init__(self, items):
        self.items, self.seen = iter(items), collections.deque()

    def peek(self, i):
        """The item after i others, or None."""
        while len(self.seen) <= i:
            self.seen.append(next(self.items, None))
        return self.seen[i]

    def drop(self, n):
        for _ in range(n):
            self.seen.popleft()


def _lines(path):
    """The lines of a text file, each with its ending."""
    with open_regular(path) as file:
        line = file.readline(LONGEST_LINE)
        if line.startswith((b"\xff\xfe", b"\xfe\xff")) or b"\0" in line:
            raise UserError(f"{path} is not UTF-8 text (UTF-16, perhaps); save it as UTF-8")
        if not line.endswith(b"\n") and b"\r" in line:  # nothing but carriage returns, as old Macs wrote
            rest = iter(line.splitlines(keepends=True))
            line = next(rest)
        else:
            rest = iter(lambda: file.readline(LONGEST_LINE), b"")
        number = 1
        while line:
            if len(line) == LONGEST_LINE and not line.endswith(b"\n"):
                raise UserError(f"{path}, line {number}, is longer than {LONGEST_LINE:,} bytes; name a task file")
            try:
                yield line.decode().lstrip("\ufeff")
            except UnicodeDecodeError:
                raise UserError(f"{path}, line {number}, is not UTF-8 text; save the file as UTF-8") from None
            line, number = next(rest, b""), number + 1


def header_of(rows, path, needed):
    """Takes the header off `read_rows`: the names of the columns. Raises UserError where a needed one is missing."""
    _, header, fault = next(rows, (None, [], None))
    if fault:
        raise UserError(f"{path}, line 1: {fault}, and the names of the columns should stand there")
    header = [name.strip() for name in header]
    for column in needed:
        if header.count(column) != 1:
            found = "no column" if column not in header else "more than one column"
            raise UserError(f"{path} has {found} {column!r} (it has {header!s:.100}); see the formats in the README")
    return header


def id_fault(name):
    """Why an id cannot stand in a prediction file, in lines of `<id> , <value> `; None where it can."""
    if name.splitlines() not in ([], [name]) or "\t" in name or f"{name} , ".index(" , ") != len(name):
        return f"the id {name!r:.40} holds a line break, a tab or ' , '"
    return None


def report(path, faults, used, note=""):
    """Says on stderr which lines are left out, the first five with the reason, the others at least with their numbers.

    Args: faults, a list of (numbers, reason), as `read_rows` numbers them; used, how many lines are not left out.
    """
    for numbers, reason in faults[:5]:
        print(f"{path}, {_spans([numbers])[0]}: {reason}", file=sys.stderr)
    spans = _spans([numbers for numbers, _ in faults[5:]])
    for i in range(0, len(spans), 10):
        print(f"{path}, {', '.join(spans[i : i + 10])}: left out, too", file=sys.stderr)
    if faults:
        left_out = sum(len(numbers) for numbers, _ in faults)
        print(f"{path}: {left_out} of {left_out + used} lines left out{note}", file=sys.stderr)


def report_doubles(path, ids):
    """Says on stderr where ids of a file are not its own: in a prediction file nobody knows whose the lines are."""
    counts = collections.Counter(ids)
    if doubles := [name for name in ids if counts[name] > 1]:
        said = f"{len(doubles)} of {len(ids)} examples share their id with others ({doubles[0]!r:.40})"
        print(f"{path}: {said}; their predictions cannot be told apart", file=sys.stderr)


def report_constant(path, labels):
    """Says on stderr where labels, an array (n,), do not differ: then there is no correlation with them."""
    if (labels == labels[0]).all():
        said = f"its {len(labels)} labels are all {labels[0]:g}" if len(labels) > 1 else "it has one label"
        print(f"{path}: {said}; Pearson's r is not defined there, and counts as 0", file=sys.stderr)


def report_known(name, train, dev):
    """Says on stderr where most dev examples are training examples, too. Args: name, of the task; two `Examples`."""
    texts = lambda these: list(zip(these.sentences, these.second_sentences or these.sentences, strict=True))  # noqa: E731
    known = set(texts(train))
    count = sum(text in known for text in texts(dev))
    if count > len(dev) / 2:
        said = f"{count} of {len(dev)} dev examples of {name} are training examples, too"
        print(f"{said}: what they score says little about new ones", file=sys.stderr)


def _spans(ranges):
    """Ranges of line numbers in words, neighbours joined: ["line 3", "lines 5-9"]."""
    joined = []
    for numbers in ranges:
        if joined and joined[-1][1] == numbers.start:
            joined[-1][1] = numbers.stop
        else:
            joined.append([numbers.start, numbers.stop])
    return [f"line {a}" if b == a + 1 else f"lines {a}-{b - 1}" for a, b in joined]
