"""Imported before everything else, this makes Ctrl-C one line, too, while the rest is being imported."""

import sys


def _quietly(kind, error, trace, otherwise=sys.excepthook):
    if issubclass(kind, KeyboardInterrupt):
        print("\nstopped", file=sys.stderr)
    else:
        otherwise(kind, error, trace)


sys.excepthook = _quietly
