"""Compiles every kernel ahead of time, without a GPU, and prints what each costs: `python -m kernels.compile`.

    registers   per thread. A multiprocessor has 65,536; the more a thread takes, the fewer threads run at once.
    spilled     bytes of a thread's values that did not fit into registers and live in memory: should be 0
    shared      bytes of shared memory per program
    occupancy   the warps that fit on a multiprocessor at once, as a share of those it can hold: what hides the latency
                of memory. Estimated from the three limits above; 25 % is plenty for kernels with much work per load.

What is compiled is what runs: the operations are called with tensors in the shapes of BERT-base, MiniLM and of PALs,
and `binding.py` notes what Triton would compile for them, alignments included. The type is the one of `precision.py`,
float16 before sm_80 and bfloat16 from there on.
"""

import argparse
import subprocess
import sys
import tempfile
import warnings
from types import SimpleNamespace
from typing import NamedTuple

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from kernels import binding, precision
from kernels.plain import Update


class Limits(NamedTuple):
    """Of a multiprocessor (CUDA C Programming Guide); a program may take `shared` - `reserved`."""

    shared: int  # bytes
    programs: int
    warps: int
    registers: int = 65536
    reserved: int = 1024  # bytes of shared memory, of each program: the system's


LIMITS = {
    75: Limits(64 * 1024, 16, 32, reserved=0),
    80: Limits(164 * 1024, 32, 64),
    86: Limits(100 * 1024, 16, 48),
    89: Limits(100 * 1024, 24, 48),
    90: Limits(228 * 1024, 32, 64),
    100: Limits(228 * 1024, 32, 64),
    120: Limits(100 * 1024, 24, 48),
}
T, SENTENCES = 2048, 64
WIDTHS = {"BERT-base": (768, 12, 3072), "MiniLM": (384, 12, 1536), "PALs": (204, 12, None)}
LENGTHS = (12, 24, 60, 512)  # tokens of the longest sentence


def calls(dtype):
    """All operations in all shapes: (name, a function without arguments that calls it forward and backward)."""
    from kernels import fused as gpu
    from kernels.bias_gelu import bias_gelu

    bounds = torch.zeros(SENTENCES + 1, dtype=torch.int32)
    labels = torch.empty(SENTENCES)

    def new(*shape, kind=dtype):
        return torch.empty(*shape, dtype=kind).requires_grad_()

    def both(y):
        y.backward(torch.empty_like(y))

    def standing(*parameters):  # as `adamw.py` has the gradients stand
        for p in parameters:
            p.grad = torch.empty_like(p)
        return parameters

    def vectors(H):
        return standing(*(new(H, kind=torch.float32) for _ in range(3)))

    def norm_of(gamma, beta):
        return SimpleNamespace(weight=gamma, bias=beta, eps=1e-12)

    for model, (H, heads, wide) in WIDTHS.items():
        for longest in LENGTHS:

            def attention(H=H, heads=heads, longest=longest):
                both(gpu.attention(new(T, 3 * H), bounds, longest, heads, 0.1))

            yield f"attention, {model}, d {H // heads}, up to {longest} tokens", attention

        def add_norm(H=H, extra=model == "PALs"):
            bias, *norm = vectors(768 if extra else H)
            rows = [new(T, len(bias)) for _ in range(3 if extra else 2)]
            both(gpu.add_norm(rows[0], bias, rows[1], norm_of(*norm), 0.1, *rows[2:]))

        yield f"add_norm, {model}", add_norm
        if wide is None:
            continue
        yield (
            f"GELU, {model}, F {wide}",
            lambda wide=wide: both(bias_gelu(new(T, wide), *standing(new(wide, kind=torch.float32)))),
        )

        def embed(H=H):
            tables = standing(*(new(n, H, kind=torch.float32) for n in (30522, 512, 2)))
            both(gpu.embed(*(torch.empty(T, dtype=torch.int64) for _ in range(3)), tables, norm_of(*vectors(H)[:2])))

        yield f"embedding, {model}", embed
    for classes in (5, 2, 0):
        C = classes if classes > 2 else 1
        yield f"loss, {classes} classes", lambda C=C, n=classes: gpu.mean_loss(new(SENTENCES, C), labels, n)

    def adamw():
        updates = []
        for n in (4096 * 1000, 768 * 3 + 5):  # the matrices, and the vectors of a task's head, no multiple of 16
            copy = torch.empty(n, dtype=dtype) if dtype != torch.float32 else None
            updates.append(Update(*torch.empty(4, n).unbind(0), 1e-5, 1e-8, 1.0, copy))
        gpu.adamw(updates, 1.0, (0.9, 0.999))

    yield "AdamW", adamw


def variants(arch, dtype=None, only=""):
    """What Triton would compile for these calls on a card: (name, `binding.Variant`), each once."""
    capability, found = divmod(arch, 10), []
    with binding.record(capability) as recorded:
        for name, call in calls(dtype or precision.half_dtype(torch.device("cpu"))):
            if only in name:
                before = len(recorded.variants)
                call()
                found += [(name, variant) for variant in recorded.variants[before:]]
    return found


class Cost(NamedTuple):
    """What a compiled kernel takes: registers a thread, bytes spilled a thread, bytes of shared memory a program."""

    registers: int
    spilled: int
    shared: int


def compile_variant(variant, arch):
    """Compiles a `binding.Variant` for compute capability `arch` (80, 90, ...). Returns (`Cost`, the cubin)."""
    source = ASTSource(variant.kernel, variant.signature, variant.constexprs, variant.attributes)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        compiled = triton.compile(source, target=GPUTarget("cuda", arch, 32), options=variant.options.__dict__)
    cubin = compiled.asm["cubin"]
    words = inspect(cubin, "cuobjdump", "--dump-resource-usage").replace(":", " ").split()
    used = [int(words[words.index(name) + 1]) for name in ("REG", "STACK")]
    return Cost(*used, compiled.metadata.shared), cubin


def inspect(cubin, tool, *flags):
    """What "cuobjdump" or "nvdisasm", which come with Triton, say about a cubin: text."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [getattr(triton.knobs.nvidia, tool).path, *flags, file.name]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def occupancy(arch, cost, warps):
    """The share of a multiprocessor's warps that programs of so many warps can fill, in [0, 1]."""
    limits = LIMITS[arch]
    by_registers = limits.registers // (-(-cost.registers * 32 // 256) * 256) // warps  # units of 256 a warp
    by_memory = limits.shared // max(1, cost.shared + limits.reserved)
    return min(by_registers, by_memory, limits.programs, limits.warps // warps) * warps / limits.warps


def main(argv=None):
    parser = argparse.ArgumentParser(
        prog="python -m kernels.compile", description="Compiles every kernel, and prints what each costs.",
        usage=argparse.SUPPRESS, allow_abbrev=False,
    )  # fmt: skip
    parser.add_argument("--arch", type=int, nargs="+", choices=sorted(LIMITS), default=sorted(LIMITS))
    parser.add_argument("--only", default="", metavar="TEXT", help="operations whose name contains it")
    parser.add_argument("--float32", action="store_true", help="the float32 forms instead")
    args = parser.parse_args(argv)
    print(f"triton {triton.__version__}")
    print(f"{'operation':<44} {'kernel':<26} arch   warps  registers  spilled  shared  occupancy")
    spilling = []
    for arch in args.arch:
        found = variants(arch, torch.float32 if args.float32 else None, args.only)
        if not found:
            parser.error(f"no operation has {args.only!r} in its name; leave --only out")
        for name, variant in found:
            kernel, warps = variant.name(), variant.options.num_warps
            try:
                cost, _ = compile_variant(variant, arch)
            except Exception as error:
                print(f"{name:<44} {kernel:<26} sm_{arch:<3} does not compile: {str(error).splitlines()[0][:60]}")
                spilling.append(f"{name} on sm_{arch}")
                continue
            if cost.spilled or cost.shared > LIMITS[arch].shared - LIMITS[arch].reserved:
                spilling.append(f"{kernel} of {name} on sm_{arch}")
            share = occupancy(arch, cost, warps)
            numbers = f"{warps:>6} {cost.registers:>10} {cost.spilled:>8} {cost.shared:>7} {share:>9.0%}"
            print(f"{name:<44} {kernel:<26} sm_{arch:<3} {numbers}", flush=True)
    print("these spill or do not fit:", *spilling, sep="\n  ") if spilling else print("no kernel spills")
    return 0


if __name__ == "__main__":
    sys.exit(main())
