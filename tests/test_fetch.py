"""`make data` against a server on 127.0.0.1."""

import hashlib
import http.server
import importlib.util
import json
import threading

import pytest
import tiny
from tiny import REAL, ROOT

from support import files
from support.console import UserError
from tasks import SPLITS, TASKS, data_path

spec = importlib.util.spec_from_file_location("fetch", ROOT / "data" / "fetch.py")
fetch = importlib.util.module_from_spec(spec)
spec.loader.exec_module(fetch)


class Files(http.server.BaseHTTPRequestHandler):
    folder = None
    cut = 0  # the next answer stops after this many bytes
    raw = None  # what is sent in place of each answer

    def do_GET(self):
        if self.raw is not None:
            return self.wfile.write(self.raw)
        path = self.folder / self.path.split("/")[-1]
        if not path.exists():
            return self.send_error(404)
        body, start = path.read_bytes(), 0
        if wanted := self.headers["Range"]:
            start = int(wanted.removeprefix("bytes=").rstrip("-"))
            if start >= len(body):
                return self.send_error(416)
        self.send_response(206 if wanted else 200)
        if wanted:
            self.send_header("Content-Range", f"bytes {start}-{len(body) - 1}/{len(body)}")
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
    Files.raw = None
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


@pytest.mark.parametrize("said", [b"Content-Range: bytes 0-%d/%d\r\n", b""])
def test_a_server_that_goes_on_elsewhere_than_it_was_asked_to_starts_again(server, tmp_path, said):
    path, task, url = tmp_path / "ids-sst-train.csv", TASKS["sst"], f"{server}/ids-sst-train.csv"
    text = (Files.folder / path.name).read_bytes()
    Files.cut = text.index(b"\n", 300) + 1
    with pytest.raises(UserError, match="run the same command again"):
        fetch.fetch(url, path, task, "train")
    said = said % (len(text) - 1, len(text)) if said else said
    Files.raw = b"HTTP/1.0 206 Partial Content\r\n%sContent-Length: %d\r\n\r\n" % (said, len(text)) + text
    fetch.fetch(url, path, task, "train")
    assert path.read_bytes() == text


def test_a_file_without_a_length_that_ends_within_a_line_is_not_whole(server, tmp_path, refused):
    text = (Files.folder / "ids-sst-train.csv").read_bytes()
    Files.raw = b"HTTP/1.0 200 OK\r\n\r\n" + text[:-3]
    refused(fetch.main, ["--out", tmp_path, "--url", server], "ids-sst-train.csv ends within a line", "run the same")
    assert not (tmp_path / "ids-sst-train.csv").exists()
    Files.raw = None
    fetch.main(["--out", str(tmp_path), "--url", server])
    assert (tmp_path / "ids-sst-train.csv").read_bytes() == text


def test_two_fetches_into_one_folder_do_not_mix(server, tmp_path, refused):
    with files.locked(tmp_path, "held"):
        refused(fetch.main, ["--out", tmp_path, "--url", server], f"another process fetches into {tmp_path}; wait")
    assert not list(tmp_path.glob("*.csv"))
    fetch.main(["--out", str(tmp_path), "--url", server])


def test_no_network_and_a_missing_file_are_one_sentence(server, tmp_path, refused):
    refused(fetch.main, ["--out", tmp_path / "x", "--url", "http://127.0.0.1:9/"], "no network")
    (Files.folder / "sts-dev.csv").unlink()
    refused(fetch.main, ["--out", tmp_path / "y", "--url", server], "sts-dev.csv", "404")


@pytest.mark.parametrize(
    ("raw", "says"),
    [
        (b"", ["no network, or http://", "run the same command again"]),
        (b"garbage\n", ["no network, or http://", "run the same command again"]),
        (b"HTTP/1.1 302 Found\r\nLocation: http://a:b/\r\n\r\n", ["no network, or http://"]),
        (b"HTTP/1.1 416 No\r\n\r\n", ["cannot be had (416 No)"]),
        (
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n9\r\nabc",
            ["ids-sst-train.csv stopped", "run the same"],
        ),
        (b"HTTP/1.1 200 OK\r\nContent-Length: " + b"9" * 5000 + b"\r\n\r\nabc", ["is no task file"]),
    ],
)
def test_a_bad_network_is_no_bad_address(server, tmp_path, refused, raw, says):
    Files.raw = raw
    refused(fetch.main, ["--out", tmp_path / "x", "--url", server], *says)


def test_a_connection_that_breaks_and_a_full_disk_name_the_file(server, tmp_path, refused, monkeypatch):
    command = ["--out", str(tmp_path / "x"), "--url", server]
    with monkeypatch.context() as patch:
        patch.setattr(http.client.HTTPResponse, "read", lambda *_: exec("raise ConnectionResetError(104, 'reset')"))
        refused(fetch.main, command, "ids-sst-train.csv stopped on its way ([Errno 104] reset); run the same command")
    full = tmp_path / "full"
    full.mkdir()
    part = f"ids-sst-train.csv.{hashlib.sha1(f'{server}/ids-sst-train.csv'.encode()).hexdigest()[:8]}.part"
    (full / part).symlink_to("/dev/full")
    refused(fetch.main, ["--out", full, "--url", server], f"{full}/ids-sst-train.csv: No space left on device; free")
    monkeypatch.setenv("http_proxy", "foo:bar")
    monkeypatch.setenv("no_proxy", "")
    monkeypatch.setattr(fetch.urllib.request, "_opener", None)  # which knows the proxies
    refused(fetch.main, command, "no network, or http://", "proxy")


def test_what_is_no_file_in_its_place_is_left_there(server, tmp_path, refused):
    out = tmp_path / "x"
    (out / "sts-dev.csv").mkdir(parents=True)
    (out / "ids-sst-dev.csv").symlink_to(tmp_path / "away")
    command = ["--out", out, "--url", server]
    refused(fetch.main, command, f"{out}/ids-sst-dev.csv is a folder, or a link to nothing; move it away")
    (out / "ids-sst-dev.csv").unlink()
    refused(fetch.main, command, f"{out}/sts-dev.csv is a folder, or a link to nothing; move it away")


def test_a_page_in_place_of_a_file_and_an_address_that_is_none_are_one_sentence(server, tmp_path, refused):
    (Files.folder / "ids-sst-train.csv").write_text("<!DOCTYPE html><title>Sign in</title>")
    refused(fetch.main, ["--out", tmp_path / "x", "--url", server], "a page", "--url")
    assert list((tmp_path / "x").iterdir()) == []
    for url in ("nowhere", "http://[x/", "c:\\data", "http://127.0.0.1:port", "http://", "http://a..b", "http://a/b c"):
        refused(fetch.main, ["--out", tmp_path / "z", "--url", url], f"--url {url!r} is no address")
    assert not (tmp_path / "z").exists()
    (tmp_path / "file").write_text("")
    refused(fetch.main, ["--out", tmp_path / "file", "--url", server], f"--out {tmp_path}/file is not a folder")


def quora_lines():
    """Writes a file that has lines for all splits of Quora-14k. Returns their h, and the lines."""
    ids, numbers = zip(("1", 83), ("12", 92), ("0", 28), ("22", 91), ("9", 67), ("10", 77), strict=True)  # of sha1sum
    lines = [f"{i}\t{id}\tWhat?\tWhich?\t1.0\n" for i, id in enumerate(ids)]
    (Files.folder / "quora-dev.csv").write_text("\tid\tsentence1\tsentence2\tis_duplicate\n" + "".join(lines))
    return numbers, lines


def test_quora_14k_is_cut_from_the_dev_file_by_its_ids(server, tmp_path):
    numbers, lines = quora_lines()
    for _ in range(2):
        fetch.main(["--out", str(tmp_path / "here"), "--url", server, "--quora_14k"])
    made = tmp_path / "here-quora-14k"
    for split, low, high in (("train", 0, 70), ("dev", 70, 85), ("test-student", 85, 100)):
        _, *found = (made / f"quora-{split}.csv").read_text().splitlines(keepends=True)
        expected = [line for h, line in zip(numbers, lines, strict=True) if low <= h < high]
        assert found == [line.replace("\t1.0", "") if split == "test-student" else line for line in expected]
    assert (made / "ids-sst-train.csv").read_bytes() == (Files.folder / "ids-sst-train.csv").read_bytes()


@pytest.mark.parametrize("out", ["link", "link/", "folder", ".", "folder/.."])
def test_quora_14k_lies_beside_the_name_that_was_given(server, tmp_path, monkeypatch, capsys, out):
    quora_lines()
    here = tmp_path / "here"
    (here / "folder").mkdir(parents=True)
    (tmp_path / "disk").mkdir()
    (here / "link").symlink_to(tmp_path / "disk")
    monkeypatch.chdir(here)
    made = tmp_path / "here-quora-14k" if "." in out else here / f"{out.strip('/')}-quora-14k"
    made.mkdir()
    fetch.main(["--out", out, "--url", server, "--quora_14k"])
    assert len(list(made.iterdir())) == 9
    assert "quora-14k made of them" in capsys.readouterr().out


def test_what_stands_in_the_place_of_quora_14k_is_named_and_left_alone(server, tmp_path, refused):
    quora_lines()
    made = tmp_path / "here-quora-14k"
    command = ["--out", tmp_path / "here", "--url", server, "--quora_14k"]
    made.write_text("mine")
    refused(fetch.main, command, f"{made}/ids-sst-train.csv is missing; move {made} away")
    made.unlink()
    made.symlink_to("nothing")
    refused(fetch.main, command, f"{made} is a link to", "not there")
    made.unlink()
    fetch.main([str(argument) for argument in command])
    (made / "notes").write_text("mine")
    (made / "quora-dev.csv").write_text("<html>")
    refused(fetch.main, command, f"{made}/quora-dev.csv is no task file", "away, and the same command makes it")
    (made / "quora-dev.csv").unlink()
    refused(fetch.main, command, f"{made}/quora-dev.csv is missing; move {made} away")
    assert (made / "notes").read_text() == "mine"


@pytest.mark.parametrize(
    "body", [b"", b'{"message": "rate limit"}', b"\tid\tsentence\tsentiment\n", b"version https://git-lfs"]
)
def test_what_holds_no_examples_is_not_kept(server, tmp_path, refused, body):
    (Files.folder / "ids-sst-train.csv").write_bytes(body)
    refused(fetch.main, ["--out", tmp_path / "x", "--url", server], f"{server}/ids-sst-train.csv", "--url")
    assert list((tmp_path / "x").iterdir()) == []
    (tmp_path / "x" / "ids-sst-train.csv").write_bytes(body)  # of an older fetch
    refused(fetch.main, ["--out", tmp_path / "x", "--url", server], tmp_path / "x", "delete it")
    assert (tmp_path / "x" / "ids-sst-train.csv").read_bytes() == body


def test_what_came_from_elsewhere_is_not_continued(server, tmp_path, refused):
    whole = (Files.folder / "ids-sst-train.csv").read_bytes()
    command = ["--out", str(tmp_path / "here"), "--url", server]
    Files.cut = 100
    refused(fetch.main, command, "stopped after 100 bytes")
    (Files.folder / "ids-sst-train.csv").write_bytes(
        whole.upper().replace(b"ID\tSENTENCE\tSENTIMENT", b"id\tsentence\tsentiment")
    )
    (tmp_path / "here" / "ids-sst-train.csv.part").write_bytes(b"mine")
    fetch.main([*command[:-1], server + "/other"])
    assert (tmp_path / "here" / "ids-sst-train.csv").read_bytes() == (Files.folder / "ids-sst-train.csv").read_bytes()
    assert (tmp_path / "here" / "ids-sst-train.csv.part").read_bytes() == b"mine"


def test_quora_14k_without_a_line_for_a_split_is_refused(server, tmp_path, refused):
    text = "\tid\tsentence1\tsentence2\tis_duplicate\n0\t1\tWhat?\tWhich?\t1.0\n"  # of dev
    (Files.folder / "quora-dev.csv").write_text(text)
    command = ["--out", tmp_path / "here", "--url", server, "--quora_14k"]
    refused(fetch.main, command, tmp_path / "here" / "quora-dev.csv", "no line for train", "delete it")
    assert not (tmp_path / "here-quora-14k").exists()


@pytest.mark.skipif(not REAL.exists(), reason="the CS224N files are not here")
def test_quora_14k_of_the_course_is_the_data_of_the_results(tmp_path):
    """The files' digests stand in the evidence of each run. The dev file is put together from its three parts."""
    parts = {split: data_path(REAL, TASKS["para"], split).read_bytes().splitlines(keepends=True) for split in SPLITS}
    parts["test"] = [line.rstrip(b"\n") + b"\t0.0\n" for line in parts["test"]]
    (header, *lines), dev, test = parts["train"], parts["dev"][1:], parts["test"][1:]
    whole = [header]
    while lines or dev or test:  # mixed, each in its order
        whole += lines[:5] + dev[:1] + test[:1]
        del lines[:5], dev[:1], test[:1]
    (tmp_path / "quora-dev.csv").write_bytes(b"".join(whole))
    fetch.cut_quora(tmp_path, tmp_path)
    digests = json.loads((ROOT / "results" / "runs" / "means-11711" / "record.json").read_text())["data"]["files"]
    for split in SPLITS:
        made = hashlib.sha256(data_path(tmp_path, TASKS["para"], split).read_bytes()).hexdigest()
        assert made.startswith(digests[f"para-{split}"])
