"""Runs an encoder and its decoder: the prompt is encoded once, and the answer is decoded one token per row at a time.

    prompt ── encoder ── states [rows, T, hidden] ──┬── decoder(start)     logits, keys and values of the states
                                                    │   decoder(token)     logits
                                                    │   ...
                                    then only by their keys and values

The decoder has two caches. That of its own tokens is like a decoder's (cache.py): buffers with spare room, bound as
past and present at once. All rows have the same number of tokens, and `past_length` says how many are valid; otherwise
the graph would use the buffers' whole capacity. The other cache holds keys and values of the encoder's states: the
first run computes them, and later runs get them as past, with no new states. Nothing writes to them afterwards, so rows
with the same prompt (ranked answers, beams) may share one row, over which the graph's products broadcast. A graph that
supports this names the number of rows of these inputs differently from that of the token ids.

A prompt is padded on the right and masked, in the encoder and wherever its states are read. It has the whole context to
itself, and so has the decoder, including the start token.

Nothing of the encoder can be reused between prompts, even with a common prefix: every position attends to all others,
so every state changes when the last word does. `begin` keeps nothing here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qia3.bundle.opened import Bundle
from qia3.bundle.ports import (
    ATTENTION_MASK,
    CROSS,
    ENCODER_MASK,
    ENCODER_STATES,
    INPUT_IDS,
    LAST_STATE,
    PAST_LENGTH,
)
from qia3.errors import BundleError
from qia3.runtime.cache import Buffers, Cache, Floats, Lengths
from qia3.runtime.engine import ROOM, Engine, padded
from qia3.runtime.session import GraphSession


class Seq2Seq(Engine):
    """Two sessions, over a bundle's encoder and its decoder, with the interface of Engine."""

    def __init__(self, bundle: Bundle, threads: int | None = None, packed: Path | None = None) -> None:
        super().__init__(bundle, threads, packed)
        graph = bundle.manifest.encoder
        assert graph is not None  # otherwise _check_kind would have raised
        self.start = bundle.architecture.decoder_start
        self.forced = len(self.start) - 1
        self.encoder = GraphSession(bundle, graph, self.threads, packed)
        self.crossed = {n: self.caches.pop(n) for n in list(self.caches) if n.split(".")[-2] == CROSS}
        names = [self.decoder.ports[name][0] for name in (*self.crossed, ENCODER_MASK)]
        self.shared = self.decoder.ports[INPUT_IDS][0] not in names
        self.hidden = bundle.architecture.hidden_size

    def _check_kind(self) -> None:
        """Raises BundleError if either part is missing."""
        if self.bundle.manifest.encoder is None:
            raise BundleError(f"{self.bundle.path} has no encoder; open it with open_engine")
        if missing := {ENCODER_MASK, ENCODER_STATES} - self.decoder.ports.keys():
            raise BundleError(
                f"{self.decoder.path} does not read an encoder: it has no input {' and '.join(sorted(missing))}"
            )

    def begin(self, tokens: Sequence[int], vectors: Mapping[str, Floats]) -> None:
        """Keeps nothing: all of a prompt's states depend on its last word."""

    def remember(self, tokens: Sequence[int], vectors: Mapping[str, Floats], cache: Cache) -> None:
        """Keeps nothing, like `begin`."""

    def prefill(
        self, rows: Sequence[Sequence[int]], vectors: Mapping[str, Floats], room: int = ROOM
    ) -> tuple[Floats, Cache]:
        """Logits, float32 [rows, V], of the answers' first tokens, and the cache, with room for `room` more positions
        before it must grow.
        """
        tokens, lengths = padded(rows)
        longest, count = self._fitting(lengths), len(rows)
        mask = (np.arange(longest)[None] < lengths[:, None]).astype(np.int64)
        made = {n: np.empty((count, heads, longest, size), np.float32) for n, (heads, size) in self.crossed.items()}
        first = self._empty(count, len(self.start) + max(room, 0)).buffers
        first.fixed = {ENCODER_MASK: mask, ENCODER_STATES: self._encoded(tokens, mask, vectors)}
        first.fixed |= {name: array[:, :, :0] for name, array in made.items()}
        first.made = made
        start = np.array([self.start] * count, np.int64)
        given = np.full(count, len(self.start), np.int64)
        logits, cache = self._run(start, Cache(first, first.newest), given, vectors)
        after = Buffers(cache.buffers.arrays, cache.lengths, {ENCODER_MASK: mask, **made}, self.shared)
        return logits, Cache(after, cache.lengths)

    def _encoded(self, tokens: Lengths, mask: Lengths, vectors: Mapping[str, Floats]) -> Floats:
        """The encoder's states [rows, T, hidden]."""
        fed = {INPUT_IDS: tokens, ATTENTION_MASK: mask, **self.encoder.fed(vectors, len(tokens))}
        with self.encoder.running():
            states: Floats = self.encoder.session.run([LAST_STATE], fed)[0]
        return states

    def _ids(self, tokens: NDArray[np.int64], cache: Cache, lengths: Lengths) -> dict[str, NDArray[Any]]:
        """Tokens and past length; no states once their keys and values are known."""
        fed: dict[str, NDArray[Any]] = {INPUT_IDS: tokens, PAST_LENGTH: np.array(cache.lengths[0])}
        if ENCODER_STATES not in cache.buffers.fixed:
            rows = len(cache.buffers.fixed[ENCODER_MASK])
            fed[ENCODER_STATES] = np.empty((rows, 0, self.hidden), np.float32)
        return fed
