"""Which of two libraries multiplies two float32 matrices on this processor: measured, not guessed.

PyTorch on x86 ships Intel's MKL, which it uses for float32, and oneDNN, which it uses for bfloat16. Which one is faster
depends on the processor, on the matrices' size, and on which of a linear layer's three products it is (y = x Wᵀ;
dx = dy W; dW = dyᵀ x). On one AMD processor without AVX-512, in GFLOP/s of one core:

    forward    MKL 119 to 140    oneDNN 123 to 141
    dx         MKL 128 to 144    oneDNN 104 to 138
    dw         MKL 131 to 139    oneDNN  87 to 116

On another with AVX-512 oneDNN's forward products have twice MKL's rate; held to AVX2, the same processor takes dx of a
layer from 3,072 to 768 at 108 with MKL and 68 with oneDNN, and of one from 384 to 1,536 at 104 and 122. So `choose`
times the products of a feed-forward layer, of MiniLM's size and of BERT-base's, once, in 0.3 to 0.7 s. oneDNN can also
apply GELU within a product, which pays with AVX-512 and costs up to a tenth without: measured, too.

The choice changes the last bits of a product. It is therefore kept: by processor in a file, so that the next run rounds
as this one does, and in each run's state, so that a resumed run goes on with it.
"""

import contextlib
import itertools
import json
import os
import platform
import time

import torch
import torch.nn.functional as F

SIZES = {f"{size_in} to {out}": (size_in, out) for H in (384, 768) for size_in, out in ((H, 4 * H), (4 * H, H))}
PRODUCTS = tuple(f"{kind} {size}" for kind in ("forward", "dx", "dw") for size in SIZES)
LIBRARIES = ("mkl", "onednn")
# the ways to choose from; the first one is in every PyTorch
WAYS = {**dict.fromkeys(PRODUCTS, LIBRARIES), "gelu": ("apart", "fused")}
AVAILABLE = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")
WORTH = 1.05  # the other library must be this much faster than the usual one
# oneDNN keeps code and scratch memory for each shape that it met, up to 1,024, and PyTorch's layer above it as much
# again; T changes with every batch, so without lower limits that grows by gigabytes (a step has about 30 shapes). Both
# are read at the first product.
os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "64")
os.environ.setdefault("LRU_CACHE_CAPACITY", "32")


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
    """The choice where nothing was measured: MKL on Intel's processors, oneDNN on others but for `dw` of wide layers.

    A first guess, which `choose` corrects: on the AMD processor of the table above MKL wins some of the others, too.
    """
    mkl = not AVAILABLE or "intel" in processor()[0].lower()
    wide = [f"dw {size}" for size, (size_in, out) in SIZES.items() if out >= size_in]
    return {name: ways[0 if mkl or name in wide else 1] for name, ways in WAYS.items()}


_choice = usual()


def choice():
    """{product: library, "gelu": "fused" or "apart"}, as it is in use."""
    return dict(_choice)


def use(wanted):
    """Takes over a `choice` that was kept, as far as this PyTorch has its libraries."""
    for name, ways in WAYS.items():
        if wanted.get(name) in (ways if AVAILABLE else ways[:1]):
            _choice[name] = wanted[name]


def library(kind, size_in, out):
    """The library of a product with W (out, in): that of the measured product which it resembles most."""
    H = 384 if min(size_in, out) < 576 else 768
    return _choice[f"{kind} {H} to {4 * H}" if out >= size_in else f"{kind} {4 * H} to {H}"]


def multiply(kind, a, b, bias=None):
    """One of the products: "forward" x (T, in), W (out, in) -> (T, out); "dx" dy (T, out), W -> (T, in); "dw" dy, x ->
    (out, in). float32 or bfloat16, contiguous. bfloat16 is oneDNN's either way: for wide `dw` `torch.mm` calls it.
    """
    out, size_in = b.shape if kind != "dw" else (a.shape[1], b.shape[1])
    wide_dw = kind == "dw" and out >= size_in
    mkl = library(kind, size_in, out) == "mkl" if a.dtype == torch.float32 else wide_dw
    return _by_torch(kind, a, b, bias) if mkl else _by_onednn(kind, a, b, bias)


def multiply_gelu(x, weight, bias):
    """x (T, in), W (out, in), bias (out,) -> GELU(x Wᵀ + b), (T, out), float32, where no gradient is asked for."""
    if _choice["gelu"] == "fused" and library("forward", weight.shape[1], weight.shape[0]) == "onednn":
        return onednn(x, weight, bias, "gelu")
    return F.gelu(multiply("forward", x, weight, bias))


def _by_torch(kind, a, b, bias=None):
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
    with contextlib.suppress(OSError, ValueError, RecursionError):
        kept = json.loads(path.read_text(encoding="utf-8"))
    kept = kept if isinstance(kept, dict) else {}
    if not isinstance(kept.get(key), dict) or kept[key].keys() != WAYS.keys():
        kept[key] = measure()
        with contextlib.suppress(OSError):  # measured again the next time
            path.parent.mkdir(parents=True, exist_ok=True)
            aside = path.with_name(f"{path.name}.{os.getpid()}")
            aside.write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")
            aside.replace(path)
    use(kept[key])


def _two_ways(name, T):
    """The two ways of `WAYS` as functions without arguments. T, the rows of x."""
    kind, _, size = name.partition(" ")
    size_in, out = SIZES[size or "384 to 1536"]
    x, dy, weight, bias = torch.ones(T, size_in), torch.ones(T, out), torch.ones(out, size_in), torch.ones(out)
    if kind == "gelu":
        return lambda: F.gelu(onednn(x, weight, bias)), lambda: onednn(x, weight, bias, "gelu")
    a, b = {"forward": (x, weight), "dx": (dy, weight), "dw": (dy, x)}[kind]
    return lambda: _by_torch(kind, a, b), lambda: _by_onednn(kind, a, b)


@torch.no_grad()
def measure(T=256, rounds=5):
    """{product: the faster library, "gelu": the faster way}, or the usual one where that is not clearly slower.

    Each round times every way once, so that a moment in which something else runs spoils one round of many products and
    not all rounds of one. The first round is not counted: oneDNN compiles in it.
    """
    calls = {}
    for name, ways in WAYS.items():
        calls |= {(name, way): call for way, call in zip(ways, _two_ways(name, T), strict=True)}
    times = {key: [] for key in calls}
    for _ in range(1 + rounds):
        for key, call in calls.items():
            start = time.perf_counter()
            call()
            times[key].append(time.perf_counter() - start)
    best = {key: min(seconds[1:]) for key, seconds in times.items()}
    found = usual()
    for name, ways in WAYS.items():
        other = ways[1 - ways.index(found[name])]
        if best[name, other] * WORTH < best[name, found[name]]:
            found[name] = other
    return found
