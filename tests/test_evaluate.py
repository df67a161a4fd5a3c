import numpy as np
import pytest
import torch

from evaluate import accuracy, dev_score, majority, pearson, probabilities, score, write_predictions
from support.console import UserError
from tasks import TASKS


def test_the_dev_score_of_the_published_table():
    assert dev_score({"sst": 0.454, "para": 0.625, "sts": 0.546}) == pytest.approx(0.617, abs=5e-4)
    assert dev_score({"sst": 0.531, "para": 0.869, "sts": 0.864}) == pytest.approx(0.778, abs=1.1e-3)


def test_pearson_is_the_correlation_coefficient():
    rng = np.random.default_rng(0)
    x = rng.normal(size=500)
    y = x + rng.normal(size=500)
    assert pearson(x, y) == pytest.approx(np.corrcoef(x, y)[0, 1], abs=1e-12)
    assert pearson(x, -3 * x + 5) == pytest.approx(-1)
    assert pearson(np.ones(5), np.arange(5)) == 0.0


def test_accuracy_and_majority():
    assert accuracy([1, 0, 2], [1, 1, 2]) == pytest.approx(2 / 3)
    assert majority(TASKS["para"], np.array([0, 0, 1, 0])) == 0.75
    assert majority(TASKS["sts"], np.array([0.5, 1])) == 0.0


def test_a_model_that_answers_the_same_to_everything_is_named(capsys):
    same = np.tile([0.7, 0.3], (8, 1)).astype(np.float32)
    assert score(TASKS["para"], same, np.array([0, 0, 0, 0, 0, 1, 1, 1])) == 0.625
    assert "para has not learned" in capsys.readouterr().err
    same[0] = [0.2, 0.8]
    score(TASKS["para"], same, np.array([0, 0, 0, 0, 0, 1, 1, 1]))
    assert capsys.readouterr().err == ""


def test_probabilities_sum_to_one():
    torch.manual_seed(0)
    assert torch.allclose(probabilities(TASKS["sst"], torch.randn(4, 5)).sum(1), torch.ones(4))
    para = probabilities(TASKS["para"], torch.tensor([[0.0], [2.0]]))
    assert torch.allclose(para[:, 1], torch.sigmoid(torch.tensor([0.0, 2.0])))
    assert torch.allclose(para.sum(1), torch.ones(2))
    assert probabilities(TASKS["sts"], torch.tensor([[3.2]])).tolist() == [pytest.approx(3.2)]


def test_prediction_files_are_the_course_s(tmp_path):
    write_predictions(tmp_path / "sst", TASKS["sst"], ["a1", "b2"], np.eye(5)[[3, 0]])
    assert (tmp_path / "sst").read_text() == "id \t Predicted_Sentiment \na1 , 3 \nb2 , 0 \n"
    write_predictions(tmp_path / "para", TASKS["para"], ["a1"], np.array([[0.2, 0.8]]))
    assert (tmp_path / "para").read_text() == "id \t Predicted_Is_Paraphrase \na1 , 1 \n"
    write_predictions(tmp_path / "sts", TASKS["sts"], ["a1"], np.array([2.25]))
    assert (tmp_path / "sts").read_text() == "id \t Predicted_Similiary \na1 , 2.2500 \n"


@pytest.mark.parametrize("name", ["a\nb", "a\tb", "a , b", "a\x85b", "a\r", "a ,"])
def test_an_id_that_breaks_a_prediction_file_is_refused_before_anything_is_written(tmp_path, name):
    with pytest.raises(UserError, match="cannot be written: the id"):
        write_predictions(tmp_path / "sst", TASKS["sst"], ["fine", name], np.eye(5)[[3, 0]])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["", "a,b", ", a", "a,", "'", '"', "é 1"])
def test_the_lines_of_a_prediction_file_have_two_parts(tmp_path, name):
    write_predictions(tmp_path / "sst", TASKS["sst"], [name], np.eye(5)[[3]])
    assert (tmp_path / "sst").read_text().splitlines()[1].split(" , ") == [name, "3 "]
