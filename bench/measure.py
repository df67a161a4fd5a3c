"""How `bench/gpu.py` measures: the setting, times with and without the host, tables that print as they go; memory."""

import contextlib
import resource
import statistics
import sys
import time
import traceback
from typing import NamedTuple

import torch

from bert import BertConfig


class Setting(NamedTuple):
    """What everything below depends on."""

    device: torch.device
    dtype: torch.dtype
    config: BertConfig
    batch: int  # sentences
    runs: int  # at least so many measurements a row
    lengths: dict  # name -> a list of batches, each a list of lengths
    rows: int  # of the memory-bound kernels
    compiled: bool  # measure torch.compile as well


def milliseconds(call, setting):
    """The median time of a call without arguments, after warming up (and, on a GPU, with a cold L2 cache)."""
    if setting.device.type == "cuda":
        import triton

        return triton.testing.do_bench(call, warmup=50, rep=200, return_mode="median")
    call()
    times = []
    for _ in range(setting.runs):
        start = time.perf_counter()
        call()
        times.append(1e3 * (time.perf_counter() - start))
    return statistics.median(times)


def on_gpu(call, setting):
    """The median time of a call without the host's share, from replays of a CUDA graph; None where it has none."""
    if setting.device.type != "cuda":
        return None
    import triton

    with contextlib.suppress(Exception):  # not everything can be recorded
        return triton.testing.do_bench_cudagraph(call, rep=50, return_mode="median")
    return None


class Table:
    """A table whose rows are printed as they come. `broken` names the forms of this project that failed."""

    def __init__(self, widths):
        """Args: widths, {heading: characters}."""
        self.widths, self.broken = list(widths.values()), []
        self.add(*widths)
        self.add(*("-" * width for width in self.widths))

    def add(self, *cells):
        texts = [f"{cell:.3f}" if isinstance(cell, float) else "" if cell is None else str(cell) for cell in cells]
        print("| " + " | ".join(f"{t:<{w}}" for t, w in zip(texts, self.widths, strict=True)) + " |", flush=True)

    def add_failure(self, cells, error, ours):
        """A row for a form that does not run here. Args: cells, of its start, the form last; ours, whether it should.

        The traceback of one that should is printed as well.
        """
        if ours:
            traceback.print_exception(error)
            self.broken.append(" ".join(map(str, cells)))
        cells = [*cells[:-1], f"{cells[-1]}: {why(error)}"]
        self.add(*cells, *[""] * (len(self.widths) - len(cells)))


def why(error):
    """One short line: what went wrong."""
    return f"does not run here: {type(error).__name__}: {error}".splitlines()[0][:70]


def rates(setting):
    """Measured on this device: bytes per ms of a large copy (read and written), and FLOP per ms of a large product."""
    large = setting.device.type == "cuda"
    source = torch.empty(2**28 if large else 2**22, dtype=torch.uint8, device=setting.device)
    target = torch.empty_like(source)
    bandwidth = 2 * len(source) / milliseconds(lambda: target.copy_(source), setting)
    n = 8192 if large else 256
    a = torch.randn(n, n, device=setting.device, dtype=setting.dtype)
    return bandwidth, 2 * n**3 / milliseconds(lambda: a @ a, setting)


def largest_memory():
    """The most memory that this process has ever had, in MB. Linux counts it in KB, macOS in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)
