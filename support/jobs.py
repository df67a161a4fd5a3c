"""Commands of this project as jobs: run to their end, resumable, with a record of what each took."""

import contextlib
import platform
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import torch

from support import files
from support.console import UserError

ROOT = Path(__file__).parent.parent
RECORD = {"seconds": (int, float), "commit": str, "device": str}  # what `row.json` holds


def finished(folder):
    """True once `run` has brought the job in this folder to its end."""
    return (Path(folder) / "row.json").exists()


def run(script, argv, folder, again):
    """Runs a command with `--resume` to its end, and leaves its record in FOLDER/row.json: seconds, commit, device.

    Args: script, a file of the project; argv, its flags; folder, where it works; again, the calling
    command, for the sentence that says how to go on. The seconds of a job that was stopped and resumed are summed up.
    Raises UserError where the command fails, SystemExit where it was stopped, or refused what was asked for.
    """
    folder, argv = Path(folder), [*argv, "--resume"]
    print("\npython " + shlex.join([script, *argv]), flush=True)
    started, stop = time.time(), False
    child = subprocess.Popen([sys.executable, str(ROOT / script), *argv])
    numbers = [n for n in (signal.SIGTERM, signal.SIGHUP) if signal.getsignal(n) != signal.SIG_IGN]  # of nohup
    before = {n: signal.signal(n, lambda *_: child.terminate()) for n in numbers}  # the run saves, and ends with 130
    try:
        code = child.wait()
    except KeyboardInterrupt:  # the run has heard it too, and saves
        code, stop = child.wait(), True
    for number, handler in before.items():
        signal.signal(number, handler)
    part = folder / "seconds.json"
    seconds = (files.read_json(part, {"seconds": float})["seconds"] if part.exists() else 0) + time.time() - started
    if code == 0:
        device = "cuda" if torch.cuda.is_available() and "cpu" not in argv else "cpu"
        row = {"seconds": round(seconds), "commit": commit(), "device": device_name(device)}
        files.write_json(folder / "row.json", row)
        (folder / "last" / "state.safetensors").unlink(missing_ok=True)  # three times the model, for resuming only
        with contextlib.suppress(OSError):  # somebody put a file of theirs there
            (folder / "last").rmdir()
        part.unlink(missing_ok=True)
    elif folder.exists():
        files.write_json(part, {"seconds": seconds})
    if stop or code == 130:
        print(f"stopped; go on with: python {again}")
        raise SystemExit(130)
    if code == 2:  # the child has said why
        raise SystemExit(2)
    if code:
        raise UserError(f"{script} ended with exit code {code} (why stands above); the same command goes on from there")


def commit():
    """The first digits of the commit that is checked out, "+" behind them where code differs; or "unknown".

    It is unknown, too, in a repository of others that does not track this code: an archive unpacked there.
    """
    git = ["git", "-C", str(ROOT)]
    with contextlib.suppress(OSError):  # no git here
        tracked = subprocess.run([*git, "ls-files", "support/jobs.py"], capture_output=True).stdout
        head = subprocess.run([*git, "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
        changed = subprocess.run([*git, "diff", "--quiet", "HEAD", "--", "*.py"], capture_output=True).returncode
        return head + "+" * bool(changed) if head and tracked else "unknown"
    return "unknown"


def device_name(kind):
    """What this machine computes on. Args: kind, "cpu" or "cuda"."""
    if kind == "cuda":
        return torch.cuda.get_device_name()
    models = []
    with contextlib.suppress(OSError), open("/proc/cpuinfo") as file:
        models = [line.split(":", 1)[1].strip() for line in file if line.startswith("model name")]
    name, threads = models[0] if models else platform.processor() or platform.machine(), torch.get_num_threads()
    return f"{name}, {threads} thread{'s' * (threads > 1)}"
