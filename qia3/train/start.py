"""Where training starts from, if not from ones: an adapter of the same base, as a PEFT folder or an .onnx_adapter."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from qia3.bundle.adapter import load_adapter, read_adapter
from qia3.bundle.peft import open_peft, read_peft
from qia3.bundle.sites import Site, Vectors, check_vectors


def read_start(path: Path, sites: Sequence[Site], fingerprint: str) -> Vectors:
    """The vectors by site name, float32 [size].

    Raises AdapterError: not there, of another base, or with every tensor that does not fit.
    """
    if path.is_dir():
        return read_peft(path, sites, fingerprint).vectors
    queries = {s.name for s in sites if s.role == "query"}  # an adapter made without them has ones there
    vectors = load_adapter(path, {s.name: s.size for s in sites}, fingerprint, optional=queries).vectors
    check_vectors(sites, vectors)
    return vectors


def check_start(path: Path) -> None:
    """What can be told of such an adapter before its base is there. Raises AdapterError: not there, or no adapter."""
    if path.is_dir():
        open_peft(path).config.check_whole()
    else:
        read_adapter(path)


def digest(vectors: Vectors | None) -> str | None:
    """SHA-256 of vectors, for telling one start from another."""
    if vectors is None:
        return None
    parts = [f"{name}|".encode() + np.ascontiguousarray(vector).tobytes() for name, vector in sorted(vectors.items())]
    return hashlib.sha256(b"".join(parts)).hexdigest()
