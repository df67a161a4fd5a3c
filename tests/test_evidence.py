"""Evidence: float16 that changes no decision, no path of the machine, and checks of what it is evidence of."""

import json
import math
import shutil

import numpy as np
import pytest
import torch

import predict
from evaluate import to_predictions
from support import evidence, files, keep_evidence
from support.console import UserError
from support.safetensors import open_safetensors, write_safetensors
from tasks import TASKS


def probabilities(n, classes, rng):
    z = rng.normal(size=(n, classes)) * rng.choice([0.01, 1, 8], (n, 1))
    p = np.exp(z)
    return (p / p.sum(1, keepdims=True)).astype(np.float32)


@pytest.mark.parametrize("classes", [2, 5])
def test_float16_changes_no_decision_and_no_probability_by_much(classes):
    p = probabilities(5000, classes, np.random.default_rng(0))
    p[:3] = np.float32([0.5 + 6e-8, 0.5 - 6e-8, *[0] * (classes - 2)]), np.eye(classes)[0], np.eye(classes)[1]
    kept = keep_evidence.to_float16(p)
    assert kept.dtype == np.float16
    assert kept.shape == (5000, 1 if classes == 2 else 5)
    again = evidence.from_float16(kept)
    assert (again.argmax(1) == p.argmax(1)).all()
    likely = p > 0.01
    assert (np.abs(again - p)[likely] / p[likely]).max() < 3e-3


def test_the_largest_float16_makes_probabilities():
    assert evidence.from_float16(np.float16([[6e4, 6e4, 0]])).tolist() == [[0.5, 0.5, 0]]
    assert evidence.from_float16(np.float16([[6e4], [-6e4]])).tolist() == [[0, 1], [1, 0]]


def test_ids_that_are_parted_elsewhere_are_others():
    assert evidence.digest_of_ids(["a1", "2"]) != evidence.digest_of_ids(["a", "12"])


def test_float16_of_numbers_is_the_number():
    values = np.random.default_rng(0).uniform(-1, 6, 1000).astype(np.float32)
    again = evidence.from_float16(keep_evidence.to_float16(values))
    assert again.dtype == np.float32
    assert np.abs(again - values).max() < 2e-3


# ----- folders


@pytest.fixture
def world(tmp_path):
    """A finished run, the files of its data, and `write(...)`, which makes its evidence in tmp_path/runs."""

    class World:
        run, root, data = tmp_path / "run", tmp_path / "runs", tmp_path / "some" / "files"

        def write(self, row="pals", **record):
            paths = {key: self.data / f"{key}.csv" for key in (*self.examples, "sst-train")}
            record = {"row": row, "seconds": 60, "commit": "abc1234", "device": "a machine"} | record
            return keep_evidence.write(
                self.root, self.run, self.config, record, paths, self.examples, self.outputs, {"map": self.map}
            )

        def set_config(self, **changes):
            self.config |= changes
            (self.run / "config.json").write_text(json.dumps(self.config))

    world, rng = World(), np.random.default_rng(1)
    world.examples, world.outputs = {}, {}
    for name, task in TASKS.items():
        for split in ("dev", "test"):
            ids, labels = [f"{name}{split}{i}" for i in range(20)], rng.integers(0, 2, 20).astype(np.float32)
            world.examples[f"{name}-{split}"] = ids, labels if split == "dev" else None
            values = probabilities(20, task.classes, rng) if task.classes else rng.uniform(0, 5, 20).astype(np.float32)
            world.outputs[f"{name}-{split}"] = values
    world.map = rng.normal(size=(20, 3))
    world.data.mkdir(parents=True)
    for key in (*world.examples, "sst-train"):
        (world.data / f"{key}.csv").write_text(key)
    world.run.mkdir()
    world.config = {"seed": 7, "epochs": 2, "bert": "all-MiniLM-L6-v2", "data": str(world.data), "out": str(world.run)}
    world.set_config(
        max_examples=None, sst_dev="/home/me/x", sst_dev_out="p.csv", resume=True, lr=1e-4, bf16=True, device="cpu"
    )
    line = {"kind": "dev", "step": 9, "sst": 0.5, "para": 0.6, "sts": 0.7}
    lines = [line | {"epoch": 1, "score": 0.7}, line | {"epoch": 2, "score": 0.6}]
    (world.run / "metrics.jsonl").write_text("".join(json.dumps(of) + "\n" for of in lines))
    return world


def test_what_is_written_is_what_is_read(world):
    folder = world.write()
    assert folder == world.root / "pals-7"
    assert evidence.is_evidence(folder)
    assert not evidence.is_evidence(world.run)
    for split in ("dev", "test"):
        examples = evidence.examples_of(folder, split)
        found = evidence.outputs_of(folder, split, {name: ids for name, (ids, _) in examples.items()})
        assert found.keys() == examples.keys() == TASKS.keys()
        for name, task in TASKS.items():
            ids, labels = world.examples[f"{name}-{split}"]
            assert examples[name][0] == ids
            assert labels is None if split == "test" else np.array_equal(examples[name][1], labels)
            original = world.outputs[f"{name}-{split}"]
            np.testing.assert_allclose(found[name], original, atol=3e-3)
            if task.classes:
                assert (to_predictions(task, found[name]) == to_predictions(task, original)).all()
    np.testing.assert_allclose(evidence.more_of(folder, "map"), world.map, atol=2e-3)
    assert evidence.best_epoch(folder)["epoch"] == 1
    assert (folder / "metrics.jsonl").read_bytes() == (world.run / "metrics.jsonl").read_bytes()
    record = evidence.record_of(folder)
    assert (record["row"], record["seed"], record["seconds"]) == ("pals", 7, 60)
    assert record["data"]["name"] == "files"
    assert len(record["data"]["files"]) == 2 * len(TASKS) + 1
    assert sum(path.stat().st_size for path in folder.iterdir()) < 20_000


def test_no_path_of_the_machine_is_written(world, tmp_path):
    stage = tmp_path / "stages" / "simcse"
    (stage / "encoder").mkdir(parents=True)
    (stage / "row.json").write_text('{"seconds": 5}')
    (stage / "config.json").write_text(json.dumps({"bert": "all-MiniLM-L6-v2", "data": str(world.data)}))
    world.set_config(bert=str(stage / "encoder"), teacher=[str(tmp_path / "runs" / "a"), "../b/best"])
    folder = world.write()
    for file in ("config.json", "record.json"):
        text = (folder / file).read_text()
        assert str(tmp_path) not in text
        assert "/" not in text
    config = json.loads((folder / "config.json").read_text())
    assert (config["bert"], config["teacher"], config["data"]) == ("simcse", ["a", "b"], "files")
    assert evidence.record_of(folder)["encoder"]["flags"] == {"bert": "all-MiniLM-L6-v2", "data": "files"}
    assert not {"out", "resume", "sst_dev", "sst_dev_out"} & config.keys()
    assert keep_evidence.portable({"bert": "google-bert/bert-base-uncased"}) == {
        "bert": "google-bert/bert-base-uncased"
    }


def test_the_name_of_data_follows_their_files(world):
    world.write(row="a")
    (world.root / "data" / "files").rename(world.root / "data" / "CS224N")
    record = world.root / "a-7" / "record.json"
    record.write_text(record.read_text().replace('"files",', '"CS224N",'))
    assert evidence.record_of(world.write(row="b"))["data"]["name"] == "CS224N"
    before = sorted(world.root.rglob("*"))
    (world.data / "sst-train.csv").write_text("other")
    with pytest.raises(UserError, match="different data"):
        world.write(row="c")
    assert sorted(world.root.rglob("*")) == before


def test_evidence_is_found_by_row_and_seed(world):
    for seed in (7, 8):
        world.set_config(seed=seed)
        world.write()
    world.write(row="plain")
    names = lambda *wanted: [folder.name for folder in evidence.find(world.root, *wanted)]  # noqa: E731
    assert names() == ["pals-7", "pals-8", "plain-8"]
    assert names("pals") == ["pals-7", "pals-8"]
    assert names("pals", [8]) == ["pals-8"]
    assert names("pals", [9]) == names("none") == []
    for kind in ("part", "old"):  # as a kill leaves them
        shutil.copytree(world.root / "pals-7", files.beside(world.root / "pals-7", kind))
    (world.root / "pals-8").rename(files.beside(world.root / "pals-8", "old"))
    assert names("pals") == [".pals-8.replacing.old", "pals-7"]


def test_outputs_of_other_examples_are_refused(world):
    folder = world.write()
    ids = world.examples["sst-dev"][0]
    assert evidence.outputs_of(folder, "dev", {"sst": ids}).keys() == {"sst"}
    with pytest.raises(UserError, match="other examples of sst-dev"):
        evidence.outputs_of(folder, "dev", {"sst": ids[::-1]})
    with pytest.raises(UserError, match="keeps nothing of fourth-dev"):
        evidence.outputs_of(folder, "dev", {"fourth": ids})
    with pytest.raises(UserError, match="keeps no other"):
        evidence.more_of(folder, "other")
    world.examples["sst-dev"] = (ids[::-1], world.examples["sst-dev"][1])
    with pytest.raises(UserError, match="ids or labels of other data"):
        world.write(row="b")
    for labels in (1 - world.examples["sst-dev"][1], None):
        world.examples["sst-dev"] = ids, labels
        with pytest.raises(UserError, match=r"sst-dev\.tsv has ids or labels of other data"):
            world.write(row="b")
    path = world.root / "data" / "files" / "sts-dev.tsv"
    moved = shutil.copytree(world.root, world.root.with_name("moved")) / "pals-7"  # evidence may move, with its data
    assert evidence.examples_of(moved, "dev").keys() == TASKS.keys()
    path.write_text(path.read_text().replace("stsdev3", "stsdev999"))
    evidence.read_examples.cache_clear()
    with pytest.raises(UserError, match="other ids than"):
        evidence.examples_of(folder, "dev")
    path.unlink()
    with pytest.raises(UserError, match="is missing"):
        evidence.examples_of(folder, "dev")


def test_evidence_of_another_run_is_not_overwritten(world):
    world.write()
    folder = world.write(seconds=61)  # of the same run once more
    assert evidence.record_of(folder)["seconds"] == 61
    metrics = world.run / "metrics.jsonl"
    metrics.write_text(metrics.read_text().replace("0.5", "0.51"))
    with pytest.raises(UserError, match="evidence of another run"):
        world.write()


def test_only_evidence_is_replaced_and_evidence_makes_none(world):
    """A folder of that name with a model in it stays, and evidence is no run."""
    (world.root / "pals-7" / "best").mkdir(parents=True)
    with pytest.raises(UserError, match="it is no evidence"):
        world.write()
    (world.root / "pals-7" / "best").rmdir()
    (world.root / "pals-7").rmdir()
    world.run = world.write()
    with pytest.raises(UserError, match="evidence already"):
        keep_evidence.check_finished(world.run, world.config)
    assert [path.name for path in evidence.find(world.root)] == ["pals-7"]


def test_a_copy_of_evidence_is_not_counted_twice(world):
    shutil.copytree(world.write(), world.root / "copy")
    with pytest.raises(UserError, match="are the same run, pals-7"):
        evidence.find(world.root)


@pytest.mark.parametrize("damage", ["nan", "int", "scalar", "rank", "short"])
def test_damaged_outputs_are_one_sentence(world, damage):
    folder = world.write()
    tensors, metadata = open_safetensors(folder / "outputs.safetensors")
    z = tensors["sst-dev"]
    changed = {"nan": z.clone(), "int": z.to(torch.int32), "scalar": z[0, 0], "rank": z[None], "short": z[:-1].clone()}
    changed["nan"][3, 1] = float("nan")
    write_safetensors(folder / "outputs.safetensors", tensors | {"sst-dev": changed[damage].contiguous()}, metadata)
    with pytest.raises(UserError, match=r"sst-dev .*; fetch or write it again"):
        evidence.outputs_of(folder, "dev", {"sst": world.examples["sst-dev"][0]})


@pytest.mark.parametrize("key", ["seconds", "commit", "device"])
@pytest.mark.parametrize("value", [None, ["x"]])
def test_a_record_that_does_not_say_where_a_run_comes_from_is_one_sentence(world, key, value):
    path = world.write() / "record.json"
    record = json.loads(path.read_text()) | {key: value}
    path.write_text(json.dumps({name: of for name, of in record.items() if of is not None}))
    with pytest.raises(UserError, match=rf"record.json.*{key}"):
        evidence.find(world.root)


def test_dev_examples_without_labels_are_one_sentence(world):
    folder = world.write()
    path = world.root / "data" / "files" / "sst-dev.tsv"
    path.write_text("".join(line.split("\t")[0] + "\n" for line in path.read_text().splitlines()))
    evidence.read_examples.cache_clear()
    with pytest.raises(UserError, match="has no labels"):
        evidence.examples_of(folder, "dev")


def test_the_members_of_a_soup_are_kept_by_their_names(world, tmp_path):
    metrics, line = world.run / "metrics.jsonl", {"kind": "dev", "step": 0, "epoch": 2, "sst": 0.5, "score": 0.7}
    members = {f"{tmp_path}/a/x/": 1.0, "runs/pals-7": 0.5, "../b/x/best": 2.0}
    metrics.write_text(json.dumps(line | {"soup": members}) + "\n")
    named = {"x (1)": 1.0, "pals-7": 0.5, "x (3)": 2.0}
    folder = world.write()
    assert (folder / "metrics.jsonl").read_text() == json.dumps(line | {"soup": named}) + "\n"
    assert evidence.best_epoch(folder)["soup"] == evidence.record_of(folder)["soup"] == named
    world.write()  # the same soup once more, and where its evidence has the paths, as that of earlier versions has
    shutil.copy(metrics, folder / "metrics.jsonl")
    world.write()
    assert evidence.best_epoch(folder)["soup"] == named
    metrics.write_text(json.dumps(line | {"soup": members | {"runs/pals-7": 0.6}}) + "\n")
    with pytest.raises(UserError, match="evidence of another run"):
        world.write()


def test_a_run_that_is_not_finished_is_no_evidence(world):
    keep_evidence.check_finished(world.run, world.config)
    world.set_config(epochs=3)
    with pytest.raises(UserError, match=r"not finished, as its metrics.jsonl says; .*or copy that file again"):
        keep_evidence.check_finished(world.run, world.config)
    world.set_config(epochs=2, max_examples=10)
    with pytest.raises(UserError, match="only some of the dev examples"):
        keep_evidence.check_finished(world.run, world.config)
    with pytest.raises(UserError, match=r"config.json has no 'seed'; copy the run again"):
        keep_evidence.check_finished(world.run, {name: of for name, of in world.config.items() if name != "seed"})


def test_flags_other_than_those_of_the_row_are_refused(world):
    folder, usual = world.write(), {"new_flag": 0.5, "lr": 1e-4}
    kept = files.read_json(folder / "config.json")
    own = world.config | {"bf16": False, "data": "elsewhere", "out": "o"}  # these may differ
    keep_evidence.check_flags(folder, kept, own | {"new_flag": 0.5}, usual)  # a flag that came later, at its default
    for wrong in ({"lr": 2e-4}, {"new_flag": 0.6}, {"bert": "bert-base-uncased"}):
        with pytest.raises(UserError, match=f"started with --{next(iter(wrong))}"):
            keep_evidence.check_flags(folder, kept, own | wrong, usual)


def test_labels_survive_as_they_were(tmp_path):
    labels = np.float32([0, 4.6, 3.333, 1 / 3, math.pi])
    keep_evidence._write_examples(tmp_path / "x.tsv", list("abcde"), labels)
    ids, again = evidence.read_examples(tmp_path / "x.tsv")
    assert ids == list("abcde")
    assert again.tobytes() == labels.tobytes()


@pytest.mark.parametrize(
    "data",
    [
        {},
        {"name": 3, "files": {}},
        {"name": "x", "files": []},
        {"name": "x"},
        *({"name": name, "files": {}} for name in ("", "..", "/etc", "a/b")),
    ],
)
def test_a_record_that_does_not_say_which_data_it_is_of_is_one_sentence(tmp_path, data):
    record = {"row": "plain", "seed": 1, "data": data, "examples": {}}
    record |= {"seconds": 1, "commit": "abc1234", "device": "a machine"}
    (tmp_path / "record.json").write_text(json.dumps(record))
    with pytest.raises(UserError, match="which data it is of"):
        evidence.record_of(tmp_path)


@pytest.mark.parametrize("seed", [-1, 2**63])
def test_a_seed_that_no_run_has_is_one_sentence(world, seed):
    path = world.write() / "record.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"seed": seed}))
    with pytest.raises(UserError, match=f"seed cannot be {seed}"):
        evidence.find(world.root)


DEV = {"kind": "dev", "step": 1, "epoch": 1, "sst": 0.5, "score": 0.5}


@pytest.mark.parametrize(
    ("lines", "says"),
    [
        (None, "metrics.jsonl has no dev metrics"),
        ([], "metrics.jsonl has no dev metrics"),
        ([DEV, {k: v for k, v in DEV.items() if k != "score"}], "metrics.jsonl has dev metrics without score"),
        ([{k: v for k, v in DEV.items() if k != "epoch"}], "metrics.jsonl has dev metrics without epoch"),
        ([DEV], "metrics.jsonl has dev metrics without para"),
        ([DEV | {"soup": ["a"]}], "metrics.jsonl has no dev metrics"),
    ],
)
def test_damaged_metrics_are_one_sentence(tmp_path, lines, says):
    if lines is not None:
        (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    with pytest.raises(UserError, match=says):
        evidence.best_epoch(tmp_path, ("sst", "para"))


@pytest.mark.parametrize(
    "text",
    ["", "id\tlabel\na\t1\nb\t4.", "id\tlabel\na\t1\nb\n", "id\tlabel\na\tone\n", "id\tlabel\na\tnan\n",
     "a\t1\n", "id\tlabel\tmore\na\t1\t2\n"],
)  # fmt: skip
def test_damaged_files_of_examples_are_one_sentence(tmp_path, text):
    path = tmp_path / "sst-dev.tsv"
    path.write_text(text)
    with pytest.raises(UserError, match=r"sst-dev\.tsv is damaged"):
        evidence.read_examples(path)


def test_a_record_that_lacks_a_split_is_one_sentence(world):
    folder = world.write()
    record = json.loads((folder / "record.json").read_text())
    del record["examples"]["para-dev"]
    (folder / "record.json").write_text(json.dumps(record | {"examples": record["examples"] | {"more": 1}}))
    assert evidence.examples_of(folder, "test").keys() == TASKS.keys()
    for read, more in ((evidence.examples_of, ()), (evidence.outputs_of, [{"sst": world.examples["sst-dev"][0]}])):
        with pytest.raises(UserError, match=r"record\.json has no examples of para-dev"):
            read(folder, "dev", *more)


def test_evidence_of_a_task_that_is_not_ours_or_without_one_that_is_is_refused():
    kept = {name: (["1"], np.ones(1)) for name in TASKS}
    with pytest.raises(UserError, match=r"a keeps outputs of foo, which is no task of tasks\.py"):
        predict.check_labels("a", kept | {"foo": (["1"], np.ones(1))}, "dev")
    with pytest.raises(UserError, match=r"a keeps outputs of foo, which is no task of tasks\.py"):
        predict.check_labels("a", {"foo": (["1"], None)}, "test")
    with pytest.raises(UserError, match="a keeps nothing of sst-dev"):
        predict.check_labels("a", {name: of for name, of in kept.items() if name != "sst"}, "dev")
    predict.check_labels("a", {"sst": (["1"], None)}, "test")
