import collections
import itertools
import re
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import tiny
from tiny import REAL, ROOT

from predict import SOURCES, TABLES
from sampling import Plan
from support import flags
from support.console import UserError
from support.fingerprints import of_examples
from tasks import SPLITS, TASKS, DataSet, Examples, data_path, load_data, load_examples, read_examples
from tokenizer import Tokenizer

HEADER = "\tid\tsentence1\tsentence2\tis_duplicate\n"


def write(path, text):
    path.write_text(text)
    return path


def test_the_task_files_are_read(tmp_path):
    path = write(
        tmp_path / "f", HEADER + '0\tab\t"Is ""this"" it?"\tWhat\tx? \t1.0\n'.replace("What\tx?", '"What\tx?"')
    )
    examples = read_examples(path, TASKS["para"])
    assert examples.ids == ["ab"]
    assert examples.sentences == ['Is "this" it?']
    assert examples.second_sentences == ["What\tx?"]
    assert examples.labels.tolist() == [1.0]


def test_a_sample_is_random_always_the_same_and_in_the_order_of_the_file():
    examples = Examples([str(i) for i in range(100)], ["a"] * 100, None, np.arange(100.0))
    numbers = [int(i) for i in examples.sample(50).ids]
    assert numbers == sorted(numbers) == examples.sample(50).labels.tolist()
    assert 10 < sum(i < 50 for i in numbers) < 40
    assert examples.sample(None) is examples.sample(100) is examples


def test_a_test_file_lacks_the_label(tmp_path):
    path = write(tmp_path / "f", "\tid\tsentence\n0\tab\tA film.\n")
    examples = read_examples(path, TASKS["sst"], labelled=False)
    assert examples.labels is None
    assert len(examples) == 1


def test_broken_rows_are_reported_with_their_line_counted_and_left_out(tmp_path, capsys):
    rows = [
        "0\tok\tone\ttwo\t1.0",
        "1\tshort\tone\t0.0",
        "2\tempty\tone\t\t0.0",
        "3\tword\tone\ttwo\tyes",
        "4\trange\tone\ttwo\t2.0",
        "5\thalf\tone\ttwo\t0.5",
        "6\tnan\tone\ttwo\tnan",
        "7\tok2\tone\ttwo\t0",
    ]
    path = write(tmp_path / "f", HEADER + "\n".join(rows) + "\n")
    assert read_examples(path, TASKS["para"]).ids == ["ok", "ok2"]
    said = capsys.readouterr().err
    for line, reason in (
        (3, "4 columns instead of 5"),
        (4, "empty sentence"),
        (5, "not a number"),
        (6, "not one of 0 to 1"),
    ):
        assert f"{path}, line {line}: " in said
        assert reason in said
    assert f"{path}: 6 of 8 lines left out" in said


def test_a_quote_that_never_closes_costs_its_line_and_no_other(tmp_path, capsys):
    rows = ["0\ta\tone\ttwo\t1", '1\tb\t"one\ttwo\t0', "2\tc\tone\ttwo\t0", '3\td\ton"e\t"two"\t0', '4\te\t5"\ttwo\t1']
    path = write(tmp_path / "f", HEADER + "\n".join(rows) + "\n")
    examples = read_examples(path, TASKS["para"])
    assert examples.ids == ["a", "c", "d", "e"]
    assert examples.sentences == ["one", "one", 'on"e', '5"']
    said = capsys.readouterr().err
    assert f"{path}, line 3: a quote opens a field and never closes it" in said
    assert f"{path}: 1 of 5 lines left out" in said


def test_the_numbers_of_all_lines_that_are_left_out_are_said(tmp_path, capsys):
    rows = ["0\ta\tone\ttwo\t1" if i % 7 else "broken" for i in range(700)] + ["broken"] * 50
    path = write(tmp_path / "f", HEADER + "\n".join(rows) + "\n")
    assert len(read_examples(path, TASKS["para"])) == 600
    said = capsys.readouterr().err
    numbers = set()
    for first, last in re.findall(r"lines? (\d+)(?:-(\d+))?", said.replace(str(path), "")):
        numbers |= set(range(int(first), int(last or first) + 1))
    assert numbers == {i + 2 for i, row in enumerate(rows) if row == "broken"}
    assert max(map(len, said.splitlines())) < 300


def test_an_id_that_a_prediction_file_cannot_hold_is_reported(tmp_path, capsys):
    rows = ['0\t"a\tb"\tfilm', "1\ta , b\tfilm", "2\tc,d\tfilm", "3\te\u2028f\tfilm", "4\tg ,\tfilm", '5\t"h\ni"\tfilm']
    path = write(tmp_path / "f", "\tid\tsentence\n" + "\n".join(rows) + "\n")
    assert read_examples(path, TASKS["sst"], labelled=False).ids == ["c,d"]
    said = capsys.readouterr().err
    assert "lines 7-8: the id" in said
    assert "6 of 7 lines left out, and nothing is said of them" in said


def test_ids_that_examples_share_are_reported_where_they_name_predictions(task_files, tmp_path, capsys):
    folder = shutil.copytree(task_files, tmp_path / "data")
    load_examples(SimpleNamespace(**dict.fromkeys(SOURCES) | {"data": folder}))
    assert "share their id" not in capsys.readouterr().err
    for task, split in itertools.product(TASKS.values(), SPLITS):
        path = data_path(folder, task, split)
        path.write_text(re.sub(rf"\b{split}000[3-5]\b", "same", path.read_text()))
    load_examples(SimpleNamespace(**dict.fromkeys(SOURCES) | {"data": folder}))
    said = capsys.readouterr().err
    assert f"{data_path(folder, TASKS['sts'], 'test')}: 3 of 24 examples share their id with others ('same')" in said
    assert said.count("share their id") == 2 * len(TASKS)  # of dev and test


@pytest.mark.parametrize(
    ("labels", "said"), [("3 3.0", "its 2 labels are all 3;"), ("0.5", "it has one label;"), ("1 2", "")]
)
def test_dev_labels_without_a_correlation_are_reported(task_files, tmp_path, capsys, labels, said):
    rows = [f"{i}\ta {i}\tb\t{label}\n" for i, label in enumerate(labels.split())]
    path = write(tmp_path / "sts", "id\tsentence1\tsentence2\tsimilarity\n" + "".join(rows))
    flags = dict.fromkeys(SOURCES) | {"data": task_files}
    load_examples(SimpleNamespace(**flags | {"sts_train": path}))  # where nothing is correlated
    assert "labels" not in capsys.readouterr().err
    load_examples(SimpleNamespace(**flags | {"sts_dev": path}))
    assert said in (told := capsys.readouterr().err) and ("Pearson" in told) == bool(said)


def test_dev_examples_that_are_training_examples_are_reported(task_files, tiny_encoder, tmp_path, capsys):
    def said(*more):
        load_data(flags.parse_multitask(["--data", str(task_files), *map(str, more)], *TABLES), Tokenizer(tiny_encoder))
        return capsys.readouterr().err

    paths = {task: data_path(task_files, TASKS[task], "train") for task in TASKS}
    part = write(tmp_path / "part", "".join(paths["para"].read_text().splitlines(keepends=True)[:9]))
    assert "24 of 24 dev examples of sts are training examples, too" in said("--sts_dev", paths["sts"])
    assert "8 of 8 dev examples of para are training examples, too" in said("--para_dev", part)
    for fair in ([], ["--sst_dev", paths["sst"], "--train_examples", 8]):
        assert said(*fair) == ""


DIGESTS = {  # rows and fingerprints of the real files as the csv module reads them: none of them has a stray quote
    "ids-sst-train.csv": (8544, "19ee5cc3b855db75"),
    "ids-sst-dev.csv": (1101, "30bdaa61c900ed0e"),
    "ids-sst-test-student.csv": (2210, "21b865a21ea08cd6"),
    "quora-train.csv": (14141, "36bb26b40e401a1b"),
    "quora-dev.csv": (3062, "be8cb5591be6e1a9"),
    "quora-test-student.csv": (3009, "8afd29874e295070"),
    "sts-train.csv": (6040, "07020a8ff701752d"),
    "sts-dev.csv": (863, "072babc161824469"),
    "sts-test-student.csv": (1725, "242cb52d4cee2bd7"),
}


@pytest.mark.skipif(not REAL.is_dir(), reason="the real files are not here")
@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("task", TASKS.values(), ids=list(TASKS))
def test_the_real_files_read_as_ever(task, split):
    path = data_path(REAL, task, split)
    examples = read_examples(path, task, labelled=split != "test")
    assert (len(examples), of_examples(examples)) == DIGESTS[path.name]


@pytest.mark.parametrize("task", TASKS.values(), ids=list(TASKS))
def test_no_sample_sentence_for_training_stands_in_dev_or_test(task):
    of = {split: read_examples(data_path(ROOT / "data/sample", task, split), task, split != "test") for split in SPLITS}
    bare = lambda e: {re.sub(r"\W+", " ", s).strip().lower() for s in [*e.sentences, *(e.second_sentences or [])]}  # noqa: E731
    assert not bare(of["train"]) & (bare(of["dev"]) | bare(of["test"]))


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (None, "does not exist"),
        ("", "no column 'id'"),
        ("\tid\tsentence1\tis_duplicate\n", "no column 'sentence2'"),
        (HEADER, "no usable row"),
        (HEADER + "0\tx\tone\n", "no usable row"),
    ],
)
def test_a_file_without_a_usable_row_is_an_error(tmp_path, text, reason):
    if text is not None:
        write(tmp_path / "f", text)
    with pytest.raises(UserError, match=reason):
        read_examples(tmp_path / "f", TASKS["para"])


def test_a_file_of_the_project_is_looked_for_in_its_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, remedy in {"data/sample/sts-dev.csv": f"start this in {ROOT}", "data/own/sts-dev.csv": "--data"}.items():
        with pytest.raises(UserError, match=f"{name} does not exist; .*{remedy}"):
            read_examples(name, TASKS["sts"])


def test_siamese_batches_have_the_first_sentences_and_then_the_second(tmp_path, tiny_encoder):
    tiny.task_files(tmp_path)
    examples = read_examples(data_path(tmp_path, TASKS["sts"], "train"), TASKS["sts"])
    tokenizer = Tokenizer(tiny_encoder)
    joint, siamese = DataSet(examples, tokenizer), DataSet(examples, tokenizer, "siamese")
    assert len(joint.batch([3, 1])) == 2
    batch = siamese.batch([3, 1])
    expected = [tokenizer.encode([text])[0][0].tolist() for text in (examples.sentences[3], examples.sentences[1])]
    expected += [
        tokenizer.encode([text])[0][0].tolist() for text in (examples.second_sentences[3], examples.second_sentences[1])
    ]
    bounds = batch.cu_seqlens.tolist()
    assert [batch.ids[a:b].tolist() for a, b in itertools.pairwise(bounds)] == expected
    assert batch.segments.sum() == 0
    assert joint.labels([3, 1]).tolist() == examples.labels[[3, 1]].tolist()
    both = DataSet(examples, tokenizer, "both")
    assert both.batch([3, 1]).ids.tolist() == joint.batch([3, 1]).ids.tolist() + batch.ids.tolist()
    assert [task.encoding("joint", True) for task in TASKS.values()] == ["sentence and mean", "joint", "both"]
    for dataset in (joint, siamese, both):
        numbers = [i for part in dataset.by_length(5) for i in part]
        assert sorted(numbers) == list(range(len(dataset)))
        lengths = [len(dataset.batch([i]).ids) for i in numbers]
        assert lengths == sorted(lengths)


def test_a_fingerprint_changes_with_any_label(tmp_path):
    tiny.task_files(tmp_path)
    read = lambda: read_examples(data_path(tmp_path, TASKS["sst"], "dev"), TASKS["sst"])  # noqa: E731
    before, examples = of_examples(read()), read()
    assert before == of_examples(examples)
    examples.labels[5] += 1
    assert before != of_examples(examples)


def test_an_epoch_of_proportional_sampling_is_one_pass_over_everything():
    sizes = {"a": 64, "b": 32, "c": 16}
    of_seed = lambda seed: list(Plan(sizes, 8, 3, "proportional", seed).steps())  # noqa: E731
    steps = of_seed(1)
    for epoch in (1, 2, 3):
        seen = collections.defaultdict(list)
        for e, batches in steps:
            for name, numbers in batches.items() if e == epoch else ():
                assert len(numbers) == 8
                seen[name] += numbers
        assert {name: sorted(numbers) for name, numbers in seen.items()} == {
            n: list(range(k)) for n, k in sizes.items()
        }
    assert steps == of_seed(1)
    assert steps != of_seed(2)


def test_extra_sst_is_one_more_pass_at_the_end_of_each_epoch():
    sizes = {"sst": 16, "para": 64}
    steps = list(Plan(sizes, 8, 2, extra=("sst",)).steps())
    assert [name for epoch, batches in steps for name in batches if epoch == 1][-2:] == ["sst", "sst"]
    numbers = [n for _, batches in steps for n in batches.get("sst", ())]
    assert np.bincount(numbers).tolist() == [4] * 16


def test_the_broken_rows_of_the_sample_are_none(capsys):
    for task in TASKS.values():
        for split, count in (("train", 1000), ("dev", 300), ("test", 300)):
            examples = read_examples(data_path(ROOT / "data" / "sample", task, split), task, labelled=split != "test")
            assert len(examples) >= count
    assert capsys.readouterr().err == ""
