"""The tables, run by run: every row is a run of `multitask.py`, and the same command goes on where it stopped.

    python reproduce.py --table 2 --preset minilm            MiniLM, three seeds (`make data FLAGS=--quora_14k`)
    python reproduce.py --table 2 --preset minilm --report   write the table from the evidence, run nothing
    python reproduce.py --table 2 --preset minilm --rows pals smart-weak --seeds 11712 --flags="--data DIR"
    python reproduce.py --preset minilm --keep runs/x --row pals      make evidence of a run that was started by hand

Table 1 has settings (heads, dropout, decay), table 2 the methods (PALs, SMART, SimCSE). Table 3 has many models as one:
ensembles of all runs that have left evidence, soups, students. It runs nothing. `support/rows.py` lists the rows. A
finished row leaves its evidence in results/runs/ROW-SEED (`support/evidence.py`; of other presets than minilm in
results/runs-PRESET), and is not run again on any machine. Tables are made from evidence alone: results/tableN-PRESET.md
and .json. One SimCSE encoder serves all seeds, so their deviation leaves out that stage's.
"""

import support.interrupt  # noqa: F401, from here on Ctrl-C prints one line

from argparse import Namespace
from pathlib import Path
from statistics import mean

import ensemble
from distill import check_inputs
from evaluate import dev_score, score, write_predictions
from predict import TABLES, examples_of, flags_of, outputs_of, paths_of, task_paths
from support import corpora, evidence, files, flags, jobs, keep_evidence, run_folder, tables
from support.console import UserError, command
from support.rows import MERGED, METHODS, PLAIN, PUBLISHED_ENSEMBLE, TUNING, encoder_flags, parse_reproduce, row_flags
from tasks import TASKS
from visualize import view

NAMES = (*TASKS, "score")
TITLES = [*(task.title.capitalize() or task.name.upper() for task in TASKS.values()), "dev score"]  # of NAMES


# ----- running


def check_runs(args, runs):
    """Raises UserError where one of `runs`, (row, seed) each, cannot run, or was started with flags not of its row."""
    for row, seed in runs:
        wanted = flags.parse_multitask([*row_flags(args, row, seed), "--resume"], *TABLES)
        if not jobs.finished(wanted.out):
            check_inputs(wanted)
        if row.encoder:
            stage = run_folder.parse_flags(flags.simcse_parser(), [*encoder_flags(args, row.encoder), "--resume"])
            if not jobs.finished(stage.out):
                corpora.check_named(stage, TASKS)
    if runs:  # all on the same data
        evidence.check_data(args.runs, paths_of(None, args.data) if args.data else task_paths(wanted))


def check_flags(args, run, row, seed):
    """Raises UserError where a run, or its evidence, was started with other flags than those of its row."""
    words, usual = row_flags(args, row, seed), vars(flags.multitask_parser(*TABLES).parse_args([]))
    keep_evidence.check_flags(run, flags_of(run), vars(flags.parser_for(words, *TABLES).parse_args(words)), usual)


def check_score(folder, labels, outputs, remedy=evidence.REMEDY):
    """Raises UserError where a run, or its evidence, does not score what its metrics say. Args: both by task."""
    now = dev_score({task: score(TASKS[task], outputs[task], of) for task, of in labels.items()})
    before = evidence.best_epoch(folder)["score"]
    if not abs(now - before) <= 0.005:
        raise UserError(f"{folder} scores {now:.3f}, and its metrics.jsonl says {before:.3f}; {remedy}")


def run_rows(args, rows):
    """Runs what has left no evidence, seed by seed."""
    missing = [(row, n) for n in args.seeds for row in rows if not evidence.find(args.runs, row.name, [n])]
    check_runs(args, missing)
    print(f"{len(missing)} of {len(rows) * len(args.seeds)} runs to do")
    for row, seed in missing:
        stage, run = Path(args.out, row.encoder), Path(args.out, f"{row.name}-{seed}")
        if row.encoder and not jobs.finished(stage):
            jobs.run("simcse.py", encoder_flags(args, row.encoder), stage, args.again)
        if not jobs.finished(run):
            jobs.run("multitask.py", row_flags(args, row, seed), run, args.again)
        named = {"device": args.device} if args.device else {}
        keep(args, run, {"row": row.name} | files.read_json(run / "row.json", jobs.RECORD) | named)


def keep(args, run, record):
    """Makes the evidence of a finished run. Args: record, a dict of its row, seconds, commit and device."""
    config, examples, outputs = flags_of(run), {}, {}
    keep_evidence.check_finished(run, config)
    wanted = Namespace(**run_folder.computing_here(config))  # as it was scored
    device = flags.choose_device(wanted)
    flags.choose_kernels(wanted, device)
    for split in ("dev", "test"):
        these = examples_of([run], args.data, split)
        examples |= {f"{task}-{split}": (of.ids, of.labels) for task, of in these.items()}
        outputs |= {f"{task}-{split}": of for task, of in outputs_of(run, these, split, device).items()}
        if split == "dev":
            keep_evidence.check_examples(run, these)
            more = {"sst-dev-components": view(run, these["sst"], device)[0]}
            labels, said = {t: of.labels for t, of in these.items()}, {t: outputs[f"{t}-dev"] for t in these}
            check_score(run, labels, said, "name the task files that it was scored on with --data")
    content = config, record, paths_of(run, args.data), examples, outputs, more
    print(f"the evidence of {run} is in {keep_evidence.write(args.runs, run, *content, args.data_name)}")


# ----- tables 1 and 2


def report_rows(args, rows):
    """Writes table 1 or 2."""
    results, lines, records = [], [], []
    for row in rows:
        folders = evidence.find(args.runs, row.name)
        metrics = [evidence.best_epoch(folder, NAMES) for folder in folders]
        values = {name: [of[name] for of in metrics] for name in NAMES}
        published = row.published if rows is METHODS or row is PLAIN else None
        records += [evidence.record_of(folder) for folder in folders]
        runs = [folder.name for folder in folders]
        results.append({"title": row.title, "row": row.name, **values, "published": published, "runs": runs})
        theirs = [published[-1], f"{mean(values['score']) - published[-1]:+.3f}"] if published and folders else ["", ""]
        lines.append([row.title, row.name, *tables.cells(values), *theirs, len(folders)])
    header = ["model", "row", *TITLES, "published", "difference", "seeds"]
    tables.write(args, header, lines, results, records)


# ----- table 3


def ranked(labels, found):
    """The numbers of the models, the one with the best dev score first."""
    alone = [{t: ensemble.metric_of(TASKS[t], [of[t]], labels[t], [1], "average") for t in labels} for of in found]
    return sorted(range(len(found)), key=lambda i: -dev_score(alone[i]))


def best(k):
    """What picks the k models with the best dev scores: (labels, found) -> {task: {number of the model: weight}}."""

    def pick(labels, found):
        return {task: dict.fromkeys(ranked(labels, found)[:k], 1.0) for task in labels}

    return pick


def greedy(labels, found):
    """Picks the members of each task one after the other."""
    return ensemble.ensemble(labels, found, [1.0] * len(found), greedy=True)[1]


def tuned(labels, found):
    """Picks the 7 best models, and weights for them."""
    top = ranked(labels, found)[:7]
    _, kept, _ = ensemble.ensemble(labels, [found[i] for i in top], [1.0] * len(top), tune_weights=True)
    return {task: {top[i]: weight for i, weight in members.items()} for task, members in kept.items()}


CHOICES = [("best single model", 1, best(1), "average")]  # title, how many models it needs, pick, method
CHOICES += [(f"best {k} models, {method}", k, best(k), method) for k in (2, 5, 7) for method in ("average", "vote")]
CHOICES += [("best 7 models, tuned weights", 7, tuned, "average"), ("greedy for each task", 2, greedy, "average")]
CHOSEN_ON_DEV = [row.title for row in MERGED if row.name == "soup-greedy"]  # by all of it, so none is unseen


def judge(labels, found, pick, method):
    """Members picked on all of dev, with their metrics there, and the metrics of picks on half of dev on the rest."""
    kept = pick(labels, found)
    joint = {task: ensemble.combine_kept(TASKS[task], found, kept[task], method) for task in labels}
    chosen = {task: score(TASKS[task], joint[task], labels[task]) for task in labels}
    unseen = ensemble.held_out(pick, labels, found, method)
    return kept, *(metrics | {"score": dev_score(metrics)} for metrics in (chosen, unseen))


def report_ensembles(args):
    """Writes table 3, and the test predictions of the best ensemble and of the best single model."""
    every = evidence.find(args.runs)
    dev = examples_of(every[:1], None, "dev") if every else {}
    labels, said = {task: of.labels for task, of in dev.items()}, {f: outputs_of(f, dev, "dev", None) for f in every}
    if few := [task for task, of in labels.items() if len(of) < 2]:
        raise UserError(f"{args.runs} has one dev example of {few[0]}, which has no two halves; make it of more")
    for folder in every:
        check_score(folder, labels, said[folder])
    pool = [folder for folder in every if "soup" not in evidence.record_of(folder)]
    one_each = ((row.title, [[f] for f in evidence.find(args.runs, row.name)]) for row in (PLAIN, *MERGED))
    plan = [(title, groups, 1, best(1), "average") for title, groups in one_each]
    plan += [(title, [pool], *choice) for title, *choice in CHOICES]
    results, lines, ensembles = [], [], []
    for title, groups, needed, pick, method in plan:  # the mean over groups of models to pick from
        groups = [group for group in groups if len(group) >= needed]
        judged = [judge(labels, [said[folder] for folder in group], pick, method) for group in groups]
        members = [
            {task: {group[i].name: w for i, w in of.items()} for task, of in kept.items()}
            for group, (kept, *_) in zip(groups, judged, strict=True)
        ]
        chosen, unseen = ({n: [of[place][n] for of in judged] for n in NAMES} for place in (1, 2))
        unseen = {n: [] for n in NAMES} if title in CHOSEN_ON_DEV else unseen
        published = PUBLISHED_ENSEMBLE if title == "best 7 models, average" else ""
        results.append({"title": title, **chosen, "unseen": unseen, "members": members, "published": published})
        cost = f"{mean(len(of) for of in judged[0][0].values()):.3g}" if judged else ""
        lines.append([title, cost, *tables.cells(chosen), *map(tables.spread, unseen.values()), published])
        if judged and needed > 1:
            ensembles.append((judged[0][2]["score"], title, judged[0][0], method))
    header = ["model", "cost", *(f"{title}{of}" for of in ("", " unseen") for title in TITLES), "published"]
    note = "Cost: times one model's inference. Unseen: chosen on one half of dev, scored on the other (10 halvings); "
    note += "but each run's best epoch was chosen on all of dev."
    top = max(every, key=lambda folder: evidence.best_epoch(folder)["score"], default=None)
    plans = {"single": ([top], {task: {0: 1.0} for task in TASKS}, "average", top.name)} if top else {}
    if ensembles:
        _, title, kept, method = max(ensembles, key=lambda of: of[0])
        plans["ensemble"] = pool, kept, method, title
    where = "; ".join(f"{args.predictions}/{name}: {plan[-1]}" for name, plan in plans.items())
    predicted = {name: predict_test(folders, kept, method) for name, (folders, kept, method, _) in plans.items()}
    records = [evidence.record_of(folder) for folder in every]
    tables.write(args, header, lines, results, records, f"{note} Test predictions: {where}.")
    for name, of in predicted.items():
        for task, (ids, values) in of.items():
            write_predictions(Path(args.predictions, name, f"{task}-test-output.csv"), TASKS[task], ids, values)


def predict_test(folders, kept, method):
    """{task: (ids, values)} of an ensemble on test. Args: kept, {task: {number of the folder: weight}}."""
    test = examples_of(folders[:1], None, "test")
    found = [outputs_of(folder, test, "test", None) for folder in folders]
    return {t: (of.ids, ensemble.combine_kept(TASKS[t], found, kept[t], method)) for t, of in test.items()}


# ----- the command line


@command
def main(argv=None):
    args = parse_reproduce(argv)
    tables.check_places(args, TASKS)
    rows = TUNING if args.table == 1 else METHODS
    if args.keep:
        config = flags_of(args.keep)
        keep_evidence.check_finished(args.keep, config)
        for row in [row for row in (*TUNING, *METHODS) if row.name == args.row]:
            check_flags(args, args.keep, row, config["seed"])
        given = {"commit": args.commit or jobs.commit(), "device": args.device or jobs.device_name("cpu")}
        return keep(args, args.keep, {"row": args.row, "seconds": args.seconds, **given})
    names = [row.name for row in rows]
    if unknown := [name for name in args.rows or () if name not in names]:
        raise UserError(f"table {args.table} has no row {unknown[0]!r:.40}; its rows are {', '.join(names)}")
    evidence.check_data(args.runs)
    if args.table == 3:
        return report_ensembles(args)
    for row in rows:
        for folder in evidence.find(args.runs, row.name):
            check_flags(args, folder, row, evidence.record_of(folder)["seed"])
    if not args.report:
        run_rows(args, [row for row in rows if not args.rows or row.name in args.rows])
    report_rows(args, rows)


if __name__ == "__main__":
    main()
