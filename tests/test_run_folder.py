"""metrics.jsonl and config.json of a run, as a kill, an editor or another program may have left them."""

import json
import os

import pytest

from sampling import SAMPLINGS
from smart import PRESETS
from support import evidence, flags, metrics_file, output_cache, run_folder
from support.console import UserError
from support.files import write_json
from tasks import SPLITS, TASKS

GOOD = {"kind": "dev", "step": 3, "epoch": 1, "sst": 0.5, "score": 0.5}


@pytest.mark.parametrize(
    "damage",
    [
        b'{"kind": "dev", "st',
        b"null",
        b"[]",
        b"3",
        b"\xff\xfe",
        b"[" * 100_000,
        b'{"kind": "dev", "epoch": 1}',
        b'{"kind": "dev", "step": "3", "epoch": 1}',
        b'{"kind": "dev", "step": 3, "epoch": 1, "sst": NaN}',
        b'{"kind": "dev", "step": 3, "epoch": 1, "sst": "0.5"}',
        b'{"kind": 1, "step": 3, "epoch": 1}',
        b"",
    ],
)
def test_damaged_lines_of_metrics_are_left_out_with_a_word(tmp_path, capsys, damage):
    good = json.dumps(GOOD).encode()
    (tmp_path / "metrics.jsonl").write_bytes(b"\n".join((good, damage, good)) + b"\n")
    assert metrics_file.read(tmp_path) == [GOOD, GOOD]
    assert "1 lines without metrics left out" in capsys.readouterr().err
    metrics_file.rewind(tmp_path, 3)
    assert (tmp_path / "metrics.jsonl").read_bytes() == b"\n".join((good, damage, good)) + b"\n"


def test_rewinding_drops_what_was_recorded_later_and_nothing_of_others(tmp_path):
    note, later, young = '{"note": "lr was wrong", "step": 9.5}', json.dumps(GOOD | {"step": 4}), '{"kind": "dev", "st'
    for last, kept in {"": "", young: "", '{"note": 1}': '{"note": 1}\n', later: "", json.dumps(GOOD): None}.items():
        (tmp_path / "metrics.jsonl").write_text(f"{json.dumps(GOOD)}\n{note}\n{later}\n{last}")
        metrics_file.rewind(tmp_path, 3)
        kept = f"{last}\n" if kept is None else kept
        assert (tmp_path / "metrics.jsonl").read_text() == f"{json.dumps(GOOD)}\n{note}\n{kept}"


def test_a_metric_that_is_not_defined_is_null_in_the_file_and_absent_for_readers(tmp_path, capsys):
    metrics_file.append(tmp_path, **GOOD, alignment=None)
    assert '"alignment": null' in (tmp_path / "metrics.jsonl").read_text()
    assert metrics_file.read(tmp_path) == [GOOD]
    assert capsys.readouterr().err == ""
    with pytest.raises(ValueError, match="not JSON compliant"):
        metrics_file.append(tmp_path, **GOOD, alignment=float("nan"))
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "f", {"a": float("inf")})
    assert os.listdir(tmp_path) == ["metrics.jsonl"]


def test_metrics_of_a_soup_and_no_metrics_are_read_in_silence(tmp_path, capsys):
    assert metrics_file.read(tmp_path) == []
    metrics_file.append(tmp_path, **GOOD, soup={"a": 1.0})
    assert metrics_file.read(tmp_path) == [GOOD | {"soup": {"a": 1.0}}]
    assert capsys.readouterr().err == ""


def test_a_hole_of_4_gb_or_a_pipe_in_place_of_metrics_costs_nothing(tmp_path):
    with open(tmp_path / "metrics.jsonl", "wb") as file:
        file.truncate(2**32)
    assert metrics_file.read(tmp_path) == []
    with pytest.raises(UserError, match="move it away"):
        metrics_file.rewind(tmp_path, 0)
    (tmp_path / "metrics.jsonl").unlink()
    os.mkfifo(tmp_path / "metrics.jsonl")
    with pytest.raises(UserError, match="a pipe"):
        metrics_file.read(tmp_path)


def test_a_pipe_in_place_of_what_others_wrote_is_refused_at_once(tmp_path):
    for name in ("lock", "vocab.txt", "quora-dev.csv"):
        os.mkfifo(tmp_path / name)
    calls = [run_folder.lock, run_folder.is_training, output_cache.model_digest]
    for call in [*calls, lambda folder: evidence.digest_of_file(folder / "quora-dev.csv")]:
        with pytest.raises(UserError, match="is a pipe, not a file"):
            call(tmp_path)


def test_a_folder_named_twice_is_refused_by_any_name_and_a_loop_of_links_is_none(tmp_path):
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "link").symlink_to(tmp_path)
    run_folder.check_named_once([tmp_path, tmp_path / "loop"])
    with pytest.raises(UserError, match="named twice; name it once, or twice"):
        run_folder.check_named_once([tmp_path, tmp_path / "link"], ", or twice")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no full device here")
def test_a_full_disk_under_the_metrics_is_named(tmp_path):
    os.symlink("/dev/full", tmp_path / "metrics.jsonl")
    with pytest.raises(OSError, match="No space left") as full:
        metrics_file.append(tmp_path, **GOOD)
    assert full.value.filename == str(tmp_path / "metrics.jsonl")


@pytest.mark.parametrize(
    "change",
    [
        {"epochs": "three"},
        {"epochs": None, "lr": [1e-4]},
        {"batch_size": 0},
        {"classifier_size": 10**12},
        {"option": {"a": 1}},
        {"use_pals": "yes"},
        {"unknown": 1},
        {"data": "a\0b"},
        {"lr": "nan"},
    ],
)
def test_a_run_whose_config_holds_other_values_is_not_resumed(tmp_path, change):
    tables = TASKS, SPLITS, SAMPLINGS, PRESETS
    argv = ["--resume", "--out", str(tmp_path)]
    config = vars(flags.parse_multitask(argv, *tables))
    (tmp_path / "config.json").write_text(json.dumps(config))
    flags.parse_multitask(argv, *tables)
    (tmp_path / "config.json").write_text(json.dumps(config | change))
    with pytest.raises(UserError) as refused:
        flags.parse_multitask(argv, *tables)
    assert len(str(refused.value)) - 2 * len(str(tmp_path)) < 300
    assert ("newer version of multitask.py, with --unknown; update" in str(refused.value)) == ("unknown" in change)
