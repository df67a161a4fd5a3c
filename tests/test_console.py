"""What the programs say where something is wrong around them: small programs, run as a user runs them."""

import errno
import os
import signal
import subprocess
import sys
import time

import pytest
from tiny import ROOT

from support.console import Parser, UserError, as_utf8, command, shortened, typed


def program(body, *arguments, shell=None, **environment):
    """Runs `body` as a command of this project. Args: shell, what stands around "$@", such as "$@" | head -1."""
    code = f"import sys, os\nfrom support.console import *\n@command\ndef main(argv=None):\n    {body}\nmain()"
    command = [sys.executable, "-c", code, *arguments]
    env = os.environ | environment
    if shell:
        command = ["bash", "-c", f"set -o pipefail; {shell}", "bash", *command]
    return subprocess.run(command, cwd=ROOT, env=env, capture_output=True, timeout=60)


def test_a_reader_who_has_seen_enough_ends_the_program_quietly():
    for body in ("[print(i) for i in range(100_000)]", "print(1)\n    sys.exit(0)"):
        done = program(body, shell='"$@" | head -1 > /dev/null')
        assert done.stderr == b""


def test_the_environment_hides_or_breaks_no_progress_bar():
    done = program("progress(3).close()", TQDM_NCOLS="abc", TQDM_MININTERVAL="x", TQDM_COLOUR="no", RANK="1")
    assert done.returncode == 0 and b"0/3" in done.stderr, done.stderr


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no full device here")
def test_a_full_disk_under_standard_output_is_named():
    for body in ("print(1)", "print('x' * 100_000)"):
        done = program(body, shell='"$@" > /dev/full')
        assert done.returncode == 2
        assert done.stderr.startswith(b"error: standard output: No space left on device; free the space")
        assert done.stderr.count(b"\n") == 1


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_closed_standard_streams_do_no_harm(tmp_path, closed):
    body = (
        "f = open(sys.argv[1], 'w'); print('out'); print('err', file=sys.stderr); f.write(sys.stdin.read()); f.close()"
    )
    done = program(body, str(tmp_path / "f"), shell=f'"$@" {closed}')
    assert done.returncode == 0
    assert (tmp_path / "f").read_text() == ""


def test_arguments_that_are_no_utf8_are_refused_before_anything_starts():
    done = program("print('started')", b"--out", b"\xff")
    assert (done.returncode, done.stdout) == (2, b"")
    assert b"is not UTF-8 text" in done.stderr
    assert b"Traceback" not in done.stderr


def test_text_arrives_and_leaves_in_a_c_locale_too():
    c = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    done = program("print(len(as_utf8(sys.argv[1])), as_utf8(sys.argv[1]))", "café", **c)
    assert (done.returncode, done.stdout) == (0, b"4 caf\\xe9\n")
    assert program("pass", b"caf\xe9", **c).returncode == 2


def test_ctrl_c_while_modules_are_imported_is_one_line():
    code = "import support.interrupt\nimport time\nprint(1, flush=True)\ntime.sleep(60)"
    heard = lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)  # noqa: E731, a background job ignores the signal
    child = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=-1, stderr=-1, preexec_fn=heard)
    child.stdout.readline()
    child.send_signal(signal.SIGINT)
    assert child.communicate(timeout=30)[1] == b"\nstopped\n"
    assert child.returncode in (-signal.SIGINT, 130)


def test_every_program_hears_ctrl_c_from_its_first_import_on():
    for script in ("multitask", "simcse", "predict", "ensemble", "visualize", "reproduce", "support/downloads"):
        after_docstring = (ROOT / f"{script}.py").read_text().split('"""', 2)[2]
        assert after_docstring.strip().startswith("import support.interrupt ")
    assert (ROOT / "bench" / "__init__.py").read_text().startswith("import support.interrupt ")


@pytest.mark.parametrize("arguments", [["predict.py", "hello"], ["-m", "bench.forms"], ["-m", "support.downloads"]])
def test_a_python_without_the_packages_is_one_sentence(tmp_path, arguments):
    (tmp_path / "numpy.py").write_text("raise ModuleNotFoundError(\"No module named 'numpy'\", name='numpy')")
    (tmp_path / "torch.py").write_text("import numpy")
    env = os.environ | {"PYTHONPATH": str(tmp_path)}
    done = subprocess.run([sys.executable, *arguments], cwd=ROOT, env=env, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: {sys.executable} has no package numpy; ")
    assert done.stderr.count("\n") == 1 and "source .venv/bin/activate" in done.stderr


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (OSError(errno.ENOSPC, "No space left on device", "file"), ["file", "free the space"]),
        (OSError(errno.EDQUOT, "Disk quota exceeded", "file"), ["file", "free the space"]),
        (OSError(errno.EACCES, "Permission denied", "file"), ["file", "may read and write"]),
        (OSError(errno.EROFS, "Read-only file system", "file"), ["file", "may read and write"]),
        (OSError(errno.EISDIR, "Is a directory", "/"), ["/", "a file where a file"]),
        (OSError(errno.ENAMETOOLONG, "File name too long", "x" * 5000), ["xxx", "a shorter name"]),
        (OSError(errno.ENOENT, "No such file or directory", "file"), ["file", "check the name"]),
        (OSError(errno.ENOENT, "No such file or directory"), ["the folder that this was started in", "cd"]),
        (OSError(errno.ELOOP, "Too many levels of symbolic links", "a"), ["a: ", "try again"]),
        (MemoryError(), ["not enough memory"]),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to"), ["not enough memory"]),
        (type("OutOfResources", (Exception,), {})("shared memory"), ["large heads", "--kernels plain"]),
        (UserError("long " * 2_000_000 + "the remedy"), ["long", "the remedy"]),
        (UserError("two\nlines \x1b[31m \udcff"), ["two lines \\x1b[31m \\udcff"]),
    ],
)
def test_what_went_wrong_is_one_short_sentence(error, words, capsys):
    @command
    def main(argv=None):
        raise error

    with pytest.raises(SystemExit) as stopped:
        main([])
    assert stopped.value.code == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ")
    assert said.count("\n") == 1
    assert len(said) <= 500
    assert all(word in said for word in words)
    assert ("free the space" in said) == ("free the space" in words)


@pytest.mark.parametrize("error", [RuntimeError("a bug"), ValueError("another")])
def test_a_bug_shows_where_it_is(error):
    @command
    def main(argv=None):
        raise error

    with pytest.raises(type(error)):
        main([])


def test_a_value_that_begins_with_a_hyphen_is_a_text_or_gets_its_remedy():
    parser = Parser(prog="x.py")
    parser.add_argument("sentence")
    parser.add_argument("--flags", "--options")
    assert parser.parse_args(["-hm, a film"]).sentence == "-hm, a film"
    for mistake, says in (
        (["--flags", "--bf16"], r"hyphen, write --flags=\.\.\.\)"),
        (["-hm"], r"arguments: -hm \(.*two hyphens.*put --\);"),
    ):
        with pytest.raises(UserError, match=says):
            parser.parse_args(["a", *mistake])


def test_a_list_may_be_given_in_parts_and_its_default_gives_way():
    parser = Parser(prog="x.py")
    parser.add_argument("names", nargs="+")
    parser.add_argument("--runs", nargs="+", default=["usual"])
    parser.add_argument("--weights", nargs="+", type=int)
    args = lambda text: vars(parser.parse_args(text.split()))  # noqa: E731
    assert args("a b") == {"names": ["a", "b"], "runs": ["usual"], "weights": None}
    assert args("a --runs b c --weights 1 --runs d --weights 2 3")["runs"] == ["b", "c", "d"]
    parser.set_defaults(weights=[7])
    assert args("a --weights 1 --runs=-b --runs=c --weights 2") == {
        "names": ["a"],
        "runs": ["-b", "c"],
        "weights": [1, 2],
    }
    assert args("a")["weights"] == [7]


def test_text_without_surrogates_stays_as_it_is():
    for text in ("", "café", "\0", "\U0001f600"):
        assert as_utf8(text) == text
        assert as_utf8(text.encode().decode("ascii", "surrogateescape"), "ascii") == text
    assert shortened("é" * 290) == "é" * 290


def test_messages_are_made_short_at_once():
    start = time.process_time()
    shortened("x" * 10_000_000)
    assert time.process_time() - start < 1


def test_help_tells_a_default_unless_the_text_does():
    parser = Parser(prog="x")
    parser.add_argument("--lr", default=1e-4, help="rate")
    parser.add_argument("--bare", default="some")
    parser.add_argument("--out", default="runs", help="folder (default: what fits)")
    parser.add_argument("--flags", default="", help="more")
    parser.add_argument("--on", action="store_true", help="switch")
    told = {line.split()[0]: line.split(None, 2)[-1] for line in parser.format_help().splitlines() if "--" in line[:4]}
    expected = {"--lr": "rate (default: 0.0001)", "--bare": "(default: some)", "--out": "folder (default: what fits)"}
    assert told == expected | {"--flags": "more", "--on": "switch"}


def test_a_command_to_copy_is_quoted_for_a_shell():
    assert typed("multitask.py", "--resume", "--out", "runs/a") == "python multitask.py --resume --out runs/a"
    assert typed("multitask.py", "--out", "my $run") == "python multitask.py --out 'my $run'"
