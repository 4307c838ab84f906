"""A head as a file in a PEFT checkpoint, which itself has vectors only: head.safetensors, with `weight` and `bias`."""

from __future__ import annotations

from pathlib import Path

from safetensors.numpy import load, save

from qia3.bundle.head import Head
from qia3.errors import AdapterError, first_line
from qia3.parse import read_bytes

FILE = "head.safetensors"


def write_head(folder: Path, head: Head) -> None:
    """Writes head.safetensors into a PEFT checkpoint's folder."""
    (folder / FILE).write_bytes(save({"weight": head.weight, "bias": head.bias}))


def read_head(folder: Path) -> Head | None:
    """The head in an adapter's folder, or None. Raises AdapterError if it cannot be read or has wrong tensors."""
    path = folder / FILE
    if not path.exists():
        return None
    try:
        tensors = load(read_bytes(path, AdapterError))
    except AdapterError:
        raise
    except Exception as error:  # the library raises types of its own
        raise AdapterError(f"{path} cannot be read: {first_line(error)}") from error
    if tensors.keys() != {"weight", "bias"} or [t.ndim for t in (tensors["weight"], tensors["bias"])] != [2, 1]:
        raise AdapterError(
            f"{path} holds {', '.join(tensors) or 'nothing'}, but a head is weight [labels, d] and bias [labels]"
        )
    return Head(tensors["weight"], tensors["bias"]).checked(path)
