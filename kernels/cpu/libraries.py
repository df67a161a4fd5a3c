"""Which of two libraries multiplies two float32 matrices on this processor: measured, not guessed.

PyTorch on x86 ships Intel's MKL, which it uses for float32, and oneDNN, which it uses for bfloat16. Which one is faster
depends on the processor, and on which of a linear layer's three products it is (y = x Wᵀ; dx = dy W; dW = dyᵀ x), wide
(out >= in) or narrow. On one AMD processor without AVX-512, in GFLOP/s of one core:

    forward    MKL 119 to 140    oneDNN 123 to 141
    dx         MKL 128 to 144    oneDNN 104 to 138
    dw         MKL 131 to 139    oneDNN  87 to 116

and on another with AVX-512 oneDNN's forward products have twice MKL's rate. So `choose` times all six once, in about
0.1 s. The choice changes the last bits of a product. It is therefore kept: by processor in a file, so that the next run
rounds as this one does, and in each run's state, so that a resumed run goes on with it.
"""

import contextlib
import itertools
import json
import os
import platform
import time

import torch
import torch.nn.functional as F

PRODUCTS = tuple(f"{kind} {width}" for kind in ("forward", "dx", "dw") for width in ("wide", "narrow"))
LIBRARIES = ("mkl", "onednn")
AVAILABLE = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")
WORTH = 1.05  # the other library must be this much faster than the usual one
# oneDNN keeps code and scratch memory for each shape that it met, up to 1,024, and T changes with every batch: without
# a lower limit that grows by gigabytes. A step has about 30 shapes. oneDNN reads the limit at its first product.
os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "64")


def processor():
    """(name, text with the instruction sets that it says it has)."""
    name, flags = platform.processor() or platform.machine(), ""
    with contextlib.suppress(OSError), open("/proc/cpuinfo", encoding="utf-8") as file:
        for line in itertools.islice(file, 40):  # the first core's
            key, _, value = line.partition(":")
            name = value.strip() if key.startswith("model name") else name
            flags = value if key.startswith("flags") else flags
    return name, flags


def usual():
    """The choice where nothing was measured: MKL on Intel's processors, oneDNN on others but for wide `dw`.

    A first guess, which `choose` corrects: on the AMD processor of the table above MKL wins some of the others, too.
    """
    mkl = not AVAILABLE or "intel" in processor()[0].lower()
    return {name: "mkl" if mkl or name == "dw wide" else "onednn" for name in PRODUCTS}


_choice = usual()


def choice():
    """{product: library}, as it is in use."""
    return dict(_choice)


def use(wanted):
    """Takes over a `choice` that was kept, as far as this PyTorch has its libraries."""
    for name in PRODUCTS:
        if wanted.get(name) in LIBRARIES and (AVAILABLE or wanted[name] == "mkl"):
            _choice[name] = wanted[name]


def multiply(kind, a, b, bias=None):
    """One of the products: "forward" x (T, in), W (out, in) -> (T, out); "dx" dy (T, out), W -> (T, in); "dw" dy, x ->
    (out, in). float32 or bfloat16, contiguous. bfloat16 is oneDNN's either way: for wide `dw` `torch.mm` calls it.
    """
    out, size_in = b.shape if kind != "dw" else (a.shape[1], b.shape[1])
    width = "wide" if out >= size_in else "narrow"
    mkl = _choice[f"{kind} {width}"] == "mkl" if a.dtype == torch.float32 else (kind, width) == ("dw", "wide")
    return _by_mkl(kind, a, b, bias) if mkl else _by_onednn(kind, a, b, bias)


def _by_mkl(kind, a, b, bias=None):
    if kind == "forward":
        return F.linear(a, b, bias)
    return torch.mm(a, b) if kind == "dx" else torch.mm(a.t(), b)


def _by_onednn(kind, a, b, bias=None):
    if kind == "forward":
        return onednn(a, b, bias)
    return onednn(a, b.t()) if kind == "dx" else onednn(a.t(), b.t())


def onednn(a, b, bias=None, then="none"):
    """a (M, K), b (N, K) -> a bᵀ + bias, (M, N). Both contiguous, or the transpose of what is: slices are very slow.

    Args: then, "gelu" for GELU (the exact form) of that.
    """
    return torch.ops.mkldnn._linear_pointwise(a, b, bias, then, [], "none")


def choose(path):
    """Measures, or takes what was measured for this processor, threads and PyTorch before. Args: path, of the file."""
    if not AVAILABLE:
        return
    key = f"{processor()[0]}, {torch.get_num_threads()} threads, torch {torch.__version__}"
    kept = {}
    with contextlib.suppress(OSError, ValueError):
        kept = json.loads(path.read_text(encoding="utf-8"))
    kept = kept if isinstance(kept, dict) else {}
    if not isinstance(kept.get(key), dict):
        kept[key] = measure()
        with contextlib.suppress(OSError):  # measured again the next time
            aside = path.with_name(f"{path.name}.{os.getpid()}")
            aside.write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")
            aside.replace(path)
    use(kept[key])


@torch.no_grad()
def measure(T=256, rounds=4):
    """{product: the faster library}, or the usual one where that is not clearly slower."""
    found = usual()
    for name in PRODUCTS:
        kind, width = name.split()
        size_in, out = (384, 1536) if width == "wide" else (1536, 384)
        x, dy, weight = torch.ones(T, size_in), torch.ones(T, out), torch.ones(out, size_in)
        a, b = {"forward": (x, weight), "dx": (dy, weight), "dw": (dy, x)}[kind]
        times = dict.fromkeys(LIBRARIES, float("inf"))
        for _ in range(rounds):
            for library, product in zip(LIBRARIES, (_by_mkl, _by_onednn), strict=True):
                start = time.perf_counter()
                product(kind, a, b)
                times[library] = min(times[library], time.perf_counter() - start)
        other = LIBRARIES[found[name] == "mkl"]
        if times[other] * WORTH < times[found[name]]:
            found[name] = other
    return found
