"""How the programs talk to people: one clear sentence for a mistake, a progress bar, a table.

Every command of this project is wrapped in `command`, so that

  * a mistake in what was asked for (`UserError`), a full disk or a forbidden folder ends with ONE sentence on
    stderr and exit code 2, never with a traceback;
  * Ctrl-C ends with exit code 130;
  * anything else is a bug in the project, and does show its traceback.
"""

import argparse
import functools
import os
import sys

from tqdm import tqdm


class UserError(Exception):
    """What the user asked for cannot be done. The message names the thing and the remedy, in one sentence."""


class Parser(argparse.ArgumentParser):
    """argparse, except that a wrong flag gets one sentence instead of the whole usage text (exit code 2)."""

    def error(self, message):
        raise UserError(f"{message}; see `python {self.prog} --help`")


def command(main):
    """Decorate `main(argv=None)`: report a `UserError` or an `OSError` in one sentence and exit with code 2."""

    @functools.wraps(main)
    def wrapped(argv=None):
        try:
            return main(argv)
        except UserError as error:
            message = str(error)
        except OSError as error:  # a full disk, an unwritable folder, a file that went away
            if error.errno is None:
                raise
            where = f"{error.filename}: " if error.filename else ""
            remedy = "free the space, or choose a place you can read and write"
            if isinstance(error, FileNotFoundError):
                remedy = "check the name, or start again what should have written it"
            message = f"{where}{error.strerror}; {remedy}"
        except KeyboardInterrupt:
            print("\nstopped", file=sys.stderr)
            raise SystemExit(130) from None
        print(f"error: {message}", file=sys.stderr)
        raise SystemExit(2)

    return wrapped


def progress(total, initial=0, unit="step", title=""):
    """A tqdm bar on a terminal; without one (a log file, a pipe), the same line printed every 30 seconds.

    Under torchrun only the first process shows one. Args: total and initial in units. Returns a tqdm object: call
    `.update(n)` and `.set_postfix_str(text)`.
    """
    settings = {"total": total, "initial": initial, "unit": unit, "desc": title}
    settings["disable"] = os.environ.get("RANK", "0") != "0"
    if sys.stderr.isatty():
        return tqdm(**settings, dynamic_ncols=True)
    return tqdm(**settings, file=_Lines(), mininterval=30, maxinterval=30, ascii=True, ncols=100)


class _Lines:
    """A stream for tqdm that ends each redraw with a newline, where tqdm would return the carriage."""

    def write(self, text):
        text = text.replace("\r", "").strip()
        if text:
            sys.stderr.write(text + "\n")

    def flush(self):
        sys.stderr.flush()


def table(header, rows):
    """Text of a table in Markdown. Args: header, a list of str; rows, a list of lists (floats get 3 decimals)."""
    cells = [[f"{c:.3f}" if isinstance(c, float) else str(c) for c in row] for row in [header, *rows]]
    widths = [max(len(row[i]) for row in cells) for i in range(len(header))]
    lines = ["| " + " | ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)) + " |" for row in cells]
    lines.insert(1, "|" + "|".join("-" * (w + 2) for w in widths) + "|")
    return "\n".join(lines)
