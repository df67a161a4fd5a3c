"""Filling a batch up to a few shapes changes neither its loss nor its gradients; on a GPU, nor does a CUDA graph."""

import random

import pytest
import torch
import torch.nn.functional as F
from conftest import tiny_config
from torch import nn

from adamw import AdamW
from bert import Bert
from graphs import LONGEST, STEP, GraphedStep, fill
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
    assert torch.equal(filled.ids[:T], batch.ids) and filled.positions.max() < filled.max_seqlen


def test_a_graphed_step_gives_the_loss_and_gradients_of_an_eager_one():
    torch.manual_seed(0)
    model = Bert(tiny_config(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)).to(DEVICE)
    head = nn.Linear(32, 5, device=DEVICE)
    named = [*model.named_parameters(), *head.named_parameters()]
    optimizer = AdamW({"all": named})

    def logits_of(task, batch):
        return head(model.pool(model.encode(model.embed(batch), batch, rows=batch.cls_rows)))

    def loss_of(task, logits, labels):
        return F.cross_entropy(logits, labels)

    step = GraphedStep(logits_of, loss_of, optimizer.zero_grad)
    for seed, lengths in enumerate(([5, 9, 30], [30, 2, 7], [60, 1, 2])):  # the second replays the first one's graph
        batch, labels = batch_of(lengths, seed), torch.tensor([seed, 3, 4], device=DEVICE)
        optimizer.zero_grad()
        loss = loss_of("sst", logits_of("sst", batch), labels)
        loss.backward()
        wanted = [p.grad.clone() for _, p in named]
        torch.testing.assert_close(step("sst", batch, labels), loss.detach())
        for (name, p), grad in zip(named, wanted, strict=True):
            torch.testing.assert_close(p.grad, grad, rtol=1e-4, atol=1e-6, msg=name)
        optimizer.step({"all": 1e-3})
