"""The tables, run by run: every row is a run of `multitask.py`, and the same command goes on where it stopped.

    python reproduce.py --table 2 --preset sample            minutes on two cores
    python reproduce.py --table 2 --preset minilm            MiniLM on the CS224N files (`make data`), three seeds
    python reproduce.py --table 3 --preset paper             bert-base-uncased, for a GPU
    python reproduce.py --table 2 --preset minilm --report   write the table from the runs that are finished
    python reproduce.py --table 2 --flags="--bf16"           with more flags of multitask.py (note the "=")

    table 1    the plain fine-tuned model, and what its settings change: heads, dropout, weight decay, ...
    table 2    the methods: PALs, SMART, SimCSE, alone and together
    table 3    ensembles of the models of table 2: the best 2, 5 and 7, by average and by vote, and greedy selection

A row's run stands in OUT/ROW-SEED (OUT is runs/tables/PRESET), with what it took in `row.json`, and is finished once
that file is there: it is not run again. The results go to results/tableN-PRESET.md and .json: the mean over the seeds
and its standard deviation, the published figure (the CS224N report "Exploring Pretraining, Finetuning and
Regularization for Multitask Learning of minBERT", bert-base-uncased and all 283,003 Quora pairs) and the difference.
All figures are of the dev set, at the epoch with the best dev score. One SimCSE encoder serves all seeds, so their
deviation leaves out that stage's. The published ensemble had weights; in table 3 all models count the same.
"""

import contextlib
import itertools
import platform
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from statistics import mean, stdev
from types import SimpleNamespace
from typing import NamedTuple

import torch

import ensemble
from bench.speed import Ours
from evaluate import dev_score
from sampling import SAMPLINGS
from smart import PRESETS as SMART_PRESETS
from support import files, flags, run_folder
from support.console import Parser, UserError, command, table
from support.files import replacing
from tasks import SPLITS, TASKS, load_examples

TABLES = TASKS, SPLITS, SAMPLINGS, SMART_PRESETS  # what the flags of multitask.py depend on


class Row(NamedTuple):
    """One row of table 1 or 2. A field of flags is a text, as one would type it."""

    name: str  # of its runs
    title: str
    flags: str
    encoder: str = ""  # the name of the SimCSE stage that it starts from, in `ENCODERS`
    cost: float = 1.0  # time in units of plain fine-tuning (`python -m bench.methods`)
    published: tuple | None = None  # SST, paraphrase, STS, dev score


BASE = Row("finetune", "Finetune base model", "--option finetune", published=(0.499, 0.862, 0.860, 0.764))
TUNING = [
    BASE,
    Row("size-96", "heads 96 wide", "--classifier_size 96"),
    Row("size-1536", "heads 1536 wide", "--classifier_size 1536"),
    Row("layers-1", "heads of one layer", "--classifier_layers 1"),
    Row("layers-3", "heads of three layers", "--classifier_layers 3"),
    Row("extra-sst", "an extra SST pass each epoch", "--extra_sst", cost=1.3),
    Row("siamese", "each sentence of a pair alone", "--pair_encoding siamese"),
    Row("means", "means of hidden states beside [CLS]", "--use_means", cost=1.3),
    Row("dropout-0", "dropout 0", "--hidden_dropout_prob 0"),
    Row("dropout-0.3", "dropout 0.3", "--hidden_dropout_prob 0.3"),
    Row("decay-0", "weight decay 0", "--weight_decay 0"),
    Row("decay-0.1", "weight decay 0.1", "--weight_decay 0.1"),
]
PALS, WEAK, STRONG = "--use_pals", "--use_smart --smart weak", "--use_smart --smart strong"
METHODS = [
    Row("pretrain", "Pretrain base model (encoder frozen)", "--option pretrain", "", 0.4, (0.454, 0.625, 0.546, 0.617)),
    BASE,
    Row("simcse-finetune", "+ SimCSE", "", "simcse", 1, (0.501, 0.852, 0.870, 0.763)),
    Row("simcse-length-finetune", "+ SimCSE normalized sentence length", "", "simcse-length", 1,
        (0.519, 0.745, 0.849, 0.729)),
    Row("pals", "+ PALs", PALS, "", 1.3, (0.513, 0.862, 0.871, 0.770)),
    Row("pals-annealed", "+ PALs + PAL scheduling", f"{PALS} --sampling annealed", "", 1.3,
        (0.517, 0.860, 0.862, 0.769)),
    Row("pretrain-pals", "+ Frozen BERT with PALs training", f"--option pretrain {PALS} --pal_lr 3e-4", "", 0.9,
        (0.506, 0.625, 0.797, 0.676)),
    Row("smart-weak", "+ SMART (weak)", WEAK, "", 3.1, (0.510, 0.861, 0.864, 0.768)),
    Row("simcse-pals", "+ SimCSE + PALs", PALS, "simcse", 1.3, (0.526, 0.867, 0.867, 0.775)),
    Row("simcse-pals-smart-weak", "+ SimCSE + PALs + SMART (weak)", f"{PALS} {WEAK}", "simcse", 4,
        (0.505, 0.863, 0.847, 0.764)),
    Row("simcse-pals-smart-strong", "+ SimCSE + PALs + SMART (strong)", f"{PALS} {STRONG}", "simcse", 4,
        (0.531, 0.869, 0.864, 0.778)),
]  # fmt: skip
PUBLISHED_ENSEMBLE = 0.786  # of 7 models, weighted average, dev score
ENCODERS = {"simcse": "", "simcse-length": "--normalize_length {length}"}
PRESETS = {  # flags of multitask.py and of simcse.py; how many characters `normalize_length` means; the seeds
    "sample": ("--data data/sample --epochs 2 --batch_size 16 --train_examples 300",
               "--max_sentences 1000", 60, [11711]),
    "minilm": ("--data data/cs224n --epochs 3", "", 128, [11711, 11712, 11713]),
    "paper": ("--data data/cs224n --bert bert-base-uncased --epochs 10 --batch_size 64 --lr 2e-5",
              "", 256, [11711, 11712, 11713]),
}  # fmt: skip


# ----- running


def row_flags(args, row, seed):
    """The command line of a row's run, a list of str, without `--resume`."""
    text = f"{PRESETS[args.preset][0]} {args.flags} --skip_test {row.flags} --seed {seed}"
    encoder = ["--bert", str(Path(args.out, row.encoder, "encoder"))] if row.encoder else []
    return [*shlex.split(text), *encoder, "--out", str(folder_of(args, row, seed))]


def folder_of(args, row, seed):
    """Where a row's run stands."""
    return Path(args.out, f"{row.name}-{seed}")


def encoder_flags(args, name):
    """The command line of a SimCSE stage: on the data and from the encoder of the other runs."""
    _, common, length, _ = PRESETS[args.preset]
    own = flags.multitask_parser(*TABLES).parse_args(row_flags(args, BASE, args.seeds[0]))
    shared = ["--data", own.data, "--bert", own.bert, "--device", own.device] + ["--bf16"] * own.bf16
    text = f"{common} {ENCODERS[name].format(length=length)}"
    return [*shlex.split(text), *shared, *shlex.split(args.simcse_flags), "--out", str(Path(args.out, name))]


def finished(folder):
    return (folder / "row.json").exists()


def run(args, script, argv, folder):
    """Runs a command to its end, going on with what there is of it, and leaves its `row.json`."""
    argv = [script, *argv, "--resume"]
    print("\npython " + " ".join(argv), flush=True)
    started, stop = time.time(), False
    child = subprocess.Popen([sys.executable, str(Path(__file__).parent / script), *argv[1:]])
    before = signal.signal(signal.SIGTERM, lambda *_: child.terminate())  # the run saves, and ends with code 130
    try:
        code = child.wait()
    except KeyboardInterrupt:  # the run has heard it too, and saves
        code, stop = child.wait(), True
    signal.signal(signal.SIGTERM, before)
    part = folder / "seconds.json"
    seconds = (files.read_json(part) if part.exists() else 0) + time.time() - started
    if code == 0:
        row = {"seconds": round(seconds), "commit": commit(), "device": device_name(args)}
        files.write_json(folder / "row.json", row)
        shutil.rmtree(folder / "last", ignore_errors=True)  # three times the model, and good for resuming only
        part.unlink(missing_ok=True)
    elif folder.exists():
        files.write_json(part, seconds)
    if stop or code == 130:
        print(f"stopped; go on with: python reproduce.py {shlex.join(args.argv)}")
        raise SystemExit(130)
    if code:
        raise UserError(f"{script} ended with exit code {code} (why stands above); the same command goes on from there")


def commit():
    """The first digits of the commit that is checked out, or "unknown"."""
    git = ["git", "-C", str(Path(__file__).parent), "rev-parse", "--short", "HEAD"]
    with contextlib.suppress(OSError):  # no git here
        return subprocess.run(git, capture_output=True, text=True).stdout.strip() or "unknown"
    return "unknown"


def device_name(args):
    """What the runs compute on."""
    if flags.choose_device(SimpleNamespace(device=args.device)).type == "cuda":
        return torch.cuda.get_device_name()
    models = []
    with contextlib.suppress(OSError), open("/proc/cpuinfo") as file:
        models = [line.split(":", 1)[1].strip() for line in file if line.startswith("model name")]
    name = models[0] if models else platform.processor() or platform.machine()
    return f"{name}, {torch.get_num_threads()} threads"


def check(args, rows):
    """Raises UserError where a run that is there was started with other flags than these."""
    for seed, row in itertools.product(args.seeds, rows):
        if (folder_of(args, row, seed) / "config.json").exists():
            flags.parse_multitask([*row_flags(args, row, seed), "--resume"], *TABLES)
    for name in {row.encoder for row in rows if row.encoder}:
        if Path(args.out, name, "config.json").exists():
            run_folder.parse_flags(flags.simcse_parser(), [*encoder_flags(args, name), "--resume"])


def estimate(args, rows):
    """Prints how long the runs that are missing will take, from three steps of the plain model timed here."""
    missing = [row for seed in args.seeds for row in rows if not finished(folder_of(args, row, seed))]
    if not missing:
        return
    plain = flags.parse_multitask([*row_flags(args, BASE, args.seeds[0]), "--resume"], *TABLES)
    flags.choose_kernels(plain, flags.choose_device(plain))
    files = load_examples(plain, ("train", "dev")).values()
    train = sum(len(of_task["train"].sample(plain.train_examples)) for of_task in files)
    dev = sum(len(of_task["dev"]) for of_task in files)
    step = Ours(plain, TASKS["sst"])
    numbers = range(min(plain.batch_size, len(step.dataset)))
    times = []
    for _ in range(4):
        started = time.perf_counter()
        step.train(numbers)
        times.append(time.perf_counter() - started)
    example = min(times) / len(numbers) * 1.3  # pairs are longer than the sentences timed here
    cost = sum(row.cost * train * plain.epochs + dev * (plain.epochs + 1) / 3 for row in missing)
    print(f"{len(missing)} runs to do, about {cost * example / 60:.0f} minutes; SimCSE comes on top")


def run_rows(args, rows):
    """Runs what is not finished, seed by seed."""
    for seed in args.seeds:
        for row in rows:
            if row.encoder and not finished(Path(args.out, row.encoder)):
                run(args, "simcse.py", encoder_flags(args, row.encoder), Path(args.out, row.encoder))
            if not finished(folder_of(args, row, seed)):
                run(args, "multitask.py", row_flags(args, row, seed), folder_of(args, row, seed))


# ----- reporting


def best_epoch(folder):
    """The metrics of a run at its best epoch: {task: metric, ..., "score": dev score}."""
    lines = [line for line in run_folder.read_metrics(folder) if line["kind"] == "dev"]
    return max(lines, key=lambda line: line["score"])


def spread(values):
    """Text of a mean and its standard deviation; of a single value only that."""
    return f"{mean(values):.3f}" + (f" ± {stdev(values):.3f}" if len(values) > 1 else "")


def result(title, metrics, published=None, **more):
    """One row of the results. Args: metrics, one dict of `best_epoch`'s kind for each seed."""
    names = [*TASKS, "score"]
    values = {name: [m[name] for m in metrics] for name in names}
    return {"title": title, **values, "published": published} | more


def report_runs(args, rows):
    """The results of table 1 or 2, from the runs that are finished."""
    results = []
    for row in rows:
        folders = [folder_of(args, row, seed) for seed in args.seeds]
        folders = [folder for folder in folders if finished(folder)]
        if folders:
            took = [files.read_json(folder / "row.json") for folder in folders]
            published = row.published if rows is METHODS or row is BASE else None
            metrics = [best_epoch(folder) for folder in folders]
            results.append(result(row.title, metrics, published, runs=[str(f) for f in folders], took=took))
    return results


def report_ensembles(args):
    """The results of table 3: for each seed, ensembles of its models of table 2."""
    own = flags.multitask_parser(*TABLES).parse_args(row_flags(args, BASE, args.seeds[0]))
    found, device = {}, flags.choose_device(own)
    flags.choose_kernels(own, device)  # as the runs were scored
    for seed in args.seeds:
        folders = [folder_of(args, row, seed) for row in METHODS]
        folders = sorted(filter(finished, folders), key=lambda folder: -best_epoch(folder)["score"])
        if not folders:
            continue
        data = ensemble.data_flags(folders[0])
        said = [ensemble.outputs_of(folder, data, "dev", device) for folder in folders]
        best, names = best_epoch(folders[0]), [str(folder) for folder in folders]
        baseline = folder_of(args, BASE, seed)
        of_seed = {"best single model": (best, names[:1])}
        if finished(baseline):
            of_seed = {"plain fine-tuned model": (best_epoch(baseline), [str(baseline)])} | of_seed
        for n, method in itertools.product((2, 5, 7), ("average", "vote")):
            if n <= len(folders):
                metrics, _, _ = ensemble.ensemble(said[:n], [1] * n, method)
                of_seed[f"best {n} models, {method}"] = (metrics | {"score": dev_score(metrics)}, names[:n])
        metrics, kept, _ = ensemble.ensemble(said, [1] * len(said), "average", greedy=True)
        chosen = {task: [names[i] for i in members] for task, members in kept.items()}
        of_seed["greedy for each task, average"] = (metrics | {"score": dev_score(metrics)}, chosen)
        for title, value in of_seed.items():
            found.setdefault(title, []).append(value)
    published = {"best 7 models, average": (None, None, None, PUBLISHED_ENSEMBLE)}
    return [
        result(title, [m for m, _ in values], published.get(title), members=[members for _, members in values])
        for title, values in found.items()
    ]


def write_report(args, results):
    """Prints the table, and writes it to results/ in Markdown and JSON."""
    if not results:
        raise UserError(f"no run in {args.out} is finished; leave out --report")
    header = ["model", "SST", "Paraphrase", "STS", "dev score", "published", "difference", "seeds"]
    lines = []
    for r in results:
        cells = [spread(r[name]) for name in (*TASKS, "score")]
        theirs = r["published"][-1] if r["published"] else None
        difference = f"{mean(r['score']) - theirs:+.3f}" if theirs else ""
        lines.append([r["title"], *cells, theirs or "", difference, len(r["score"])])
    text = table(header, lines)
    took = [row for r in results for row in r.get("took", [])]
    about = [
        f"`python reproduce.py {shlex.join(args.argv)}`",
        f"Runs: `multitask.py {PRESETS[args.preset][0]} {args.flags}`",
    ]
    if took:
        minutes = sum(row["seconds"] for row in took) / 60
        devices, commits = ({row[key] for row in took} for key in ("device", "commit"))
        about.append(
            f"{len(took)} runs, {minutes:.0f} minutes; {', '.join(sorted(devices))}; {', '.join(sorted(commits))}"
        )
    about.append(
        f"Written {time.strftime('%Y-%m-%d')} at commit {commit()}. Dev set, best epoch; mean ± deviation over seeds."
    )
    name = Path(args.results) / f"table{args.table}-{args.preset}"
    lines = [f"# Table {args.table}, preset {args.preset}", "", "  \n".join(about), "", text, ""]
    with replacing(f"{name}.md") as file:
        file.write("\n".join(lines).encode())
    files.write_json(f"{name}.json", {"about": about, "results": results})
    print(f"\n{text}\nwritten to {name}.md and .json")


# ----- the command line


@command
def main(argv=None):
    parser = Parser(prog="reproduce.py", description="The tables, run by run.")
    add = parser.add_argument
    add("--table", type=int, choices=(1, 2, 3), required=True, help="1 settings, 2 methods, 3 ensembles")
    add("--preset", choices=tuple(PRESETS), default="sample")
    add(
        "--flags",
        default="",
        metavar="TEXT",
        help='more flags of multitask.py for every run, as in --flags="--data DIR --epochs 1"',
    )
    add("--simcse_flags", default="", metavar="TEXT", help="more flags of simcse.py for its stages, likewise")
    add("--seeds", type=int, nargs="+", default=None, help="(default: those of the preset)")
    add("--out", default=None, metavar="DIR", help="folder of the runs (default: runs/tables/PRESET)")
    add("--results", default="results", metavar="DIR", help="folder of the tables")
    add("--report", action="store_true", help="write the table from the runs that are finished, and run none")
    args = parser.parse_args(argv)
    args.argv = list(sys.argv[1:] if argv is None else argv)
    args.out = args.out or f"runs/tables/{args.preset}"
    args.seeds = args.seeds or PRESETS[args.preset][-1]
    rows = TUNING if args.table == 1 else METHODS
    args.device = flags.multitask_parser(*TABLES).parse_args(row_flags(args, BASE, args.seeds[0])).device
    check(args, rows)
    if not args.report:
        estimate(args, rows)
        run_rows(args, rows)
    write_report(args, report_ensembles(args) if args.table == 3 else report_runs(args, rows))


if __name__ == "__main__":
    main()
