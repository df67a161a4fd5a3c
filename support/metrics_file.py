"""`metrics.jsonl` of a run: one JSON object a line. Lines that somebody else wrote into it stay."""

import contextlib
import json
import sys
from pathlib import Path

from support.console import UserError
from support.files import naming, open_regular, parse_json, replacing

LONGEST_LINE = 1 << 20  # bytes


def append(folder, **values):
    """Adds a line to `metrics.jsonl`. Each line has a `step`. Args: values, None for a metric that is not defined."""
    path = Path(folder) / "metrics.jsonl"
    with naming(path), open(path, "a", encoding="utf-8") as file:
        file.write(json.dumps(values, allow_nan=False) + "\n")


def read(folder):
    """The lines of `metrics.jsonl`, a list of dicts, without the metrics that are not defined.

    Other lines, damaged or somebody else's, are left out and counted on stderr. Nothing is said of a last line without
    its end: a kill cut it short.
    """
    found = list(_lines(folder))
    others = sum(not line and (raw.endswith(b"\n") or len(raw) == LONGEST_LINE) for raw, line in found)
    if others:
        print(f"{Path(folder) / 'metrics.jsonl'}: {others} lines without metrics left out", file=sys.stderr)
    return [line for _, line in found if line]


def _lines(folder):
    """The lines of `metrics.jsonl`: (bytes, the metrics in them: {} for JSON without any, None for what is no JSON)."""
    path = Path(folder) / "metrics.jsonl"
    if not path.exists():
        return
    with open_regular(path) as file:
        while raw := file.readline(LONGEST_LINE):
            line = None
            with contextlib.suppress(UserError, UnicodeDecodeError):
                line = {name: x for name, x in parse_json(raw.decode(), path).items() if x is not None}
                line = line if _is_ours(line) else {}
            yield raw, line
            if len(raw) == LONGEST_LINE:  # what follows it is no line either
                return


def _is_ours(line):
    """Whether a dict is a line of metrics."""
    kinds = {"kind": str, "step": int, "epoch": int, "soup": dict, "products": dict}
    fits = all(type(x) is kinds.get(name, type(x)) for name, x in line.items()) and line.keys() >= {"kind", "step"}
    numbers = [x for name, x in line.items() if kinds.get(name, int) is int]
    return fits and all(type(x) in (int, float) and abs(x) < 1e300 for x in numbers)


def rewind(folder, step):
    """Drops what was recorded after `step`: the run goes on from there, and will record it again.

    What others wrote stays; a last line that a kill cut short does not. Raises UserError for an endless line.
    """
    path, kept = Path(folder) / "metrics.jsonl", []
    for raw, line in _lines(folder):
        if len(raw) == LONGEST_LINE:
            raise UserError(f"{path} has a line of more than {LONGEST_LINE:,} bytes; move it away, and resume again")
        if (raw.endswith(b"\n") or line is not None) and (line or {}).get("step", 0) <= step:
            kept.append(raw.rstrip(b"\n") + b"\n")
    with replacing(path) as file:
        file.write(b"".join(kept))
