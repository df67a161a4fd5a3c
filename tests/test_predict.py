"""predict.py, and what a model folder must hold: the right answer or one sentence."""

import io
import json
import os
import shutil

import pytest
import torch
from tiny import assert_refused, config, run

import predict
from bert import Bert
from model import MultitaskBert
from support.safetensors import read_safetensors, write_safetensors
from tasks import TASKS
from tokenizer import Tokenizer


@pytest.fixture(scope="module")
def trained(tiny_encoder, tmp_path_factory):
    """A run with an untrained model, which answers all the same."""
    folder = tmp_path_factory.mktemp("run")
    (folder / "best").mkdir()
    MultitaskBert(Bert.load(tiny_encoder)).save(folder / "best", Tokenizer(tiny_encoder))
    (folder / "config.json").write_text('{"out": "run"}')
    return folder


@pytest.fixture
def copied(trained, tmp_path):
    shutil.copytree(trained, tmp_path / "run")
    return tmp_path / "run"


def test_bytes_that_are_no_utf8_are_said_and_utf8_is_answered_in_a_c_locale(trained):
    assert_refused(run("predict.py", "--run", trained, "caf\udce9"), "is not UTF-8 text")
    c = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    done = run("predict.py", "--run", trained, "Ein guter Film, caf\udcc3\udca9!", **c)
    assert (done.returncode, done.stderr) == (0, "")
    assert "sentiment: " in done.stdout


def test_lines_that_somebody_types_are_answered_or_said(trained, monkeypatch, capsys):
    lines = iter(["good film", "caf\udce9", "a||b||c", "||", "good||bad film", "", "never read"])
    monkeypatch.setattr("builtins.input", lambda prompt: next(lines))
    predict.main(["--run", str(trained)])
    said = capsys.readouterr().out
    assert said.count("sentiment: ") == 1
    assert said.count("similarity: ") == 1
    assert said.count("is not UTF-8 text") == 1
    assert said.count("more than two sentences") == said.count("that is no sentence") == 1
    assert next(lines) == "never read"


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        (b"caf\xe9\n", "UTF-8"),
        ("film\n".encode("utf-16"), "UTF-8"),
        (b"", "holds no sentence"),
        (b"\xef\xbb\xbf \n\t\n", "holds no sentence"),
        (b"a\tb\tc\n", "3 sentences"),
        (b"id \t Predicted_Sentiment \ndev0 , 0 \n", "is a file of predictions, not sentences"),
        (
            b"\tid\tsentence\tsentiment\n0\tx\tgood\t4\n",
            "is a task file; `multitask.py --eval_only --out RUN --sst_test",
        ),
        (b"id\tsentence1\tsentence2\nx\tgood\tbad\n", "--para_test FILE"),
        (b"<!DOCTYPE html>\n<p>\n", "is a web page, not sentences"),
        (b"id,sentence\nx,good film\n", "is CSV, not sentences"),
        (b'["good film", "bad film"]\n', "is JSON, not sentences"),
        (b"<items>\n<item>good film</item>\n", "is XML, not sentences"),
    ],
)
def test_a_file_without_an_answer_is_one_sentence(trained, tmp_path, refused, monkeypatch, raw, reason):
    (tmp_path / "f").write_bytes(raw)
    refused(predict.main, ["--run", trained, "--file", tmp_path / "f"], reason)
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(raw)))
    refused(predict.main, ["--run", trained, "--file", "-"], reason)


def test_lines_are_read_as_those_of_task_files_and_no_terminal_obeys_them(trained, tmp_path, monkeypatch, capsys):
    raw = b'good film\rbad film\r\n"good ""film"""\t" bad film"\n"good" film\n\x1b]0;mine\x07film \xc2\x9b1m \xc3\xa9\n'
    (tmp_path / "f").write_bytes(raw)
    for name in (tmp_path / "f", "-"):
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(raw)))
        predict.main(["--run", str(trained), "--file", str(name)])
        shown = capsys.readouterr().out.splitlines()[::2]
        assert shown[:4] == ["good film", "bad film", 'good "film"\tbad film', '"good" film']
        assert shown[4:] == [r"\x1b]0;mine\x07film \x9b1m é"]


def test_odd_lines_are_answered(trained, tmp_path, capsys):
    lines = ["4", "2020-01-10\t2020-01-11", "3\t4", "R2D2\tWhat is R2D2?", "good film\tbad film"]
    (tmp_path / "f").write_text("\n".join(lines))
    predict.main(["--run", str(trained), "--file", str(tmp_path / "f")])
    assert capsys.readouterr().out.splitlines()[::2] == lines


def test_a_number_beyond_its_scale_is_said_as_the_end_of_it():
    sts, para = TASKS["sts"], TASKS["para"]
    assert [predict.in_words(sts, x, x) for x in (5.31, -0.2, 4.21)] == ["5.0 of 5", "0.0 of 5", "4.2 of 5"]
    assert predict.in_words(para, [0.02, 0.98], 1) == "yes (98 %)"


@pytest.mark.parametrize("pair", ["123\tone two three", "good film\t4", "mp3\tcassette90", "route66\tmotorway25"])
def test_a_column_of_numbers_or_ids_is_answered_with_a_word(trained, tmp_path, capsys, pair):
    (tmp_path / "f").write_text(f"{pair}\n" * 2)
    predict.main(["--run", str(trained), "--file", str(tmp_path / "f")])
    shown = capsys.readouterr()
    assert shown.out.count("similarity") == 2
    assert all("holds numbers or ids; they are read as sentences" in line for line in shown.err.splitlines())
    assert shown.err


def test_short_words_make_pairs_as_well(trained, tmp_path, capsys):
    (tmp_path / "f").write_text("H2O\twater\nCOVID-19\tcoronavirus\nI love it\t\U0001f600\n4\tfour\n")
    predict.main(["--run", str(trained), "--file", str(tmp_path / "f")])
    assert capsys.readouterr().out.count("similarity") == 4


def test_one_argument_is_read_as_what_is_typed_at_the_prompt_and_two_as_they_are(trained, capsys, refused):
    predict.main(["--run", str(trained), "good film || bad \u202efilm\u200b"])
    shown = capsys.readouterr().out
    assert shown.startswith("good film\tbad \\u202efilm\\u200b\n")
    assert "similarity: " in shown
    predict.main(["--run", str(trained), " if (a || b) is true", "what\tis it"])
    assert capsys.readouterr().out.startswith("if (a || b) is true\twhat\\tis it\n")
    refused(predict.main, ["--run", trained, "a || b || c"], "3 sentences")
    for empty in (["||"], [""], [" ", "a"], ["a", ""]):
        refused(predict.main, ["--run", trained, *empty], "one sentence, or two, that are not empty")
    refused(predict.main, ["--run", trained, "-great"], "put --")


def test_a_pipe_of_a_shell_is_read(trained, capsys):
    reads, writes = os.pipe()
    with open(reads), open(writes, "wb") as file:
        file.write(b"good film\nbad film\n")
        file.close()
        predict.main(["--run", str(trained), "--file", f"/dev/fd/{reads}"])
    assert capsys.readouterr().out.splitlines()[::2] == ["good film", "bad film"]


def test_a_folder_or_a_device_in_place_of_a_file_is_refused_at_once(trained, tmp_path, refused):
    refused(predict.main, ["--run", trained, "--file", tmp_path], "a folder")
    refused(predict.main, ["--run", trained, "--file", "/dev/zero"], "a device")


def test_a_run_whose_best_model_is_gone_is_shown_the_way_back(copied, refused):
    shutil.rmtree(copied / "best")
    refused(predict.main, ["--run", copied, "A film."], "no trained model", "--resume")


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_heads_that_hold_no_finite_floats_are_refused(copied, refused, value):
    path = copied / "best" / "heads.safetensors"
    tensors = {name: tensor.clone() for name, tensor in read_safetensors(path).items()}
    tensors["sts.output.bias"].fill_(value)
    write_safetensors(path, tensors)
    refused(predict.main, ["--run", copied, "A film."], "sts.output.bias holds NaN")
    tensors["sts.output.bias"] = tensors["sts.output.bias"].zero_().long()
    write_safetensors(path, tensors)
    refused(predict.main, ["--run", copied, "A film."], "sts.output.bias is int64")


@pytest.mark.parametrize(
    "change",
    [
        {"pair_encoding": "both"},
        {"pair_encoding": None},
        {"use_means": 1},
        {"use_means": "no"},
        {"classifier_layers": -1},
        {"classifier_layers": True},
        {"classifier_layers": 10**12},
        {"classifier_size": 0},
        {"classifier_size": 10**12},
        {"pal_size": -204},
        {"pal_size": 10**9, "pal_heads": 1},
        {"pal_size": 12, "pal_heads": 0},
        {"bert": "another"},
        {"__class__": [[]]},
    ],
)
def test_options_that_no_model_has_are_refused(copied, refused, change):
    path = copied / "best" / "multitask.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    words = ["'bert'", "unknown to this version; update"] if "bert" in change else []
    refused(predict.main, ["--run", copied, "A film."], *words)


@pytest.mark.parametrize("name", ["config.json", "multitask.json", "tokenizer.json"])
@pytest.mark.parametrize("raw", [b"null", b"[" * 100_000, b'{"a": NaN}', b"\xff", b""])
def test_files_of_a_model_that_are_damaged_are_one_sentence(copied, refused, name, raw):
    (copied / "best" / name).write_bytes(raw)
    refused(predict.main, ["--run", copied, "A film."], name)


def test_a_model_with_one_segment_or_few_positions_answers_or_says_why(tmp_path, tiny_encoder, refused):
    for changes in ({"max_position_embeddings": 8}, {"type_vocab_size": 1}):
        folder = tmp_path / str(*changes) / "best"
        folder.mkdir(parents=True)
        bert = Bert(config(**changes))
        model = MultitaskBert(bert, "siamese")
        model.save(folder, Tokenizer(tiny_encoder, bert.config.max_position_embeddings))
        predict.main(["--run", str(folder.parent), "A good film " * 9, "A bad film " * 9])
    options = json.loads((folder / "multitask.json").read_text()) | {"pair_encoding": "joint"}
    (folder / "multitask.json").write_text(json.dumps(options))
    refused(predict.main, ["--run", folder.parent, "A film.", "Another."], "siamese")
