"""Filling a batch up to a few shapes changes neither its loss nor its gradients; on a GPU, nor does a CUDA graph."""

import contextlib
import random
import types

import pytest
import tiny
import torch
import torch.nn.functional as F
from torch import nn

import multitask
from adamw import AdamW
from bert import Bert
from sampling import SAMPLINGS
from smart import PRESETS
from support import flags
from support.cuda_graphs import LONGEST, STEP, GraphedStep, fill
from tasks import SPLITS, TASKS
from tokenizer import pack

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def batch_of(lengths, seed=0):
    rng = random.Random(seed)
    return pack([([rng.randrange(120) for _ in range(n)], n // 2) for n in lengths]).to(DEVICE)


@pytest.mark.parametrize("lengths", ([1], [31] * 8, [32] * 8, [3, 100, 7], [200, 56], [200, 57], [512], [255]))
def test_filled_batches_have_few_shapes_and_keep_their_sentences(lengths):
    batch, filled = batch_of(lengths), fill(batch_of(lengths))
    B, T, total = len(lengths), sum(lengths), len(filled.ids)
    assert total % STEP == 0 and T < total <= T + STEP
    assert filled.max_seqlen in LONGEST and filled.max_seqlen >= max(lengths)
    assert len(filled) == B + -(-STEP // filled.max_seqlen)
    assert torch.equal(filled.cu_seqlens[: B + 1], batch.cu_seqlens) and filled.cu_seqlens[-1] == total
    sizes = filled.cu_seqlens.diff()
    assert (sizes >= 0).all() and sizes.max() <= filled.max_seqlen and filled.cls_rows.max() < total
    assert torch.equal(filled.ids[:T], batch.ids) and torch.equal(filled.positions[:T], batch.positions)
    assert filled.positions.max() < max(lengths)  # a model has positions for its own sentences, perhaps no more


def test_a_graphed_step_gives_the_loss_and_gradients_of_an_eager_one():
    torch.manual_seed(0)
    model = Bert(tiny.config(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)).to(DEVICE)
    head = nn.Linear(32, 5, device=DEVICE)
    named = [*model.named_parameters(), *head.named_parameters()]
    optimizer = AdamW({"all": named})

    def logits_of(task, batch):
        return head(model.pool(model.encode(model.embed(batch), batch, cls_only=True)))

    def loss_of(task, logits, labels):
        return F.cross_entropy(logits, labels)

    step = GraphedStep(DEVICE, logits_of, loss_of, optimizer.zero_grad)
    for seed, lengths in enumerate(([5, 9, 30], [30, 2, 7], [60, 1, 2])):  # the second replays the first one's graph
        batch, labels = batch_of(lengths, seed), torch.tensor([seed, 3, 4], device=DEVICE)
        optimizer.zero_grad()
        loss = loss_of("sst", logits_of("sst", batch), labels)
        loss.backward()
        loss = loss.detach()  # no autograd graph may be alive from elsewhere while recording
        wanted = [p.grad.clone() for _, p in named]
        torch.testing.assert_close(step("sst", batch, labels), loss)
        for (name, p), grad in zip(named, wanted, strict=True):
            torch.testing.assert_close(p.grad, grad, rtol=1e-4, atol=1e-6, msg=name)
        optimizer.step({"all": 1e-3})


class Recorder:
    """In place of parts of `torch.cuda`: what runs inside `graph` is not run but kept, and a replay runs it.

    As on a GPU, a replay reads its inputs and writes its loss where they were when it was recorded.
    """

    REPLACED = "CUDAGraph Stream stream current_stream graph graph_pool_handle get_rng_state set_rng_state".split()  # noqa: SIM905

    def __init__(self, step):
        self.step, self.run, self.recording, self.log = step, step._run, None, []
        step._run = self.note

    def note(self, task, batch, labels):
        if self.recording is None:
            self.log.append("run")
            return self.run(task, batch, labels)
        loss = torch.zeros(())
        self.recording.replay = lambda: (self.log.append("replay"), loss.copy_(self.run(task, batch, labels)))
        return loss

    @contextlib.contextmanager
    def graph(self, graph, pool, stream):
        assert (pool, stream) == (self.step.pool, self.step.stream)
        self.recording = graph
        yield
        self.recording = None

    CUDAGraph = types.SimpleNamespace
    get_rng_state, set_rng_state = staticmethod(torch.get_rng_state), staticmethod(torch.set_rng_state)
    graph_pool_handle = staticmethod(lambda: (0, 1))
    stream = staticmethod(lambda stream: contextlib.nullcontext())
    Stream = current_stream = staticmethod(lambda: types.SimpleNamespace(wait_stream=lambda other: None))


@pytest.mark.skipif(DEVICE.type == "cuda", reason="imitates what a GPU does itself")
def test_a_recorded_step_is_replayed_on_new_inputs_and_leaves_the_random_numbers_in_order(monkeypatch):
    """The bookkeeping around a graph: one for each task and size, inputs copied in, losses copied out."""
    model = tiny.model(dropout=0.1).train()
    optimizer = tiny.optimizer(model)
    step, eager = (multitask.graphed_step(model, optimizer) for _ in range(2))
    step.records, recorder = True, Recorder(step)
    for name in Recorder.REPLACED:
        monkeypatch.setattr(torch.cuda, name, getattr(recorder, name))
    batches = [("sst", (5, 3)), ("sst", (9, 4)), ("para", (5, 3)), ("sst", (40, 5)), ("sst", (7, 7))]
    results = []
    for form in (step, eager):
        torch.manual_seed(0)
        losses, gradients = [], []
        for seed, (task, lengths) in enumerate(batches):
            losses.append(form(task, tiny.batch(lengths, seed), torch.ones(2)))
            gradients.append([p.grad.clone() for p in model.parameters()])
        results.append((losses, gradients))
    (recorded, gradients), (wanted, wanted_gradients) = results
    assert torch.equal(torch.stack(recorded), torch.stack(wanted)) and len(set(map(float, recorded))) == len(batches)
    for fast, slow in zip(gradients, wanted_gradients, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(fast, slow, strict=True))
    assert [key[0] for key in step.graphs] == ["sst", "para", "sst"]
    first, later = ["run"] * 3 + ["replay"], ["replay"]
    assert recorder.log == first + later + first + first + later


def test_training_by_graphed_steps_gives_the_weights_of_training_without(tmp_path):
    """On the CPU, where nothing is recorded but batches are filled; dropout off, so to rounding."""
    tiny.folder(tmp_path / "bert")
    tiny.task_files(tmp_path / "data")
    folders = ["--bert", tmp_path / "bert", "--data", tmp_path / "data", "--out", tmp_path / "run"]
    argv = [*map(str, folders), "--batch_size", "4", "--hidden_dropout_prob", "0"]
    args = flags.parse_multitask(argv, TASKS, SPLITS, SAMPLINGS, PRESETS)
    tokenizer = multitask.Tokenizer(tmp_path / "bert", 64)
    datasets, weights = multitask.load_data(args, tokenizer), []
    for graphed in (False, True):
        model = tiny.model(seed=1)
        trainer = multitask.Trainer(args, model, datasets)
        trainer.graphed = multitask.graphed_step(model, trainer.optimizer) if graphed else None
        for step, task in enumerate(("sst", "para", "sts", "sst")):
            batches = {task: [step, 5, 7, 9]}
            values = trainer.step(step, 1.0, batches)
            assert list(values["losses"]) == [task]
        weights.append([flat.param for flat in trainer.optimizer.flat_parameters()])
    for with_filling, without in zip(*weights, strict=True):
        # a step moves a weight by up to 1e-3, in the direction of its gradient's sign, which rounding can turn near 0
        torch.testing.assert_close(with_filling, without, rtol=1e-4, atol=1e-4)


def test_cuda_graphs_are_refused_where_a_step_cannot_be_recorded(refused, monkeypatch):
    for others in (
        ["--use_smart"],
        ["--gradient_surgery"],
        ["--pair_encoding", "siamese"],
        ["--use_means"],
    ):
        refused(multitask.main, ["--cuda_graphs", *others], "--cuda_graphs", " ".join(others))
    if DEVICE.type == "cpu":
        refused(multitask.main, ["--cuda_graphs"], "--cuda_graphs", "CUDA device")
    refused(multitask.main, ["--cuda_graphs", "--device", "cpu"], "--cuda_graphs", "CUDA device")
    monkeypatch.setattr(flags.distributed, "launched", lambda: (2, 0))
    refused(multitask.main, ["--cuda_graphs"], "--cuda_graphs", "torchrun")
