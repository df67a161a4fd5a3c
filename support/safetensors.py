"""The safetensors format, read and written by hand.

A `.safetensors` file is

    8 bytes      n, the length of the header, little-endian
    n bytes      JSON: {"name": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}, ..., "__metadata__": {...}}
    the rest     the tensors' bytes, one after the other; offsets count from here

with no code in it, unlike a pickle. The file is mapped into memory, not read: bytes come from the disk when a tensor
is used, so a folder of large checkpoints opens at once.
"""

import json
import mmap
import os

import torch

from support.console import UserError
from support.files import open_regular, replacing

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
UNUSED = {"U16": 16, "U32": 32, "U64": 64, "C64": 64, "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8, "F8_E4M3FNUZ": 8}
UNUSED |= {"F8_E5M2FNUZ": 8, "F6_E2M3": 6, "F6_E3M2": 6, "F4": 4}  # bits; tensors of these dtypes are left out

# A model of 1,000 layers has 20,000 tensors and a header of 3 MB. Anything far above that is not a model, and its
# header would take gigabytes to parse: what it is made of is counted first.
MAX_HEADER = 10_000_000  # bytes
MAX_PARTS = {b"{": 100_000, b"[": 200_000, b",": 800_000}


def read_safetensors(path):
    """All tensors of a file, by name, on the CPU: views of a private memory map, so nothing is read until it is used.

    Writing to such a tensor changes this process's copy, never the file. Tensors of the dtypes in `UNUSED` are left
    out. Raises UserError for what is not a valid safetensors file.
    """
    return open_safetensors(path)[0]


def open_safetensors(path, remedy="fetch or write it again"):
    """Like `read_safetensors`, with the file's metadata. Returns (tensors, metadata), both dicts by str.

    Args: remedy, for the message of an invalid file.
    """
    try:
        with open_regular(path) as file:
            size = os.fstat(file.fileno()).st_size
            if size < 8:
                raise ValueError("it is shorter than 8 bytes")
            header_size = int.from_bytes(file.read(8), "little")
            if header_size > min(size - 8, MAX_HEADER):
                raise ValueError(f"its header claims {header_size} bytes")
            text = file.read(header_size)
            if any(text.count(part) > most for part, most in MAX_PARTS.items()):
                raise ValueError("its header names more tensors than a model has")
            header = json.loads(text, object_pairs_hook=_no_duplicates)
            tensors, metadata = _check(header, size - 8 - header_size)
            bytes_ = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not a valid safetensors file: {error}; {remedy}") from None
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
        if not isinstance(dtype, str) or (dtype not in DTYPES and dtype not in UNUSED):
            raise ValueError(f"{name!r:.80} has the unknown dtype {dtype!r:.80}")
        if not _whole_numbers(shape) or not _whole_numbers(offsets) or len(offsets) != 2 or len(shape) > 64:
            raise ValueError(f"the shape or the offsets of {name!r:.80} are not lists of whole numbers")
        bits = UNUSED.get(dtype) or 8 * DTYPES[dtype].itemsize
        reach = bits  # of the strides, which a length of 0 does not shorten
        for length in shape:
            reach *= max(length, 1)
            if reach > 2**63 - 1:
                raise ValueError(f"the shape of {name!r:.80} is too large")
        begin, end = offsets
        if 8 * (end - begin) != (0 if 0 in shape else reach) or end > data_size:
            raise ValueError(f"{name!r:.80} does not fit its bytes")
        if dtype in DTYPES:
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
