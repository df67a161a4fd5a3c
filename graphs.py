"""The forward and backward pass of a training step as one CUDA graph.

A step of BERT-base is several hundred kernels, most of them over in a few microseconds: less than the host needs to
launch the next one. A CUDA graph is recorded once and then launched as a whole, with no Python and no host in between.
Recorded means frozen: every replay reads its inputs from the same addresses, in the same shapes. Packed batches come in
any number of tokens, so batches are filled up to a few sizes, and each size gets a graph:

    tokens             to the next multiple of STEP above T: at most STEP wasted, of 2,000
    sentences          B real ones, and as many more as can hold STEP tokens, some of them empty
    longest sentence   to the next of 32, 64, 128, 256, 512

What is filled in are sentences of their own, after the real ones. Attention never looks from one sentence into another
and the loss sees the real sentences only, so loss and gradients are those of the batch without them. Random numbers go
on from replay to replay, as PyTorch's generator counts on inside a graph.

The optimizer stays outside: its learning rate changes with every step, and its few launches are large (`adamw.py`).
On a CPU the same step runs without a graph, filling included.
"""

import torch

from tokenizer import Batch

STEP = 256  # tokens
LONGEST = (32, 64, 128, 256, 512)


def fill(batch, step=STEP):
    """A `Batch` with sentences added at its end, so that its shapes are one of few; see above.

    At least one token is added: the last sentence is never empty, so every sentence starts within the row of tokens.
    """
    T, device = len(batch.ids), batch.ids.device
    longest = next(m for m in LONGEST if m >= batch.max_seqlen)
    extra = step - T % step
    fillers = -(-step // longest)
    places = torch.arange(extra, device=device)
    zeros = torch.zeros_like(places)
    ends = (T + extra - longest * torch.arange(fillers - 1, -1, -1, device=device)).clamp(min=T)  # the empty ones first
    return Batch(
        torch.cat((batch.ids, zeros)),
        torch.cat((batch.positions, places % longest)),
        torch.cat((batch.segments, zeros)),
        torch.cat((batch.cu_seqlens, ends.int())),
        longest,
    )


class GraphedStep:
    """A function (task, batch, labels) -> loss that leaves the gradients, as `zero_grad`, forward and backward do."""

    def __init__(self, logits_of, loss_of, zero_grad):
        """Args: logits_of, (task, batch of B sentences) -> logits (B, C), under autocast if that is wanted; loss_of,
        (task, logits, labels (B,)) -> loss (); zero_grad, what clears the gradients in place. Each must do without the
        host: no `.item()`, no shapes that depend on values. Sentences of siamese pairs cannot be told apart here.
        """
        self.logits_of, self.loss_of, self.zero_grad = logits_of, loss_of, zero_grad
        self.graphs = {}  # (task, labels, tokens, longest) -> graph, its inputs, its loss
        self.pool = None

    def __call__(self, task, batch, labels):
        """Args: task, a name; batch, a `Batch` of B sentences and labels (B,), both on the model's device."""
        filled = fill(batch)
        inputs = (filled.ids, filled.positions, filled.segments, filled.cu_seqlens, labels)
        if batch.ids.device.type != "cuda":
            return self._run(task, inputs, filled.max_seqlen)
        key = (task, len(labels), len(filled.ids), filled.max_seqlen)
        if key not in self.graphs:
            self.graphs[key] = self._record(task, inputs, filled.max_seqlen)
        graph, places, loss = self.graphs[key]
        for place, value in zip(places, inputs, strict=True):
            place.copy_(value)
        graph.replay()
        return loss.clone()  # the next replay overwrites it

    def _run(self, task, inputs, longest):
        *tensors, labels = inputs
        self.zero_grad()
        logits = self.logits_of(task, Batch(*tensors, longest))
        loss = self.loss_of(task, logits[: len(labels)], labels)
        loss.backward()
        return loss.detach()

    def _record(self, task, inputs, longest):
        places = [value.clone() for value in inputs]
        state = torch.cuda.get_rng_state()
        aside = torch.cuda.Stream()
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside):  # compiles kernels and makes libraries allocate, which recording forbids
            for _ in range(3):
                self._run(task, places, longest)
        torch.cuda.current_stream().wait_stream(aside)
        torch.cuda.set_rng_state(state)
        self.pool = self.pool or torch.cuda.graph_pool_handle()  # graphs run one at a time and can share their memory
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self.pool):
            loss = self._run(task, places, longest)
        return graph, places, loss
