"""Data parallel training: N processes, each with its shard of every batch, that act as one.

    torchrun --nproc_per_node 2 multitask.py --option finetune

torchrun starts the processes and tells each its number (the rank r = 0 .. N - 1) in the environment. All of them hold
the same weights and know the same plan of batches. In a step each takes its part of the SAME batch of B examples, n_r
of them, and its loss, a mean over n_r, is weighted with n_r / B, so that

    Σ_r n_r / B · ∇(mean loss of part r)  =  ∇(mean loss of the whole batch)

whatever the parts' sizes. That sum is the only thing that the processes exchange in a step, and since every group of
parameters keeps its gradient in one or two flat tensors (`adamw.py`), it is one `all_reduce` for each of them.
DistributedDataParallel would wrap the model, cut the gradient into buckets, and must be told of parameters that a
step leaves unused (here: the heads and PALs of the other tasks, in every step). With flat gradients one names the
groups that took part and sums those: two lines, and correct by construction. What it gives up is hiding the exchange
behind the backward pass.

Everything that is drawn at random is a function of the seed and the step: the batches, SMART's noise, the order of
PCGrad's projections, and dropout's masks, for which each of several processes seeds its generator anew in each step. So
there is no random state to keep for each of them, and a resumed run goes on as if it had never stopped.

Process 0 alone writes files and prints. If a process dies, torchrun ends the others, and those that were waiting for
it say so in a sentence. (Not always: of 600 survivors of such a death the gloo of torch 2.13 left two waiting. torchrun
kills them after 30 seconds, and the run resumes all the same.)
"""

import atexit
import contextlib
import datetime
import os
import sys
import threading

import numpy as np
import torch
import torch.distributed as dist

from support.console import UserError

TIMEOUT = datetime.timedelta(minutes=10)  # for one exchange: no process is ever that far ahead of another
PATIENCE = 10  # seconds until a process says that it waits for the others
REMEDY = "start with torchrun, or unset WORLD_SIZE"


def launched():
    """What torchrun says in the environment: (number of processes, this one's number on its machine). Else (1, 0).

    Raises UserError where that is incomplete or makes no sense: a cluster or a notebook may have set a part of it.
    """
    processes = _variable("WORLD_SIZE", 1, 2**31) if "WORLD_SIZE" in os.environ else 1
    if processes == 1:
        return 1, 0
    _variable("RANK", 0, processes - 1)
    _variable("MASTER_PORT", 1, 2**16 - 1)
    if not os.environ.get("MASTER_ADDR"):
        raise UserError(f"WORLD_SIZE is set and MASTER_ADDR is not; {REMEDY}")
    return processes, _variable("LOCAL_RANK", 0, processes - 1) if "LOCAL_RANK" in os.environ else 0


def _variable(name, least, most):
    """A whole number of the environment. Raises UserError for anything else."""
    with contextlib.suppress(KeyError, ValueError):
        if least <= (number := int(os.environ[name])) <= most:
            return number
    if name not in os.environ:
        raise UserError(f"WORLD_SIZE is set and {name} is not; {REMEDY}")
    raise UserError(f"{name} cannot be {os.environ[name]!r:.40} (WORLD_SIZE={os.environ['WORLD_SIZE']:.40}); {REMEDY}")


def start(batch_size):
    """Joins the other processes, if torchrun started this one. Call it once the flags are known to be right.

    Raises UserError for a batch too small to share, and where the processes do not find each other.
    """
    processes, _ = launched()
    if batch_size < processes:
        raise UserError(f"--batch_size {batch_size} cannot be shared by {processes} processes; start fewer of them")
    if processes == 1:
        return
    place = f"{os.environ['MASTER_ADDR']:.60}:{os.environ['MASTER_PORT']}"
    word = f"process {os.environ['RANK']} waits at {place} until all {processes} are there"
    patience = threading.Timer(PATIENCE, print, [word], {"file": sys.stderr, "flush": True})
    patience.start()
    try:
        dist.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo", timeout=TIMEOUT)
    except (RuntimeError, ValueError) as error:
        raise UserError(f"{processes} processes do not meet at {place} ({first_line(error):.100}); {REMEDY}") from None
    finally:
        patience.cancel()
    atexit.register(_leave)  # an interpreter that ends beneath gloo's threads aborts
    if rank() > 0:
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115, it stays for good


def stop():
    """Leaves the other processes, once all of them have come this far."""
    barrier()
    _leave()


def _leave():
    if dist.is_initialized():
        dist.destroy_process_group()


def rank():
    """The number of this process, from 0; 0 without torchrun."""
    return dist.get_rank() if dist.is_initialized() else 0


def world():
    """How many processes there are; 1 without torchrun."""
    return dist.get_world_size() if dist.is_initialized() else 1


def shard_start(n):
    """Where this process's shard of n examples starts."""
    return rank() * n // world()


def shard(examples):
    """This process's shard of a list. The sizes of shards differ by at most 1."""
    return examples[shard_start(len(examples)) : (rank() + 1) * len(examples) // world()]


def seed_step(seed, step):
    """Seeds dropout for a step, each process differently. A single process keeps the random state that it has."""
    if world() > 1:
        torch.manual_seed(int(np.random.SeedSequence([seed, step, rank()]).generate_state(1, np.uint64)[0] >> 1))


# ----- what the processes exchange


@contextlib.contextmanager
def _lost_process():
    """Within it, torch.distributed's error for a lost process becomes a sentence, and ends this process."""
    try:
        yield
    except RuntimeError as error:
        print(  # at once: torchrun gives the survivors a tenth of a second
            f"error: process {os.environ['RANK']} lost the others, one of them died or was stopped "
            f"({first_line(error):.100}); start the same command again with --resume",
            file=sys.stderr,
            flush=True,
        )
        raise SystemExit(2) from None


def first_line(error):
    """What an error of torch.distributed says, without the place in its source and the stack."""
    return (str(error).strip().splitlines() or [""])[0].rpartition("] ")[2]


def sum_(tensor):
    """Sums a tensor over the processes, in place. Returns it."""
    if world() > 1:
        with _lost_process():
            dist.all_reduce(tensor)
    return tensor


def sum_gradients(optimizer, groups):
    """Sums the gradient of the named groups of an `AdamW` over the processes: one exchange for each flat tensor."""
    for flat in optimizer.flat_parameters(groups):
        sum_(flat.grad)


def gather(rows):
    """(n, H), the rows of each process's shard -> (B, H), all rows in order, gradient flowing to the own ones only.

    Every process then computes the SAME loss of all B rows, so the gradient of its own rows is already complete, and
    summing the parameters' gradients afterwards (`sum_gradients`) gives that of the whole batch: the backward pass
    needs no exchange of its own.
    """
    if world() == 1:
        return rows
    sizes = sum_(torch.tensor([len(rows) if r == rank() else 0 for r in range(world())])).tolist()
    everyone = rows.new_zeros(world(), max(sizes), rows.shape[1])
    everyone[rank(), : len(rows)] = rows.detach()
    sum_(everyone)
    return torch.cat([rows if r == rank() else everyone[r, :n] for r, n in enumerate(sizes)])


def any_of(flag):
    """True if the flag is True in any of the processes."""
    return bool(sum_(torch.tensor(int(flag)))) if world() > 1 else flag


def barrier():
    """Waits until all processes are here."""
    any_of(False)


@contextlib.contextmanager
def only_rank_0_warns():
    """Within it, only process 0 writes to stderr: all processes have the same to say."""
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stderr(sys.stderr if rank() == 0 else nowhere):
        yield


@contextlib.contextmanager
def rank_0_first():
    """Within it, process 0 works first (a download, say). The others follow, or end where process 0 failed."""
    if rank() > 0 and any_of(False):
        raise SystemExit(2)  # process 0 has said why
    failed = True
    try:
        yield
        failed = False
    finally:
        if rank() == 0:
            any_of(failed)
