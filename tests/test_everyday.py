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
        "",
        "1\tOne?\tTwo?\tThree?",
        "maybe\tFine.\t",
        "0\tFine.\t",
        "7\tA b.\tC d.",
        "nan\tA.\tB.",
    ],
)
def test_a_damaged_line_is_one_sentence(tmp_path, line):
    path = tmp_path / "everyday.tsv"
    path.write_text(f"expected\tsentence1\tsentence2\npositive\tGood.\t\n{line}\n")
    with pytest.raises(UserError, match=r"line 3: .*; fetch it again"):
        everyday.read_list(path)
