"""What flags take: argparse types, which turn a text into a value or say what is wrong with it."""

import argparse
import os
import re

LAYERS, WIDTH, BATCH, EPOCHS, THREADS = 1000, 2**16, 2**20, 10**6, 1024  # far above what anybody trains


def place(text):
    """An argparse type: the path of a file or folder, "~" expanded."""
    path = os.path.expanduser(text)
    try:
        raw = os.fsencode(path)
    except UnicodeEncodeError:
        raise argparse.ArgumentTypeError(f"{text!a:.40} is not UTF-8 text") from None
    if not text.strip():
        raise argparse.ArgumentTypeError(f"{text!r:.40} names nothing; name a file or folder, or leave the flag out")
    if path.startswith("~"):
        raise argparse.ArgumentTypeError(f"{text!r:.40} begins with no user of this machine; write ./~ for a plain ~")
    if len(raw) > 3500 or max(map(len, raw.split(b"/"))) > 255:  # longer ones, with what is appended, no disk takes
        raise argparse.ArgumentTypeError(f"{text!r:.40} is too long a path; choose a shorter one")
    return path


def positive(kind, low=None, most=2**63 - 1):
    """An argparse type: a number greater than 0, or at least `low`, and at most `most`. Args: kind, int or float."""
    what, form = ("whole number", r"[+-]?[0-9]+") if kind is int else ("number", r"[!-^`-~]+")  # not 1_0, as in Python

    def parse(text):
        try:
            if not re.fullmatch(form, text):
                raise ValueError
            value = kind(text) if len(text) < 4000 else float(text)  # `int` takes no more digits
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text!r:.40} is not a {what}") from None
        if value != value or value < (low or 0) or (low is None and value == 0):
            bound = "greater than 0" if low is None else f"at least {low}"
            raise argparse.ArgumentTypeError(f"{text:.40} is not {bound}")
        if value > most:
            raise argparse.ArgumentTypeError(f"{text:.40} is too large; {most:,} is the most")
        return value

    return parse


def fraction(text):
    """An argparse type: a number in [0, 1)."""
    value = positive(float, 0)(text)
    if value >= 1:
        raise argparse.ArgumentTypeError(f"{text:.40} is not below 1")
    return value


def fold(text):
    """An argparse type: "K/N", part K = 1 .. N of N >= 2 parts."""
    numbers = re.fullmatch(r"([0-9]{1,4})/([0-9]{1,4})", text)
    if not numbers or not 1 <= int(numbers[1]) <= int(numbers[2]) or int(numbers[2]) < 2:
        raise argparse.ArgumentTypeError(f"{text!r:.40} is not a fold such as 1/2")
    return f"{int(numbers[1])}/{int(numbers[2])}"


def share(text):
    """An argparse type: "annealed", or a number in [0, 1]."""
    return text if text == "annealed" else positive(float, 0, 1)(text)
