"""JSON and other files that somebody else wrote: what they should be, or one sentence."""

import errno
import json
import os
import socket
import subprocess

import pytest

from support.console import UserError
from support.files import (
    beside,
    open_regular,
    parse_json,
    read_json,
    read_text,
    recover_folder,
    replacing,
    replacing_folder,
    shown,
    write_json,
)
from support.run_folder import best_folder


def test_json_is_read_back_with_keys_of_the_right_types(tmp_path):
    value = {"n": 3, "x": 0.5, "name": "é", "flag": True, "nothing": None, "more": [1, {"a": 2}]}
    write_json(tmp_path / "f", value)
    assert read_json(tmp_path / "f") == value
    kinds = {"n": int, "x": float, "name": str, "flag": bool, "nothing": (str, type(None)), "more": list}
    assert read_json(tmp_path / "f", kinds, {"absent": int}) == value
    assert read_json(tmp_path / "f", {"n": float}) == value  # a whole number is a number
    (tmp_path / "f").write_bytes(b'\xef\xbb\xbf{"a": 1}')
    assert read_json(tmp_path / "f") == {"a": 1}


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        (b"", "not valid JSON"),
        (b"{", "not valid JSON"),
        (b"{} {}", "not valid JSON"),
        (b"[" * 100_000, "nested too deep"),
        (b'{"a":' * 100_000, "nested too deep"),
        (b'{"n": NaN}', "not a number"),
        (b'{"n": -Infinity}', "not a number"),
        (b'{"n": 1e999}', "too large"),
        (b'{"n": 1' + 400 * b"0" + b"}", "too large"),
        (b'{"n": ' + b"9" * 100_000 + b"}", "not valid JSON"),
        (b"null", "not a JSON object"),
        (b"[1]", "not a JSON object"),
        (b"3", "not a JSON object"),
        (b"{}", "has no 'n'"),
        (b'{"n": null}', "n cannot be None"),
        (b'{"n": true}', "n cannot be True"),
        (b'{"n": 1.0}', "n cannot be 1.0"),
        (b'{"n": "' + b"x" * 100_000 + b'"}', "n cannot be 'xxx"),
        (b'{"n": [[1]]}', "n cannot be a list"),
        (b'{"n": 1, "o": 1}', "o cannot be 1"),
        (b'{"n": "\xff"}', "UTF-8"),
        (b'{"n": 1, "x": ["a\\ud800"]}', "surrogates not allowed"),
        ('{"n": 1}'.encode("utf-16"), "UTF-8"),
        (b"\0" * 1000, "not valid JSON"),
    ],
)
def test_json_that_is_not_what_it_should_be_is_one_sentence(tmp_path, raw, reason):
    path = tmp_path / "file.json"
    path.write_bytes(raw)
    with pytest.raises(UserError, match=reason) as refused:
        read_json(path, {"n": int}, {"o": str}, "train again")
    assert str(path) in str(refused.value)
    assert len(str(refused.value)) - len(str(path)) < 200


def test_json_text_of_a_line_is_checked_as_files_are():
    assert parse_json('{"step": 3}', "line 2", {"step": int}) == {"step": 3}
    with pytest.raises(UserError, match=r"^line 2 has no 'step'"):
        parse_json("{}", "line 2", {"step": int})


def test_what_is_no_file_is_refused_at_once(tmp_path, monkeypatch):
    os.mkfifo(tmp_path / "pipe")
    with socket.socket(socket.AF_UNIX) as unix:
        monkeypatch.chdir(tmp_path)
        unix.bind("socket")
    os.symlink(tmp_path / "pipe", tmp_path / "link")
    kinds = {tmp_path: "a folder", "pipe": "a pipe", "link": "a pipe", "socket": "a socket", "/dev/zero": "a device"}
    for path, kind in kinds.items():
        with pytest.raises(UserError, match=f"is {kind}, not a file"):
            open_regular(path)


def test_a_hole_of_4_gb_is_not_read(tmp_path):
    with open(tmp_path / "f", "wb") as file:
        file.truncate(2**32)
    with pytest.raises(UserError, match="larger than"):
        read_text(tmp_path / "f")


def test_a_value_in_a_message_is_short():
    deep = json.loads("[" * 500 + "]" * 500)
    for value in ("x" * 10**6, 10**4000, deep, {"a": deep}, -1.5, None):
        assert len(shown(value)) <= 40


# ----- replacing a folder


def replace(folder, text):
    with replacing_folder(folder) as aside:
        (aside / "model").write_text(text)


def test_a_folder_that_is_replaced_leaves_everything_beside_it_alone(tmp_path):
    for name in ("best.old", "best.part", "encoder.old"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "precious").write_text("mine")
    for text in ("first", "second"):
        replace(tmp_path / "best", text)
        recover_folder(tmp_path / "best")
        assert (tmp_path / "best" / "model").read_text() == text
    assert sorted(path.name for path in tmp_path.iterdir()) == ["best", "best.old", "best.part", "encoder.old"]
    assert len(list(tmp_path.rglob("precious"))) == 3


def test_a_kill_between_the_two_renames_is_undone(tmp_path, monkeypatch):
    replace(tmp_path / "best", "first")
    renamed, rename = [], os.rename
    with monkeypatch.context() as patch:
        patch.setattr(os, "rename", lambda *names: 1 / 0 if renamed else renamed.append(rename(*names)))
        with pytest.raises(ZeroDivisionError):
            replace(tmp_path / "best", "second")
    assert not (tmp_path / "best").exists()
    assert beside(tmp_path / "best", "old").exists()
    recover_folder(tmp_path / "best")
    assert [path.name for path in tmp_path.iterdir()] == ["best"]
    assert (tmp_path / "best" / "model").read_text() == "first"


def test_what_a_link_points_to_is_replaced_again_and_again(tmp_path):
    (tmp_path / "disk" / "target").mkdir(parents=True)
    (tmp_path / "best").symlink_to(tmp_path / "disk" / "target")
    for text in ("first", "second", "third"):
        replace(tmp_path / "best", text)
        assert (tmp_path / "disk" / "target" / "model").read_text() == text
    (tmp_path / "disk" / "target").rename(beside(tmp_path / "disk" / "target", "old"))  # as a kill leaves it
    assert (best_folder(tmp_path) / "model").read_text() == "third"
    recover_folder(tmp_path / "best")
    assert (tmp_path / "best" / "model").read_text() == "third"
    assert [path.name for path in (tmp_path / "disk").iterdir()] == ["target"]


def test_a_file_in_the_place_of_a_folder_stays(tmp_path):
    (tmp_path / "best").write_text("mine")
    with pytest.raises(UserError, match="best is a file where a folder belongs"):
        replace(tmp_path / "best", "first")
    assert (tmp_path / "best").read_text() == "mine"


def test_what_others_put_into_a_folder_moves_on_into_the_new_one(tmp_path, monkeypatch):
    best = tmp_path / "best"
    replace(best, "first")
    (best / "README.md").write_text("mine")
    (best / "pals.safetensors").write_text("of another model")
    (best / "export" / "onnx").mkdir(parents=True)
    replace(best, "second")
    assert sorted(path.name for path in best.iterdir()) == ["README.md", "export", "model"]
    rename = os.rename
    for fatal in (1, 2, 3, 4):  # a kill before each of the renames: of best, of the new one, of two that move on
        left = [fatal]

        def killed(*names, left=left):
            left[0] -= 1
            return rename(*names) if left[0] else 1 / 0

        with monkeypatch.context() as patch, pytest.raises(ZeroDivisionError):
            patch.setattr(os, "rename", killed)
            replace(best, f"text {fatal}")
        recover_folder(best)
        assert (best / "model").read_text() == (f"text {fatal}" if fatal > 2 else "second")
        assert (best / "README.md").read_text() == "mine"
        assert (best / "export" / "onnx").is_dir()
        assert [path.name for path in tmp_path.iterdir()] == ["best"]


def test_a_link_to_nothing_is_refused_by_readers_and_writers(tmp_path):
    (tmp_path / "best").symlink_to(tmp_path / "disk" / "target")
    for act in (lambda: replace(tmp_path / "best", "first"), lambda: best_folder(tmp_path)):
        with pytest.raises(UserError, match=r"best is a link to .*/disk/target, which is not there; mount its disk"):
            act()
    assert [path.name for path in tmp_path.iterdir()] == ["best"]


def test_a_failed_write_in_a_folder_that_is_replaced_has_the_name_that_people_know(tmp_path):
    with pytest.raises(OSError, match="No space") as full, replacing_folder(tmp_path / "best") as aside:
        raise OSError(errno.ENOSPC, "No space left on device", str(aside / "model"))
    assert full.value.filename == str(tmp_path / "best" / "model")
    with pytest.raises(OSError, match="No space") as full, replacing_folder(tmp_path / "best"):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert full.value.filename == str(tmp_path / "best")
    assert list(tmp_path.iterdir()) == []


# ----- several processes


def as_another(monkeypatch):
    """From here on this process seems to be another one."""
    monkeypatch.setattr(os, "getpid", os.getppid)


def test_of_two_writers_of_a_file_or_a_folder_the_last_one_wins(tmp_path, monkeypatch):
    with monkeypatch.context() as patch, replacing(tmp_path / "f") as first, replacing_folder(tmp_path / "d") as one:
        first.write(b"first")
        (one / "model").write_text("first")
        as_another(patch)
        with replacing(tmp_path / "f") as second, replacing_folder(tmp_path / "d") as two:
            second.write(b"the second one")
            (two / "model").write_text("second")
        assert (tmp_path / "f").read_bytes() == b"the second one"
        assert (tmp_path / "d" / "model").read_text() == "second"
    assert (tmp_path / "f").read_bytes() == b"first"
    assert (tmp_path / "d" / "model").read_text() == "first"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["d", "f"]


def test_what_dead_processes_left_is_deleted_and_nothing_else(tmp_path):
    dead = subprocess.Popen(["true"])
    dead.wait()
    kept = [".f.replacing.notes", ".g.replacing.part", f".f.replacing.{os.getppid()}.part", "f.part"]
    for name in (".f.replacing.part", f".f.replacing.{dead.pid}.part", *kept):
        (tmp_path / name).write_text("")
    (tmp_path / f".best.replacing.{dead.pid}.part" / "x").mkdir(parents=True)
    write_json(tmp_path / "f", {})
    replace(tmp_path / "best", "text")
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([*kept, "f", "best"])
