"""New examples without labels: clauses, pairs of neighbours, and the files of `data/more.py`."""

import importlib.util
import os
import shutil

import numpy as np
import pytest
import tiny
import torch
from tiny import ROOT

from support.files import beside
from support.safetensors import read_safetensors, write_safetensors
from tasks import TASKS, data_path, read_examples

spec = importlib.util.spec_from_file_location("more", ROOT / "data" / "more.py")
more = importlib.util.module_from_spec(spec)
spec.loader.exec_module(more)


def test_clauses_are_cut_at_punctuation_and_conjunctions_each_once():
    sentences = ["A clever film, but far too long.", "It 's slow -- and I did not mind it at all .", "Far too long"]
    found = [clause for (clause,) in more.clauses(sentences)]
    assert found == ["A clever film", "far too long", "It 's slow", "I did not mind it at all", "Far too long"]
    assert more.clauses(["Wonderful", "a, b, c"]) == []  # fewer than three words


@pytest.mark.parametrize("k", [1, 3, 50])
def test_a_neighbour_is_one_of_the_k_nearest(k):
    rng = np.random.default_rng(0)
    h = rng.normal(size=(30, 8))
    h /= np.linalg.norm(h, axis=1, keepdims=True)
    sentences = [f"s{i}" for i in range(30)]
    drawn = set()
    for _ in range(20):
        pairs = more.neighbours(sentences, h, k, rng)
        assert [a for a, _ in pairs] == sentences
        drawn |= set(pairs)
    for i in range(30):
        order = sorted((j for j in range(30) if j != i), key=lambda j: -float(h[i] @ h[j]))
        chosen = {b for a, b in drawn if a == f"s{i}"}
        assert chosen <= {f"s{j}" for j in order[:k]}
        assert len(chosen) > 1 or k == 1


def test_the_files_hold_no_more_lines_than_train_and_none_that_a_task_file_has(tmp_path, tiny_encoder):
    data = tiny.task_files(tmp_path / "data", n=20)
    flags = ["--data", data, "--bert", tiny_encoder]
    done = tiny.run("data/more.py", *flags, "--out", tmp_path / "a")
    assert done.returncode == 0, done.stderr
    again = tiny.run("data/more.py", *flags, "--out", tmp_path / "b")
    other = tiny.run("data/more.py", *flags, "--out", tmp_path / "c", "--seed", "3", "--neighbours", "1")
    assert again.returncode == other.returncode == 0
    for task in TASKS.values():
        paths = [data_path(tmp_path / name, task, "unlabelled") for name in "abc"]
        assert paths[0].exists() == paths[1].exists() == task.pair  # no clauses in sentences without punctuation
        if not task.pair:
            continue
        assert paths[0].read_bytes() == paths[1].read_bytes() != paths[2].read_bytes()
        new = read_examples(paths[0], task, labelled=False)
        assert 0 < len(new) <= 20
        found = [frozenset(pair) for pair in zip(new.sentences, new.second_sentences, strict=True)]
        assert len(set(found)) == len(found)
        for split in ("train", "dev", "test"):
            old = read_examples(data_path(data, task, split), task, labelled=split != "test")
            assert not set(found) & set(map(frozenset, zip(old.sentences, old.second_sentences, strict=True)))


def test_a_sentence_of_the_files_is_no_clause_of_its_own(tmp_path):
    data, sst = tiny.task_files(tmp_path / "data", n=4), TASKS["sst"]
    lines = [
        "A dull film , with a good dog .",
        "The cat runs very far !",
        "The cat runs very far , and with a good dog",
    ]
    rows = "".join(f"s{i}\t{line}\t1\n" for i, line in enumerate(lines))
    data_path(data, sst, "train").write_text("id\tsentence\tsentiment\n" + rows)
    found = more.more(data, sst, None, 1, np.random.default_rng(0))
    assert sorted(found) == [("A dull film",), ("with a good dog",)]
    assert more.neighbours(["alone"], np.ones((1, 3)), 5, np.random.default_rng(0)) == []


def test_files_that_are_there_are_not_written_over(tmp_path, tiny_encoder):
    path = data_path(tmp_path, TASKS["sts"], "unlabelled")
    path.write_text("precious")
    done = tiny.run("data/more.py", "--bert", tiny_encoder, "--out", tmp_path)
    tiny.assert_refused(done, "holds unlabelled examples already")
    assert path.read_text() == "precious"


def test_a_folder_without_task_files_gets_one_sentence(tmp_path, tiny_encoder):
    done = tiny.run("data/more.py", "--data", tmp_path, "--bert", tiny_encoder, "--out", tmp_path / "out")
    tiny.assert_refused(done, "does not exist")
    assert not (tmp_path / "out").exists()


def test_task_files_are_looked_at_before_an_encoder_is_fetched(tmp_path, task_files, refused, monkeypatch):
    monkeypatch.setattr(more, "find_model", lambda name: 1 / 0)
    refused(more.main, ["--data", tmp_path, "--out", tmp_path / "out"], "does not exist", "--data")
    with pytest.raises(ZeroDivisionError):
        more.main(["--data", str(task_files), "--out", str(tmp_path / "out")])


@pytest.mark.parametrize("bias", [0.0, 0.5])
def test_an_encoder_that_embeds_all_sentences_alike_is_refused(tmp_path, tiny_encoder, task_files, refused, bias):
    encoder = shutil.copytree(tiny_encoder, tmp_path / "encoder")
    tensors = read_safetensors(encoder / "model.safetensors")
    tensors = {name: torch.full_like(tensor, bias * name.endswith("bias")) for name, tensor in tensors.items()}
    write_safetensors(encoder / "model.safetensors", tensors)
    argv = ["--data", task_files, "--bert", encoder, "--out", tmp_path / "out", "--device", "cpu"]
    refused(more.main, argv, f"--bert {encoder} embeds all sentences alike")
    assert not (tmp_path / "out").exists()


def test_a_damaged_file_of_the_last_task_leaves_nothing_behind(tmp_path, tiny_encoder):
    data = tiny.task_files(tmp_path / "data", n=6)
    data_path(data, list(TASKS.values())[-1], "dev").write_text("no task file")
    done = tiny.run("data/more.py", "--data", data, "--bert", tiny_encoder, "--out", tmp_path / "out")
    tiny.assert_refused(done, "has no column")
    assert not (tmp_path / "out").exists()


def test_a_sentence_longer_than_the_encoder_can_take_is_cut(tmp_path):
    data = tiny.task_files(tmp_path / "data", n=6)
    path = data_path(data, TASKS["sts"], "train")
    path.write_text(path.read_text().replace(" ", " film" * 60 + " ", 1))
    encoder = tiny.folder(tmp_path / "encoder", max_position_embeddings=32)
    done = tiny.run("data/more.py", "--data", data, "--bert", encoder, "--out", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    assert data_path(tmp_path / "out", TASKS["sts"], "unlabelled").exists()


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no full device here")
def test_on_a_full_disk_no_file_is_left_behind_and_none_is_announced(tmp_path, tiny_encoder, task_files, capsys):
    (tmp_path / "out").mkdir()
    last = data_path(tmp_path / "out", TASKS["sts"], "unlabelled")
    os.symlink("/dev/full", beside(last, "part"))
    with pytest.raises(SystemExit):
        more.main(["--data", str(task_files), "--bert", str(tiny_encoder), "--out", str(tmp_path / "out")])
    said = capsys.readouterr()
    assert f"error: {last}: No space left on device" in said.err
    assert (said.out, os.listdir(tmp_path / "out")) == ("", [])
