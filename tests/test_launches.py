"""What a machine without a GPU can prove about one: launches of a step, variants to compile, what the compiler made."""

import collections
import importlib
import re

import pytest
import torch

import kernels

triton = pytest.importorskip("triton")
if kernels.INTERPRET:
    pytest.skip("compiles, so not in the interpreter's process", allow_module_level=True)

from bench import launches  # noqa: E402
from bert import BertConfig  # noqa: E402
from kernels import compile as ahead  # noqa: E402
from kernels.binding import record  # noqa: E402


@pytest.mark.parametrize(
    ("model", "counts", "most"),
    [("BERT-base", (8, 116, 263, 8), 5400), ("MiniLM", (8, 68, 149, 8), 1550)],
)
def test_launches_of_a_training_step_and_what_the_model_makes_of_them(model, counts, most):
    """BERT-base had 710, and the model said 6.56 ms, before gradients were added in place (`results/gpu-model.md`)."""
    recorder = launches.record_steps(launches.MODELS[model], launches.batches_of(1))
    found = collections.Counter(launch.phase for launch in recorder.launches)
    assert tuple(found[phase] for phase in launches.PHASES) == counts
    *_, (_, total, microseconds) = launches.step_table(recorder.launches, launches.CARDS["H100"])
    assert total == sum(counts) and microseconds < most


def test_the_recorder_counts_what_runs_and_nothing_else():
    x, y = torch.ones(4, 8), torch.ones(8, 16)
    with launches.Recorder() as recorder:
        z = (x @ y).t()[1:].contiguous()  # a product, two views, a copy
        z.zero_()
        kernels.adamw([kernels.plain.Update(*torch.empty(4, 32).unbind(0), 1e-3, 1e-8, 1.0)], 1.0, (0.9, 0.999))
    names = [launch.name for launch in recorder.launches]
    assert z.shape == (15, 4) and names == ["mm", "clone", "zero_", "adamw_step", "adamw_step"]
    product, update = recorder.launches[0], recorder.launches[-1]
    assert product.product == (4, 16, 8) and product.bytes == 4 * (4 * 8 + 8 * 16 + 4 * 16)
    assert update.bytes == 4 * (7 * 32 + 4 + 1)  # four read, three written, partial sums, the norm


def test_flags_that_mean_nothing_are_one_line(refused, capsys):
    refused(launches.main, ["--lis"], "--lis", "see `python -m bench.launches --help`")
    with pytest.raises(SystemExit) as stopped:
        ahead.main(["--only", "no such operation", "--arch", "90"])
    assert stopped.value.code == 2
    assert capsys.readouterr().err.splitlines() == [
        "python -m kernels.compile: error: no operation has 'no such operation' in its name; leave --only out"
    ]


def test_thirty_batches_compile_few_kernels():
    config = BertConfig(num_hidden_layers=2)
    recorder = launches.record_steps(config, launches.batches_of(30))
    names = collections.Counter(variant.name() for variant in recorder.recorded.variants)
    assert all(variant.options.enable_fp_fusion for variant in recorder.recorded.variants)
    # attention: tiles for up to 64 tokens and beyond. add_norm: the first layer's residual is float32, of the
    # embedding. AdamW: sizes that 16 divides, and others
    assert names == {
        "flash_attention._forward": 2,
        "flash_attention._backward": 1,
        "residual_norm._forward": 2,
        "residual_norm._backward": 2,
        "bias_gelu._forward": 2,
        "bias_gelu._backward": 2,
        "embedding._forward": 1,
        "embedding._backward": 1,
        "embedding._add_rows": 1,
        "losses._loss": 1,
        "weight_gradients._add_sums": 3,
        "adamw_step._squares": 2,
        "adamw_step._update": 2,
    }


def test_arguments_are_bound_as_on_a_gpu():
    losses = importlib.import_module("kernels.losses")
    with record((9, 0)) as recorded:
        with pytest.raises(TypeError, match="missing"):
            losses._loss[(1,)](torch.empty(4, 5))
        for T in (1, 16, 37):  # 1 and multiples of 16 are no cases of their own
            kernels.mean_loss(torch.empty(T, 5), torch.empty(T), 5)
    assert recorded.launches == ["losses._loss"] * 3 and len(recorded.variants) == 2  # BLOCK is 16, then 64


@pytest.mark.parametrize(
    ("arch", "operation"),
    [
        (90, "AdamW"),
        (90, "add_norm, BERT-base"),
        (75, "add_norm, MiniLM"),
        (90, "GELU, BERT-base"),
        (90, "embedding, M"),
    ],
)
def test_kernels_load_16_bytes_at_once_and_keep_nothing_in_local_memory(arch, operation):
    for name, variant in ahead.variants(arch, only=operation):
        cost, cubin = ahead.compile_variant(variant, arch)
        sass = ahead.inspect(cubin, "nvdisasm")
        assert cost.spilled == 0 and "LDL" not in sass and "STL" not in sass, name
        odd = variant.name().startswith("adamw") and not _divisible(variant, "n")
        if not odd and variant.name() != "embedding._add_rows":
            assert re.search(r"LDG(STS)?\.E\.\S*(128|64)", sass), name
            loads_ahead = variant.name() == "residual_norm._backward" and arch >= 80
            assert ("LDGSTS" in sass) == loads_ahead, name


def test_programs_share_all_memory_on_turing_and_all_but_1_kb_each_later():
    assert ahead.occupancy(75, ahead.Cost(64, 0, 32 * 1024), 4) == 2 * 4 / 32
    assert ahead.occupancy(80, ahead.Cost(64, 0, 82 * 1024), 4) == 1 * 4 / 64
    assert ahead.occupancy(75, ahead.Cost(64, 0, 0), 4) == 1


def _divisible(variant, argument):
    """Whether Triton knows that 16 divides the argument."""
    return bool(variant.attributes.get((variant.kernel.arg_names.index(argument),)))


@pytest.mark.parametrize("arch", (75, 80, 90))
def test_attention_backward_leaves_room_for_three_programs(arch):
    (variant,) = (v for _, v in ahead.variants(arch, only="d 64, up to 60") if v.name() == "flash_attention._backward")
    cost, _ = ahead.compile_variant(variant, arch)
    assert cost.spilled == 0 and cost.shared <= ahead.LIMITS[arch].shared - ahead.LIMITS[arch].reserved
    if arch >= 80:
        assert cost.registers <= 170 and ahead.occupancy(arch, cost, 4) * ahead.LIMITS[arch].warps >= 12
