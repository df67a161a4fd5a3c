"""Fetch the task files of the Stanford CS224N default project into data/cs224n: `make data`.

    python data/fetch.py [--out DIR] [--url URL]

The files come from the course's public repository, github.com/gpoesia/minbert-default-final-project, folder data/. They
are fetched one after the other, each aside and renamed: a fetch that was cut short goes on where it stopped, and a file
that is complete is not fetched again. A file's length must be what the server announced.
"""

import argparse
import http.client
import sys
import urllib.error
import urllib.request
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from support.console import Parser, UserError, command
from tasks import SPLITS, TASKS, data_path

URL = "https://raw.githubusercontent.com/gpoesia/minbert-default-final-project/main/data"


def fetch(url, path, timeout=60):
    """Fetches one file, going on with `path.part` where there is one. Raises UserError where it cannot be had whole."""
    part = path.with_name(path.name + ".part")
    have = part.stat().st_size if part.exists() else 0
    try:
        request = urllib.request.Request(url, headers={"Range": f"bytes={have}-"} if have else {})
        with urllib.request.urlopen(request, timeout=timeout) as answer:
            resumed = answer.status == 206
            length = answer.headers["Content-Length"]  # of what is still to come; None where the server says nothing
            total = int(length) + (have if resumed else 0) if length else 0
            with open(part, "ab" if resumed else "wb") as file:
                while chunk := answer.read(1 << 16):
                    file.write(chunk)
    except urllib.error.HTTPError as error:
        if error.code == 416:  # what is there already is as long as the file, or longer: start again
            part.unlink()
            return fetch(url, path, timeout)
        raise UserError(f"{url} cannot be had ({error.code} {error.reason}); name another source with --url") from None
    except http.client.IncompleteRead:
        total = -1
    except (urllib.error.URLError, TimeoutError) as error:
        reason = getattr(error, "reason", error)
        raise UserError(f"no network, or --url {url} is out of reach ({reason}); data/sample needs neither") from None
    except (ValueError, http.client.HTTPException):
        raise UserError(f"--url: {url!r:.100} is no address of a file; leave it out, or begin with https://") from None
    size = part.stat().st_size
    if total and size != total:
        raise UserError(f"{path.name} stopped after {size} bytes; run the same command again to go on")
    with open(part, "rb") as file:
        if file.read(100).lstrip().startswith((b"<", b"version https://git-lfs")):
            part.unlink()
            raise UserError(f"{url} is a page or a pointer, not a task file; name another source with --url")
    part.replace(path)
    return size


@command
def main(argv=None):
    parser = Parser(prog="data/fetch.py", description=__doc__.splitlines()[0], formatter_class=argparse.HelpFormatter)
    parser.add_argument("--out", default="data/cs224n", metavar="DIR")
    parser.add_argument("--url", default=URL, help="where the files are")
    args = parser.parse_args(argv)
    folder = Path(args.out)
    folder.mkdir(parents=True, exist_ok=True)
    for task in TASKS.values():
        for split in SPLITS:
            path = data_path(folder, task, split)
            if path.exists():
                print(f"{path} is there, {path.stat().st_size:,} bytes")
            else:
                print(f"{path} fetched, {fetch(f'{args.url}/{path.name}', path):,} bytes")
    print(f"train on them with: make train DATA={folder} OUT=runs/cs224n")


if __name__ == "__main__":
    main()
