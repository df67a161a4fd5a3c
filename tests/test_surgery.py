"""PCGrad: a three-task case worked out by hand, the algorithm on whole vectors, and a training run."""

import itertools

import numpy as np
import pytest
import tiny
import torch

from surgery import NOTHING, Surgery, project


class InOrder:
    """In place of the random order: ascending, or descending."""

    def __init__(self, step):
        self.step = step

    def permutation(self, values):
        return sorted(values)[:: self.step]


# g_1 · g_2 = -3, g_1 · g_3 = 0, g_2 · g_3 = -2. Ascending:
#   1: (3, 0, 0) + 3/5 g_2 = (2.4, 1.2, 0), then · g_3 = -1.2, + 1.2/2 g_3 = (2.4, 0.6, 0.6)
#   2: (-1, 2, 0) + 3/9 g_1 = (0, 2, 0),    then · g_3 = -2,   + 2/2 g_3   = (0, 1, 1)
#   3: (0, -1, 1), · g_1 = 0 stays,         then · g_2 = -2,   + 2/5 g_2   = (-0.4, -0.2, 1)
# Descending: 1 meets g_3 first, no conflict, and is (2.4, 1.2, 0); 2 is (0, 1, 1) again;
#   3: + 2/5 g_2 = (-0.4, -0.2, 1), then · g_1 = -1.2, + 1.2/9 g_1 = (0, -0.2, 1)
THREE = np.array([[3.0, 0, 0], [-1, 2, 0], [0, -1, 1]])
BY_HAND = {1: [2.0, 1.4, 2.6], -1: [2.4, 2.0, 2.0]}


@pytest.mark.parametrize("direction", [1, -1])
def test_three_tasks_by_hand(direction):
    coefficients = project(THREE @ THREE.T, InOrder(direction))
    np.testing.assert_allclose(coefficients @ THREE, BY_HAND[direction], rtol=1e-4)


def by_vectors(gradients, generator):
    """Algorithm 1 of the paper on the vectors themselves."""
    total = np.zeros_like(gradients[0])
    for i in range(len(gradients)):
        p = gradients[i].copy()
        for j in generator.permutation([j for j in range(len(gradients)) if j != i]):
            if p @ gradients[j] < 0:
                p -= (p @ gradients[j]) / (gradients[j] @ gradients[j]) * gradients[j]
        total += p
    return total


@pytest.mark.parametrize("n", [1, 2, 3, 5])
def test_coefficients_give_what_whole_vectors_give(n):
    for seed in range(20):
        gradients = np.random.default_rng(seed).standard_normal((n, 7))
        slow = by_vectors(gradients, np.random.default_rng(seed))
        np.testing.assert_allclose(project(gradients @ gradients.T, np.random.default_rng(seed)) @ gradients, slow)


def test_two_tasks_never_undo_each_other_and_agreeing_ones_are_summed():
    a, b = np.array([1.0, 0.2]), np.array([-1.0, 0.5])
    g = project(np.array([[a @ a, a @ b], [a @ b, b @ b]]), np.random.default_rng(0)) @ np.stack([a, b])
    assert g @ a >= 0 <= g @ b
    np.testing.assert_allclose(project(np.array([[1, 0.5], [0.5, 1]]), np.random.default_rng(0)), [1, 1])


def test_shared_gradients_are_projected_and_heads_keep_theirs():
    model = tiny.model()
    optimizer = tiny.optimizer(model)
    surgery, gradients, tasks = Surgery(optimizer, seed=5), [], ("sst", "para", "sts")
    for i, task in enumerate(tasks):
        model(task, tiny.batch(seed=i)).sin().sum().backward()
        gradients.append(np.concatenate([f.grad.double().numpy() for f in optimizer.flat_parameters(("shared",))]))
        surgery.take(task)
    heads = [f.grad.clone() for f in optimizer.flat_parameters(tasks)]
    conflicts = surgery.combine(step=9)
    found = np.concatenate([f.grad.double().numpy() for f in optimizer.flat_parameters(("shared",))])
    slow = by_vectors(gradients, np.random.default_rng([5, 9]))
    np.testing.assert_allclose(found, slow, rtol=1e-3, atol=1e-4 * np.abs(slow).max())
    assert conflicts == {
        f"{a}-{b}": bool(gradients[i] @ gradients[j] < 0)
        for i, a in enumerate(tasks)
        for j, b in enumerate(tasks)
        if i < j
    }
    for flat, head in zip(optimizer.flat_parameters(tasks), heads, strict=True):
        assert torch.equal(flat.grad, head)
        assert head.abs().sum() > 0


def test_seed_and_step_draw_the_order_and_a_step_forgets_the_last_one():
    optimizer, rng = tiny.optimizer(tiny.model()), np.random.default_rng
    flat, *_ = optimizer.flat_parameters(("shared",))
    for seed, step in itertools.product(range(3), (1, 2)):
        surgery = Surgery(optimizer, seed)
        optimizer.zero_grad()
        for task, gradient in zip(("sst", "para", "sts"), THREE, strict=True):
            flat.grad[:3] = torch.tensor(gradient)
            surgery.take(task)
        assert surgery.combine(step) == {"sst-para": True, "sst-sts": False, "para-sts": True}  # 0 is no conflict
        np.testing.assert_allclose(flat.grad[:3].numpy(), by_vectors(THREE, rng([seed, step])), rtol=1e-5, atol=1e-7)
    optimizer.zero_grad()
    flat.grad[:3] = torch.tensor(THREE[1])
    surgery.take("para")  # alone, as at the end of an epoch with --extra_sst
    assert surgery.combine(3) == {}
    assert flat.grad[:3].tolist() == THREE[1].tolist()


def test_a_run_reports_conflicts_and_resumes_bit_for_bit(tmp_path, monkeypatch):
    bert, files = tiny.folder(tmp_path / "bert", dropout=0.1), tiny.task_files(tmp_path / "data")
    flags = f"--bert {bert} --data {files} --batch_size 4 --epochs 2 --gradient_surgery --extra_sst".split()
    whole, parts = tiny.last_states(tmp_path, flags, monkeypatch)
    assert all(torch.equal(whole[name], parts[name]) for name in whole)
    metrics = [tiny.metrics(tmp_path / name) for name in ("whole", "parts")]
    assert metrics[0][-1] == metrics[1][-1]
    assert sum(line["steps"] for line in metrics[0] if line["kind"] == "train") == 6  # extra ones cannot conflict
    train = metrics[0][0]
    assert {f"conflict {pair}" for pair in ("sst-para", "sst-sts", "para-sts")} <= train.keys()


@pytest.mark.parametrize("scale", [1e-20, 1e-24, 1e-42, 0.0])
def test_a_task_with_next_to_no_gradient_is_projected_like_any_other(scale):
    """All labels equal and a high --head_lr: soon the products of that task's gradients underflow in float32."""
    optimizer = tiny.optimizer(tiny.model())
    surgery, gradients, (flat, *_) = Surgery(optimizer, seed=0), [], optimizer.flat_parameters(("shared",))
    for task, gradient in zip(("sst", "para", "sts"), THREE, strict=True):
        flat.grad[:3] = torch.tensor(gradient) * (scale if task == "para" else 1)
        gradients.append(flat.grad[:3].double().numpy().copy())
        surgery.take(task)
    surgery.combine(step=1)
    kept = [g for g in gradients if g @ g > NOTHING]  # nothing is projected onto a gradient of 0
    slow = by_vectors(kept, np.random.default_rng([0, 1]))
    np.testing.assert_allclose(flat.grad[:3].numpy(), slow, rtol=1e-5, atol=1e-7)


def test_a_gram_entry_of_0_divides_nothing():
    assert np.isfinite(project(np.array([[0.0, -1e-30], [-1e-30, 1.0]]), np.random.default_rng(0))).all()
