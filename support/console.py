"""How the programs talk to people: one clear sentence for a mistake, a progress bar, a table.

Every command but `kernels.compile`, which stands below `support/`, and two in `tests/` is wrapped in `command`, so that

  * a mistake in what was asked for (`UserError`), a full disk or a forbidden folder ends with ONE sentence on
    stderr, of 500 characters at most, and exit code 2, never with a traceback;
  * Ctrl-C ends with exit code 130, also while modules are being imported (`support/interrupt.py`);
  * `| head` ends quietly;
  * anything else is a bug in the project, and does show its traceback.
"""

import argparse
import contextlib
import errno
import functools
import os
import re
import shlex
import sys
from pathlib import Path

for name in [name for name in os.environ if name.startswith("TQDM_")]:
    del os.environ[name]  # tqdm would take them for its arguments, and stop at those that make no sense
from tqdm import tqdm  # noqa: E402

afterwards = contextlib.ExitStack()  # undoes at a command's end what it changed in its process: a notebook goes on


class UserError(Exception):
    """What the user asked for cannot be done. The message names the thing and the remedy, in one sentence."""


class Parser(argparse.ArgumentParser):
    """argparse, except that a wrong flag gets one sentence instead of the whole usage text (exit code 2), that a flag
    must be written out, that a list may be given in parts: `--runs A --runs B`, and that --help tells the defaults.
    """

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **{"allow_abbrev": False} | kwargs)

    def add_argument(self, *names, **settings):
        if settings.get("nargs") == "+":
            settings["action"] = Extend
        usual, told = settings.get("default"), settings.get("help", "")
        if type(usual) in (int, float, str) and usual not in ("", argparse.SUPPRESS) and "default" not in told:
            settings["help"] = f"{told} (default: %(default)s)".lstrip()
        return super().add_argument(*names, **settings)

    def parse_known_args(self, args=None, namespace=None):
        for text in sys.argv[1:] if args is None else args:
            if "\0" in text:  # from a config.json: a command line cannot hold it, nor can the name of a file
                raise UserError(f"{text!r:.100} holds a NUL byte; leave it out")
        return super().parse_known_args(args, namespace)

    def _get_option_tuples(self, option_string):  # of argparse, which splits "-hm, a film" into -h and its value
        return []

    def error(self, message):
        if message.endswith(("expected one argument", "expected at least one argument")):
            flag = message.removeprefix("argument ").partition(":")[0].partition("/")[0]
            message += f" (where it begins with a hyphen, write {flag}=...)"
        if re.match("unrecognized arguments: -[^-]", message) and any(
            not action.option_strings for action in self._actions
        ):
            message += " (a flag begins with two hyphens; before a sentence that begins with one, put --)"
        raise UserError(f"{shortened(message, 200)}; see `python {self.prog.removeprefix('python ')} --help`")


class Extend(argparse.Action):
    """Adds to a list, or begins one in place of the default."""

    def __call__(self, parser, namespace, values, option_string=None):
        before = getattr(namespace, self.dest)
        setattr(namespace, self.dest, values if before is self.default else before + values)


def command(main):
    """Decorate `main(argv=None)`: whatever goes wrong for the user is one sentence, and exit code 2."""

    @functools.wraps(main)
    def wrapped(argv=None):
        open_standard_streams()
        try:
            for text in sys.argv if argv is None else argv:
                as_utf8(text)
            try:
                with afterwards:
                    result = main(argv)
            except SystemExit:  # of --help, for instance
                sys.stdout.flush()
                raise
            sys.stdout.flush()  # what is left in the buffer may not fit the disk, or have nobody to read it
            return result
        except UserError as error:
            message = str(error)
        except BrokenPipeError:  # the reader of our output has seen enough: `| head`
            _discard_output()
            raise SystemExit(141) from None
        except (MemoryError, RuntimeError) as error:
            if not isinstance(error, MemoryError) and not any(text in str(error) for text in OUT_OF_MEMORY):
                raise
            message = "there is not enough memory for this; ask for a smaller model, batch or file"
        except OSError as error:  # a full disk, an unwritable folder, a file that went away
            if error.errno is None:
                raise
            message = _sentence(error)
        except Exception as error:
            if type(error).__name__ != "OutOfResources":  # of Triton, which is not imported here
                raise
            message = "a kernel does not fit on this GPU (attention with large heads?); add --kernels plain"
        except KeyboardInterrupt:
            print("\nstopped", file=sys.stderr)
            raise SystemExit(130) from None
        with contextlib.suppress(OSError):  # stderr may be full or closed, too
            print(f"error: {shortened(message)}", file=sys.stderr, flush=True)
        raise SystemExit(2)

    return wrapped


OUT_OF_MEMORY = ("can't allocate memory", "out of memory")  # in the messages of torch
REMEDIES = {
    "free the space, or choose another place": ("ENOSPC", "EDQUOT", "EFBIG"),
    "choose a place that you may read and write": ("EACCES", "EPERM", "EROFS"),
    "check the name, or start again what should have written it": ("ENOENT",),
    "name a folder where a folder belongs, and a file where a file": ("EISDIR", "ENOTDIR", "EEXIST", "ENOTEMPTY"),
    "choose a shorter name": ("ENAMETOOLONG",),
    "close other programs": ("EMFILE", "ENFILE", "ENOMEM", "EAGAIN"),
}


def _sentence(error):
    """An `OSError` in one sentence, with the file and the remedy."""
    code = errno.errorcode.get(error.errno)
    remedy = next((text for text, codes in REMEDIES.items() if code in codes), "check it, and try again")
    where = error.filename
    if where is None and error.errno == errno.ENOENT:  # of os.getcwd, the one call that names nothing
        return "the folder that this was started in is gone; change to one that exists (cd), and start it there"
    if where is None:  # printing does not say where it failed
        try:
            sys.stdout.write("\n")
            sys.stdout.flush()
        except OSError:
            where = "standard output"
            _discard_output()
    return f"{where}: {error.strerror}; {remedy}" if where is not None else f"{error.strerror}; {remedy}"


def _discard_output():
    """What is left in the buffer of stdout shall not fail a second time, at the exit."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def shortened(message, most=490):
    """A message on one line, of at most `most` printable characters: its start and its end, where the remedy stands."""
    message = str(message)
    if len(message) > 10 * most:
        message = message[: 5 * most] + message[-5 * most :]
    text = "".join(c if c.isprintable() else " " if c.isspace() else ascii(c)[1:-1] for c in message)
    return text if len(text) <= most else f"{text[: most - 105]} ... {text[-100:]}"


def as_utf8(text, encoding=None):
    """What somebody typed, as it was meant. Raises UserError for bytes that are no UTF-8.

    Bytes that Python could not decode stand in the text as surrogates; in a C locale, all that are not ASCII. Args:
    encoding, with which Python decoded them, by default that of arguments.
    """
    if not any("\ud800" <= c <= "\udfff" for c in text):
        return text
    try:
        return text.encode(encoding or sys.getfilesystemencoding(), "surrogateescape").decode("utf-8")
    except (UnicodeEncodeError, UnicodeDecodeError):
        raise UserError(f"{text!a:.100} is not UTF-8 text; type it again in a terminal that writes UTF-8") from None


def open_standard_streams():
    """Something to read, write and fail into, where the program was started with a standard stream closed.

    Otherwise the next file that is opened would be the standard stream. Characters that the terminal cannot show are
    escaped; bytes that are no text wait for `as_utf8`.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the smallest free number, which is this one
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "r" if name == "stdin" else "w"))  # noqa: SIM115, open to the end
    for stream, errors in ((sys.stdin, "surrogateescape"), (sys.stdout, "backslashreplace")):
        with contextlib.suppress(AttributeError, ValueError):  # not a file, or read from already
            stream.reconfigure(errors=errors)


def typed(program, *arguments):
    """A command of this project as a shell takes it: text to copy. Args: arguments, str or Path."""
    return shlex.join(["python", program, *map(str, arguments)])


def remedy_for_missing(path, otherwise):
    """What to do about a path that does not exist, where it may be one of the project's own: data/sample, runs/..."""
    home = Path(__file__).parent.parent
    ours = (home / path).exists() and not os.path.exists(path)
    return f"start this in {home}, the project's folder" if ours else otherwise


def progress(total, initial=0, unit="step", title="", shown=True):
    """A tqdm bar on a terminal; without one (a log file, a pipe), the same line printed every 30 seconds.

    Args: total and initial in units; shown, False for none of both. Returns a tqdm object: call `.update(n)` and
    `.set_postfix_str(text)`.
    """
    settings = {"total": total, "initial": initial, "unit": unit, "desc": title, "disable": not shown}
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
