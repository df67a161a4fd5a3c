"""A handful of launch options for each Triton kernel, the best first: `python -m bench.gpu --tune`."""

import torch

import kernels
from bench.gpu_kernels import attention_forms, forward_backward, row_forms
from bench.measure import Table, milliseconds
from kernels.plain import Update


def tunings(setting):
    """(kernel, the module and the name of what decides its launch options, a handful of changes, a call)."""
    from kernels import adamw_step, bias_gelu, flash_attention, residual_norm

    heads, T = setting.config.num_attention_heads, setting.rows // 8
    lengths = setting.lengths["quora"][0]
    (_, call, inputs), *_ = attention_forms(setting, lengths, 0.1)
    some = [{"num_warps": w, "num_stages": s} for w in (2, 4) for s in (1, 2)] + [{"INNER": 16}, {"INNER": 32}]
    attention_call = forward_backward(call, inputs)[1]
    yield f"attention, {heads} heads, up to {max(lengths)}", flash_attention, "launch_options", some, attention_call
    (_, _, _, norm_forms), (_, _, _, gelu_forms) = row_forms(setting, T)
    warps = [{"num_warps": w} for w in (1, 2, 4, 8)]
    for kernel, module, name, forms, changes in (
        ("add_norm", residual_norm, "launch_options", norm_forms, warps),
        ("gelu", bias_gelu, "LAUNCH", gelu_forms, [*warps, {"BLOCK_T": 2}, {"BLOCK_T": 8}, {"BLOCK_F": 256}]),
    ):
        _, form, inputs = next(iter(forms))
        yield f"{kernel}, {T} rows", module, name, changes, forward_backward(form, inputs)[1]
    update = Update(*torch.rand(4, 2**22, device=setting.device), 1e-5, 1e-8, 1.0)
    blocks = [{"BLOCK": n} for n in (1024, 2048, 4096)]
    yield "adamw", adamw_step, "LAUNCH", blocks, lambda: kernels.adamw([update], 1.0, (0.9, 0.999))


def tune(setting):
    """Prints what each change of a kernel's launch options does, in ms: to be copied with date and card.

    Returns the names of kernels that fail even as they are.
    """
    rows = Table({"kernel": 34, "changed": 44, "time": 9})
    for kernel, module, name, changes, call in tunings(setting):
        usual, found = getattr(module, name), []
        for change in [{}, *changes]:
            changed = usual | change if isinstance(usual, dict) else lambda *a, u=usual, c=change: u(*a) | c
            try:
                setattr(module, name, changed)
                found.append((milliseconds(call, setting), str(change) if change else "as it is"))
            except Exception as error:
                rows.add_failure([kernel, str(change)], error, ours=not change)
            finally:
                setattr(module, name, usual)
        for ms, text in sorted(found):
            rows.add(kernel, text, ms)
    return rows.broken
