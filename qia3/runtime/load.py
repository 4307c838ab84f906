"""Opens the right engine for a bundle."""

from __future__ import annotations

from pathlib import Path

from qia3.bundle.opened import Bundle
from qia3.runtime.encoder import Encoder
from qia3.runtime.engine import Engine
from qia3.runtime.seq2seq import Seq2Seq

AnyEngine = Engine | Encoder  # generates, or only reads


def open_engine(bundle: Bundle, threads: int | None = None, packed: Path | None = None) -> AnyEngine:
    """Loads a bundle's graphs: a decoder, an encoder and its decoder, or an encoder alone.

    Raises BundleError if a graph cannot be loaded.
    """
    if bundle.architecture.pooling is not None:
        return Encoder(bundle, threads, packed)
    return (Engine if bundle.manifest.encoder is None else Seq2Seq)(bundle, threads, packed)
