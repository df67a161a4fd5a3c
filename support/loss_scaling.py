"""Dynamic loss scaling, by hand (Micikevicius et al., 2018, section 3.2): float16 training on cards before sm_80.

float16 ends at 65,504 above, and below 6e-8 there is only 0. Gradients of activations of 1e-8 are common, and as zeros
they teach nothing. The chain rule is linear, so the loss times S gives all gradients times S:

    d(S ℓ) / dθ = S dℓ/dθ

With S = 2¹⁶ they lie well within the range. Dividing by S afterwards, in float32, gives back what float16 would have
lost. No S fits all of training, so it is found by trying:

    a gradient is inf or NaN     skip this step: no weight, m, v or step count changes; S ← S / 2
    N good steps in a row        S ← 2 S                                            N = 2000

S is a power of two, so multiplying and dividing changes no digit. Clipping comes after the division and sees the true
norm. The decision to skip waits for the GPU once a step: little beside the 13 ms (MiniLM) or 68 ms (BERT-base) that the
model of `make launches` gives a T4. bfloat16 has float32's range and needs none of this.
"""

import torch

from kernels import precision


class LossScaler:
    """S and how long it has been good: both are state, and a run that resumes needs them (`state`)."""

    def __init__(self, device, scale=2.0**16, grow_after=2000):
        self.scale = torch.tensor(scale, device=device)  # (), on the device: CUDA graphs read it where it stands
        self.good = torch.zeros((), dtype=torch.int64)  # good steps since S changed
        self.grow_after = grow_after

    def state(self):
        """The tensors that a resumed run needs, by name. Not copies: writing to them sets the state."""
        return {"loss_scale": self.scale, "loss_scale.good_steps": self.good}

    def scaled(self, loss):
        """loss () -> S · loss, whose backward pass gives S times the gradients."""
        return loss * self.scale

    def unscale(self, flats):
        """Call after the last backward pass of a step: divides gradients by S, and adapts S.

        Args: flats, the `FlatParameters`s of `adamw.py` that take part in the step. Returns False where a gradient is
        inf or NaN: then the step must be skipped.
        """
        gradients = [flat.grad for flat in flats]
        norms = torch.stack(torch._foreach_norm(gradients))  # one inf or NaN among the gradients makes its norm one
        finite = bool(torch.isfinite(norms).all())
        if not finite:
            self.scale.mul_(0.5)
            self.good.zero_()
            return False
        torch._foreach_mul_(gradients, 1 / self.scale)
        self.good.add_(1)
        if self.good >= self.grow_after:
            self.scale.mul_(2)
            self.good.zero_()
        return True


class NoScaling:
    """The same for float32 and bfloat16, which need no scale: S = 1, and every step is taken."""

    def state(self):
        return {}

    def scaled(self, loss):
        return loss

    def unscale(self, flats):
        return True


def scaler_for(device):
    """A `LossScaler` where this device multiplies in float16, else `NoScaling`."""
    return LossScaler(device) if precision.half_dtype(device) == torch.float16 else NoScaling()
