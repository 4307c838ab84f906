"""How large vectors may be if keys and values are cached in int8 (qia3.graph.cache).

An int8 cache clips values beyond the range that was seen when its scales were made. Keys and values are multiplied by
the adapter's l_k and l_v, so a bundle with such a cache stores the largest |l| of each entry that was seen, and an
adapter that is added later is checked against it. RANGE is a safetensors file of float32 [d] by vector name.
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
SLACK = 1.01  # allows for rounding only; the margin of the scales themselves is for other texts
Vectors = Mapping[str, NDArray[np.float32]]


def write_range(folder: Path, names: Iterable[str], seen: Iterable[Vectors]) -> None:
    """Writes the elementwise maximum of one and |`seen`|, for the vectors `names` that scale keys and values."""
    most: dict[str, NDArray[np.float32]] = {}
    worn = list(seen)
    for name in names:
        sizes = [np.abs(vectors[name]).reshape(-1) for vectors in worn if name in vectors]
        if sizes:
            most[name] = np.maximum(1, np.max(sizes, axis=0)).astype(np.float32)
    save_file(most, folder / RANGE)


def check_range(folder: Path, vectors: Vectors, where: object) -> None:
    """Raises AdapterError if a vector exceeds the range. Does nothing if the cache is float32."""
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
