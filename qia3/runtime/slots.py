"""Rows of one batch that join and leave between steps, each with its own task's vectors: continuous batching.

A step of one token takes little more time for eight rows than for one, since the weights are read once. So prompts are
run one at a time (Prompt), and then their cache joins the batch that generates:

    rows in use  a b c . . .      b leaves      a c . . . .      d joins      a c d . . .

The rows in use are always the first ones: a row that leaves is replaced by the last, whose cache is copied. Buffers are
allocated once, with room for `capacity` positions per row (memory that is not written to is not resident), and so are
the vectors [rows, 1, d], which are written in place when a row joins. Both are bound once per number of rows in use; a
step only binds its mask.

The pattern is that of mlx-lm's BatchGenerator; iteration-level scheduling is Orca's (Yu et al., OSDI 2022).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qia3.bundle.ports import ATTENTION_MASK, INPUT_IDS, LOGITS, PAST, PRESENT
from qia3.errors import QIA3Error
from qia3.runtime.cache import Cache, Floats, ort_value, untouched
from qia3.runtime.engine import Engine
from qia3.runtime.seq2seq import Seq2Seq

PIECE = 64  # tokens of a prompt that are run at once while rows are generating


class Slots:
    """Up to `rows` rows over an engine's graph. Not for several threads at once."""

    together = True  # one run for all rows: several cost little more than one

    def __init__(self, engine: Engine, rows: int, capacity: int | None = None) -> None:
        """`capacity`: positions per row, for prompt and answer; None: the whole context."""
        if rows < 1:
            raise QIA3Error(f"rows must be 1 or more, not {rows}")
        self.engine, self.rows = engine, rows
        self.capacity = min(capacity or engine.context_length, engine.context_length)
        kind = engine.decoder.cache_type
        self.caches: dict[str, NDArray[Any]] = {
            name: untouched((rows, heads, self.capacity, size), kind) for name, (heads, size) in engine.caches.items()
        }
        own = engine.decoder.own
        self.vectors: dict[str, Floats] = {
            n: np.ones((rows, 1, d), np.float32) for n, d in engine.bundle.vectors.items() if n in own
        }
        self.lengths = np.zeros(rows, np.int64)
        self.tokens = np.zeros((rows, 1), np.int64)
        self.logits = np.empty((rows, 1, engine.vocabulary), np.float32)
        self.used = 0
        self._bound: dict[int, tuple[Any, list[Any]]] = {}

    def __len__(self) -> int:
        return self.used

    def positions(self, prompt: Sequence[int]) -> int:
        """Positions that a prompt takes in its row."""
        return len(prompt)

    def prompt(self, tokens: Sequence[int], vectors: Mapping[str, Floats], piece: int = PIECE) -> Prompt:
        """A prompt that will join."""
        return Prompt(self.engine, tokens, vectors, piece)

    @property
    def full(self) -> bool:
        return self.used == self.rows

    def join(self, cache: Cache, vectors: Mapping[str, Floats]) -> int:
        """Copies a prompt's single row in; returns its number. `vectors` are [1, 1, d], or empty for the base."""
        length, row = int(cache.lengths[0]), self.used
        if self.full or length > self.capacity:
            raise QIA3Error(
                f"no room for {length} positions in row {row} of {self.rows}, whose capacity is {self.capacity}"
            )
        for name, array in self.caches.items():
            array[row, :, :length] = cache.buffers.arrays[name][0, :, :length]
        for name, array in self.vectors.items():
            array[row] = vectors[name][0] if name in vectors else 1
        self.lengths[row] = length
        self.used += 1
        return row

    def leave(self, row: int) -> int | None:
        """Frees a row. The last row in use takes its place; returns that row's old number, or None if it was the same."""
        last = self.used - 1
        if not 0 <= row <= last:
            raise QIA3Error(f"row {row} is not in use: only {self.used} rows are")
        self.used = last
        if row == last:
            return None
        length = int(self.lengths[last])
        for array in self.caches.values():
            array[row, :, :length] = array[last, :, :length]
        for array in self.vectors.values():
            array[row] = array[last]
        self.lengths[row] = length
        return last

    def back(self, row: int, length: int) -> None:
        """Drops everything in a row after its first `length` positions."""
        if not 0 <= length <= self.lengths[row]:
            raise ValueError(f"row {row} has {self.lengths[row]} positions, not {length}")
        self.lengths[row] = length

    def step(self, tokens: Sequence[int]) -> Floats:
        """One more token for each row in use. Logits [rows in use, V], valid until the next step."""
        count = self.used
        if len(tokens) != count or not count:
            raise ValueError(f"{len(tokens)} tokens for {count} rows")
        lengths = self.lengths[:count] + 1
        if lengths.max() > self.capacity:
            raise QIA3Error(f"row {int(lengths.argmax())} has used all its {self.capacity} positions")
        self.tokens[:count, 0] = tokens
        mask = ort_value((np.arange(lengths.max())[None] < lengths[:, None]).astype(np.int64))
        with self.engine.decoder.running():
            binding = self._binding(count)
            binding.bind_ortvalue_input(ATTENTION_MASK, mask)
            self.engine.session.run_with_iobinding(binding)
        self.lengths[:count] = lengths
        found: Floats = self.logits[:count, 0]
        return found

    def _binding(self, count: int) -> Any:
        """Everything but the mask, for the first `count` rows; made once."""
        if count not in self._bound:
            binding, fed = self.engine.session.io_binding(), {INPUT_IDS: self.tokens} | self.caches | self.vectors
            held = {name: ort_value(array[:count]) for name, array in fed.items()}
            for name, value in held.items():
                binding.bind_ortvalue_input(name, value)
            given = {name.replace(PAST, PRESENT): held[name] for name in self.caches}
            given[LOGITS] = ort_value(self.logits[:count])
            for name, value in given.items():
                binding.bind_ortvalue_output(name, value)
            self._bound[count] = binding, [*held.values(), *given.values()]  # a binding keeps no value alive
        return self._bound[count][0]


class Apart:
    """The same for an encoder-decoder, whose rows would all need the same length in one run: each is run separately,
    with its own cache. Batching would gain nothing here.
    """

    together = False

    def __init__(self, engine: Seq2Seq, rows: int, capacity: int | None = None) -> None:
        self.engine, self.rows = engine, rows
        self.capacity = min(capacity or engine.context_length, engine.context_length)
        self.texts: list[tuple[Cache, Mapping[str, Floats]]] = []

    def __len__(self) -> int:
        return len(self.texts)

    @property
    def full(self) -> bool:
        return len(self.texts) == self.rows

    def positions(self, prompt: Sequence[int]) -> int:
        """The decoder's start tokens: the prompt itself is in the encoder."""
        return len(self.engine.start)

    def prompt(self, tokens: Sequence[int], vectors: Mapping[str, Floats], piece: int = PIECE) -> Prompt:
        """A prompt that will join; it is encoded in one piece, since every position depends on the last."""
        return Encoded(self.engine, tokens, vectors, piece)

    def join(self, cache: Cache, vectors: Mapping[str, Floats]) -> int:
        if self.full:
            raise QIA3Error(f"no room in {self.rows} rows")
        self.texts.append((cache, vectors))
        return len(self.texts) - 1

    def leave(self, row: int) -> int | None:
        if not 0 <= row < len(self.texts):
            raise QIA3Error(f"row {row} is not in use: only {len(self.texts)} rows are")
        last = self.texts.pop()
        if row == len(self.texts):
            return None
        self.texts[row] = last
        return len(self.texts)

    def back(self, row: int, length: int) -> None:
        cache, vectors = self.texts[row]
        if not 0 <= length <= cache.lengths[0]:
            raise ValueError(f"row {row} has {cache.lengths[0]} positions, not {length}")
        cache.buffers.newest = np.array([length], np.int64)
        self.texts[row] = Cache(cache.buffers, cache.buffers.newest), vectors

    def step(self, tokens: Sequence[int]) -> Floats:
        if len(tokens) != len(self.texts) or not tokens:
            raise ValueError(f"{len(tokens)} tokens for {len(self.texts)} rows")
        found = []
        for row, (token, (cache, vectors)) in enumerate(zip(tokens, self.texts, strict=True)):
            logits, cache = self.engine.step([token], cache, vectors)
            self.texts[row] = cache, vectors
            found.append(logits[0])
        return np.stack(found)


AnySlots = Slots | Apart


def slots_of(engine: Engine, rows: int, capacity: int | None = None) -> AnySlots:
    """Rows for either kind of engine."""
    return Apart(engine, rows, capacity) if isinstance(engine, Seq2Seq) else Slots(engine, rows, capacity)


class Prompt:
    """A prompt that is run in pieces, so that generating rows only wait for one piece at a time."""

    def __init__(
        self, engine: Engine, tokens: Sequence[int], vectors: Mapping[str, Floats], piece: int = PIECE
    ) -> None:
        self.engine, self.vectors, self.piece = engine, vectors, piece
        self.cache = engine.beginning(tokens, vectors, room=0)
        self.began = int(self.cache.lengths[0])  # tokens that had already been run
        self.rest = list(tokens[self.began :])

    def advance(self) -> Floats | None:
        """Runs one piece. Returns logits [1, V] after the last piece, otherwise None."""
        piece, self.rest = self.rest[: self.piece], self.rest[self.piece :]
        logits, self.cache = self.engine.extend(piece, self.cache, self.vectors)
        return None if self.rest else logits


class Encoded(Prompt):
    """A prompt for an encoder, run as a whole."""

    def advance(self) -> Floats:
        logits, self.cache = self.engine.prefill([self.rest], self.vectors)
        self.rest = []
        return logits
