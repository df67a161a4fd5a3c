"""Compiles every kernel ahead of time, without a GPU, and prints what each costs: `python -m kernels.compile`.

    registers   per thread. A multiprocessor has 65,536; the more a thread takes, the fewer threads run at once.
    spilled     bytes of a thread's values that did not fit into registers and live in memory: should be 0
    shared      bytes of shared memory per program
    occupancy   the warps that fit on a multiprocessor at once, as a share of the 64 it can hold: what hides the latency
                of memory. Estimated from the three limits above; 25 % is plenty for kernels with much work per load.

The shapes are those of BERT-base, MiniLM and of PALs, in float32 and bfloat16, for A100 (sm_80) and H100 (sm_90).
"""

import argparse
import subprocess
import sys
import tempfile
import warnings
from typing import NamedTuple

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from kernels import adamw_step, bias_gelu, embedding, flash_attention, losses, residual_norm
from kernels.random_bits import threshold

# Of a multiprocessor: bytes of shared memory, programs, warps, registers (CUDA C Programming Guide)
LIMITS = {80: (164 * 1024, 32, 64, 65536), 90: (228 * 1024, 32, 64, 65536)}
POINTERS = {torch.float32: "*fp32", torch.bfloat16: "*bf16", torch.int32: "*i32", torch.int64: "*i64"}


class Case(NamedTuple):
    """One kernel in one shape."""

    name: str
    kernel: object
    arguments: dict  # by name: a dtype for a pointer, "i32" or "fp32" for a number, None for an absent pointer
    options: dict  # constexprs by name, and num_warps


def cases(dtypes=(torch.float32, torch.bfloat16)):
    """All kernels in all shapes."""
    f32 = torch.float32
    for x in dtypes:
        short = str(x).removeprefix("torch.")
        for model, heads, d in (("BERT-base", 12, 64), ("MiniLM", 12, 32), ("PALs", 12, 17)):
            for max_seqlen in (12, 24, 512):
                options = flash_attention.launch_options(d, max_seqlen, x)
                options |= {"HEADS": heads, "DROP": threshold(0.1)}
                forward = {"qkv": x, "cu_seqlens": torch.int32, "seed": torch.int64, "out": x, "lse": f32}
                backward = forward | {"dout": x, "dqkv": x, "scale": "fp32"}
                name = f"{model} {short} d {d}, up to {max_seqlen} tokens"
                yield Case(
                    f"attention forward   {name}", flash_attention._forward, forward | {"scale": "fp32"}, options
                )
                yield Case(f"attention backward  {name}", flash_attention._backward, backward, options)
        for model, width in (("BERT-base", 768), ("MiniLM", 384), ("PALs", 204)):
            options = residual_norm.launch_options(width) | {"DROP": threshold(0.1)}
            extra = x if model == "PALs" else None
            common = {"x": x, "bias": f32, "residual": x, "extra": extra, "seed": torch.int64, "weight": f32}
            forward = common | {"beta": f32, "y": x, "mean": f32, "rstd": f32, "eps": "fp32"}
            backward = common | {"mean": f32, "rstd": f32, "dy": x, "dx": x, "dz": x, "partial": f32}
            backward |= {"T": "i32", "ROWS": "i32"}
            yield Case(f"add_norm forward    {model} {short} H {width}", residual_norm._forward, forward, options)
            yield Case(f"add_norm backward   {model} {short} H {width}", residual_norm._backward, backward, options)
        for model, width in (("BERT-base", 3072), ("MiniLM", 1536), ("heads", 768)):
            options = bias_gelu.LAUNCH | {"F": width}
            forward = {"x": x, "bias": f32, "y": x, "T": "i32"}
            backward = {"x": x, "bias": f32, "dy": x, "dx": x, "partial": f32, "T": "i32", "ROWS": "i32"}
            yield Case(f"gelu forward        {model} {short} F {width}", bias_gelu._forward, forward, options)
            yield Case(f"gelu backward       {model} {short} F {width}", bias_gelu._backward, backward, options)
        for classes in (5, 2, 0):
            options = losses.launch_options(64, classes if classes > 2 else 1, classes)
            arguments = {"logits": x, "labels": f32, "loss": f32, "dlogits": f32, "B": "i32"}
            yield Case(f"loss                {short}, {classes} classes", losses._loss, arguments, options)
    for model, width in (("BERT-base", 768), ("MiniLM", 384)):
        options = residual_norm.launch_options(width)
        common = dict.fromkeys(("ids", "positions", "segments"), torch.int64)
        common |= dict.fromkeys(("word", "position", "segment", "weight"), f32)
        forward = common | {"beta": f32, "y": f32, "mean": f32, "rstd": f32, "eps": "fp32"}
        backward = common | {"mean": f32, "rstd": f32, "dy": f32, "dz": f32, "partial": f32, "T": "i32", "ROWS": "i32"}
        rows = {"dz": f32, "keys": torch.int64, "tokens": torch.int64, "dword": f32, "dposition": f32, "T": "i32"}
        name = f"{model} float32 H {width}"
        yield Case(f"embed forward       {name}", embedding._forward, forward, options)
        yield Case(f"embed backward      {name}", embedding._backward, backward, options)
        yield Case(f"embed add_rows      {name}", embedding._add_rows, rows, options | {"CHUNK": embedding.CHUNK})
    options = {"BLOCK": adamw_step.BLOCK, "num_warps": 8}
    yield Case("adamw squares", adamw_step._squares, {"grad": f32, "partial": f32, "n": "i32"}, options)
    flat = dict.fromkeys(("param", "grad", "m", "v", "partial", "norm"), f32) | {"n": "i32", "parts": "i32"}
    numbers = dict.fromkeys(("clip", "rate", "eps", "shrink", "beta1", "beta2", "gain1", "gain2"), "fp32")
    options = options | {"PARTS_PAD": 4 * adamw_step.PROGRAMS}
    yield Case("adamw update", adamw_step._update, flat | numbers, options)


def compile_case(case, arch):
    """Compiles a `Case` for compute capability `arch` (80, 90). Returns (registers, bytes spilled, bytes shared)."""
    options = dict(case.options)
    launch = {name: options.pop(name) for name in ("num_warps", "num_stages") if name in options}
    absent = {name: None for name, kind in case.arguments.items() if kind is None}
    signature = dict.fromkeys(case.kernel.arg_names, "constexpr")
    signature |= {name: POINTERS.get(kind, kind) for name, kind in case.arguments.items() if kind is not None}
    aligned = [i for i, name in enumerate(case.kernel.arg_names) if signature[name].startswith("*")]
    attributes = {(i,): [["tt.divisibility", 16]] for i in aligned}  # as PyTorch allocates
    source = ASTSource(case.kernel, signature, options | absent, attributes)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        compiled = triton.compile(source, target=GPUTarget("cuda", arch, 32), options=launch)
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        command = [triton.knobs.nvidia.cuobjdump.path, "--dump-resource-usage", file.name]
        words = subprocess.run(command, capture_output=True, text=True, check=True).stdout.replace(":", " ").split()
    return int(words[words.index("REG") + 1]), int(words[words.index("STACK") + 1]), compiled.metadata.shared


def occupancy(arch, registers, shared, warps):
    """The share of a multiprocessor's warps that these programs can fill, in [0, 1]."""
    memory, programs, most, file = LIMITS[arch]
    by_registers = file // (-(-registers * 32 // 256) * 256) // warps  # a warp's registers come in units of 256
    by_memory = memory // (shared + 1024)  # 1 KB of each program's is the system's
    return min(by_registers, by_memory, programs, most // warps) * warps / most


def main(argv=None):
    parser = argparse.ArgumentParser(prog="python -m kernels.compile", description=__doc__.splitlines()[0])
    parser.add_argument("--arch", type=int, nargs="+", choices=sorted(LIMITS), default=sorted(LIMITS))
    parser.add_argument("--only", default="", metavar="TEXT", help="kernels whose name contains it")
    args = parser.parse_args(argv)
    print(f"{'kernel':<60} arch  warps  registers  spilled  shared  occupancy")
    spilling = 0
    for case in cases():
        if args.only not in case.name:
            continue
        for arch in args.arch:
            registers, spilled, shared = compile_case(case, arch)
            spilling += spilled > 0
            warps = case.options["num_warps"]
            share = occupancy(arch, registers, shared, warps)
            print(f"{case.name:<60} sm_{arch} {warps:>6} {registers:>10} {spilled:>8} {shared:>7} {share:>9.0%}")
    print(f"{spilling} of them spill" if spilling else "no kernel spills")
    return 0


if __name__ == "__main__":
    sys.exit(main())
