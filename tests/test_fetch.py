"""`make data` against a server on 127.0.0.1."""

import http.server
import importlib.util
import threading

import pytest
import tiny
from tiny import ROOT

spec = importlib.util.spec_from_file_location("fetch", ROOT / "data" / "fetch.py")
fetch = importlib.util.module_from_spec(spec)
spec.loader.exec_module(fetch)


class Files(http.server.BaseHTTPRequestHandler):
    folder = None
    cut = 0  # the next answer stops after this many bytes

    def do_GET(self):
        path = self.folder / self.path.split("/")[-1]
        if not path.exists():
            return self.send_error(404)
        body, start = path.read_bytes(), 0
        if wanted := self.headers["Range"]:
            start = int(wanted.removeprefix("bytes=").rstrip("-"))
            if start >= len(body):
                return self.send_error(416)
        self.send_response(206 if wanted else 200)
        self.send_header("Content-Length", str(len(body) - start))
        self.end_headers()
        end, Files.cut = (start + Files.cut, 0) if Files.cut else (len(body), 0)
        self.wfile.write(body[start:end])

    def log_message(self, *_):
        return


@pytest.fixture
def server(tmp_path):
    Files.folder = tmp_path / "there"
    Files.folder.mkdir()
    tiny.task_files(Files.folder)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Files)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/data"
    server.shutdown()


def test_a_fetch_that_was_cut_short_goes_on(server, tmp_path, refused, capsys):
    out = tmp_path / "here"
    command = ["--out", str(out), "--url", server]
    Files.cut = 100
    refused(fetch.main, command, "stopped after 100 bytes", "again")
    fetch.main(command)
    for path in Files.folder.iterdir():
        assert (out / path.name).read_bytes() == path.read_bytes()
    assert not list(out.glob("*.part"))
    capsys.readouterr()
    fetch.main(command)
    assert capsys.readouterr().out.count("is there") == 9


def test_no_network_and_a_missing_file_are_one_sentence(server, tmp_path, refused):
    refused(fetch.main, ["--out", tmp_path / "x", "--url", "http://127.0.0.1:9/"], "no network")
    (Files.folder / "sts-dev.csv").unlink()
    refused(fetch.main, ["--out", tmp_path / "y", "--url", server], "sts-dev.csv", "404")


def test_a_page_in_place_of_a_file_and_an_address_that_is_none_are_one_sentence(server, tmp_path, refused):
    (Files.folder / "ids-sst-train.csv").write_text("<!DOCTYPE html><title>Sign in</title>")
    refused(fetch.main, ["--out", tmp_path / "x", "--url", server], "a page", "--url")
    assert list((tmp_path / "x").iterdir()) == []
    for url in ("nowhere", "http://[x/", "c:\\data", "http://127.0.0.1:port"):
        refused(fetch.main, ["--out", tmp_path / "x", "--url", url], "--url")
    (tmp_path / "file").write_text("")
    refused(fetch.main, ["--out", tmp_path / "file", "--url", server], tmp_path / "file", "a folder")
