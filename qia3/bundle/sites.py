"""Where vectors act, and which sets of vectors fit there.

A site is the place of one vector: a linear layer of the base, named by its module path, and the side of it that is
scaled. The vector has one entry per output row (or per input, if an activation function stands between the rows and
what is scaled). In graphs, adapter files and PEFT checkpoints it is called MODULE.ia3_l.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from qia3.errors import AdapterError

Role = Literal["query", "key", "value", "qkv", "feed_forward"]
Placement = Literal["output", "input"]
Vectors = dict[str, NDArray[np.float32]]  # [size] by the site's name
SUFFIX = ".ia3_l"
VERSION_DIGITS = 7  # of the fingerprint that fit an adapter file's version, a signed 32-bit number


@dataclass(frozen=True)
class Site:
    """Where one vector acts.

    `rows` are the entries, out of `size`, that train: all of them, or the key and value (or up) rows of a fused layer.

    `down` names the down projection that PEFT would scale instead, in a gated feed-forward.
    """

    module: str
    role: Role
    placement: Placement
    size: int
    rows: tuple[int, ...] | None = None
    down: str | None = None

    @property
    def name(self) -> str:
        """The name of the vector in graphs, adapter files and PEFT checkpoints."""
        return f"{self.module}{SUFFIX}"

    @property
    def in_encoder(self) -> bool:
        """Whether it is in an encoder-decoder's encoder; then the encoder's graph has the vector."""
        return in_encoder(self.module)

    @property
    def parameters(self) -> int:
        return self.size if self.rows is None else len(self.rows)


def in_encoder(module: str) -> bool:
    """Whether a module is in an encoder-decoder's encoder. Cross-attention is in the decoder."""
    return "encoder" in module.split(".")[:2]


def base_version(fingerprint: str) -> int:
    """The first 28 bits of a base's fingerprint (SHA-256, hexadecimal), which adapter files carry."""
    return int(fingerprint[:VERSION_DIGITS], 16)


def check_vectors(sites: Iterable[Site], vectors: Mapping[str, NDArray[Any]], where: str = "the adapter") -> None:
    """Every vector must have a site and its shape, be float32 and finite, and be one in the rows that the site does not
    train.

    A site without a vector counts as ones. Raises AdapterError that lists every bad tensor.
    """
    by_name = {site.name: site for site in sites}
    bad = [clause for name, vector in vectors.items() for clause in _misfit(name, vector, by_name.get(name))]
    refuse(bad, where)


def _misfit(name: str, vector: NDArray[Any], site: Site | None) -> list[str]:
    """What is wrong with one vector: a clause, or nothing."""
    if site is None:
        return [f"{name} (this base has no such vector)"]
    if vector.shape != (site.size,):
        return [f"{name} (shape {tuple(vector.shape)}, this base has ({site.size},))"]
    if vector.dtype != np.float32:
        return [f"{name} ({vector.dtype} instead of float32)"]
    if not np.isfinite(vector).all():
        return [f"{name} (holds NaN or infinity)"]
    if site.rows is not None and (np.delete(vector, site.rows) != 1).any():
        return [f"{name} (scales the query or gate rows of a fused layer, which stay at one here)"]
    return []


def digest(vectors: Vectors | None) -> str | None:
    """SHA-256 of vectors, to distinguish starts."""
    if vectors is None:
        return None
    parts = [f"{name}|".encode() + np.ascontiguousarray(vector).tobytes() for name, vector in sorted(vectors.items())]
    return hashlib.sha256(b"".join(parts)).hexdigest()


def refuse(bad: list[str], where: str, hint: str = "") -> None:
    """Raises AdapterError with all of `bad`, unless it is empty."""
    if bad:
        raise AdapterError(
            f"{where} does not fit this base; {len(bad)} bad tensor{'s' * (len(bad) > 1)}: {'; '.join(bad)}{hint}"
        )
