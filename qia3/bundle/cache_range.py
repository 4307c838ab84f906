"""How large vectors may be where keys and values are kept in int8 (qia3.graph.cache).

An int8 cache cuts off what is larger than what was seen when its scales were made. Keys and values are multiplied by
the adapter's l_k and l_v, so a bundle with such a cache carries the largest |l| that was seen in each entry, and an
adapter that comes later is held against it. RANGE is a safetensors file of float32 [d] by the vectors' names.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from qia3.errors import AdapterError, BundleError, first_line

RANGE = "cache_range.safetensors"
SLACK = 1.01  # of what was seen: rounding, and no more; the scales' own margin is for other texts
Vectors = Mapping[str, NDArray[np.float32]]


def write_range(folder: Path, names: Iterable[str], seen: Iterable[Vectors]) -> None:
    """The largest of ones and of `seen`, for the vectors `names` that keys and values are multiplied by."""
    most: dict[str, NDArray[np.float32]] = {}
    worn = list(seen)
    for name in names:
        sizes = [np.abs(vectors[name]).reshape(-1) for vectors in worn if name in vectors]
        if sizes:
            most[name] = np.maximum(1, np.max(sizes, axis=0)).astype(np.float32)
    save_file(most, folder / RANGE)


def check_range(folder: Path, vectors: Vectors, where: object) -> None:
    """Raises AdapterError for vectors that reach beyond; nothing where the cache is float32."""
    file = folder / RANGE
    if not file.is_file():
        return
    try:
        most = load_file(file)
    except (OSError, SafetensorError) as error:
        raise BundleError(f"{file} cannot be read: {first_line(error)}; build the bundle again") from error
    over = {
        name: float((np.abs(vectors[name]).reshape(-1) / limit).max())
        for name, limit in most.items()
        if name in vectors and vectors[name].size == limit.size
    }
    if over and max(over.values()) > SLACK:
        worst = max(over, key=lambda name: over[name])
        raise AdapterError(
            f"{where} makes keys or values {over[worst]:.2f} times as large as the int8 cache of {folder} was made for "
            f"({worst}): build the bundle with this adapter among its tasks, or with cache = 'float32'"
        )
