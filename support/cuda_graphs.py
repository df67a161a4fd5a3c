"""The forward and backward pass of a training step as one CUDA graph, on a GPU the default.

A step of BERT-base is several hundred kernels, most of them over in a few microseconds: less than the host needs to
launch the next one. A CUDA graph is recorded once and then launched as a whole, with no Python and no host in between.
Recorded means frozen: every replay reads its inputs from the same addresses, in the same shapes. Packed batches come in
any number of tokens, so batches are filled up to a few sizes, and each size (of each task) gets a graph:

    tokens             to the next multiple of STEP above T: at most STEP wasted, of 2,000
    sentences          B real ones, and as many more as can hold STEP tokens, some of them empty
    longest sentence   to the next of 32, 64, 128, 256, 512

What is filled in are sentences of their own, after the real ones. Attention never looks from one sentence into another
and the loss sees the real sentences only, so loss and gradients are those of the batch without them.

What is frozen must hold nothing that changes from step to step, and nothing that waits for the host:

  * Weights and gradients keep their addresses: the gradients must stand before the first step, as `adamw.py` has them
    stand, and are cleared in place. PyTorch would otherwise allocate them inside the recording.
  * Dropout's seeds are drawn on the device. A recorded draw takes the generator's position from the GPU's memory, and
    each replay first advances it, so masks differ from step to step and a saved random state is a true one. The rounds
    that warm up set the generator back.
  * Memory of a recording belongs to its graph for good. Graphs run one at a time and nothing outlives a replay but the
    gradients and the loss, which is copied, so all of them share one pool.
  * Warming up and recording happen in one and the same side stream. cuBLAS keeps a workspace for every stream that it
    meets, so a new stream for each graph would cost that much memory again (and all graphs are kept to the end: some
    versions of PyTorch free that workspace with the first graph that is deleted); and autograd adds to a weight's
    gradient in the stream in which the weight was first used, so no autograd graph may be alive from elsewhere while
    recording.
  * The optimizer, clipping included, stays outside: its learning rate changes with every step, and its few launches are
    large (`adamw.py`). Outside too are SMART, which sets random states back in the midst of a step, gradient surgery,
    which reads a value to decide what comes next, pairs of several sequences, whose parts the filling would
    shift, means, which an empty sentence lacks, teachers, whose part in the loss changes with every step, and torchrun,
    whose processes exchange gradients. `flags.py` refuses these.

`--cuda_graphs off` turns them off, and the command says which it is. On a CPU `GraphedStep` runs the same step without
a graph, filling included: that is what the tests can see of it. (The flag is refused there.)
"""

import dataclasses

import torch

STEP = 256  # tokens
LONGEST = (32, 64, 128, 256, 512)
TENSORS = ("ids", "positions", "segments", "cu_seqlens")  # of a `Batch`


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
    return dataclasses.replace(
        batch,
        ids=torch.cat((batch.ids, batch.ids[places % T])),  # not all one word, whose gradient one program sums
        positions=torch.cat((batch.positions, places % batch.max_seqlen)),  # which the model is sure to have
        segments=torch.cat((batch.segments, zeros)),
        cu_seqlens=torch.cat((batch.cu_seqlens, ends.int())),
        max_seqlen=longest,
    )


class GraphedStep:
    """A function (task, batch, labels) -> loss that leaves the gradients, as `zero_grad`, forward and backward do."""

    def __init__(self, device, logits_of, loss_of, zero_grad, scaled=None):
        """Args: device, the model's; logits_of, (task, batch of B sentences) -> logits (B, C), under autocast if that
        is wanted; loss_of, (task, logits, labels (B,)) -> loss (); zero_grad, what clears the gradients in place;
        scaled, loss () -> what the backward pass starts from, or None for the loss itself (`loss_scaling.py`). Each
        must do without the host: no `.item()`, no shapes that depend on values.
        """
        self.scaled = scaled or (lambda loss: loss)
        self.device, self.logits_of, self.loss_of, self.zero_grad = device, logits_of, loss_of, zero_grad
        self.records = device.type == "cuda"
        self.graphs = {}  # (task, labels, tokens, longest) -> graph, its inputs, its loss
        self.pool = self.stream = None

    def __call__(self, task, batch, labels):
        """Args: task, a name; batch, a `Batch` of B sentences; labels (B,). They may still be on the CPU."""
        filled = fill(batch)
        if not self.records:
            return self._run(task, filled, labels)
        key = (task, len(labels), len(filled.ids), filled.max_seqlen)
        if key not in self.graphs:
            self.graphs[key] = self._record(task, filled, labels)
        graph, *places, loss = self.graphs[key]
        for place, value in zip(_tensors(*places), _tensors(filled, labels), strict=True):
            place.copy_(value, non_blocking=True)
        graph.replay()
        return loss.clone()  # the next replay overwrites it

    def _run(self, task, batch, labels):
        self.zero_grad()
        logits = self.logits_of(task, batch)
        loss = self.loss_of(task, logits[: len(labels)], labels)
        self.scaled(loss).backward()
        return loss.detach()

    def _record(self, task, batch, labels):
        copy = lambda tensor: tensor.to(self.device, copy=True)  # noqa: E731
        tensors = {name: copy(getattr(batch, name)) for name in TENSORS}
        places = dataclasses.replace(batch, **tensors), copy(labels)
        if self.pool is None:
            self.pool, self.stream = torch.cuda.graph_pool_handle(), torch.cuda.Stream()
        state = torch.cuda.get_rng_state()
        self.stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self.stream):  # compiles kernels and makes libraries allocate, which recording forbids
            for _ in range(3):
                self._run(task, *places)
        torch.cuda.current_stream().wait_stream(self.stream)
        torch.cuda.set_rng_state(state)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self.pool, stream=self.stream):  # nothing runs: it is written down
            loss = self._run(task, *places)
        return graph, *places, loss


def _tensors(batch, labels):
    """All that a recording reads."""
    return [*(getattr(batch, name) for name in TENSORS), labels]
