"""`make gpu`, without a GPU: its parts run in order whatever becomes of them, and the weights that it carries."""

import subprocess

import pytest
import tiny
import torch
from tiny import ROOT

from bench import gpu_weights
from bert import Bert
from support.safetensors import write_safetensors
from weights import to_huggingface_names

PARTS = "kernel-tests", "graph-tests", "kernels", "step", "training"


def test_parts_run_in_order_and_one_that_fails_costs_itself(tmp_path):
    python = tmp_path / "bin" / "python"  # prints its arguments; fails in the step, and kills itself in the graph tests
    python.parent.mkdir()
    python.write_text('#!/bin/sh\necho "$@"\ncase "$@" in *--step*) exit 3;; *graphs.py*) kill -9 $$;; esac\n')
    python.chmod(0o755)
    command = ["make", "-j", "2", "gpu", f"VENV={tmp_path}", f"GPU={tmp_path}/out", "BERT=models/mine", "DATA=my/data"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    codes = [f"{part}: exit code {code}" for part, code in zip(PARTS, (0, 137, 0, 3, 0), strict=True)]
    printed = [line for line in done.stdout.splitlines() if "exit code" in line and "echo" not in line]
    assert printed == codes * 2  # each after its part, and all of them at the end
    files = [(tmp_path / "out" / f"{part}.txt").read_text().splitlines() for part in PARTS]
    assert [lines[-1] for lines in files] == codes
    python.write_text("#!/bin/sh\n")
    assert subprocess.run(command, cwd=ROOT, capture_output=True, timeout=60).returncode == 0
    assert files[2][0].startswith("-m bench.gpu --kernels")
    assert files[4][0].startswith(f"multitask.py --option finetune --bert models/mine --data my/data --out {tmp_path}")


def test_weights_are_carried_in_half_the_bytes_and_trained_in_float32(tmp_path):
    source, out = tiny.folder(tmp_path / "bert"), tmp_path / "half"
    gpu_weights.main([str(out), "--bert", str(source)])
    whole, half = Bert.load(source), Bert.load(out)
    for (name, p), q in zip(whole.named_parameters(), half.parameters(), strict=True):
        assert q.dtype == torch.float32 and torch.equal(q, p.half().float()), name
    sizes = [(folder / "model.safetensors").stat().st_size for folder in (source, out)]
    assert sizes[1] < 0.6 * sizes[0]
    assert (out / "vocab.txt").read_text() == (source / "vocab.txt").read_text()


def test_what_stands_where_the_weights_would_go_is_not_overwritten(tmp_path, refused):
    source = tiny.folder(tmp_path / "bert")
    (tmp_path / "file").write_text("mine")
    before = {path: path.read_bytes() for path in source.iterdir()}
    for out in (source, tmp_path / "file", tmp_path):
        refused(gpu_weights.main, [out, "--bert", source], f"{out} is there already")
    assert {path: path.read_bytes() for path in source.iterdir()} == before
    (tmp_path / "empty").mkdir()
    gpu_weights.main([str(tmp_path / "empty"), "--bert", str(source)])
    assert Bert.load(tmp_path / "empty").config == Bert.load(source).config


def test_weights_too_large_for_float16_are_refused(tmp_path, refused):
    bert = Bert.load(tiny.folder(tmp_path / "bert"))
    with torch.no_grad():
        bert.pooler.weight[0, 0] = 1e5
    write_safetensors(tmp_path / "bert" / "model.safetensors", to_huggingface_names(bert.state_dict()), {})
    refused(gpu_weights.main, [tmp_path / "out", "--bert", tmp_path / "bert"], "65,504", "carry it as it is")


@pytest.mark.parametrize("part", PARTS)
def test_each_part_is_a_target_of_its_own(part):
    done = subprocess.run(["make", "-n", f"gpu-{part}"], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.stdout.count("timeout -s INT -k 15 580") == 1
