"""What flags take: argparse types, which turn a text into a value or say what is wrong with it."""

import argparse
import re

LAYERS, WIDTH, BATCH = 1000, 2**16, 2**20  # far above what anybody trains


def positive(kind, low=None, most=2**63 - 1):
    """An argparse type: a number greater than 0, or at least `low`, and at most `most`."""

    def parse(text):
        try:
            value = kind(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text!r:.40} is not a number") from None
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
