"""Where training starts from, if not from ones: an adapter of the same base, as a PEFT folder or an .onnx_adapter."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from qia3.bundle.adapter import load_adapter, read_adapter
from qia3.bundle.peft import open_peft, read_peft
from qia3.bundle.sites import Site, Vectors, check_vectors


def read_start(path: Path, sites: Sequence[Site], fingerprint: str) -> Vectors:
    """The vectors by site name, float32 [size].

    Raises AdapterError if it is missing or for another base, or lists every tensor that does not fit.
    """
    if path.is_dir():
        return read_peft(path, sites, fingerprint).vectors
    queries = {s.name for s in sites if s.role == "query"}  # an adapter without them has ones there
    vectors = load_adapter(path, {s.name: s.size for s in sites}, fingerprint, optional=queries).vectors
    check_vectors(sites, vectors)
    return vectors


def check_start(path: Path) -> None:
    """Checks what can be checked before the base is loaded. Raises AdapterError if it is missing or not an adapter."""
    if path.is_dir():
        open_peft(path).config.check_whole()
    else:
        read_adapter(path)
