"""The tensors of a checkpoint folder by name: all listed and checked first (shards.py), then read one at a time."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from qia3.base.shards import FILE, Entry, entries, read
from qia3.errors import BaseModelError


class Tensors:
    """Raises BaseModelError if the folder has no safetensors, or one that is missing, truncated or damaged."""

    def __init__(self, folder: Path) -> None:
        found = entries(folder)
        if found is None:
            raise BaseModelError(missing(folder))
        self.folder, self.places = folder, found

    def read(self, name: str) -> Tensor:
        """A copy of one tensor."""
        return read(self.places[name])


def kind(entry: Entry) -> str:
    """A tensor's type as shown in messages: "float16"."""
    return str(entry.dtype).removeprefix("torch.")


def missing(folder: Path) -> str:
    """The message for a folder without safetensors."""
    pickled = sorted(folder.glob("*.bin")) + sorted(folder.glob("*.pt"))
    if pickled:
        return (
            f"{folder} holds {pickled[0].name} and no {FILE}: such files are pickles, which are never opened; use "
            "a model with safetensors"
        )
    return f"there is no {folder / FILE}; fetch the model again"
