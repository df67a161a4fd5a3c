"""The layout that the README promises: floors, imports that point one way, lessons of readable length."""

import ast
import itertools
import re
import shutil
import subprocess

import pytest
from tiny import ROOT

FOLDERS = ("kernels", "kernels/cpu", "support", "bench", "data")
# from the ground up; a module imports its own floor or lower ones
FLOORS = (
    {"kernels"},
    {"support"},
    {"weights", "tokenizer"},
    {"bert", "tasks", "sampling"},
    {"adamw", "evaluate", "pals"},
    {"model"},
    {"smart", "surgery", "simcse", "pca_tsne"},
    {"ensemble", "soup", "predict", "visualize", "distill"},
    {"multitask"},
    {"reproduce", "bench", "data"},
)


def modules():
    """name -> path, of all modules of the project, as one imports them."""
    paths = [*ROOT.glob("*.py"), *itertools.chain(*((ROOT / folder).glob("*.py") for folder in FOLDERS))]
    names = [path.relative_to(ROOT).with_suffix("").as_posix().replace("/", ".") for path in paths]
    return {name.removesuffix(".__init__"): path for name, path in zip(names, paths, strict=True)}


def imports(path, names):
    """The project's modules that a file imports, wherever in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        if isinstance(node, ast.ImportFrom) and node.module:
            found |= {f"{node.module}.{alias.name}" for alias in node.names} & names or {node.module}
    return found & names


GRAPH = {name: imports(path, set(modules())) for name, path in modules().items()}


def floor(name):
    room = name.split(".")[0]
    return next(i for i, rooms in enumerate(FLOORS) if room in rooms)


@pytest.mark.parametrize("name", sorted(GRAPH))
def test_imports_point_to_the_same_floor_or_a_lower_one(name):
    assert [other for other in GRAPH[name] if floor(other) > floor(name)] == []


def test_no_import_leads_back_to_where_it_started():
    def reach(name, path):
        assert name not in path, " -> ".join([*path, name])
        for other in GRAPH[name]:
            reach(other, [*path, name])

    for name in GRAPH:
        reach(name, [])


def test_the_root_holds_at_most_20_modules_of_at_most_250_lines():
    root = list(ROOT.glob("*.py"))
    assert len(root) <= 20
    lengths = {path.name: len(path.read_text(encoding="utf-8").splitlines()) for path in root}
    assert {name: n for name, n in lengths.items() if n > 250} == {}
    others = {n: len(p.read_text(encoding="utf-8").splitlines()) for n, p in modules().items() if p.parent != ROOT}
    assert {name: n for name, n in others.items() if n > 300} == {}


def test_no_file_has_the_name_of_a_folder_and_no_two_files_one_name():
    names = [path.stem for path in modules().values() if path.stem != "__init__"]
    folders = [path.name for path in ROOT.iterdir() if path.is_dir()]
    assert set(names) & set(folders) == set()
    assert {name for name in names if names.count(name) > 1} == set()


def test_no_program_needs_its_docstring_which_python_may_leave_out():
    paths = [*modules().values(), *(ROOT / "tests").glob("[!t]*.py")]
    assert [path.name for path in paths if "__doc__" in path.read_text(encoding="utf-8")] == []


def test_the_readme_names_every_lesson_and_stays_short():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(text.split()) <= 1000
    assert "![" in "\n".join(text.splitlines()[:40])
    for path in ROOT.glob("*.py"):
        assert f"`{path.name}`" in text, path.name
    for name in re.findall(r"`([\w/]+\.py)`", text):
        assert (ROOT / name).exists() or (ROOT / "kernels" / "cpu" / name).exists(), name


@pytest.mark.skipif(shutil.which("git") is None, reason="no git here")
def test_git_leaves_line_ends_alone_where_it_is_told_to_make_crlf(tmp_path):
    """`.ci/run` would not start, and `reproduce.py` would not know its own tables."""
    shutil.copy(ROOT / ".gitattributes", tmp_path)
    (tmp_path / "run").write_bytes(b"#!/bin/sh\n")
    git = ["git", "-C", str(tmp_path), "-c", "core.autocrlf=true"]
    for command in (["init", "--quiet"], ["add", "run"], ["checkout-index", "--force", "run"]):
        subprocess.run([*git, *command], check=True, capture_output=True, timeout=60)
    assert (tmp_path / "run").read_bytes() == b"#!/bin/sh\n"
