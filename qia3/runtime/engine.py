"""The graph, run: prompts of unequal lengths, then one token a row at a time, with the cache kept between.

Rows are padded on the right. A row's mask is as many leading ones as it has valid positions, its new ones included, so
after a prompt a shorter row's next token overwrites its first padded slot in the cache (GroupQueryAttention writes at
the count, not at the end):

    tokens  a b c      mask  1 1 1      cache  a b c       step: d, y      mask  1 1 1 1      cache  a b c d
            x . .            1 0 0             x . .                             1 1 0 0             x y . .

Prompts that begin alike need not be run from their beginning: `begin` runs it once and keeps its keys and values, which
belong to the vectors that they were made with. Only a prompt that is alone goes on from there; GroupQueryAttention
takes several tokens after a past for one row, not for more.

Vectors go in as ordinary inputs (session.py). A bundle with an encoder has an engine of its own (seq2seq.py);
`open_engine` (load.py) takes the one that a bundle wants.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qia3.bundle.opened import Bundle
from qia3.bundle.ports import ATTENTION_MASK, ENCODER_STATES, INPUT_IDS, LOGITS, PAST
from qia3.errors import BundleError, QIA3Error
from qia3.machine import physical_cores
from qia3.runtime.cache import Buffers, Cache, Floats, Lengths, ort_value, same_arrays
from qia3.runtime.session import GraphSession
from qia3.runtime.words import Words

ROOM = 32  # positions beyond the prompt that a new cache has room for


@dataclass(frozen=True)
class Begun:
    """The first tokens of prompts, and their keys and values under `vectors`."""

    tokens: tuple[int, ...]
    vectors: Mapping[str, Floats]
    cache: Cache

    def begins(self, row: Sequence[int], vectors: Mapping[str, Floats]) -> bool:
        """Whether a prompt goes on from here: with these very vectors, and at least one token more."""
        count = len(self.tokens)
        return len(row) > count and tuple(row[:count]) == self.tokens and same_arrays(self.vectors, vectors)


class Engine(Words):
    """One session over a bundle's decoder.

    `threads` None takes the physical cores that this process may run on; `packed` is a folder to keep weights in as
    this processor wants them (packed.py).
    """

    def __init__(self, bundle: Bundle, threads: int | None = None, packed: Path | None = None) -> None:
        if threads is not None and threads < 1:
            raise QIA3Error(f"threads must be 1 or more, not {threads}")
        self.bundle = bundle
        self.threads = threads or physical_cores()
        self.decoder = GraphSession(bundle, bundle.manifest.decoder, self.threads, packed)
        self._check_kind()
        self.session, self.ones = self.decoder.session, self.decoder.ones
        self.context_length = bundle.architecture.context_length
        self.caches = {name: self._sizes(shape) for name, shape in self.decoder.ports.items() if name.startswith(PAST)}
        self.last_only, self.vocabulary = self._logits()
        self.begun: list[Begun] = []
        self.forced = 0  # tokens of an answer that stand in its prompt

    def _check_kind(self) -> None:
        """Raises BundleError where the decoder reads an encoder's states: without them it is another model."""
        if ENCODER_STATES in self.decoder.ports:
            raise BundleError(
                f"{self.decoder.path} needs an encoder's states; open {self.bundle.path} with open_engine"
            )

    def _logits(self) -> tuple[bool, int]:
        """Whether logits are for the last position only, and how many they are. Raises BundleError."""
        match next((o.shape for o in self.session.get_outputs() if o.name == LOGITS), None):
            case [_, positions, int(vocabulary)]:
                return positions == 1, vocabulary
        raise BundleError(f"{self.decoder.path} has no output {LOGITS} of a known width; build the bundle again")

    def _sizes(self, shape: Sequence[int | str]) -> tuple[int, int]:
        """Heads and head size of a cache as the graph has them, which may differ between layers; as the bundle has them
        where the graph leaves them open.
        """
        known = self.bundle.architecture
        heads, size = shape[1], shape[3]
        return heads if isinstance(heads, int) else known.kv_heads, size if isinstance(size, int) else known.head_size

    def begin(self, tokens: Sequence[int], vectors: Mapping[str, Floats]) -> None:
        """Runs what prompts begin with.

        Those that are asked alone, with these very arrays, are only run from there on; answers stay the same.

        Kept in `begun`, which may be emptied, until the engine goes: a position takes what a position of the cache
        takes.
        """
        if not any(b.tokens == tuple(tokens) and same_arrays(b.vectors, vectors) for b in self.begun):
            _, cache = self.prefill([tokens], vectors, room=0)
            self.begun.append(Begun(tuple(tokens), dict(vectors), cache))

    def remember(self, tokens: Sequence[int], vectors: Mapping[str, Floats], cache: Cache) -> None:
        """As `begin`, of a prompt that has been run: `cache` is of one row that begins with `tokens`."""
        first = Cache(cache.buffers, np.array([len(tokens)], np.int64))
        self.begun.append(Begun(tuple(tokens), dict(vectors), first.copy(len(tokens))))

    def prefill(
        self, rows: Sequence[Sequence[int]], vectors: Mapping[str, Floats], room: int = ROOM
    ) -> tuple[Floats, Cache]:
        """Logits float32 [rows, V] after each row's last token, and the cache, with room for `room` more positions
        before it has to grow.
        """
        if len(rows) == 1 and self._begun(rows[0], vectors):
            cache = self.beginning(rows[0], vectors, room)
            return self.extend(rows[0][int(cache.lengths[0]) :], cache, vectors)
        tokens, lengths = padded(rows)
        return self._run(tokens, self._empty(len(rows), tokens.shape[1] + max(room, 0)), lengths, vectors)

    def beginning(self, row: Sequence[int], vectors: Mapping[str, Floats], room: int = ROOM) -> Cache:
        """A cache of one row with room for this prompt and `room` more: of what has been run of it already (`begin`),
        which may be nothing.
        """
        positions = len(row) + max(room, 0)
        if begun := self._begun(row, vectors):
            return max(begun, key=lambda b: len(b.tokens)).cache.copy(min(positions, self.context_length))
        return self._empty(1, positions)

    def extend(self, tokens: Sequence[int], cache: Cache, vectors: Mapping[str, Floats]) -> tuple[Floats, Cache]:
        """Several more tokens of a cache of one row: logits [1, V] after the last of them."""
        lengths = cache.lengths + len(tokens)
        if len(lengths) != 1 or not len(tokens):
            raise ValueError(f"{len(tokens)} tokens for a cache of {len(lengths)} rows")
        return self._run(np.array([tokens], np.int64), cache, lengths, vectors)

    def _begun(self, row: Sequence[int], vectors: Mapping[str, Floats]) -> list[Begun]:
        return [b for b in self.begun if b.begins(row, vectors)]

    def _empty(self, rows: int, capacity: int) -> Cache:
        """No positions, and room for `capacity` of them, within the context."""
        capacity, nothing = min(capacity, self.context_length), np.zeros(rows, np.int64)
        kind = self.decoder.cache_type
        arrays = {n: np.zeros((rows, heads, capacity, size), kind) for n, (heads, size) in self.caches.items()}
        return Cache(Buffers(self.session, arrays, nothing), nothing)

    def step(self, tokens: Sequence[int], cache: Cache, vectors: Mapping[str, Floats]) -> tuple[Floats, Cache]:
        """One more token a row. `cache` stays good: it may be stepped again with other tokens."""
        if len(tokens) != len(cache.lengths):
            raise ValueError(f"{len(tokens)} tokens for a cache of {len(cache.lengths)} rows")
        return self._run(np.asarray(tokens, np.int64)[:, None], cache, cache.lengths + 1, vectors)

    def _run(
        self, tokens: NDArray[np.int64], cache: Cache, lengths: Lengths, vectors: Mapping[str, Floats]
    ) -> tuple[Floats, Cache]:
        longest = self._fitting(lengths)
        buffers = cache.writable(longest, self.context_length).buffers
        logits = np.empty((len(tokens), 1 if self.last_only else tokens.shape[1], self.vocabulary), np.float32)
        with self.decoder.running():
            if not buffers.bound(vectors):
                buffers.bind(vectors, self.decoder.fed(vectors, len(tokens)))
            binding = buffers.binding
            held = {name: ort_value(array) for name, array in self._ids(tokens, cache, lengths).items()}
            for name, value in held.items():
                binding.bind_ortvalue_input(name, value)
            held[LOGITS] = ort_value(
                logits
            )  # anew each time: an output that stays bound is overwritten by the next run
            binding.bind_ortvalue_output(LOGITS, held[LOGITS])
            self.session.run_with_iobinding(binding)
        buffers.newest = lengths
        return _last(logits, lengths - cache.lengths), Cache(buffers, lengths)

    def _ids(self, tokens: NDArray[np.int64], cache: Cache, lengths: Lengths) -> dict[str, NDArray[Any]]:
        """What goes in anew with every run: the tokens, and where they stand."""
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
    """The vectors of the rows picked; those that are the same for all rows stay as they are."""
    if all(len(v) == 1 for v in vectors.values()):
        return vectors
    return {name: v if len(v) == 1 else v[list(index)] for name, v in vectors.items()}


def _last(logits: Floats, counts: Lengths) -> Floats:
    """[rows, V]: the graph gives the last valid position, or all of them."""
    last: Floats = logits[:, 0] if logits.shape[1] == 1 else logits[np.arange(len(logits)), counts - 1]
    return last
