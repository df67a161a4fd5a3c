"""Feeds damaged input to everything that reads files or flags: `make fuzz`. Needs no test runner.

    python tests/fuzz.py [--inputs 100000] [--seed 0] [--seconds 540]

Each input is a good one with a few random changes, or made of the pieces that such inputs consist of. A reader may
return what it read, or raise `UserError` with at most 300 characters (and the path). Everything else is a finding, and
so is a reader that takes more than a second, or with which memory grows by more than 200 MB. The exit code is 1 where
there is a finding; the input stands in the file that the message names, in fuzz-findings/.
"""

import collections
import contextlib
import io
import json
import random
import sys
import tempfile
import time
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent.parent))

from bench.measure import largest_memory
from bert import BertConfig
from sampling import SAMPLINGS
from smart import PRESETS
from support import flags, metrics_file, places, run_folder
from support.checks import read_options
from support.console import Parser, UserError, command
from support.files import read_json
from support.safetensors import DTYPES, UNUSED, read_safetensors, write_safetensors
from support.vocabulary import read_wordpiece
from support.weight_files import checked
from tasks import SPLITS, TASKS, read_examples

NUMBERS = ["0", "-1", "1", "2", "0.5", "1e-5", "1e400", "NaN", "Infinity", "9" * 30, "9" * 5000, str(2**63), "-0.0"]
VALUES = [*NUMBERS, "null", "true", '""', '"bert"', '"joint"', "[]", "{}", "[[]]", "[" * 2000 + "]" * 2000, '{"a":1}']


# ----- damaged input


def damaged(rng, good, tokens):
    """`good`, bytes, with a few random changes: bytes, pieces cut out, doubled or moved, tokens in places."""
    data = bytearray(good)
    for _ in range(rng.choice((1, 1, 2, 3, 8))):
        a, b = sorted((rng.randrange(len(data) + 1), rng.randrange(len(data) + 1)))
        b = min(b, a + rng.choice((1, 4, 20, len(data))))
        kind = rng.randrange(6)
        if kind == 0 and len(data):
            data[min(a, len(data) - 1)] = rng.randrange(256)
        elif kind == 1:
            del data[a:b]
        elif kind == 2:
            data[a:a] = data[a:b] * rng.choice((1, 1, 50))
        elif kind == 3:
            data[a:b] = rng.choice(tokens)
        elif kind == 4:
            data[a:a] = rng.choice(tokens)
        else:
            del data[a:]
    return bytes(data[:200_000])


def json_object(rng, good):
    """The text of a JSON object: `good`, a dict, with other values, without some keys, and damaged at times."""
    parts = []
    for key, value in good.items():
        if rng.random() < 0.95:
            text = json.dumps(value) if rng.random() < 0.8 else rng.choice(VALUES)
            parts.append(f"{json.dumps(key)}: {text}")
    text = ("{" + ", ".join(parts) + "}").encode()
    return text if rng.random() < 0.6 else damaged(rng, text, [v.encode() for v in VALUES])


def task_file(rng):
    pieces = [
        "\t",
        "\t",
        "\n",
        "\n",
        '"',
        '""',
        "good",
        "film",
        "é",
        "3",
        "0",
        " , ",
        "\r\n",
        "\ufeff",
        "\0",
        "x" * 500,
    ]
    lines = ["\tid\tsentence\tsentiment" if rng.random() < 0.9 else "".join(rng.choices(pieces, k=5))]
    for i in range(rng.randrange(30)):
        row = f"{i}\tid{i}\t{rng.choice(['a film', chr(34) + 'a ' * 2 + chr(34)])}\t{rng.randrange(5)}"
        lines.append(row if rng.random() < 0.6 else "".join(rng.choices(pieces, k=rng.randrange(12))))
    text = "\n".join(lines) + "\n"
    encoding = rng.choice(["utf-8"] * 8 + ["utf-8-sig", "utf-16", "utf-16-le", "latin-1"])
    raw = text.encode(encoding, "replace")
    return damaged(rng, raw, [piece.encode() for piece in pieces]) if rng.random() < 0.3 else raw


def safetensors_file(rng, good):
    if rng.random() < 0.5:
        return damaged(rng, good, [v.encode() for v in VALUES])
    header, place = {}, 0
    for i in range(rng.randrange(5)):
        dtype = rng.choice([*DTYPES, *UNUSED, "F31"])
        shape = [rng.choice((0, 1, 2, 3, 2**31, 2**62, -1, 2.0, True)) for _ in range(rng.randrange(4))]
        size = rng.choice((0, 4, 8, 24, 2**63))
        header[f"t{i}"] = {"dtype": dtype, "shape": shape, "data_offsets": [place, place + size]}
        place += min(size, 64)
    text = json.dumps(header).encode()
    text = text if rng.random() < 0.7 else damaged(rng, text, [v.encode() for v in VALUES])
    return len(text).to_bytes(8, "little") + text + bytes(rng.choice((place, 0, 64)))


def command_line(rng, names):
    values = [*NUMBERS, "", "x", "/", "~", "\0", "é", "\udcff", "finetune", "siamese", "x" * 5000, "--lr", "'", "0.999"]
    argv = []
    for _ in range(rng.randrange(6)):
        name = rng.choice(names) if rng.random() < 0.95 else rng.choice(values)
        argv.append(f"{name}={rng.choice(values)}" if rng.random() < 0.5 else name)
        if rng.random() < 0.4:
            argv.append(rng.choice(values))
    return argv


# ----- what reads it


def targets(folder):
    """{name: (make, read)}: make(rng) gives an input, read(input) reads it, by way of files in `folder`."""
    path = Path(folder) / "file"
    write_safetensors(path, {"a": torch.ones(3, 2), "b": torch.arange(4), "c": torch.zeros(0)}, {"k": "v"})
    good = path.read_bytes()
    tables = TASKS, SPLITS, SAMPLINGS, PRESETS
    parsers = [flags.multitask_parser(*tables), flags.simcse_parser()]
    names = sorted({name for parser in parsers for name in parser._option_string_actions})
    config = json.loads(json.dumps(vars(parsers[0].parse_args([])))) | {"out": "runs/x"}
    options = {"pair_encoding": "joint", "use_means": True, "classifier_layers": 2, "classifier_size": 32}
    options |= {"pal_size": 24, "pal_heads": 12}
    numbers = {"vocab_size": 120, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    numbers |= {"model_type": "bert", "hidden_dropout_prob": 0.1, "layer_norm_eps": 1e-12}
    line = {"kind": "dev", "step": 3, "epoch": 1, "sst": 0.5, "score": 0.5}
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "good", "##d", "film"]
    tokenizer = {"version": "1.0", "added_tokens": [], "normalizer": None, "pre_tokenizer": None, "decoder": None}
    model = {"type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": "##", "vocab": {"[UNK]": 0}}
    tokenizer |= {"post_processor": None, "truncation": None, "padding": None, "model": model}

    def written(name, read):
        place = Path(folder) / name
        place.parent.mkdir(exist_ok=True)

        def of(data):
            place.write_bytes(data)
            try:
                return read(place)
            finally:
                place.unlink()

        return of

    def weights(place):
        for name, tensor in read_safetensors(place).items():
            checked(tensor, name, place)

    def parse(argv):
        parser = parsers[len(argv) % 2]
        try:
            args = parser.parse_args(argv)
        except SystemExit as stopped:  # --help
            if stopped.code:
                raise
            return
        if parser is parsers[0]:
            args.out = str(Path(folder) / "none")
            places.check_predictions(args, TASKS, SPLITS)
            flags.check_multitask(args, vars(parsers[0].parse_args([])) | PRESETS["weak"])

    def resumed(place):
        run_folder.parse_flags(flags.multitask_parser(*tables), ["--resume", "--out", str(place.parent)])

    of_json = lambda example: lambda rng: json_object(rng, example)  # noqa: E731
    return {
        "safetensors": (lambda rng: safetensors_file(rng, good), written("weights", weights)),
        "task files": (task_file, written("task.csv", lambda place: read_examples(place, TASKS["sst"]))),
        "flags": (lambda rng: command_line(rng, names), parse),
        "JSON": (of_json(line), written("json", lambda place: read_json(place, {"step": int}, {"kind": str}))),
        "config.json": (of_json(numbers), written("model/config.json", lambda place: BertConfig.load(place.parent))),
        "multitask.json": (of_json(options), written("multitask.json", read_options)),
        "run config": (of_json(config), written("run/config.json", resumed)),
        "metrics": (
            lambda rng: b"\n".join(json_object(rng, line) for _ in range(rng.randrange(4))),
            written("metrics.jsonl", lambda place: metrics_file.read(place.parent)),
        ),
        "vocab.txt": (
            lambda rng: damaged(rng, "\n".join(pieces).encode(), [b"\n", b"\r\n", b"\xff", b"[CLS]\n", b"\0"]),
            written("vocabulary/vocab.txt", lambda place: read_wordpiece(place.parent)),
        ),
        "tokenizer.json": (
            of_json(tokenizer),
            written("tokenizer/tokenizer.json", lambda place: read_wordpiece(place.parent)),
        ),
    }


SHARES = {"safetensors": 5, "task files": 4, "flags": 2, "JSON": 3}  # the others: 1


def fuzz(inputs, seed=0, seconds=None):
    """Reads so many damaged inputs, or as many as the seconds allow. Returns (how many by target, findings)."""
    memory = float("inf")
    rng, counts, findings, started = random.Random(seed), collections.Counter(), [], time.perf_counter()
    room = "/dev/shm" if Path("/dev/shm").is_dir() else None  # in memory where that is possible
    with tempfile.TemporaryDirectory(dir=room) as folder:
        of = targets(folder)
        names = random.Random(seed).choices(list(of), [SHARES.get(name, 1) for name in of], k=inputs)
        for i, name in enumerate(names):
            if seconds and time.perf_counter() - started > seconds:
                break
            if i == min(200, inputs // 2):  # what is loaded once is loaded
                memory = largest_memory()
            make, read = of[name]
            data = make(rng)
            counts[name] += 1
            fault, start = None, time.perf_counter()
            try:
                with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
                    read(data)
            except UserError as error:
                if len(str(error).replace(folder, "")) > 300:
                    fault = f"a message of {len(str(error))} characters"
            except BaseException as error:
                if isinstance(error, KeyboardInterrupt):
                    raise
                fault = f"{type(error).__name__}: {error!s:.200}"
            if (took := time.perf_counter() - start) > 1:
                fault = f"{took:.1f} s"
            if (grown := largest_memory() - memory) > 200:
                fault, memory = f"memory grew by {grown:.0f} MB", memory + grown
            if fault:
                findings.append((name, fault, data))
    return counts, findings


@command
def main(argv=None):
    parser = Parser(prog="tests/fuzz.py", description="Damaged input for everything that reads files or flags.")
    parser.add_argument("--inputs", type=flags.positive(int), default=100_000)
    parser.add_argument("--seed", type=flags.positive(int, 0), default=0)
    parser.add_argument("--seconds", type=flags.positive(float), default=540, help="stop after so many")
    args = parser.parse_args(argv)
    started = time.perf_counter()
    counts, findings = fuzz(args.inputs, args.seed, args.seconds)
    for name, count in sorted(counts.items()):
        print(f"{name:16} {count:7,} inputs")
    print(f"{sum(counts.values()):,} inputs in {time.perf_counter() - started:.0f} s, {len(findings)} findings")
    for i, (name, fault, data) in enumerate(findings[:20]):
        path = Path("fuzz-findings") / f"{args.seed}-{i}"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(data if isinstance(data, bytes) else repr(data).encode())
        print(f"{name}: {fault} ({path})")
    sys.exit(1 if findings else 0)


if __name__ == "__main__":
    main()
