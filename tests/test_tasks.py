import collections
import itertools

import numpy as np
import pytest
from conftest import write_task_files

from sampling import Plan
from support.console import UserError
from tasks import TASKS, DataSet, data_path, fingerprint, read_examples
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
    assert examples.others == ["What\tx?"]
    assert examples.labels.tolist() == [1.0]


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
    assert f"{path}: 6 of 8 rows left out" in said


def test_a_quote_that_never_closes_loses_its_row_and_says_so(tmp_path, capsys):
    path = write(tmp_path / "f", HEADER + '0\tok\tone\ttwo\t1.0\n1\tbad\t"one\ttwo\t0.0\n2\tbad\tone\ttwo\t0.0\n')
    assert read_examples(path, TASKS["para"]).ids == ["ok"]
    assert "1 of 2 rows left out" in capsys.readouterr().err


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


def test_bytes_that_are_no_text_do_no_harm(tmp_path):
    (tmp_path / "f").write_bytes(HEADER.encode() + b"0\tx\tcaf\xe9 \0 one\ttwo\t1.0\n")
    assert read_examples(tmp_path / "f", TASKS["para"]).others == ["two"]


def test_siamese_batches_have_the_first_sentences_and_then_the_second(tmp_path, tiny_encoder):
    write_task_files(tmp_path)
    examples = read_examples(data_path(tmp_path, TASKS["sts"], "train"), TASKS["sts"])
    tokenizer = Tokenizer(tiny_encoder)
    joint, siamese = DataSet(examples, tokenizer), DataSet(examples, tokenizer, "siamese")
    assert len(joint.batch([3, 1])) == 2
    batch = siamese.batch([3, 1])
    expected = [tokenizer.encode([text])[0][0].tolist() for text in (examples.sentences[3], examples.sentences[1])]
    expected += [tokenizer.encode([text])[0][0].tolist() for text in (examples.others[3], examples.others[1])]
    bounds = batch.cu_seqlens.tolist()
    assert [batch.ids[a:b].tolist() for a, b in itertools.pairwise(bounds)] == expected
    assert batch.segments.sum() == 0
    assert joint.labels([3, 1]).tolist() == examples.labels[[3, 1]].tolist()
    both = DataSet(examples, tokenizer, "both")
    assert both.batch([3, 1]).ids.tolist() == joint.batch([3, 1]).ids.tolist() + batch.ids.tolist()
    assert [TASKS[name].encoding("joint", True) for name in ("sst", "para", "sts")] == [None, "joint", "both"]
    for dataset in (joint, siamese, both):
        numbers = [i for part in dataset.by_length(5) for i in part]
        assert sorted(numbers) == list(range(len(dataset)))


def test_a_fingerprint_changes_with_any_label(tmp_path):
    write_task_files(tmp_path)
    read = lambda: read_examples(data_path(tmp_path, TASKS["sst"], "dev"), TASKS["sst"])  # noqa: E731
    before, examples = fingerprint(read()), read()
    assert before == fingerprint(examples)
    examples.labels[5] += 1
    assert before != fingerprint(examples)


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
        for split, count in (("train", 1000), ("dev", 400), ("test", 400)):
            examples = read_examples(data_path("data/sample", task, split), task, labelled=split != "test")
            assert len(examples) >= count
    assert capsys.readouterr().err == ""
