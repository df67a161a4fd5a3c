"""Makes the Python that everything runs in; `make` calls it. Standard library only, readable by an old Python.

    python3 support/environment.py .venv      a virtual environment with the packages of requirements.txt
    python3 support/environment.py            the interpreter at hand: installs what it lacks, keeps the torch it has

What is interrupted goes on with the next call: `pip` finishes what is missing, and the environment counts as ready only
at the end.
"""

import glob
import http.client
import os
import re
import shutil
import subprocess
import sys
import urllib.request

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
OLDEST, NEWEST = (3, 11), (3, 14)
# what the code runs on, where an interpreter brings packages of its own (a notebook service, say)
MINIMUM = {"torch": (2, 9), "numpy": (2, 0), "tokenizers": (0, 20), "matplotlib": (3, 10)}
# PyTorch without CUDA: 200 MB where the packages for Linux on PyPI are gigabytes
CPU_PACKAGES = "https://download.pytorch.org/whl/cpu"
PIP = ["-m", "pip", "install", "--quiet", "--disable-pip-version-check"]


def stop(sentence):
    sys.stderr.write(f"error: {sentence}\n")
    sys.exit(2)


def check_python():
    found = ".".join(map(str, sys.version_info[:2]))
    if sys.version_info[:2] < OLDEST:
        stop(f"Python 3.11 or newer is needed and this is {found}; name another with PYTHON=python3.12")
    if sys.version_info[:2] > NEWEST:
        sys.stderr.write(f"Python {found} is newer than what this was tried with (3.11 to 3.14)\n")


def make_environment(folder):
    """A virtual environment in `folder` with all requirements. Nothing is deleted but links to what is gone."""
    python = os.path.join(folder, "bin", "python")
    if os.path.isfile(folder):
        stop(f"VENV={folder} is a file; name a folder, or leave VENV= out")
    pip = os.path.join(folder, "bin", "pip")  # the last thing that `venv` makes
    if not (os.path.exists(pip) and os.path.exists(python)):  # python is a link, perhaps to one that was removed
        if os.path.isdir(folder) and os.listdir(folder) and not os.path.exists(os.path.join(folder, "pyvenv.cfg")):
            stop(f"VENV={folder} holds something else than a virtual environment; name another folder")
        for link in glob.glob(os.path.join(glob.escape(folder), "bin", "python*")):
            if not os.path.exists(link):
                os.remove(link)
        command = [sys.executable, "-m", "venv", folder]
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, errors="replace")
        if done.returncode:
            stop(why_no_environment(folder, done.stdout))
    source = without_cuda()
    size = "500 MB" if source or not sys.platform.startswith("linux") else "gigabytes"
    print("PyTorch and the other packages come now: " + size, flush=True)
    install(python, ["-r", os.path.join(ROOT, "requirements.txt"), *source])


def why_no_environment(folder, said):
    """A sentence with the remedy. Args: said, what `python3 -m venv` printed."""
    if re.search("ensurepip is not|No module named '?(venv|ensurepip)", said):
        remedy = "`sudo apt install python3-venv` on Debian and Ubuntu, `make train VENV=` on Colab"
        return f"`python3 -m venv` does not work here; what mends that: {remedy}"
    reason = (said.strip().splitlines() or ["no reason given"])[-1]
    return f"`python3 -m venv {folder}` does not work ({reason:.150}); mend that, or name another folder with VENV="


def without_cuda():
    """pip's flags for a PyTorch without CUDA, where Linux has no NVIDIA GPU and its source answers; else none."""
    gpu = os.path.exists("/proc/driver/nvidia") or shutil.which("nvidia-smi")
    if gpu or not sys.platform.startswith("linux"):
        return []
    try:
        urllib.request.urlopen(CPU_PACKAGES + "/torch/", timeout=5).close()
    except (OSError, ValueError, http.client.HTTPException):  # no network, or a proxy that is none
        return []  # pip's own source
    return ["--extra-index-url", CPU_PACKAGES]


def complete_interpreter():
    """Installs what this interpreter lacks of the requirements; an older torch or numpy that will do stays."""
    missing = []
    with open(os.path.join(ROOT, "requirements.txt")) as file:
        for line in file:
            requirement, _, marker = line.partition(";")
            name = re.split("[=<>~]", requirement.strip())[0]
            elsewhere = "linux" in marker and not sys.platform.startswith("linux")
            if name and not elsewhere and not will_do(name):
                missing.append(requirement.strip())
    if missing:
        source = without_cuda() if any(name.startswith("torch=") for name in missing) else []
        install(sys.executable, [*missing, *source])


def will_do(name):
    """Whether the package is installed in a version that the code runs on."""
    import importlib.metadata  # imported here: a Python before 3.8, which is to get a sentence, has none

    try:
        version = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return False
    numbers = tuple(int(n) for n in re.findall(r"\d+", version)[:2])
    return numbers >= MINIMUM.get(name, (0,))


def install(python, what):
    if subprocess.run([python, *PIP, *what]).returncode:
        stop("the packages could not be installed; mend what stands above (no network?) and type the same again")


if __name__ == "__main__":
    check_python()
    try:
        make_environment(sys.argv[1]) if len(sys.argv) > 1 and sys.argv[1] else complete_interpreter()
    except KeyboardInterrupt:
        sys.stderr.write("\nstopped; the same command goes on\n")
        sys.exit(130)
