"""What a card can do is asked; where it has float16 only, the loss is scaled. The cards are pretended, on the CPU."""

import pytest
import tiny
import torch

import kernels
import multitask
from kernels import precision
from support import flags
from support.loss_scaling import LossScaler, scaler_for

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("capability", "dtype", "triton", "words"),
    [
        ((0, 0), None, False, "float32"),  # a CPU
        ((6, 1), None, False, "float32"),
        ((7, 0), torch.float16, False, "float16 with loss scaling"),
        ((7, 5), torch.float16, True, "float16 with loss scaling, as sm_75 has no bfloat16"),
        ((8, 0), torch.bfloat16, True, "bfloat16"),
        ((12, 0), torch.bfloat16, True, "bfloat16"),
    ],
)
def test_each_card_gets_what_it_can_do(capability, dtype, triton, words):
    with precision.pretend(capability):
        assert precision.half_dtype(CPU) == dtype and precision.runs_triton(CPU) == triton
        assert precision.describe(CPU).startswith(words)
        assert isinstance(scaler_for(CPU), LossScaler) == (dtype == torch.float16)
        with precision.autocast(CPU):
            assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == (dtype or torch.float32)


class FlatParameters:
    def __init__(self, *values):
        self.grad = torch.tensor(values)


def test_gradients_are_divided_by_the_scale_exactly():
    scaler, x = LossScaler(CPU), torch.randn(9, requires_grad=True)
    (wanted,) = torch.autograd.grad((x**3).sum(), x)
    flat = FlatParameters()
    (flat.grad,) = torch.autograd.grad(scaler.scaled((x**3).sum()), x)
    assert scaler.unscale([flat]) and torch.equal(flat.grad, wanted)


def test_float16_keeps_with_scaling_what_it_loses_without():
    weight = torch.full((1, 1), 1e-4)
    for scaler, kept in ((None, 0.0), (LossScaler(CPU), 1e-8)):
        x = torch.ones(1, 1, requires_grad=True)
        small = (x.half() * weight.half()).float().sum() * 1e-4  # its gradient passes through float16
        (scaler.scaled(small) if scaler else small).backward()
        if scaler:
            flat = FlatParameters()
            flat.grad = x.grad
            assert scaler.unscale([flat])
        assert abs(float(x.grad) - kept) < 1e-9


@pytest.mark.parametrize("bad", (float("inf"), float("-inf"), float("nan")))
def test_a_bad_gradient_halves_the_scale_and_good_ones_double_it(bad):
    assert (LossScaler(CPU).scale, LossScaler(CPU).grow_after) == (2**16, 2000)
    scaler = LossScaler(CPU, scale=64.0, grow_after=3)
    good = lambda: [FlatParameters(1.0, 2.0), FlatParameters(3.0)]  # noqa: E731
    assert scaler.unscale(good()) and scaler.unscale(good()) and scaler.scale == 64
    assert not scaler.unscale([FlatParameters(1.0, 2.0), FlatParameters(bad)]) and scaler.scale == 32
    assert [scaler.unscale(good()) for _ in range(3)] == [True] * 3 and scaler.scale == 64  # it counts anew
    assert [scaler.unscale(good()) for _ in range(2)] == [True] * 2 and scaler.scale == 64


@pytest.fixture
def run_flags(tmp_path):
    tiny.folder(tmp_path / "bert")
    tiny.task_files(tmp_path / "data")
    folders = ["--bert", tmp_path / "bert", "--data", tmp_path / "data", "--batch_size", "4", "--skip_test"]
    return [str(flag) for flag in folders]


def training_of(run_flags, out, *others):
    args = flags.parse_multitask(
        [*run_flags, "--out", str(out), *others],
        multitask.TASKS,
        multitask.SPLITS,
        multitask.SAMPLINGS,
        multitask.PRESETS,
    )
    tokenizer = multitask.Tokenizer(args.bert, 64)
    datasets = multitask.load_data(args, tokenizer)
    return multitask.Trainer(args, tiny.model(seed=1), datasets)


@pytest.fixture
def teacher(run_flags, tmp_path):
    """The flags of a student, whose teacher has been trained."""
    multitask.main([*run_flags, "--epochs", "1", "--lr", "1e-3", "--out", str(tmp_path / "teacher")])
    return ["--teacher", str(tmp_path / "teacher")]


METHODS = {"none": [], "SMART": ["--use_smart"], "surgery": ["--gradient_surgery"], "teacher": None}


@pytest.mark.parametrize("method", METHODS)
def test_an_overflow_skips_the_step_and_clipping_sees_the_true_norm(run_flags, tmp_path, method, request):
    """float16 is pretended; a scale of 2^126 overflows it, 1 does not."""
    others = request.getfixturevalue("teacher") if method == "teacher" else METHODS[method]
    batches = {"sst": [0, 1, 2, 3]} | ({} if method == "none" else {"para": [1, 2], "sts": [3]})
    norms = {}
    for capability, scale in (((7, 0), 1.0), ((7, 0), 2.0**8), ((1, 0), None)):
        with precision.pretend(capability):
            trainer = training_of(run_flags, tmp_path / "run", *others)
            if scale:
                trainer.scaler.scale.fill_(2.0**126)
                before = [flat.param.clone() for flat in trainer.optimizer.flat_parameters()]
                values = trainer.step(1, 1.0, batches)
                assert "norm" not in values and trainer.scaler.scale == 2.0**125
                assert set(trainer.optimizer.steps.values()) == {0}
                assert all(
                    torch.equal(f.param, p) for f, p in zip(trainer.optimizer.flat_parameters(), before, strict=True)
                )
                trainer.scaler.scale.fill_(scale)
            norms[scale] = trainer.step(1, 1.0, batches)["norm"]
            assert trainer.optimizer.steps["shared"] == 1
    torch.testing.assert_close(norms[1.0], norms[None], rtol=2e-2, atol=1e-3)
    torch.testing.assert_close(norms[2.0**8], norms[None], rtol=2e-2, atol=1e-3)


@pytest.mark.parametrize("taught", (False, True))
def test_a_float16_run_resumes_bit_for_bit_its_scale_included(run_flags, tmp_path, monkeypatch, taught, request):
    others = request.getfixturevalue("teacher") if taught else []
    monkeypatch.setattr(LossScaler.__init__, "__defaults__", (2.0**10, 3))  # it changes within a few steps
    with precision.pretend((7, 0)):
        whole, parts = tiny.last_states(tmp_path, [*run_flags, *others, "--epochs", "1"], monkeypatch)
    assert whole.keys() == parts.keys() and float(whole["loss_scale"]) != 2.0**10
    assert all(torch.equal(whole[name], parts[name]) for name in whole)


@pytest.mark.parametrize("cards", [((7, 0), (1, 0)), ((1, 0), (7, 0))], ids=str)
def test_a_run_goes_on_where_another_card_has_another_type(run_flags, tmp_path, cards):
    """float16, whose state has a loss scale, and float32, whose state has none."""
    flags, out = [*run_flags, "--epochs", "1"], str(tmp_path / "run")
    with precision.pretend(cards[0]), pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit):
        patch.setattr(tiny.training_run, "Interrupt", tiny.StopAfter(3))
        multitask.main([*flags, "--out", out])
    with precision.pretend(cards[1]):
        multitask.main([*flags, "--out", out, "--resume"])
    assert any(line["kind"] == "dev" for line in tiny.metrics(out))


def test_a_student_in_float16_learns_what_one_in_float32_learns(run_flags, tmp_path, teacher):
    """Targets, losses and the scaled gradients of a few steps, teacher annealing included."""
    losses = []
    for capability in ((7, 0), (1, 0)):
        with precision.pretend(capability):
            training = training_of(run_flags, tmp_path / "run", *teacher)
            if capability == (7, 0):
                training.scaler.scale.fill_(2.0**8)  # 2^16 overflows at the first step of sts, as it should
            steps = [
                training.step(step, 1.0, {name: [0, 1, 2]}) for step in (1, 4, 9) for name in ("sst", "para", "sts")
            ]
        assert all("norm" in values for values in steps)
        losses.append(torch.stack([loss for values in steps for loss in values["losses"].values()]))
    assert losses[0].dtype == torch.float32 and not torch.equal(*losses)
    torch.testing.assert_close(*losses, rtol=2e-2, atol=2e-3)


def test_cuda_graphs_are_the_default_where_a_step_can_be_recorded(run_flags, tmp_path, monkeypatch):
    def graphs(*others):
        return training_of(run_flags, tmp_path / "run", *others).args.cuda_graphs

    assert graphs("--device", "cpu") is False
    monkeypatch.setattr(flags, "no_graphs", lambda args: None)
    monkeypatch.setattr(kernels, "triton_backend", lambda: None)
    assert graphs() is True and graphs("--cuda_graphs") is True and graphs("--cuda_graphs", "off") is False
