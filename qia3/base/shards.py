"""Reads safetensors files and checks everything in them before using it.

    8 bytes     N, the length of the header: unsigned, little-endian
    N bytes     JSON: {"NAME": {"dtype": "BF16", "shape": [2, 3], "data_offsets": [0, 12]}, ...}, spaces at its end allowed
    the rest    the tensors' bytes, one after the other; data_offsets count from here

Worked example, the single tensor w = [[1, 2, 3], [4, 5, 6]] in bfloat16: N = 64 (the header above, without spaces,
padded with six spaces), then the 12 bytes 80 3F 00 40 40 40 80 40 A0 40 C0 40. The file has 8 + 64 + 12 bytes; with one
more or one less it is refused.

A model is one file, or several with model.safetensors.index.json beside them: {"weight_map": {"NAME":
"model-00001-of-00002.safetensors"}}.

What a file says about itself is checked against its length before anything is allocated. Tensors are read one at a
time, with plain reads: pages of a memory map would count as this process's memory until the system reclaims them.
Source of the format: the README of github.com/huggingface/safetensors. No pickle is ever opened.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from qia3.errors import BaseModelError

FILE, INDEX = "model.safetensors", "model.safetensors.index.json"
LONGEST_HEADER = 1 << 24  # bytes: about 100,000 tensors; parsed JSON takes many times its length
MOST_DIMENSIONS = 16
DTYPES = {
    "BOOL": torch.bool, "U8": torch.uint8, "I8": torch.int8, "U16": torch.uint16, "I16": torch.int16, "U32": torch.uint32, "I32": torch.int32,
    "U64": torch.uint64, "I64": torch.int64, "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2, "F8_E8M0": torch.float8_e8m0fnu,
    "F16": torch.float16, "BF16": torch.bfloat16, "F32": torch.float32, "F64": torch.float64, "C64": torch.complex64,
}  # fmt: skip


@dataclass(frozen=True)
class Entry:
    """Location of a tensor: `start` counts from the beginning of the file."""

    file: Path
    dtype: torch.dtype
    shape: tuple[int, ...]
    start: int
    nbytes: int


def entries(folder: Path) -> dict[str, Entry] | None:
    """Every tensor of a model's folder by name, including those in its files that the index does not name; None without
    safetensors. Raises BaseModelError, in one line.
    """
    if (folder / FILE).is_file():
        return file_entries(folder / FILE)
    if not (folder / INDEX).is_file():
        return None
    where = _read_index(folder / INDEX)
    files = {name: file_entries(folder / name) for name in sorted(set(where.values()))}
    seen = Counter(name for held in files.values() for name in held)
    if doubled := [name for name, count in seen.items() if count > 1]:
        raise BaseModelError(
            f"{len(doubled)} tensors of {folder} are in two of its files, the first is {_short(doubled[0])}; "
            "fetch it again"
        )
    missing = [name for name, file in where.items() if name not in files[file]]
    if missing:
        raise BaseModelError(
            f"{folder / INDEX} names {len(missing)} tensors that are not in their files, the first is "
            f"{_short(missing[0])}; fetch it again"
        )
    return {name: entry for held in files.values() for name, entry in held.items()}


def file_entries(file: Path) -> dict[str, Entry]:
    """Every tensor of one file by name. Raises BaseModelError with one line."""
    try:
        size = file.stat().st_size
        with file.open("rb") as opened:
            length = int.from_bytes(opened.read(8), "little")
            if size < 8 or length > size - 8:
                raise ValueError(f"its header claims {length} bytes, but the file has {size}")
            if length > LONGEST_HEADER:
                raise ValueError(f"its header has {length} bytes, more than the limit of {LONGEST_HEADER}")
            header = _json(opened.read(length))
        return _laid_out(file, header, 8 + length, size)
    except OSError as error:
        raise BaseModelError(f"cannot read {file}: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise BaseModelError(f"{file} is not a complete safetensors file ({_line(error)}); fetch it again") from error


def read(entry: Entry) -> Tensor:
    """One tensor, in the type that it is stored in.

    Raises BaseModelError if the file was truncated after it was checked.
    """
    tensor = torch.empty(entry.shape, dtype=entry.dtype)
    left = tensor.reshape(-1).view(torch.uint8).numpy().data
    try:
        with entry.file.open("rb", buffering=0) as opened:
            opened.seek(entry.start)
            while len(left) and (got := opened.readinto(left)):  # a read returns at most 2 GiB
                left = left[got:]
    except OSError as error:
        raise BaseModelError(f"cannot read {entry.file}: {error.strerror}") from error
    if len(left):
        raise BaseModelError(f"{entry.file} was truncated while it was read")
    return tensor


def raw(tensor: Tensor) -> memoryview:
    """The bytes of a tensor on a CPU, without a copy where it is contiguous."""
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().data


def _laid_out(file: Path, header: Any, data: int, size: int) -> dict[str, Entry]:
    """`data` is where the tensors' bytes begin. Raises ValueError."""
    if not isinstance(header, dict):
        raise ValueError("its header is not a table")
    found = {name: _entry(file, name, facts, data) for name, facts in header.items() if name != "__metadata__"}
    end = data
    for name, entry in sorted(found.items(), key=lambda item: (item[1].start, item[1].nbytes)):
        if entry.start != end:
            raise ValueError(f"{_short(name)} starts at byte {entry.start} instead of byte {end}")
        end += entry.nbytes
    if end != size:
        raise ValueError(f"its tensors end at byte {end}, but the file has {size}")
    return found


def _entry(file: Path, name: str, facts: Any, data: int) -> Entry:
    if not isinstance(facts, dict) or not {"dtype", "shape", "data_offsets"} <= set(facts):
        raise ValueError(f"{_short(name)} has no dtype, shape and data_offsets")
    dtype, shape, offsets = DTYPES.get(str(facts["dtype"])), facts["shape"], facts["data_offsets"]
    if dtype is None:
        raise ValueError(f"{_short(name)} has an unknown type, {_short(facts['dtype'])}")
    if not _whole_numbers(shape) or len(shape) > MOST_DIMENSIONS:
        raise ValueError(f"{_short(name)} has no valid shape")
    if not _whole_numbers(offsets) or len(offsets) != 2:
        raise ValueError(f"{_short(name)} has no valid data_offsets")
    nbytes = math.prod(shape) * dtype.itemsize
    if offsets[1] - offsets[0] != nbytes:
        raise ValueError(f"{_short(name)} needs {nbytes} bytes but has {offsets[1] - offsets[0]}")
    return Entry(file, dtype, tuple(shape), data + offsets[0], nbytes)


def _whole_numbers(values: Any) -> bool:
    return isinstance(values, list) and all(type(v) is int and 0 <= v < 1 << 62 for v in values)


def _read_index(index: Path) -> dict[str, str]:
    """Tensor name -> file name, a plain name in the same folder. Raises BaseModelError."""
    try:
        if index.stat().st_size > LONGEST_HEADER:
            raise ValueError(f"it has more than {LONGEST_HEADER} bytes")
        content = _json(index.read_bytes())
        where = content.get("weight_map") if isinstance(content, dict) else None
        if not isinstance(where, dict) or not where or not all(isinstance(file, str) for file in where.values()):
            raise ValueError("it has no weight_map of names")
    except OSError as error:
        raise BaseModelError(f"cannot read {index}: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise BaseModelError(
            f"{index} is not an index of safetensors files ({_line(error)}); fetch it again"
        ) from error
    for file in set(where.values()):
        if Path(file).name != file or "\\" in file or "\0" in file or not file.endswith(".safetensors"):
            raise BaseModelError(
                f"{index} names {_short(file)}, which is not a safetensors file in the same folder; do not "
                "use this model"
            )
        if not (index.parent / file).is_file():
            raise BaseModelError(f"{index} names {_short(file)}, which is missing; fetch the model again")
    return where


def _json(text: bytes) -> Any:
    """Raises ValueError, also if a name occurs twice, and RecursionError."""

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) != len(pairs):
            raise ValueError("a name occurs twice in it")
        return found

    return json.loads(text.decode("utf-8"), object_pairs_hook=once)


def _short(value: Any) -> str:
    """The value on one line, shortened."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _line(error: BaseException) -> str:
    lines = str(error).splitlines()
    return lines[0] if lines else type(error).__name__
