"""The engine that a bundle wants."""

from __future__ import annotations

from pathlib import Path

from qia3.bundle.opened import Bundle
from qia3.runtime.engine import Engine
from qia3.runtime.seq2seq import Seq2Seq


def open_engine(bundle: Bundle, threads: int | None = None, packed: Path | None = None) -> Engine:
    """Loads a bundle's graphs: of a decoder alone, or of an encoder and its decoder. Raises BundleError."""
    return (Engine if bundle.manifest.encoder is None else Seq2Seq)(bundle, threads, packed)
