"""Where training starts from, if not from ones: an adapter of the same base, as a PEFT folder or an .onnx_adapter."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from qia3.bundle.sites import Site, Vectors, check_vectors
from qia3.errors import AdapterError
from qia3.ia3.peft import read_peft
from qia3.runtime.adapters import read_adapter


def read_start(path: Path, sites: Sequence[Site], fingerprint: str) -> Vectors:
    """The vectors by site name, float32 [size].

    Raises AdapterError: not there, of another base, or with every tensor that does not fit.
    """
    if path.is_dir():
        return read_peft(path, sites, fingerprint)
    base, tensors = read_adapter(path)
    if base != int(fingerprint[:7], 16):
        raise AdapterError(
            f"{path} was trained on another base ({base:07x}…, this one's fingerprint is {fingerprint[:7]}…)"
        )
    vectors = {name: tensor.reshape(-1) for name, tensor in tensors.items()}
    check_vectors(sites, vectors)
    return vectors


def digest(vectors: Vectors | None) -> str | None:
    """SHA-256 of vectors, for telling one start from another."""
    if vectors is None:
        return None
    parts = [f"{name}|".encode() + np.ascontiguousarray(vector).tobytes() for name, vector in sorted(vectors.items())]
    return hashlib.sha256(b"".join(parts)).hexdigest()
