"""Runs an encoder alone: texts of unequal lengths at once, each with its own vectors and head.

    tokens [rows, S] ── encoder ── last_hidden_state [rows, S, hidden]
                                   └─ pooled ──┬── sentence_embedding [rows, hidden]
                                               └── head: logits [rows, labels], and of each token [rows, S, labels]

Rows are padded on the right and masked. In a batch with several tasks, heads are padded to the widest
(qia3.bundle.head), and a label that a row does not have gets no probability. Nothing is kept between texts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from qia3.bundle.opened import Bundle
from qia3.bundle.ports import ATTENTION_MASK, EMBEDDING, INPUT_IDS, LOGITS, TOKEN_LOGITS
from qia3.errors import BundleError, QIA3Error
from qia3.machine import physical_cores
from qia3.runtime.cache import Floats
from qia3.runtime.engine import padded
from qia3.runtime.session import GraphSession
from qia3.runtime.words import Words


class Encoder(Words):
    """One session over a bundle's encoder. `threads` and `packed` as in Engine."""

    def __init__(self, bundle: Bundle, threads: int | None = None, packed: Path | None = None) -> None:
        if threads is not None and threads < 1:
            raise QIA3Error(f"threads must be 1 or more, not {threads}")
        self.bundle, self.threads = bundle, threads or physical_cores()
        self.graph = GraphSession(bundle, bundle.manifest.main, self.threads, packed)
        self.outputs = {output.name for output in self.graph.session.get_outputs()}
        if missing := {EMBEDDING, LOGITS} - self.outputs:
            raise BundleError(
                f"{self.graph.path} has no output {' and '.join(sorted(missing))}; build the bundle again"
            )
        self.context_length, self.vocabulary = bundle.architecture.context_length, bundle.architecture.vocab_size

    def embed(self, rows: Sequence[Sequence[int]], vectors: Mapping[str, Floats]) -> Floats:
        """Embeddings, float32 [rows, hidden], of texts as token ids."""
        return self._run(EMBEDDING, rows, vectors)

    def logits(self, rows: Sequence[Sequence[int]], vectors: Mapping[str, Floats]) -> Floats:
        """Logits, float32 [rows, labels], from the heads given with the vectors, or the one in the graph."""
        return self._run(LOGITS, rows, vectors)

    def token_logits(self, rows: Sequence[Sequence[int]], vectors: Mapping[str, Floats]) -> Floats:
        """Logits per token, float32 [rows, S, labels]. Raises BundleError if the graph has none."""
        found = self._run(TOKEN_LOGITS if TOKEN_LOGITS in self.outputs else LOGITS, rows, vectors)
        if found.ndim != 3:
            raise BundleError(f"{self.graph.path} has no output for labels of tokens; build the bundle again")
        return found

    def _run(self, output: str, rows: Sequence[Sequence[int]], vectors: Mapping[str, Floats]) -> Floats:
        tokens, lengths = padded(rows)
        mask = (np.arange(self._fitting(lengths))[None] < lengths[:, None]).astype(np.int64)
        fed = {INPUT_IDS: tokens, ATTENTION_MASK: mask, **self.graph.fed(vectors, len(tokens))}
        with self.graph.running():
            found: Floats = self.graph.session.run([output], fed)[0]
        return found
