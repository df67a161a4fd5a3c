"""AdamW by hand (Loshchilov & Hutter, 2019, algorithm 2; its η λ is lr · wd here, as in PyTorch), and the schedule.

With gradient g at a parameter's step t = 1, 2, ..., learning rate lr, weight decay wd (0.01), β₁ = 0.9, β₂ = 0.999,
ε = 1e-8, and θ the parameter:

    m ← β₁ m + (1 - β₁) g            running mean of the gradient
    v ← β₂ v + (1 - β₂) g²           running mean of its square
    θ ← θ - lr · wd · θ              weight decay, decoupled from the gradient; none on biases, LayerNorms, scalars
    θ ← θ - lr · m̂ / (√v̂ + ε)        m̂ = m / (1 - β₁ᵗ), v̂ = v / (1 - β₂ᵗ)

m and v start at 0, so early values are too small; dividing by 1 - βᵗ corrects that. Before all this, one norm is taken
over all gradients of the step. If it exceeds `clip`, every g is multiplied by clip / (norm + 1e-6).

The parameters of a group (what trains together, see below), their gradients, m and v each live in two flat tensors: one
for the matrices, which decay, and one for the vectors, which do not. The model's own tensors become views of these. The
update is a handful of element-wise operations on 23 million numbers (MiniLM), so its speed is that of memory, and
`kernels/cpu/optimizer.py` and `kernels/adamw_step.py` go over a flat tensor once. Flat gradients also take few
operations to zero, to measure, and to sum over several processes.

A group is what trains together: the encoder is one, and what belongs to one task only is another. A step names the
groups that took part; the rest stay as they are, as if they had no gradient.
"""

import math

import torch

from kernels import adamw, copy_for_products, keep_copies
from kernels.plain import Update


class FlatParameters:
    """Parameters in one flat float tensor, with their flat gradient, m and v."""

    def __init__(self, named, decay):
        """Args: named, a list of (name, parameter) on one device; decay, True if they are subject to weight decay."""
        self.decay = decay
        self.names = [name for name, _ in named]
        self.shapes = [p.shape for _, p in named]
        self.sizes = [p.numel() for _, p in named]
        device = named[0][1].device
        self.param, self.grad, self.m, self.v = (torch.zeros(sum(self.sizes), device=device) for _ in range(4))
        views = zip(named, self.views(self.param), self.views(self.grad), strict=True)
        for (_, p), value, grad in views:
            value.copy_(p.detach())
            p.data, p.grad = value, grad
        self.parameters = [p for _, p in named]
        self.copy = copy_for_products(self.param)  # on a GPU the parameters in 16 bits as well
        self.refresh_copy()

    def refresh_copy(self):
        """Call where the parameters were set by anything but `step`."""
        if self.copy is not None:
            self.copy.copy_(self.param)
            keep_copies(self.parameters, self.views(self.copy))

    def views(self, flat):
        """Views of a flat tensor in the shapes of the parameters."""
        return [part.view(shape) for part, shape in zip(flat.split(self.sizes), self.shapes, strict=True)]


class AdamW:
    """AdamW over groups of parameters that step together."""

    def __init__(self, groups, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.01, clip=1.0):
        """Args: groups, a dict from a group's name to its list of (name, parameter), float32, already on their device;
        clip, the largest norm of the gradient of a step, 0 for no limit. Parameters that do not require a gradient are
        left out. From here on `parameter.grad` is a view that autograd adds to: clear it with `zero_grad`.
        """
        self.betas, self.eps, self.weight_decay, self.clip = betas, eps, weight_decay, clip
        self.groups = {}  # name -> one or two `FlatParameters`
        self.steps = {}  # name -> how many steps the group has taken
        for group, named in groups.items():
            named = [(name, p) for name, p in named if p.requires_grad]
            matrices = [(name, p) for name, p in named if p.dim() >= 2]
            vectors = [(name, p) for name, p in named if p.dim() < 2]  # biases, LayerNorms, scalars
            self.groups[group] = [FlatParameters(part, part is matrices) for part in (matrices, vectors) if part]
            self.steps[group] = 0

    def flat_parameters(self, groups=None):
        """The list of `FlatParameters` of the named groups (None: of all)."""
        return [flat for name in (self.groups if groups is None else groups) for flat in self.groups[name]]

    def zero_grad(self):
        for flat in self.flat_parameters():
            flat.grad.zero_()

    @torch.no_grad()
    def step(self, lr):
        """One update. Args: lr, the learning rate of each group that took part, by its name.

        Returns the norm of their gradient before clipping, a float tensor ().
        """
        (b1, b2), updates = self.betas, []
        for name, rate in lr.items():
            self.steps[name] += 1
            # m̂ / (√v̂ + ε) = [√(1 - β₂ᵗ) / (1 - β₁ᵗ)] · m / (√v + ε √(1 - β₂ᵗ)): one pass less
            root = math.sqrt(1 - b2 ** self.steps[name])
            step_size = rate * root / (1 - b1 ** self.steps[name])
            for flat in self.groups[name]:
                decay = 1 - rate * self.weight_decay if flat.decay else 1.0
                tensors = flat.param, flat.grad, flat.m, flat.v
                updates.append(Update(*tensors, step_size, self.eps * root, decay, flat.copy))
        return adamw(updates, self.clip, self.betas) if updates else torch.zeros(())

    def state_dict(self):
        """(tensors by name, step counts by group): all that a resumed run needs. The tensors are views, not copies."""
        tensors = {}
        for flat in self.flat_parameters():
            for kind in ("m", "v"):
                views = flat.views(getattr(flat, kind))
                tensors |= {f"{kind}.{name}": view for name, view in zip(flat.names, views, strict=True)}
        return tensors, dict(self.steps)

    def resume(self, steps):
        """Call where m, v and the parameters were set in place. Args: steps, the step counts that belong to them."""
        self.steps = dict(steps)
        for flat in self.flat_parameters():
            flat.refresh_copy()


def linear_schedule(step, total, warmup):
    """The learning rate's factor: it rises linearly towards 1 at step warmup · total, then falls to 0 at `total`.

    Args: step, from 0; warmup in [0, 1). Returns a float in (0, 1].
    """
    warmup_steps = warmup * total
    rising, falling = (step + 1) / (warmup_steps + 1), (total - step) / max(1.0, total - warmup_steps)
    return min(rising, falling)
