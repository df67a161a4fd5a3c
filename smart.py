"""SMART, smoothness-inducing adversarial regularization (Jiang et al., 2020): small changes, small consequences.

    loss = L + λ_s R_s + μ D_Breg

L is the task's loss; λ_s (`--lambda_s`, 1) and μ (`--mu`) are weights. Both penalties compare two outputs a and b of
the model, example by example, by ℓ_s(a, b). With the class probabilities p = softmax(a) and q = softmax(b), or for one
logit p = sigmoid(a) and q = sigmoid(b):

    sst    KL(p‖q) + KL(q‖p) = Σ_c (p_c - q_c) (log p_c - log q_c)
    para   the same for the two classes of one logit = (p - q) (a - b)
    sts    (a - b)²        with `--use_means`, which predicts it twice, the mean of both

R_s asks that the model's output changes little when its input moves a little. x (T, H) are the embeddings, f is the
rest of the model. The input moves in the direction in which f changes most, found by T_x (`--T_x`, 1) steps of gradient
ascent (section 3.1):

    x̃ = x + ν,  ν ~ N(0, σ²)                            noise; σ is `--sigma`, 1e-5
    T_x times:   g = ∂ℓ_s(f(x̃), f(x)) / ∂x̃,   x̃ ← project(x̃ + η g)        η is `--eta`, 1e-3
    R_s = ℓ_s(f(x̃), f(x))                               gradient through both

`project` limits how far x̃ may be from x (ε is `--epsilon`); see below.

D_Breg asks that a step changes the model's outputs little (section 3.2, Bregman proximal point with momentum). θ are
the weights, θ̃ their moving average (EMA) with the momentum β (`--beta`, 0.99), moved after every S (`--S`, 1) steps:

    D_Breg = ℓ_s(f(x; θ), f(x; θ̃)),       θ̃ ← β θ̃ + (1 - β) θ

`--smart weak` is μ = 0.02, ε = 1e-6; `strong` is μ = 2, ε = 1e-5.

Two readings of "project". The paper's (`--smart_projection ball`) clips x̃ - x to [-ε, ε]. The code that most work
builds on (`unit`, the default) divides x̃ - x, token by token, by (its ∞-norm + ε), which leaves a perturbation of
size almost 1, five to six orders of magnitude more than ε (0.97 for weak, 0.76 for strong). This table shows both on
sst, and what other dropout masks do to the outputs (`python -m bench.methods`: MiniLM after 120 steps with
`--use_means` on sample data, weak; AMD EPYC Zen 5, 2026-11-28):

                            ∞-norm of x̃ - x     cosine with ν     R_s
    unit                    0.97                1.000             3.7e-2
    ball                    1e-6                0.82              5.2e-13
    ball, steered           0.02                0.06              1.6e-1
    noise alone, 0.33       1.1                 1.000             4.3e-2
    other dropout masks     0                                     6.7e-2

`ball`: R_s is 5e-13, below what float32 resolves, so it adds nothing to the loss. `unit`: R_s is half of what a change
of the dropout masks does. But η g is far smaller than ν there (the cosine is 1.000): x̃ - x is scaled noise, a random
direction and not an adversarial one. "Steered" is `--smart_projection ball --epsilon 0.02 --sigma 0.01 --eta 1e6`: η g
then moves nearly every number by all of ε, uphill, and a fiftieth of the size makes R_s four times as large. A model
that was trained so is no better than one trained with `unit` (`results/experiments.md`).

`--T_x 0` leaves the search out: x̃ = x + ν, noise alone, as in R3F (Aghajanyan et al., 2021). With σ = 0.33 it is of the
size that `unit` leaves, and takes one forward and one backward pass less. The best single model so far trained so, with
`--hidden_dropout_prob 0` (`results/README.md`).

The authors' released code detaches p in each term KL(p‖q), so no gradient passes through it. For a small perturbation
each term then loses half of its gradient. So at equal λ_s and μ the gradient of the penalties is half of ours for
classes. For a number that code detaches nothing, and the two are equal.

Four traps, each with a test of its own:

  * Dropout is a perturbation too, and a far larger one. All passes of a step see the same masks: the random state of
    the first is set back before each of the others.
  * A perturbation of 1e-6 does not survive bfloat16, which has 8 bits (`kernels/precision.py`). So on a GPU all passes
    with SMART are in float32 (for `unit` and noise of 1e-3 or more with TF32 products). On a CPU `--bf16` rounds
    what products take in these passes, too, and is refused beside a `ball` of small ε or σ. The KL is taken as the
    product above: both factors shrink with the perturbation, where the textbook form is a difference of two nearly
    equal sums.
  * β = 0 is the plain proximal point, θ̃ = θ before the step. D_Breg is at its minimum there, 0 with gradient 0,
    so with S = 1 it does nothing, ever. The momentum keeps θ̃ behind.
  * θ̃ is state: it is saved, and a resumed run ends bit for bit where an uninterrupted one does.

Cost: 3 + T_x forward and 2 + T_x backward passes in place of 1 and 1. The T_x extra backward passes are for x̃ only, so
they skip the gradients of the weights, half of the work; θ̃ needs no backward pass. That is 2.8 times the plain step
for MiniLM on one CPU core (`python -m bench.methods`).
"""

import contextlib
import copy

import numpy as np
import torch

PRESETS = {"weak": {"mu": 0.02, "epsilon": 1e-6}, "strong": {"mu": 2.0, "epsilon": 1e-5}}


def divergence(task, a, b):
    """ℓ_s of two outputs of the model, example by example.

    Args: task, its row in tasks.TASKS; a and b, logits (B, C), as `evaluate.probabilities` has them. Returns (B,).
    """
    a, b = a.float(), b.float()
    if task.classes > 2:
        log_p, log_q = torch.log_softmax(a, 1), torch.log_softmax(b, 1)
        return ((log_p.exp() - log_q.exp()) * (log_p - log_q)).sum(1)
    difference = (torch.sigmoid(a) - torch.sigmoid(b)) * (a - b) if task.classes else (a - b) ** 2
    return difference.mean(1)


def project(delta, epsilon, projection):
    """The perturbation delta (T, H), brought to its allowed size. Args: projection, "ball" or "unit", see above."""
    if projection == "ball":
        return delta.clamp(-epsilon, epsilon)
    return delta / (delta.abs().amax(1, keepdim=True) + epsilon)


def normal_noise(batch, width, seed, first, examples):
    """ν / σ: standard normal noise (T, width) for a batch, drawn on its device.

    A sentence's noise depends on nothing but `seed` (a list of int) and its place in the whole batch of the step, so it
    is the same however many processes share that batch. Args: first, the place of this batch's first example; examples,
    how many it has. The sequences of pairs stand in this order (`DataSet.batch`): those of all examples, then, where an
    example has a second and a third one, those of all examples again.
    """
    rows, device = [], batch.cu_seqlens.device
    for i, length in enumerate(batch.cu_seqlens.diff().tolist()):
        which, place = divmod(i, examples)  # which of the example's sequences; which example
        words = np.random.SeedSequence([*seed, which, first + place]).generate_state(1, np.uint64)
        generator = torch.Generator(device).manual_seed(int(words[0]) >> 1)
        rows.append(torch.randn(length, width, generator=generator, device=device))
    return torch.cat(rows)


class Smart:
    """The two penalties for a model in training."""

    def __init__(self, model, optimizer, args):
        """Args: model, a `MultitaskBert`; optimizer, its `AdamW`; args, the flags `lambda_s`, `mu`, `epsilon`, `sigma`,
        `eta`, `T_x`, `S`, `beta`, `smart_projection` and `seed`. Sets TF32 products for the whole process.
        """
        self.model, self.args = model, args
        # tensor cores round float32 to 11 bits (TF32), which a perturbation of size 1 survives and one of 1e-6 does not
        torch.backends.cuda.matmul.allow_tf32 = args.smart_projection == "unit" if args.T_x else args.sigma >= 1e-3
        # θ̃ lies in flat tensors, as the optimizer's θ does, so that moving it takes one `lerp_` for each of them; the
        # parameters of `average_model` are views of these
        self.average_model = None
        self.pairs = []  # (θ̃, θ), flat tensors, for all that trains
        if args.mu:
            self.average_model = copy.deepcopy(model).requires_grad_(False).train()
            theirs = dict(self.average_model.named_parameters())
            for name, p in model.named_parameters():
                if not p.requires_grad:
                    theirs[name].data = p.data  # what does not train is its own average
            for flat in optimizer.flat_parameters():
                average = flat.param.clone()
                for name, view in zip(flat.names, flat.views(average), strict=True):
                    theirs[name].data = view
                self.pairs.append((average, flat.param))

    def passes(self):
        """(forward, backward): how many passes a batch takes, where it would be 1 and 1 without SMART."""
        adversarial = 1 + self.args.T_x if self.args.lambda_s else 0
        return 1 + adversarial + bool(self.args.mu), 1 + adversarial

    def state(self):
        """The tensors of θ̃ that a resumed run needs, by name. Not copies: writing to them sets θ̃."""
        return {f"average.{i}": average for i, (average, _) in enumerate(self.pairs)}

    def forward(self, task, batch, step, first=0):
        """The model's output for a batch, and both penalties.

        Args: task, its row in tasks.TASKS; step, the number of the training step; first, the place of the batch's
        first example in the whole batch of the step. Returns logits (B, C), and R_s and D_Breg, means over the
        batch, scalars.
        """
        with torch.autocast(self.model.bert.word.weight.device.type, enabled=False):  # no autocast, see above
            return self._forward(task, batch, step, first)

    def _forward(self, task, batch, step, first):
        model, args = self.model, self.args
        x = model.bert.embed(batch)
        rng_state = _random_state(x.device)  # so that all passes draw the same dropout masks
        logits = model.classify(task.name, x, batch)
        smoothness = bregman = logits.new_zeros(())
        if args.lambda_s:
            noise = normal_noise(batch, x.shape[1], [args.seed, step], first, len(logits)) * args.sigma
            delta = self.perturbation(task, batch, x.detach(), logits.detach(), noise, rng_state)
            _set_random_state(rng_state)
            smoothness = divergence(task, model.classify(task.name, x + delta, batch), logits).mean()
        if args.mu:
            _set_random_state(rng_state)
            with torch.no_grad():
                before = self.average_model(task.name, batch)
            bregman = divergence(task, logits, before).mean()
        return logits, smoothness, bregman

    def perturbation(self, task, batch, x, logits, noise, rng_state):
        """x̃ - x (T, H) after T_x steps uphill from x + noise.

        Args: x (T, H) and logits f(x) (B, C), both detached; noise, ν (T, H); rng_state, which draws f(x)'s masks.
        """
        delta = noise
        with _frozen(self.model):
            for _ in range(self.args.T_x):
                moved = (x + delta).requires_grad_()
                _set_random_state(rng_state)
                distance = divergence(task, self.model.classify(task.name, moved, batch), logits).sum()
                (g,) = torch.autograd.grad(distance, moved)
                delta = project(delta + self.args.eta * g, self.args.epsilon, self.args.smart_projection)
        return delta

    @torch.no_grad()
    def after_step(self, step):
        """Call after the optimizer's step, from 1: moves θ̃."""
        if step % self.args.S == 0:
            for average, param in self.pairs:
                average.lerp_(param, 1 - self.args.beta)


@contextlib.contextmanager
def _frozen(model):
    """Within it, backward passes compute no gradients of the weights."""
    trained = [p for p in model.parameters() if p.requires_grad]
    for p in trained:
        p.requires_grad_(False)
    try:
        yield
    finally:
        for p in trained:
            p.requires_grad_(True)


def _random_state(device):
    return torch.get_rng_state(), torch.cuda.get_rng_state(device) if device.type == "cuda" else None


def _set_random_state(state):
    torch.set_rng_state(state[0])
    if state[1] is not None:
        torch.cuda.set_rng_state(state[1])
