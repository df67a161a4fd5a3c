"""The text of a table of results: means and deviations over seeds, and where the numbers come from."""

import time
from pathlib import Path
from statistics import mean, stdev

from support import files, places
from support.console import UserError, remedy_for_missing, table
from support.rows import BASE_FLAGS, PRESETS


def spread(values):
    """Text of a mean and its standard deviation; of a single value only that; of none, nothing."""
    if not values:
        return ""
    return f"{mean(values):.3f}" + (f" ± {stdev(values):.3f}" if len(values) > 1 else "")


def cells(metrics):
    """`spread` of each metric, "not run yet" for the last where it has no value. Args: metrics, {name: values}."""
    *others, score = map(spread, metrics.values())
    return [*others, score or "not run yet"]


def origin(records):
    """Text: how many runs these are, of which machines and commits. Args: records, dicts as in record.json."""
    minutes = sum(record["seconds"] for record in records) / 60
    devices, commits = (sorted({record[key] for record in records}) for key in ("device", "commit"))
    return (
        f"{len(records)} runs, {minutes:.0f} minutes; {len(devices)} machine{'s' * (len(devices) != 1)}: "
        f"{'; '.join(devices)}; {len(commits)} commit{'s' * (len(commits) != 1)}: {', '.join(commits)}"
    )


def check_places(args, tasks):
    """Raises UserError where evidence or a table cannot be written, or a table would take the place of other files.

    Args: args, the flags of `reproduce.py`; tasks, `tasks.TASKS`.
    """
    places.check_folder("--results", args.results, args.runs.name, f"{args.runs.name}/data", args.predictions.name)
    if args.table:
        path, title = _place(args)
        places.check_own("--results", f"{path}.md", lambda start: start.startswith(title.encode()))
        places.check_own("--results", f"{path}.json", lambda start: start.startswith(b'{\n  "about": ['))
    for name in ("single", "ensemble") if args.table == 3 else ():
        places.check_outputs("--results", args.results, f"{args.predictions.name}/{name}", tasks, "test")


def _place(args):
    """The path of a table, without its suffix, and its title."""
    title = f"# Table {args.table}, preset {args.preset}"
    return Path(args.results, f"table{args.table}-{args.preset}"), title


def write(args, header, lines, results, records, note=""):
    """Prints a table, and writes it to results/tableN-PRESET.md, and its values, with their origin, to .json.

    Args: args, the flags of `reproduce.py`; header and lines, as for `console.table`; results, JSON values; records,
    the record.json of the runs that the table is made from; note, a line above the table. Raises UserError without
    records.
    """
    if not records:
        remedy = remedy_for_missing(args.runs, "run table 1 or 2, or name another --preset")
        raise UserError(f"{args.runs} has no evidence of a run; {remedy}")
    base = f"{PRESETS[args.preset][0]} {args.flags}".strip()
    about = [
        f"`python {args.again}`, {time.strftime('%Y-%m-%d')}.",
        f"Runs: `multitask.py {base}`, `{BASE_FLAGS}` in all rows but the plain one, and each row's flags of "
        f"`support/rows.py`, or of its config.json. Evidence: `{args.runs}/ROW-SEED`.",
        f"{origin(records)}.",
        "Dev set, each run's best epoch; mean ± deviation over seeds.",
        *([note] if note else []),
    ]
    text, (path, title) = table(header, lines), _place(args)
    with files.replacing(f"{path}.md") as file:
        file.write("\n".join([title, "", "  \n".join(about), "", text, ""]).encode())
    files.write_json(f"{path}.json", {"about": about, "results": results})
    print(f"\n{text}\nwritten to {path}.md and .json")
