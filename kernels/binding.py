"""What Triton would compile and launch, noted without a GPU: `with record(capability) as recorded`.

Within it, operations on CPU tensors take their Triton forms. Each launch goes through Triton's own argument binding,
the one that runs on a GPU: it checks the arguments, and decides by their types, by what divides them by 16, and by the
constexprs whether a kernel has to be compiled anew. Then nothing is compiled and nothing runs.
"""

import contextlib
from typing import NamedTuple
from unittest import mock

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.runtime.jit import JITFunction

from kernels import precision


class Variant(NamedTuple):
    """A kernel as Triton compiles it."""

    kernel: object
    signature: dict  # the type of each argument, by name
    constexprs: dict  # what is compiled in, by the argument's place
    attributes: dict  # what is known of an argument, by its place: that 16 divides it
    options: object  # num_warps and so on

    def name(self):
        """The file and the function: "flash_attention._forward"."""
        return f"{self.kernel.module.removeprefix('kernels.')}.{self.kernel.__name__}"


class Recorded:
    """What happened. variants, each kernel to compile once; launches, how often each name was launched."""

    def __init__(self, on_launch):
        self.variants, self.launches, self.on_launch = [], [], on_launch

    def launch(self, variant, arguments):
        self.launches.append(variant.name())
        if self.on_launch:
            self.on_launch(variant, [x for x in arguments if isinstance(x, torch.Tensor)])


class _Compiled:
    """In place of a compiled kernel."""

    function = packed_metadata = None

    def __init__(self, recorded, variant):
        self.recorded, self.variant = recorded, variant

    def launch_metadata(self, *arguments):
        return None

    def run(self, x, y, z, stream, function, packed, metadata, enter, leave, *arguments):
        self.recorded.launch(self.variant, arguments)


@contextlib.contextmanager
def record(capability, on_launch=None):
    """Args: capability, of the card that is pretended, (9, 0) for instance; on_launch, called with each `Variant` that
    is launched and its tensors. Gives a `Recorded`.
    """
    recorded = Recorded(on_launch)
    target = GPUTarget("cuda", 10 * capability[0] + capability[1], 32)
    # the device is the key of Triton's cache of compiled kernels; this one shares it with nobody
    driver = mock.Mock(get_current_device=lambda: recorded, get_current_stream=lambda device: 0)
    driver.get_current_target = lambda: target

    def compile_nothing(kernel, key, signature, device, constexprs, options, attributes, warmup):
        variant = Variant(kernel, signature, constexprs, attributes, options)
        recorded.variants.append(variant)
        compiled = _Compiled(recorded, variant)
        kernel.device_caches[device][0][key] = compiled
        return compiled

    with (
        precision.pretend(capability),
        mock.patch.object(triton.runtime.driver, "_active", driver),
        mock.patch.object(JITFunction, "_do_compile", compile_nothing),
    ):
        yield recorded
    for variant in recorded.variants:
        variant.kernel.device_caches.pop(recorded, None)
