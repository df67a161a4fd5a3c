import numpy as np
import pytest
import tiny
import torch

from bert import Bert
from evaluate import accuracy, dev_score, majority, model_outputs, pearson, probabilities, score, write_predictions
from model import MultitaskBert
from simcse import SentenceEncoder, embeddings
from support.console import UserError
from tasks import TASKS, DataSet, Examples
from tokenizer import Tokenizer
from visualize import look


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


@pytest.mark.parametrize("name", list(TASKS))
def test_what_is_not_finite_is_no_answer_and_names_the_model(tmp_path, tiny_encoder, name):
    task, tokenizer = TASKS[name], Tokenizer(tiny_encoder)
    model = tiny.model()
    dataset = DataSet(Examples(["a"], ["good"], ["film"] if task.pair else None, None), tokenizer)
    assert np.isfinite(model_outputs(model, task, dataset)).all()
    with torch.no_grad():
        for p in model.heads[name].parameters():
            p.fill_(3e38 if p.dim() == 1 else -3e38)
    model.save(tmp_path, tokenizer)
    with pytest.raises(UserError, match=f"random weights says of {name} is not finite"):
        model_outputs(model, task, dataset)
    with pytest.raises(UserError, match=f"from {tmp_path} says of {name} is not finite; .* name another model"):
        model_outputs(MultitaskBert.load(tmp_path)[0], task, dataset)


def test_embeddings_are_finite(tiny_encoder):
    bert = Bert.load(tiny_encoder)
    torch.nn.init.constant_(bert.embedding_norm.weight, torch.inf)
    with pytest.raises(UserError, match=f"from {tiny_encoder} says of sentences is not finite"):
        embeddings(SentenceEncoder(bert, "mean"), Tokenizer(tiny_encoder), ["good film"], 8)
    model = tiny.model()
    model.bert = bert
    with pytest.raises(UserError, match=f"from {tiny_encoder} says of sst is not finite"):
        look(model, DataSet(Examples(["a"], ["good film"], None, None), Tokenizer(tiny_encoder)))


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
