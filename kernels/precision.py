"""What a card can do: asked, never assumed.

    capability      cards                              16-bit products     what runs
    8.0 and later   A100, RTX 30 and later, H100       bfloat16            bfloat16, Triton kernels
    7.5             T4, RTX 20, GTX 16                 float16             float16 with loss scaling, Triton kernels
    7.0             V100                               float16             float16 with loss scaling, plain forms
    before          P100, GTX 10                       none used           float32, plain forms

bfloat16 has float32's range and 8 bits of precision. float16 has 11 bits, but ends at 65,504, and loses what is below
6e-8; `support/loss_scaling.py` keeps gradients within these bounds. Triton compiles for 7.5 and later; it supports 8.0
and later, and on 7.5 its products use no tensor cores. PyPI's PyTorch begins at 7.5, too; cards before that need one
built for CUDA 12.6.
"""

import contextlib
import os

import torch

INTERPRET = os.environ.get("TRITON_INTERPRET") == "1"  # tests run the GPU's kernels in Triton's interpreter
_pretended = None


@contextlib.contextmanager
def pretend(capability):
    """Within it every device, CPUs too, says that it has this capability: for tests, and to count launches."""
    global _pretended
    before, _pretended = _pretended, capability
    try:
        yield
    finally:
        _pretended = before


def capability(device):
    """The compute capability of a CUDA device, (major, minor), as in (9, 0); (0, 0) for a CPU."""
    if _pretended:
        return _pretended
    return torch.cuda.get_device_capability(device) if device.type == "cuda" else (0, 0)


def half_dtype(device):
    """The 16-bit type in which this device multiplies fastest: bfloat16, float16, or None for neither.

    None for a CPU, too: `kernels/cpu/products.py` decides there.
    """
    if capability(device) >= (8, 0):
        return torch.bfloat16
    return torch.float16 if capability(device) >= (7, 0) else None


def runs_triton(device):
    """True where Triton compiles for this device."""
    return capability(device) >= (7, 5)


def autocast(device):
    """The context in which a model's products run in `half_dtype`; one that changes nothing where there is none."""
    dtype = half_dtype(device)
    return torch.autocast(device.type, dtype or torch.bfloat16, enabled=dtype is not None)


def describe(device):
    """What this device multiplies in, for people: "float16 with loss scaling, as sm_75 has no bfloat16"."""
    major, minor = capability(device)
    said = {
        torch.bfloat16: "bfloat16",
        torch.float16: f"float16 with loss scaling, as sm_{major}{minor} has no bfloat16",
    }
    return said.get(half_dtype(device), "float32")
