"""Sentences to learn from without labels, or in pairs that are alike: what `simcse.py` reads.

A corpus has len(corpus) rows, and corpus[i] is a tuple of 1, 2 or 3 sentences: one, or two that are alike, or these and
one that is unlike the first. Sentences of task files are a list in memory. A text file is never in memory: an
index of 8 bytes a line says where each line starts, and a random order of the index (8 more) is the shuffle. While the
index is made, a digest of each line (8 bytes) finds those that stand there twice. The order is a function of the seed
and the epoch, so that a run resumes on the line it was at.
"""

import array
import functools
import hashlib
import os
import re
import sys

import numpy as np

from support.aliens import alien
from support.console import UserError
from support.files import open_regular
from support.task_files import NO_SENTENCE, fields_of

LONGEST_LINE = 1 << 24  # bytes
FEW = 20  # fewer different texts in a column, each in four lines or more, are labels or the like
# names of columns, as files of pairs have them: of sentences, and of something else
SENTENCES = (
    r"(sent|sentence|text|question|query|premise|hypothesis|anchor|positive|negative|hard_neg)([ _]?(\d+|[ab]))?"
)
OTHERS = r"((pair|sentence|q)_?)?id\d?|idx|index|((gold|is)_)?(label|duplicate)s?([ _]?\d+)?|similarity|(\w+_)?score"


class TextFile:
    """A text file of any length, one example a line, with 1 to 3 sentences between tabs; 8 bytes of memory a line."""

    def __init__(self, path, columns, keep=lambda sentence: True):
        """Args: columns, how many sentences a line may have, all lines the same; keep, a function that says
        of a line's first sentence whether the line counts. A line that stands there twice counts once, for it would
        be its own negative. Raises UserError for a file without a usable line, and for one that holds no sentences.
        """
        try:
            self.file = open_regular(path)  # open as long as the corpus is in use
        except FileNotFoundError:
            raise _missing(path) from None
        self.path, self.stamp, self.columns = path, self._stamp(), None
        start = self.file.read(1000)
        if what := alien(start):
            raise UserError(f"{path} is {what}, not sentences; name a text file with one example a line")
        if b"\r" in start[:-1] and b"\n" not in start:
            raise UserError(f"{path} ends its lines as old Macs did; write others: tr '\\r' '\\n' < FILE > OTHER")
        self.file.seek(0)
        try:
            offsets, lines, marks, texts, twice, faults = self._read(columns, keep)
        except UnicodeDecodeError:
            raise UserError(f"{path} is not UTF-8 text; save it as UTF-8") from None
        if faults:
            wanted = self.columns or " or ".join(map(str, columns))
            print(f"{path}: {faults} lines left out, they do not have {wanted} sentences between tabs")
        if not offsets:
            usual = "one example a line, a tab between the sentences of --pairs; the folder of task files is --data"
            raise UserError(f"{path} has no usable line: {usual}")
        _, first = np.unique(np.frombuffer(lines, dtype=np.int64), return_index=True)
        marks = np.frombuffer(marks, dtype=np.uint8)[first]
        odd = [i for i in range(len(texts)) if 2 * np.count_nonzero(marks >> i & 1) > len(first)]
        for i, found in enumerate(texts):
            where, remedy = f"column {i + 1} of {path}", "not sentences; leave it out of the file"
            if odd == [i] and len(texts) == 3:  # pairs are left
                raise UserError(f"{where} holds numbers or ids, {remedy}")
            if i in odd:
                print(f"{where} holds numbers or ids; they are read as sentences", file=sys.stderr)
            few = len(found) < FEW and 4 * len(found) <= len(first)
            if few and all(len(text.split()) <= 3 for text in found):
                labels = f"{len(found)} different texts in {len(first)} lines (such as {min(found)!r:.60})"
                raise UserError(f"{where} has {labels}, labels perhaps, {remedy}")
        if twice:
            print(f"{path}: {twice} of {len(offsets)} lines have one text in two columns", file=sys.stderr)
        if len(first) < len(offsets):
            print(f"{path}: {len(offsets) - len(first)} lines left out, they stand in it already")
        self.offsets = np.frombuffer(offsets, dtype=np.int64)[np.sort(first)]

    def _read(self, columns, keep):
        """Sets `columns` and `digest`. Returns (where the lines start; a digest of each; a byte of each, bit i of which
        marks a column i that is no sentence; the first different texts of each column; how many lines have a text
        twice; how many cannot be used).
        """
        offsets, lines, marks = array.array("q"), array.array("q"), bytearray()
        texts, twice, faults, start, digest = [], 0, 0, 0, hashlib.sha256()
        while line := self.file.readline(LONGEST_LINE):
            if len(line) == LONGEST_LINE:
                raise UserError(f"{self.path} has a line of more than {LONGEST_LINE:,} bytes; one sentence a line")
            digest.update(line)
            row = self.parse(line)
            if all(row) and len(row) in columns and len(row) == (self.columns or len(row)):
                if self.columns is None and self._names_columns(row):
                    print(f"{self.path}: {' / '.join(row)!r:.60} left out, the names of columns")
                elif keep(row[0]):
                    offsets.append(start)
                    lines.frombytes(hashlib.blake2b("\t".join(row).encode(), digest_size=8).digest())
                    twice += len(set(row)) < len(row)
                    marks.append(sum(bool(NO_SENTENCE.fullmatch(part)) << i for i, part in enumerate(row)))
                    texts = texts or [set() for _ in row]
                    for found, part in zip(texts, row, strict=True):
                        if len(found) < FEW:
                            found.add(part)
                self.columns = len(row)
            elif line.strip():
                faults += 1
            start += len(line)
        self.digest = digest.hexdigest()
        return offsets, lines, marks, texts, twice, faults

    def _names_columns(self, row):
        """Whether a row is a header. Raises UserError for one that names a column of something else than sentences."""
        others = [part for part in row if len(row) > 1 and re.fullmatch(OTHERS, part, re.IGNORECASE)]
        if not all(part in others or re.fullmatch(SENTENCES, part, re.IGNORECASE) for part in row):
            return False
        if others:
            raise UserError(f"column {others[0]!r} of {self.path} holds no sentences; leave it out of the file")
        return True

    def _stamp(self):
        found = os.fstat(self.file.fileno())
        return found.st_size, found.st_mtime_ns

    @staticmethod
    def parse(line):
        """bytes -> a tuple of str. Quotes around the fields of a line with tabs are those of a task file.

        Tabs at the end are left out, as spreadsheets write them.
        """
        text = line.decode().replace("\0", "").lstrip("\ufeff").rstrip()
        fields = fields_of(text)
        if len(fields) == 1 or any("\t" in field for field in fields):
            fields = text.split("\t")
        return tuple(field.strip() for field in fields)

    def __len__(self):
        return len(self.offsets)

    def __getitem__(self, i):
        """Raises UserError where another program has changed the file."""
        if (stamp := self._stamp()) != self.stamp:
            self.file.seek(0, os.SEEK_END)  # and drops what is buffered
            self.file.seek(0)
            if hashlib.file_digest(self.file, "sha256").hexdigest() != self.digest:
                raise UserError(f"{self.path} has changed while it was in use; restore it and --resume, or start anew")
            self.stamp = stamp
        self.file.seek(self.offsets[i])
        return self.parse(self.file.readline())


def _missing(path):
    return UserError(f"{path} does not exist; name a text file with one example a line")


def check_named(args, tasks):
    """Raises UserError where the flags of `simcse.py` name a file that is not there. Args: tasks, `tasks.TASKS`."""
    path = args.corpus or args.pairs
    if path and path not in tasks and not os.path.exists(path):
        raise _missing(path)


def open_corpus(args, tasks, read):
    """What the flags of `simcse.py` ask for: a `TextFile`, or a list of tuples of sentences.

    Args: tasks, `tasks.TASKS`; read, a function (task, split) -> `Examples`. Raises UserError for fewer rows than a
    batch has.
    """
    keep = lambda sentence: not args.normalize_length or len(sentence) > args.normalize_length  # noqa: E731
    if args.corpus:
        corpus = TextFile(args.corpus, (1,), keep)
    elif args.pairs and args.pairs not in tasks:
        corpus = TextFile(args.pairs, (2, 3), keep)
    elif args.pairs:
        task = tasks[args.pairs]
        if not task.pair or task.classes != 2:
            raise UserError(f"--pairs {args.pairs}: the task has no pairs that are alike; use para, or a file")
        found = read(task, "train")
        pairs = zip(found.sentences, found.second_sentences, found.labels, strict=True)
        corpus = [(a, b) for a, b, label in pairs if label == 1 and keep(a)]
    else:
        dev = set(_sentences(tasks, read, "dev"))
        corpus = [(s,) for s in _sentences(tasks, read, "train") if keep(s) and s not in dev]
    corpus = _sample(corpus, args.max_sentences)
    if len(corpus) < args.batch_size:
        few = f"the corpus has {len(corpus)} usable lines, fewer than --batch_size {args.batch_size}"
        raise UserError(f"{few}; give a smaller --batch_size, or more lines")
    return corpus


def _sentences(tasks, read, split):
    """All sentences of a split of all tasks, in order, each once: one that occurs twice would be its own negative."""
    found = [read(task, split) for task in tasks.values()]
    return dict.fromkeys(s for examples in found for s in examples.sentences + (examples.second_sentences or []))


def _sample(corpus, n):
    """n rows of a corpus at random, always the same; all of them where n is None."""
    if n is None or n >= len(corpus):
        return corpus
    rows = np.sort(np.random.default_rng(0).permutation(len(corpus))[:n])
    if not isinstance(corpus, TextFile):
        return [corpus[i] for i in rows]
    corpus.offsets = corpus.offsets[rows]
    return corpus


def fingerprint(corpus):
    """A short text that changes with any line of a corpus."""
    if isinstance(corpus, TextFile):
        return corpus.digest[:16]
    return hashlib.sha256("\0".join("\t".join(row) for row in corpus).encode()).hexdigest()[:16]


@functools.lru_cache(maxsize=1)
def shuffled(n, seed, epoch):
    """A random order of n lines, (n,) int64: the same for the same arguments."""
    return np.random.default_rng([seed, epoch]).permutation(n)


class CorpusPlan:
    """All steps of a run on n rows, used like `sampling.Plan`. An epoch is as many full batches as n rows make."""

    def __init__(self, n, batch_size, epochs, seed):
        self.n, self.batch_size, self.epochs, self.seed = n, batch_size, epochs, seed
        self.epoch_steps = n // batch_size

    def __len__(self):
        return self.epochs * self.epoch_steps

    def steps(self, done=0):
        """The steps after the first `done`: (epoch from 1, indices of the rows of a batch)."""
        for step in range(done, len(self)):
            epoch, place = divmod(step, self.epoch_steps)
            order = shuffled(self.n, self.seed, epoch)
            yield epoch + 1, order[place * self.batch_size : (place + 1) * self.batch_size].tolist()
