"""The list of everyday sentences: whole, apart from the sample data, and refused where it is damaged."""

import importlib.util

import pytest
from tiny import ROOT

from support.console import UserError
from tasks import SPLITS, TASKS, data_path, read_examples

spec = importlib.util.spec_from_file_location("everyday", ROOT / "data" / "everyday.py")
everyday = importlib.util.module_from_spec(spec)
spec.loader.exec_module(everyday)
LIST = ROOT / "data" / "everyday.tsv"


def test_the_list_holds_what_its_text_says_and_no_line_of_the_sample_data():
    found = everyday.read_list(LIST)
    assert [len(expected) for expected, _, _ in found.values()] == [184, 370, 134]
    for name, (_, sentences, seconds) in found.items():
        task = TASKS[name]
        asked = set(zip(sentences, seconds, strict=True))
        for split in SPLITS:
            path = data_path(ROOT / "data" / "sample", task, split)
            these = read_examples(path, task, labelled=split != "test")
            assert not asked & set(zip(these.sentences, these.second_sentences or [""] * len(these), strict=True))


@pytest.mark.parametrize(
    "line",
    [
        "negative\tOne",
        "1\tOne?\tTwo?\tThree?",
        "maybe\tFine.\t",
        "0\tFine.\t",
        "7\tA b.\tC d.",
        "nan\tA.\tB.",
        "5.9\tA b.\tC d.",
        "positive\t\t",
        "3\t \tA b.",
    ],
)
def test_a_damaged_line_is_one_sentence(tmp_path, line):
    path = tmp_path / "everyday.tsv"
    path.write_text(f"expected\tsentence1\tsentence2\npositive\tGood.\t\n{line}\n")
    with pytest.raises(UserError, match=r"line 3: .*; fetch it again"):
        everyday.read_list(path)


def test_a_list_that_lacks_its_header_or_a_task_is_one_sentence_and_blank_lines_are_none(tmp_path):
    path = tmp_path / "everyday.tsv"
    header, *lines = "expected\tsentence1\tsentence2", "positive\tGood.\t", "1\tA?\tB?", "5.0\tC.\tD."
    path.write_text("\n".join((header, "", *lines, "  ", "")))
    assert [of[0] for of in everyday.read_list(path).values()] == [["positive"], ["1"], ["5.0"]]
    for wrong, said in (
        (lines, r"begins with 'positive\\tGood.\\t', not with 'expected"),
        ([], "begins with ''"),
        ([header], "no lines of sst"),
        ([header, *lines[:2]], "no lines of sts"),
    ):
        path.write_text("".join(f"{line}\n" for line in wrong))
        with pytest.raises(UserError, match=f"{said}.*; fetch it again"):
            everyday.read_list(path)
