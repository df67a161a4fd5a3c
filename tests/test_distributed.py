"""Two processes against one: the same losses, the same evaluation; and what happens when one of them dies."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import tiny
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

import multitask
import simcse
from support import distributed
from support.console import UserError
from tasks import TASKS

ROOT = Path(__file__).parent.parent

# at least 20 steps; an epoch has one for each task, or one for all, so that the metrics have the loss of every step
METHODS = {
    "baseline": "--epochs 7",
    "uneven": "--epochs 7 --batch_size 3 --pair_encoding siamese",
    "pals": "--epochs 7 --use_pals --pal_size 12 --pal_heads 4",
    "smart": "--epochs 7 --use_smart --smart_projection ball --epsilon 0.5 --sigma 1 --eta 1 --mu 2",
    "smart_siamese": "--epochs 7 --batch_size 3 --pair_encoding siamese --use_smart --smart_projection ball"
    " --epsilon 0.5 --sigma 1 --mu 2",
    "surgery": "--epochs 20 --gradient_surgery",
    "distill": "--epochs 7 --teacher {out}/pals",
}


def commands(folder, out):
    """Each method's program and flags, dropout off."""
    common = f"--bert {folder}/bert --data {folder}/data"
    for name, flags in METHODS.items():
        flags = flags.format(out=out)
        flags = f"{common} --hidden_dropout_prob 0 --max_examples 4 --batch_size 4 --lr 1e-3 --out {out}/{name} {flags}"
        yield multitask.main, flags.split()
    flags = (
        f"{common} --epochs 20 --dropout 0 --layers 2 --hidden 32 --pairs {folder}/pairs.tsv --batch_size 7 --lr 1e-3"
    )
    yield simcse.main, f"{flags} --negatives both --pooling mean --out {out}/simcse".split()


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def as_torchrun_does(rank, port):
    """The environment of one of two processes."""
    names = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    return {name: str(value) for name, value in names.items()}


def one_of_two(rank, folder, port):
    os.environ.update(as_torchrun_does(rank, port))
    torch.set_num_threads(1)
    distributed.start(2)
    distributed.start, distributed.stop = lambda batch_size: None, distributed.barrier  # the same two for all commands
    for main, argv in commands(folder, folder / "two"):
        main(argv)


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """A folder with the runs of two processes in two/, of one in one/."""
    folder = tmp_path_factory.mktemp("parallel")
    tiny.folder(folder / "bert")
    tiny.task_files(folder / "data")
    rng = torch.Generator().manual_seed(0)
    draw = lambda: " ".join(tiny.WORDS[i] for i in torch.randint(len(tiny.WORDS), (6,), generator=rng))  # noqa: E731
    (folder / "pairs.tsv").write_text("\n".join(f"{draw()}\t{draw()}\t{draw()}" for _ in range(7)))
    two = mp.spawn(one_of_two, (folder, free_port()), nprocs=2, join=False)
    end = time.monotonic() + 90
    try:
        while not two.join(timeout=1):
            assert time.monotonic() < end, "two processes should be done by now"
    finally:
        for process in two.processes:
            process.kill()
    for main, argv in commands(folder, folder / "one"):
        main(argv)
    return folder


def losses_of(line):
    """The losses and penalties of a line of metrics, and the gradient's norm, which shows a wrong factor."""
    wanted = (*TASKS, "loss", "smoothness", "bregman", "gradient norm")
    return {name: value for name, value in line.items() if name in wanted}


@pytest.mark.parametrize("name", [*METHODS, "simcse"])
def test_two_processes_have_the_losses_and_the_metrics_of_one(both, name):
    one, two = (tiny.metrics(both / part / name) for part in ("one", "two"))
    assert len(one) == len(two) >= 14
    assert [line["kind"] for line in one] == [line["kind"] for line in two]
    for a, b in zip(one, two, strict=True):
        if a["kind"] == "train":
            assert losses_of(b) == pytest.approx(losses_of(a), rel=1e-3, abs=1e-4)
            if name.startswith("smart"):  # small, with so small an encoder, and wrong noise would change half of it
                assert b["smoothness"] == pytest.approx(a["smoothness"], rel=0.02, abs=0)
        else:  # of few examples: one that changes sides moves an accuracy far
            assert b == pytest.approx(a, abs=0.3)
    losses = [losses_of(line) for line in one if line["kind"] == "train"]
    assert losses[0] != losses[-1]
    if name != "simcse":
        files = sorted(path.name for path in (both / "two" / name / "predictions").iterdir())
        assert len(files) == 6
        for file in files:
            lines = [(both / part / name / "predictions" / file).read_text().splitlines() for part in ("one", "two")]
            ids, values = ([[line.split(" , ")[i] for line in part[1:]] for part in lines] for i in (0, 1))
            assert ids[0] == ids[1]
            if file.startswith("sts"):
                assert list(map(float, values[1])) == pytest.approx(list(map(float, values[0])), abs=0.05)


def test_evaluation_shared_by_two_gives_the_predictions_of_one(both):
    run = both / "two" / "pals"
    before = {path.name: path.read_text() for path in (run / "predictions").iterdir()}
    multitask.main(["--eval_only", "--out", str(run)])
    assert {path.name: path.read_text() for path in (run / "predictions").iterdir()} == before


def test_shares_cover_a_batch_and_differ_by_one_at_most(monkeypatch):
    monkeypatch.setattr(distributed, "world", lambda: 3)
    for n in (3, 7, 8, 32):
        shares = []
        for rank in range(3):
            monkeypatch.setattr(distributed, "rank", lambda rank=rank: rank)
            shares.append(distributed.shard(list(range(n))))
            assert distributed.shard_start(n) == shares[-1][0]
        assert [i for share in shares for i in share] == list(range(n))
        assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_a_batch_that_cannot_be_shared_is_refused(tmp_path, monkeypatch, refused):
    for name, value in (as_torchrun_does(1, 29500) | {"WORLD_SIZE": "4"}).items():
        monkeypatch.setenv(name, value)
    refused(multitask.main, ["--batch_size", "3", "--out", tmp_path / "run"], "cannot be shared by 4 processes")


@pytest.mark.parametrize("main", [multitask.main, simcse.main])
@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"WORLD_SIZE": "abc"}, "WORLD_SIZE cannot be 'abc'"),
        ({"WORLD_SIZE": ""}, "WORLD_SIZE cannot be ''"),
        ({"WORLD_SIZE": "0"}, "WORLD_SIZE cannot be '0'"),
        ({"WORLD_SIZE": "9" * 5000}, "WORLD_SIZE cannot be '999"),
        ({"RANK": None}, "WORLD_SIZE is set and RANK is not"),
        ({"RANK": "x"}, "RANK cannot be 'x'"),
        ({"RANK": "2"}, "RANK cannot be '2' (WORLD_SIZE=2)"),
        ({"LOCAL_RANK": "-1"}, "LOCAL_RANK cannot be '-1'"),
        ({"MASTER_PORT": "http"}, "MASTER_PORT cannot be 'http'"),
        ({"MASTER_PORT": "65536"}, "MASTER_PORT cannot be '65536'"),
        ({"MASTER_ADDR": None}, "MASTER_ADDR is not"),
    ],
)
def test_what_no_torchrun_has_set_is_one_sentence(tmp_path, monkeypatch, refused, main, changes, words):
    for name, value in (as_torchrun_does(1, 29500) | changes).items():
        monkeypatch.delenv(name, raising=False) if value is None else monkeypatch.setenv(name, value)
    refused(main, ["--out", tmp_path / "run", "--device", "cpu"], words, "start with torchrun, or unset WORLD_SIZE")
    assert not (tmp_path / "run").exists()


def test_one_process_needs_no_other_variables(monkeypatch):
    monkeypatch.setenv("RANK", "x")
    for one in ("1", "01", " 1"):
        monkeypatch.setenv("WORLD_SIZE", one)
        assert distributed.launched() == (1, 0)


def test_processes_that_do_not_meet_say_that_they_wait_and_then_end(monkeypatch, capfd):
    for name, value in as_torchrun_does(1, free_port()).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(distributed, "PATIENCE", 0.1)

    def late(*_, timeout):
        time.sleep(0.3)
        raise dist.DistNetworkError("The client socket has timed out")

    monkeypatch.setattr(distributed.dist, "init_process_group", late)
    with pytest.raises(UserError, match="2 processes do not meet at "):
        distributed.start(2)
    assert "process 1 waits at 127.0.0.1" in capfd.readouterr().err


def test_a_process_that_ends_early_says_so_by_its_exit_code_and_does_not_abort():
    code = "import torch; from support import distributed as d; d.start(2)\nfor _ in range(20): d.barrier()\nexit(2)"
    pairs = [[os.environ | as_torchrun_does(rank, port) for rank in (0, 1)] for port in (free_port(), free_port())]
    processes = [subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, env=env) for pair in pairs for env in pair]
    assert [process.wait(timeout=60) for process in processes] == [2] * 4


def torchrun(*argv):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "multitask.py"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen([*command, *argv], cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True)


def process_of(pid, rank):
    """The process of a rank, one of those that torchrun, process `pid`, has started."""
    children = " ".join(file.read_text() for file in Path(f"/proc/{pid}/task").glob("*/children")).split()
    own = f"RANK={rank}".encode()
    return next(int(child) for child in children if own in Path(f"/proc/{child}/environ").read_bytes().split(b"\0"))


def last_step(out):
    return max((line["step"] for line in tiny.metrics(out)), default=0)


@pytest.mark.skipif(not Path(f"/proc/self/task/{os.getpid()}/children").exists(), reason="needs /proc")
def test_a_dying_process_ends_the_run_with_a_sentence_and_it_resumes(tmp_path):
    bert, files = tiny.folder(tmp_path / "bert", 0.1), tiny.task_files(tmp_path / "data")
    for attempt in range(3):  # gloo rarely misses a death; then torchrun kills the survivor, too, after 30 seconds
        out = tmp_path / f"run{attempt}"
        flags = f"--bert {bert} --data {files} --batch_size 4 --epochs 2000 --save_every 5 --out {out}".split()
        run = torchrun(*flags)
        try:
            for _ in range(600):
                if (out / "last" / "state.safetensors").exists():
                    break
                assert run.poll() is None, run.stderr.read()
                time.sleep(0.1)
            os.kill(process_of(run.pid, 1), signal.SIGKILL)
            _, errors = run.communicate(timeout=60)
        finally:
            run.kill()
        assert run.returncode != 0
        if "forcefully exiting" not in errors:
            break
    assert "process 0 lost the others" in errors, errors
    assert "--resume" in errors
    resumed = torchrun("--resume", "--out", str(out))
    try:
        step = last_step(out)
        for _ in range(600):
            if last_step(out) > step + 20:
                break
            assert resumed.poll() is None, resumed.stderr.read()
            time.sleep(0.1)
        assert last_step(out) > step + 20
    finally:
        resumed.terminate()
        try:
            resumed.communicate(timeout=30)
        finally:
            resumed.kill()
