"""The tensors of a checkpoint folder, in one safetensors file or in several with an index: listed first, read one at a time.

    model.safetensors                       or    model.safetensors.index.json    {"weight_map": {"a.weight": "model-00001-of-00002.safetensors"}}

A safetensors file begins with the types, shapes and places of its tensors; the library that opens it holds them to the file's length. So what
is wrong with a file is known before any memory is taken for it. torch's own .bin files are pickles, and are not opened.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

from safetensors import SafetensorError, safe_open
from torch import Tensor

from qia3.errors import BaseModelError

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"


class Place(NamedTuple):
    """Where a tensor is, its type as safetensors calls it ("I32", "F16"), its shape."""

    file: Path
    dtype: str
    shape: tuple[int, ...]


class Tensors:
    """By name. Raises BaseModelError where a file is missing, cut short or not one."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.places: dict[str, Place] = {}
        listed = _files(folder)
        for file in sorted(set(listed.values())) if listed else [folder / SINGLE]:
            self._open(file)
        missing = [name for name in listed if name not in self.places]
        if missing:
            raise BaseModelError(
                f"{folder / INDEX} names {missing[0]}, which {listed[missing[0]].name} does not hold; fetch the model again"
            )

    def read(self, name: str) -> Tensor:
        """A copy of one tensor."""
        try:
            with _opened(self.places[name].file) as file:
                tensor: Tensor = file.get_tensor(name)
                return tensor
        except (OSError, SafetensorError) as error:
            raise BaseModelError(f"cannot read {name} in {self.places[name].file} ({error})") from error

    def _open(self, file: Path) -> None:
        try:
            with _opened(file) as opened:
                for name in opened.keys():  # noqa: SIM118 (it is no dict)
                    part = opened.get_slice(name)
                    self.places[name] = Place(file, part.get_dtype(), tuple(part.get_shape()))
        except FileNotFoundError as error:
            raise BaseModelError(_missing(self.folder, file)) from error
        except Exception as error:  # a damaged header raises several types
            raise BaseModelError(f"{file} is not a whole safetensors file ({error}); fetch it again") from error


def _opened(file: Path) -> Any:
    return safe_open(file, framework="pt")


def _files(folder: Path) -> dict[str, Path]:
    """Tensor -> file as the index has it; empty where the folder has none."""
    if (folder / SINGLE).is_file() or not (folder / INDEX).is_file():
        return {}
    try:
        names = json.loads((folder / INDEX).read_text(encoding="utf-8"))["weight_map"]
        listed = {str(name): folder / str(file) for name, file in names.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise BaseModelError(f"{folder / INDEX} is not an index of safetensors files; fetch it again") from error
    stray = [file.name for file in listed.values() if file.parent != folder or file.suffix != ".safetensors"]
    if stray or not listed:
        raise BaseModelError(f"{folder / INDEX} names files that are no safetensors files of its folder: {', '.join(stray[:3]) or 'none'}")
    return listed


def _missing(folder: Path, file: Path) -> str:
    pickled = sorted(folder.glob("*.bin")) + sorted(folder.glob("*.pt"))
    if pickled:
        return (
            f"{folder} holds {pickled[0].name} and no {file.name}: such files are pickles and are not opened; take a model with safetensors"
        )
    return f"there is no {file}; fetch the model again"
