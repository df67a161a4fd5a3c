"""Imported before everything else, this makes two ends one line, also while the rest is being imported: Ctrl-C, and a
Python without the project's packages."""

import sys

PACKAGES = ("torch", "numpy", "tokenizers", "tqdm", "huggingface_hub")


def _quietly(kind, error, trace, otherwise=sys.excepthook):
    if issubclass(kind, KeyboardInterrupt):
        print("\nstopped", file=sys.stderr)
    elif issubclass(kind, ModuleNotFoundError) and error.name in PACKAGES:
        remedy = "`make train` sets up .venv, and `source .venv/bin/activate` takes it"
        print(f"error: {sys.executable} has no package {error.name}; {remedy}", file=sys.stderr)
        sys.exit(2)
    else:
        otherwise(kind, error, trace)


sys.excepthook = _quietly
