"""Fetch the task files of the Stanford CS224N default project into data/cs224n: `make data`.

    python data/fetch.py [--out DIR] [--url URL] [--quora_14k]

The files come from the course's public repository, github.com/gpoesia/minbert-default-final-project, folder data/. They
are fetched one after the other, each aside and renamed: a fetch that was cut short goes on where it stopped, and a file
that is complete is not fetched again. A file's length must be what the server announced; where it announces none, the
last line must have its end. Examples must stand in each.

`--quora_14k` makes a second folder, DIR-quora-14k, of the data that results/README.md measures on: SST and STS as they
are, and for Quora the course's dev file alone, cut into three by h, the SHA-1 of a pair's id modulo 100: train where
h < 70, dev where 70 <= h < 85, test (without labels) where h >= 85.
"""

import contextlib
import hashlib
import http.client
import itertools
import os
import re
import shutil
import sys
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import support.interrupt  # noqa: F401, from here on Ctrl-C prints one line

from support import files
from support.console import Parser, UserError, command
from support.flag_types import place
from support.places import check_folder
from tasks import SPLITS, TASKS, data_path, read_examples

URL = "https://raw.githubusercontent.com/gpoesia/minbert-default-final-project/main/data"


def fetch(url, path, task, split, timeout=60):
    """Fetches one file, going on with what came from this URL before.

    Raises UserError where it cannot be had whole, and where it is no file of the task's split.
    """
    part = path.with_name(f"{path.name}.{hashlib.sha1(url.encode()).hexdigest()[:8]}.part")
    have = part.stat().st_size if part.exists() else 0
    try:
        request = urllib.request.Request(url, headers={"Range": f"bytes={have}-"} if have else {})
        answer = urllib.request.urlopen(request, timeout=timeout)
    except urllib.error.HTTPError as error:
        if error.code == 416 and have:  # what is there already is as long as the file, or longer: start again
            part.unlink()
            return fetch(url, path, task, split, timeout)
        raise UserError(f"{url} cannot be had ({error.code} {error.reason}); name another source with --url") from None
    except (OSError, ValueError, http.client.HTTPException) as error:
        reason = getattr(error, "reason", error)
        remedy = "check network and proxy, and run the same command again; data/sample needs no network"
        raise UserError(f"no network, or {url} is out of reach ({reason!s:.60}); {remedy}") from None
    if answer.status == 206 and have and not (answer.headers["Content-Range"] or "").startswith(f"bytes {have}-"):
        answer.close()  # it does not go on where this stopped
        part.unlink()
        return fetch(url, path, task, split, timeout)
    resumed, length = answer.status == 206, answer.headers["Content-Length"] or ""  # of what is still to come
    total = int(length) + (have if resumed else 0) if re.fullmatch("[0-9]{1,15}", length) else None
    with answer, files.naming(path), open(part, "ab" if resumed else "wb") as file:
        while chunk := receive(answer, path):
            file.write(chunk)
    size = part.stat().st_size
    if total not in (None, size):
        raise UserError(f"{path.name} stopped after {size} bytes; run the same command again to go on")
    try:
        check(part, task, split, url, "name another source with --url")
    except UserError:
        part.unlink()
        raise
    if total is None and not part.read_bytes().endswith(b"\n"):
        remedy = "run the same command again to go on, or name another source with --url"
        raise UserError(f"{path.name} ends within a line, after {size} bytes, and its server gave no length; {remedy}")
    part.replace(path)


def receive(answer, path):
    """The next bytes of an answer, none at its end. Raises UserError where the network fails. Args: path, to name."""
    try:
        return answer.read(1 << 16)
    except (OSError, http.client.HTTPException) as error:
        raise UserError(
            f"{path.name} stopped on its way ({error!s:.60}); run the same command again to go on"
        ) from None


def is_address(url):
    """Whether a text is the address of a file."""
    try:
        parts = urllib.parse.urlsplit(url)
        host, _ = (parts.hostname or "").encode("idna"), parts.port
    except ValueError:  # a host or a port that cannot be
        return False
    known = parts.scheme == "file" or (parts.scheme in ("http", "https") and host)
    return bool(known and re.fullmatch("[!-~]+", url))


def check(path, task, split, source, remedy):
    """Raises UserError, with the remedy, unless the file holds examples. Args: source, what the message calls it."""
    try:
        with open(os.devnull, "w") as nowhere, contextlib.redirect_stderr(nowhere):
            read_examples(path, task, labelled=split != "test")
    except UserError as error:
        reason = str(error).replace(str(path), "it")
        raise UserError(f"{source} is no task file, but a page perhaps ({reason:.80}); {remedy}") from None


def split_of(line):
    """The split of Quora-14k that takes a line (bytes) of quora-dev.csv: index, id, sentences and label, with tabs."""
    h = int(hashlib.sha1(line.split(b"\t")[1]).hexdigest(), 16) % 100
    return "train" if h < 70 else "dev" if h < 85 else "test"


def cut_quora(folder, aside):
    """Writes Quora-14k into the folder aside, of quora-dev.csv in folder: lines as they are, test without labels.

    Raises UserError where a split would be empty.
    """
    task = TASKS["para"]
    header, *lines = data_path(folder, task, "dev").read_bytes().splitlines(keepends=True)
    for split in SPLITS:
        kept = [header, *(line for line in lines if line.count(b"\t") > 1 and split_of(line) == split)]
        if len(kept) == 1:
            path = data_path(folder, task, "dev")
            raise UserError(f"{path} has no line for {split}; delete it, and the same command fetches it again")
        if split == "test":
            kept = [line.rpartition(b"\t")[0] + b"\n" for line in kept]
        data_path(aside, task, split).write_bytes(b"".join(kept))


def make_quora_14k(whole):
    """Makes the second folder, beside the first one or the link to it, and returns it.

    Raises UserError where something else stands there.
    """
    folder = Path(f"{os.path.realpath(whole) if whole.name in ('', '..') else whole}-quora-14k")
    if files.is_vacant(folder):
        with files.replacing_folder(folder) as aside:
            for path in (data_path(whole, TASKS[name], split) for name in ("sst", "sts") for split in SPLITS):
                shutil.copy(path, aside)
            cut_quora(whole, aside)
        print(f"{folder} made of them")
        return folder
    remedy = f"move {folder} away, and the same command makes it"
    for task, split in itertools.product(TASKS.values(), SPLITS):
        path = data_path(folder, task, split)
        if not path.is_file():
            raise UserError(f"{path} is missing; {remedy}")
        check(path, task, split, path, remedy)
    print(f"{folder} is there")
    return folder


def fetch_all(url, folder):
    """Fetches what is not in the folder yet. Raises UserError where something stands in the place of a file."""
    for task in TASKS.values():
        for split in SPLITS:
            path = data_path(folder, task, split)
            if os.path.lexists(path) and not path.is_file():
                raise UserError(f"{path} is a folder, or a link to nothing; move it away, and this fetches the file")
            if there := path.exists():
                check(path, task, split, path, "delete it, and the same command fetches it again")
            else:
                fetch(f"{url}/{path.name}", path, task, split)
            print(f"{path} {'is there' if there else 'fetched'}, {path.stat().st_size:,} bytes")


@command
def main(argv=None):
    parser = Parser(prog="data/fetch.py", description="Fetch the CS224N task files into a folder.")
    parser.add_argument("--out", type=place, default="data/cs224n", metavar="DIR", help="where they go")
    parser.add_argument("--url", default=URL, help="where the files are")
    parser.add_argument("--quora_14k", action="store_true", help="make DIR-quora-14k, too, of the Quora dev file alone")
    args = parser.parse_args(argv)
    if not is_address(args.url):
        raise UserError(f"--url {args.url!r:.100} is no address; leave it out, or begin with https://")
    check_folder("--out", args.out)
    folder = Path(args.out)
    folder.mkdir(parents=True, exist_ok=True)
    with files.locked(folder, f"another process fetches into {folder}; wait for its end"):
        fetch_all(args.url, folder)
        folder = make_quora_14k(folder) if args.quora_14k else folder
    print(f"train on them with: make train DATA={folder} OUT=runs/{folder.name}")


if __name__ == "__main__":
    main()
