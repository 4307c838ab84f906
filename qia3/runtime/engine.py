"""Runs the decoder graph: prompts of unequal lengths, then one token per row at a time, with the cache kept in between.

Rows are padded on the right. A row's mask has as many leading ones as the row has valid positions, including the new
ones. So after the prompt, a shorter row's next token overwrites its first padded slot in the cache (GroupQueryAttention
writes at the count, not at the end):

    tokens  a b c      mask  1 1 1      cache  a b c       step: d, y      mask  1 1 1 1      cache  a b c d
            x . .            1 0 0             x . .                             1 1 0 0             x y . .

A common prefix of prompts need not be run again: `begin` runs it once and keeps its keys and values, which are only
valid for the vectors they were computed with. Only a single prompt can continue from there: GroupQueryAttention takes
several tokens after a past for one row only.

A bundle may have a second decoder for prompts, with int8 products (qia3.graph.int8_products) and the same cache:
SHORTEST tokens and more are run by it, if this processor computes them right.

Vectors are ordinary inputs (session.py). A bundle with an encoder has its own kind of engine (seq2seq.py);
`open_engine` (load.py) chooses the right one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qia3.bundle.manifest import PROMPT
from qia3.bundle.opened import Bundle
from qia3.bundle.ports import ATTENTION_MASK, ENCODER_STATES, INPUT_IDS, LOGITS, PAST
from qia3.errors import BundleError, QIA3Error
from qia3.machine import int8_dot_products, physical_cores
from qia3.runtime.cache import Buffers, Cache, Floats, Lengths, ort_value, same_arrays
from qia3.runtime.session import GraphSession
from qia3.runtime.words import Words

ROOM = 32  # positions that a new cache has room for, beyond the prompt
SHORTEST = 12  # tokens: with fewer, 4-bit products are as fast on two threads


@dataclass(frozen=True)
class Begun:
    """A prefix of prompts, with its keys and values for `vectors`."""

    tokens: tuple[int, ...]
    vectors: Mapping[str, Floats]
    cache: Cache

    def begins(self, row: Sequence[int], vectors: Mapping[str, Floats]) -> bool:
        """Whether a prompt continues this prefix: with the same vectors, and at least one more token."""
        count = len(self.tokens)
        return len(row) > count and tuple(row[:count]) == self.tokens and same_arrays(self.vectors, vectors)


class Engine(Words):
    """One session over a bundle's decoder.

    `threads` None: the physical cores that this process may use. `packed`: a folder to cache weights packed for this
    processor (packed.py).
    """

    def __init__(self, bundle: Bundle, threads: int | None = None, packed: Path | None = None) -> None:
        if threads is not None and threads < 1:
            raise QIA3Error(f"threads must be 1 or more, not {threads}")
        self.bundle = bundle
        self.threads = threads or physical_cores()
        self.decoder = GraphSession(bundle, bundle.manifest.decoder, self.threads, packed)
        self._check_kind()
        second = bundle.manifest.graphs.get(PROMPT)
        whole = second is not None and int8_dot_products()
        self.prompts = GraphSession(bundle, second, self.threads, packed) if second and whole else None
        self.session, self.ones = self.decoder.session, self.decoder.ones
        self.context_length = bundle.architecture.context_length
        self.caches = {name: self._sizes(shape) for name, shape in self.decoder.ports.items() if name.startswith(PAST)}
        self.last_only, self.vocabulary = self._logits()
        self.begun: list[Begun] = []
        self.forced = 0  # tokens of an answer that are part of its prompt

    def _check_kind(self) -> None:
        """Raises BundleError if the decoder needs an encoder's states."""
        if ENCODER_STATES in self.decoder.ports:
            raise BundleError(
                f"{self.decoder.path} needs an encoder's states; open {self.bundle.path} with open_engine"
            )

    def _logits(self) -> tuple[bool, int]:
        """Whether logits are for the last position only, and their number. Raises BundleError."""
        match next((o.shape for o in self.session.get_outputs() if o.name == LOGITS), None):
            case [_, positions, int(vocabulary)]:
                return positions == 1, vocabulary
        raise BundleError(f"{self.decoder.path} has no output {LOGITS} of a known width; build the bundle again")

    def _sizes(self, shape: Sequence[int | str]) -> tuple[int, int]:
        """Heads and head size of a cache, which may differ between layers: by the graph, or by the bundle if the graph
        leaves them open.
        """
        known = self.bundle.architecture
        heads, size = shape[1], shape[3]
        return heads if isinstance(heads, int) else known.kv_heads, size if isinstance(size, int) else known.head_size

    def begin(self, tokens: Sequence[int], vectors: Mapping[str, Floats]) -> None:
        """Runs a common prefix of prompts.

        Prompts that are run singly, with these same arrays, then start after it; answers do not change.

        Kept in `begun`, which may be emptied, for the engine's lifetime; it takes as much memory per position as the
        cache.
        """
        if not any(b.tokens == tuple(tokens) and same_arrays(b.vectors, vectors) for b in self.begun):
            _, cache = self.prefill([tokens], vectors, room=0)
            self.begun.append(Begun(tuple(tokens), dict(vectors), cache))

    def remember(self, tokens: Sequence[int], vectors: Mapping[str, Floats], cache: Cache) -> None:
        """Like `begin`, for a prompt that has been run: `cache` has one row, which begins with `tokens`."""
        first = Cache(cache.buffers, np.array([len(tokens)], np.int64))
        self.begun.append(Begun(tuple(tokens), dict(vectors), first.copy(len(tokens))))

    def prefill(
        self, rows: Sequence[Sequence[int]], vectors: Mapping[str, Floats], room: int = ROOM
    ) -> tuple[Floats, Cache]:
        """Logits, float32 [rows, V], after each row's last token, and the cache, with room for `room` more positions
        before it must grow.
        """
        if len(rows) == 1 and self._begun(rows[0], vectors):
            cache = self.beginning(rows[0], vectors, room)
            return self.extend(rows[0][int(cache.lengths[0]) :], cache, vectors)
        tokens, lengths = padded(rows)
        return self._run(tokens, self._empty(len(rows), tokens.shape[1] + max(room, 0)), lengths, vectors)

    def beginning(self, row: Sequence[int], vectors: Mapping[str, Floats], room: int = ROOM) -> Cache:
        """A cache of one row with room for this prompt and `room` more positions, starting with its longest prefix that
        has been run (`begin`), if any.
        """
        positions = len(row) + max(room, 0)
        if begun := self._begun(row, vectors):
            return max(begun, key=lambda b: len(b.tokens)).cache.copy(min(positions, self.context_length))
        return self._empty(1, positions)

    def extend(self, tokens: Sequence[int], cache: Cache, vectors: Mapping[str, Floats]) -> tuple[Floats, Cache]:
        """Runs several more tokens on a cache of one row: logits [1, V] after the last one."""
        lengths = cache.lengths + len(tokens)
        if len(lengths) != 1 or not len(tokens):
            raise ValueError(f"{len(tokens)} tokens for a cache of {len(lengths)} rows")
        return self._run(np.array([tokens], np.int64), cache, lengths, vectors)

    def _begun(self, row: Sequence[int], vectors: Mapping[str, Floats]) -> list[Begun]:
        return [b for b in self.begun if b.begins(row, vectors)]

    def _empty(self, rows: int, capacity: int) -> Cache:
        """An empty cache with room for `capacity` positions, within the context."""
        capacity, nothing = min(capacity, self.context_length), np.zeros(rows, np.int64)
        kind = self.decoder.cache_type
        arrays = {n: np.zeros((rows, heads, capacity, size), kind) for n, (heads, size) in self.caches.items()}
        return Cache(Buffers(arrays, nothing), nothing)

    def step(self, tokens: Sequence[int], cache: Cache, vectors: Mapping[str, Floats]) -> tuple[Floats, Cache]:
        """Runs one more token per row. `cache` stays valid: it may be stepped again with other tokens."""
        if len(tokens) != len(cache.lengths):
            raise ValueError(f"{len(tokens)} tokens for a cache of {len(cache.lengths)} rows")
        return self._run(np.asarray(tokens, np.int64)[:, None], cache, cache.lengths + 1, vectors)

    def _run(
        self, tokens: NDArray[np.int64], cache: Cache, lengths: Lengths, vectors: Mapping[str, Floats]
    ) -> tuple[Floats, Cache]:
        longest = self._fitting(lengths)
        buffers = cache.writable(longest, self.context_length).buffers
        logits = np.empty((len(tokens), 1 if self.last_only else tokens.shape[1], self.vocabulary), np.float32)
        graph = self.decoder if self.prompts is None or tokens.shape[1] < SHORTEST else self.prompts
        with graph.running():
            if not buffers.bound(graph.session, vectors):
                buffers.bind(graph.session, vectors, graph.fed(vectors, len(tokens)))
            binding = buffers.binding
            held = {name: ort_value(array) for name, array in self._ids(tokens, cache, lengths).items()}
            for name, value in held.items():
                binding.bind_ortvalue_input(name, value)
            held[LOGITS] = ort_value(
                logits
            )  # bound anew each time: a bound output would be overwritten by the next run
            binding.bind_ortvalue_output(LOGITS, held[LOGITS])
            graph.session.run_with_iobinding(binding)
        buffers.newest = lengths
        return _last(logits, lengths - cache.lengths), Cache(buffers, lengths)

    def _ids(self, tokens: NDArray[np.int64], cache: Cache, lengths: Lengths) -> dict[str, NDArray[Any]]:
        """Inputs that change with every run: tokens and mask."""
        mask = (np.arange(lengths.max())[None] < lengths[:, None]).astype(np.int64)
        return {INPUT_IDS: tokens, ATTENTION_MASK: mask}


def padded(rows: Sequence[Sequence[int]]) -> tuple[NDArray[np.int64], Lengths]:
    """Rows of unequal lengths, padded on the right, and their lengths. Raises QIA3Error for an empty one."""
    lengths = np.array([len(r) for r in rows], np.int64)
    if not lengths.size or not lengths.min():
        raise QIA3Error("an empty prompt cannot be run: give it some text")
    tokens = np.zeros((len(rows), int(lengths.max())), np.int64)
    for i, row in enumerate(rows):
        tokens[i, : len(row)] = row
    return tokens, lengths


def select_rows(vectors: Mapping[str, Floats], index: Sequence[int]) -> Mapping[str, Floats]:
    """The vectors of the selected rows; vectors shared by all rows stay as they are."""
    if all(len(v) == 1 for v in vectors.values()):
        return vectors
    return {name: v if len(v) == 1 else v[list(index)] for name, v in vectors.items()}


def _last(logits: Floats, counts: Lengths) -> Floats:
    """Logits [rows, V] of the last valid position: the graph returns only that, or all positions."""
    last: Floats = logits[:, 0] if logits.shape[1] == 1 else logits[np.arange(len(logits)), counts - 1]
    return last
