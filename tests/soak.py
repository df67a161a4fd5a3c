"""Kill a run of MiniLM with SIGKILL at 20 random instants; it must end as one that was never killed: `make soak`.

Compares every tensor of the last state (weights, optimizer, random state) and of the best model, bit for bit.
"""

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import torch

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from support.safetensors import read_safetensors  # noqa: E402

KILLS = 20
FLAGS = "--data data/sample --max_examples 200 --epochs 2 --batch_size 16 --save_every 3".split()  # noqa: SIM905


def command(out):
    return [sys.executable, "multitask.py", *FLAGS, "--out", str(out), "--resume"]


def tensors(out):
    return {p.name: read_safetensors(p) for p in (*out.glob("last/*.safetensors"), *out.glob("best/*.safetensors"))}


def main():
    folder = ROOT / "runs" / "soak"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    start = time.time()
    subprocess.run(command(folder / "whole"), cwd=ROOT, check=True, capture_output=True)
    whole = time.time() - start
    rng = random.Random(time.time())
    writing = 0
    for kill in range(KILLS):
        log = open(folder / "log", "w")  # noqa: SIM115
        process = subprocess.Popen(command(folder / "killed"), cwd=ROOT, stdout=log, stderr=log)
        # half of the kills at a random instant, half in the middle of a write
        patience = time.time() + rng.uniform(3, 3 + whole / 8)
        while time.time() < patience and process.poll() is None:
            time.sleep(0.002)
        if kill % 2:
            limit = time.time() + 60
            while not list(folder.glob("killed/*/*.part")) and process.poll() is None and time.time() < limit:
                time.sleep(0.0005)
            time.sleep(rng.uniform(0, 0.1))
        during_write = bool([*folder.glob("killed/*/*.part"), *folder.glob("killed/*.part")])
        writing += during_write
        process.send_signal(signal.SIGKILL)
        process.wait()
        state = folder / "killed" / "last" / "state.safetensors"
        print(
            f"kill {kill + 1}: {'during a write' if during_write else 'between writes'}, state {state.exists()}",
            flush=True,
        )
    subprocess.run(command(folder / "killed"), cwd=ROOT, check=True, capture_output=True)
    first, second = tensors(folder / "whole"), tensors(folder / "killed")
    same = first.keys() == second.keys() and all(
        first[file].keys() == second[file].keys()
        and all(torch.equal(t, second[file][n]) for n, t in first[file].items())
        for file in first
    )
    print(f"{KILLS} kills, {writing} of them during a write: the weights are {'the same' if same else 'DIFFERENT'}")
    shutil.rmtree(folder)
    sys.exit(not same)


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "2")
    main()
