"""The set-up that `make` calls: sentences where it cannot go on, and what an interpreter at hand keeps."""

import http.server
import importlib.metadata
import os
import re
import runpy
import subprocess
import sys
import threading

import pytest
from tiny import ROOT

from support import environment

SCRIPT = ROOT / "support" / "environment.py"


@pytest.fixture
def stopped(capsys):
    """`stopped(call)`: what one sentence on stderr says where `call` stops."""

    def check(call):
        with pytest.raises(SystemExit) as end:
            call()
        assert end.value.code == 2
        (sentence,) = capsys.readouterr().err.splitlines()
        return sentence

    return check


def test_an_old_python_is_named_with_the_remedy(monkeypatch, stopped):
    monkeypatch.setattr(sys, "version_info", (3, 9, 2))
    assert "this is 3.9; name another with PYTHON=" in stopped(environment.check_python)


def test_a_python_without_todays_modules_is_named_too(monkeypatch, stopped):
    for name in ("importlib.metadata", "tomllib", "zoneinfo"):
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setattr(sys, "version_info", (3, 6, 8))
    assert "this is 3.6; name another with PYTHON=" in stopped(lambda: runpy.run_path(str(SCRIPT), run_name="__main__"))


def said_by_venv(monkeypatch, text):
    done = environment.subprocess.CompletedProcess([], 1, text)
    monkeypatch.setattr(environment.subprocess, "run", lambda command, **_: done)


@pytest.mark.parametrize(
    "text",
    [
        "The virtual environment was not created successfully because ensurepip is not\navailable.\n",
        "/usr/bin/python3: No module named venv\n",
        "Error: No module named 'ensurepip'\n",
    ],
)
def test_a_python_without_venv_gets_the_command_that_mends_it(monkeypatch, stopped, tmp_path, text):
    said_by_venv(monkeypatch, text)
    said = stopped(lambda: environment.make_environment(str(tmp_path / "venv")))
    assert "apt install python3-venv" in said and "VENV=" in said


def test_another_reason_of_venv_is_named_and_apt_is_not(monkeypatch, stopped, tmp_path):
    (tmp_path / "file").touch()
    said = stopped(lambda: environment.make_environment(str(tmp_path / "file" / "venv")))
    assert "Not a directory" in said and "another folder with VENV=" in said and "apt" not in said
    full = "Error: Command '['python3', '-m', 'ensurepip', '--upgrade']' returned non-zero exit status 1.\n"
    for text, reason in ((full, "exit status 1"), ("", "no reason given")):
        said_by_venv(monkeypatch, text)
        said = stopped(lambda: environment.make_environment(str(tmp_path / "venv")))
        assert reason in said and "apt" not in said


@pytest.mark.parametrize("names", [["bin/python", "thesis.txt"], ["thesis.txt"]])
def test_a_folder_with_something_else_is_refused_and_stays(monkeypatch, stopped, tmp_path, names):
    (tmp_path / "bin").mkdir()
    for name in names:
        (tmp_path / name).symlink_to(tmp_path / "removed")
    monkeypatch.setattr(environment, "install", lambda *_: 1 / 0)
    assert "holds something else" in stopped(lambda: environment.make_environment(str(tmp_path)))
    assert all((tmp_path / name).is_symlink() for name in names)


def test_an_environment_without_pip_is_made_anew(monkeypatch, tmp_path):
    """Debian without python3-venv leaves such a one, and so does a set-up that is stopped early."""
    folder = tmp_path / "venv"
    (folder / "bin").mkdir(parents=True)
    (folder / "pyvenv.cfg").touch()
    (folder / "bin" / "python").symlink_to(sys.executable)
    commands = []
    done = environment.subprocess.CompletedProcess([], 0)
    monkeypatch.setattr(environment.subprocess, "run", lambda command, **_: commands.append(command[1:3]) or done)
    monkeypatch.setattr(environment, "without_cuda", lambda: [])
    environment.make_environment(str(folder))
    (folder / "bin" / "pip").touch()
    environment.make_environment(str(folder))
    assert commands == [["-m", "venv"], ["-m", "pip"], ["-m", "pip"]]


def test_an_environment_whose_python_was_removed_is_mended_and_loses_nothing(monkeypatch, tmp_path):
    folder, asked = tmp_path / "venv", []
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True, timeout=60)
    for name in ("python", "python3"):
        (folder / "bin" / name).unlink()
        (folder / "bin" / name).symlink_to(tmp_path / "removed")
    for kept in (folder / "bin" / "pip", folder / "thesis.txt"):
        kept.touch()
    run = subprocess.run  # the real one, which makes the environment, but without pip
    monkeypatch.setattr(environment.subprocess, "run", lambda command, **of: run([*command, "--without-pip"], **of))
    monkeypatch.setattr(environment, "install", lambda python, what: asked.append(run([python, "-c", ""]).returncode))
    monkeypatch.setattr(environment, "without_cuda", lambda: [])
    environment.make_environment(str(folder))
    assert asked == [0] and kept.exists()


def test_a_file_in_place_of_the_environment_is_one_sentence(stopped, tmp_path):
    (tmp_path / "file").touch()
    assert "is a file" in stopped(lambda: environment.make_environment(str(tmp_path / "file")))


def test_ctrl_c_is_one_line(tmp_path):
    code = "import runpy, subprocess, sys\ndef stop(*a, **k): raise KeyboardInterrupt\nsubprocess.run = stop\n"
    code += "runpy.run_path(sys.argv.pop(1), run_name='__main__')"
    done = subprocess.run(
        [sys.executable, "-c", code, SCRIPT, tmp_path / "venv"], capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stderr) == (130, "\nstopped; the same command goes on\n")


@pytest.fixture
def source_of_packages(monkeypatch):
    """A server in place of PyTorch's source of packages."""

    class Answer(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200 if self.path == "/whl/cpu/torch/" else 404)
            self.end_headers()

        def log_message(self, *args):
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Answer) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/whl/cpu"
        server.shutdown()


def test_linux_without_a_gpu_gets_a_pytorch_without_cuda(monkeypatch, source_of_packages):
    monkeypatch.setattr(environment.sys, "platform", "linux")
    monkeypatch.setattr(environment.os.path, "exists", lambda path: False)
    monkeypatch.setattr(environment.shutil, "which", lambda name: None)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(environment, "CPU_PACKAGES", source_of_packages)
    assert environment.without_cuda() == ["--extra-index-url", source_of_packages]
    with monkeypatch.context() as patch:
        patch.setattr(environment.shutil, "which", lambda name: "/usr/bin/nvidia-smi")
        assert environment.without_cuda() == []
    with monkeypatch.context() as patch:
        patch.setattr(environment.sys, "platform", "darwin")
        assert environment.without_cuda() == []
    with monkeypatch.context() as patch:
        patch.setenv("https_proxy", "http://proxy:port")
        patch.setattr(environment, "CPU_PACKAGES", "https://packages.invalid/whl/cpu")
        assert environment.without_cuda() == []
    monkeypatch.setattr(environment, "CPU_PACKAGES", source_of_packages + "/elsewhere")
    assert environment.without_cuda() == []  # it answers with an error: pip's own source


def test_no_network_is_one_sentence(monkeypatch, stopped):
    assert "no network" in stopped(lambda: environment.install("false", ["torch"]))


def test_an_interpreter_keeps_what_will_do_and_gets_only_what_it_lacks(monkeypatch):
    versions = {"torch": "2.9.0+cu128", "numpy": "1.26.4", "tokenizers": "0.21.0", "matplotlib": "3.9.4"}
    absent = importlib.metadata.PackageNotFoundError

    def version(name):
        if name in versions:
            return versions[name]
        raise absent(name)

    installed = []
    monkeypatch.setattr(importlib.metadata, "version", version)
    monkeypatch.setattr(environment, "install", lambda python, what: installed.extend(what))
    environment.complete_interpreter()
    names = [requirement.split("=")[0] for requirement in installed]
    assert "torch" not in names and "tokenizers" not in names
    assert {"numpy", "matplotlib", "pytest", "tqdm"} <= set(names)


def test_this_interpreter_lacks_nothing():
    done = subprocess.run([sys.executable, SCRIPT], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def make(*arguments, cwd=ROOT, **environment):
    """What `make` would do, started in cwd: a finished process. Args: environment, more variables of it."""
    env = {name: os.environ[name] for name in ("PATH", "HOME")} | environment  # without what `make test` was given
    return subprocess.run(["make", "-n", *arguments], cwd=cwd, env=env, capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["train", "DATA=my data"], 'DATA="my data" has a space'),
        (["predict", "OUT=my out"], 'OUT="my out" has a space'),
        (["train", "VENV=my env"], 'VENV="my env" has a space'),
        (["gpu", "GPU=my gpu"], 'GPU="my gpu" has a space'),
        (["eval", "OUT=it's"], 'OUT="it\'s" has a space or a quote'),
        (["train", "DATA="], "DATA= is empty"),
        (["train", "OUT= "], "OUT= is empty"),
        (["table2", "PRESET="], "PRESET= is empty"),
        (["train", "PYTHON="], "PYTHON= is empty"),
        (["figures", "EVIDENCE=nope"], "EVIDENCE=nope holds no runs"),
        (["train", "OUT=runs/$x"], "OUT='runs/$x' has a single $ in it; write $$"),
        (["train", "FLAGS=--seed=$HOME"], "FLAGS='--seed=$HOME' has a single $"),
        (["train", "DATA=a$$$(b"], "DATA='a$$$(b' has a single $"),
        (["clean", "EPOCHS=$"], "EPOCHS='$' has a single $"),
    ],
)
def test_a_variable_that_no_recipe_can_hold_is_one_sentence(arguments, words):
    done = make(*arguments)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert words in done.stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["clean", "OUT=runs/old"], "`make clean` takes PYTHON VENV, and OUT was given"),
        (["BERT=x"], "`make help` takes PYTHON VENV"),
        (["train", "BERT=x"], "`make train` takes PYTHON VENV OUT DATA FLAGS, and BERT was given"),
        (["predict", "FLAGS=--bf16"], "and FLAGS was given"),
        (["figures", "OUT="], "and OUT was given"),
        (["table2", "DATA=x"], "and DATA was given"),
        (["data", "OUT=x"], "and OUT was given"),
        (["gpu", "OUT=x"], "and OUT was given"),
        (["gpu-step", "BERT=x"], "and BERT was given"),
        (["data", "train", "BERT=x"], "`make data train` takes PYTHON VENV OUT DATA FLAGS, and BERT was given"),
    ],
)
def test_a_variable_that_a_target_does_not_take_is_one_sentence(arguments, words):
    done = make(*arguments)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert words in done.stderr


@pytest.mark.parametrize("name", ["EPOCHS", "data", "OMP_NUM_THREADS"])
def test_a_variable_of_others_is_a_warning(name):
    done = make("clean", "VENV=", f"{name}=1 2")
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (0, "rm -rf runs\n", 1)
    assert f"{name} is no variable of this Makefile" in done.stderr


def test_each_target_takes_the_variables_that_its_help_names():
    for line in (ROOT / "Makefile").read_text().splitlines():
        if named := re.match(r"([a-z][\w -]*):.*## .*\((.*)\)$", line):
            given = [f"{name}=x" for name in re.findall(r"\b([A-Z]+)=", named[2]) if name != "EVIDENCE"]
            for target in named[1].split():
                assert make(target, *given).stderr == "", line


def test_of_two_targets_one_may_take_a_variable():
    done = make("data", "train", "predict", "DATA=data/cs224n", "OUT=runs/mine", "VENV=")
    assert done.stderr == "" and "--data 'data/cs224n' --out 'runs/mine'" in done.stdout


def test_after_training_its_variables_may_be_typed_again():
    done = make("train", "eval", "predict", "everyday", "DATA=./my/", "OUT=runs/mine", "VENV=")
    assert done.stderr == "" and "--eval_only --data 'my' --out 'runs/mine'" in done.stdout
    done = make("eval", "FLAGS=--bf16", "VENV=")
    assert done.stderr == "" and "--data" not in done.stdout and done.stdout.endswith("--bf16\n")


def test_the_environment_changes_no_place():
    done = make("gpu-step", GPU="0", OUT="elsewhere", PYTHON="other")
    assert "runs/gpu" in done.stdout and "other" not in done.stdout
    assert sorted(re.findall(r"(\w+) of the environment does not count", done.stderr)) == ["GPU", "PYTHON"]


def test_variables_reach_the_programs_as_they_are():
    done = make("train", "DATA=./a&b/", "OUT=~/x;y", "FLAGS=--lr 1", "VENV=", "PYTHON=python3", HOME="/home/me")
    assert "'python3' multitask.py" in done.stdout
    assert "--data 'a&b' --out '/home/me/x;y' --resume  --lr 1" in done.stdout
    assert "--epochs 3 --batch_size 16" in make("train", "DATA=./data/sample/").stdout
    assert "--data '/'" in make("train", "DATA=/").stdout
    assert "--out 'a$b' --resume  $HOME" in make("train", "DATA=d", "OUT=a$$b", "FLAGS=$$HOME").stdout
    assert "has a single $" in make("-e", "train", OUT="a$b").stderr


def test_make_works_in_no_other_folder(tmp_path):
    (tmp_path / "runs").mkdir()
    for target in ("train", "clean"):
        done = make("-f", ROOT / "Makefile", target, cwd=tmp_path)
        assert (done.returncode, done.stdout) == (2, "") and f"type `make -C {ROOT}/`" in done.stderr
    assert "multitask.py" in make("-C", ROOT, "train", cwd=tmp_path).stdout
