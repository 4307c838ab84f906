"""The graph, run: prompts of unequal lengths, then one token a row at a time, with the cache kept between.

Rows are padded on the right. A row's mask is as many leading ones as it has valid positions, its new ones included, so
after a prompt a shorter row's next token overwrites its first padded slot in the cache (GroupQueryAttention writes at
the count, not at the end):

    tokens  a b c      mask  1 1 1      cache  a b c       step: d, y      mask  1 1 1 1      cache  a b c d
            x . .            1 0 0             x . .                             1 1 0 0             x y . .

Prompts that begin alike need not be run from their beginning: `begin` runs it once and keeps its keys and values, which
belong to the vectors that they were made with. Only a prompt that is alone goes on from there; GroupQueryAttention
takes several tokens after a past for one row, not for more.

Vectors go in as ordinary inputs, [1, 1, d] for all rows or [rows, 1, d]. ONNX Runtime's own way, an active adapter, is
ignored without an error by the IO binding that the cache needs.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray
from tokenizers import Tokenizer

from qia3.bundle.opened import Bundle
from qia3.bundle.ports import ATTENTION_MASK, INPUT_IDS, LOGITS, PAST
from qia3.errors import AdapterError, BundleError, QIA3Error
from qia3.runtime.cache import Buffers, Cache, Floats, Lengths, ort_value, same_arrays
from qia3.runtime.packed import packed_graph
from qia3.tokens import Tokens

ROOM = 32  # positions beyond the prompt that a new cache has room for
SIBLINGS = "cpu*/topology/thread_siblings_list"


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


class Engine:
    """One session over a bundle's graph.

    `threads` None takes the physical cores that this process may run on; `packed` is a folder to keep weights in as
    this processor wants them (packed.py).
    """

    def __init__(self, bundle: Bundle, threads: int | None = None, packed: Path | None = None) -> None:
        if threads is not None and threads < 1:
            raise QIA3Error(f"threads must be 1 or more, not {threads}")
        self.bundle = bundle
        self.threads = threads or physical_cores()
        graph = bundle.path / bundle.graph if packed is None else packed_graph(bundle, _options(self.threads), packed)
        self.session = _session(graph, self.threads)
        self.context_length = bundle.architecture.context_length
        # kv heads and head size as the graph has them, which may differ between layers
        self.caches = {i.name: (i.shape[1], i.shape[3]) for i in self.session.get_inputs() if i.name.startswith(PAST)}
        # ones for the vectors that the graph has no default for (the target's `vectors` is "required")
        self.ones = {
            i.name: np.ones((1, 1, i.shape[2]), np.float32)
            for i in self.session.get_inputs()
            if i.name in bundle.vectors
        }
        _, positions, self.vocabulary = next(o.shape for o in self.session.get_outputs() if o.name == LOGITS)
        self.last_only = positions == 1
        self.begun: list[Begun] = []
        self._tokens: Tokens | None = None

    @property
    def tokens(self) -> Tokens:
        """The bundle's tokenizer, read when first asked for. Raises BundleError."""
        if self._tokens is None:
            self._tokens = Tokens.read(self.bundle.path / "tokenizer.json", self.vocabulary)
        return self._tokens

    @property
    def tokenizer(self) -> Tokenizer:
        """What decodes tokens."""
        return self.tokens.tokenizer

    def encode(self, text: str) -> list[int]:
        """Token ids of a user's words: control tokens written in them are text (qia3.tokens)."""
        return list(self.tokens.encode(text))

    def begin(self, tokens: Sequence[int], vectors: Mapping[str, Floats]) -> None:
        """Runs what prompts begin with.

        Those that are asked alone, with these very arrays, are only run from there on; answers stay the same.

        Kept in `begun`, which may be emptied, until the engine goes: a position takes what a position of the cache
        takes.
        """
        if not any(b.tokens == tuple(tokens) and same_arrays(b.vectors, vectors) for b in self.begun):
            _, cache = self.prefill([tokens], vectors, room=0)
            self.begun.append(Begun(tuple(tokens), dict(vectors), cache))

    def prefill(
        self, rows: Sequence[Sequence[int]], vectors: Mapping[str, Floats], room: int = ROOM
    ) -> tuple[Floats, Cache]:
        """Logits float32 [rows, V] after each row's last token, and the cache, with room for `room` more positions
        before it has to grow.
        """
        begun = [b for b in self.begun if len(rows) == 1 and b.begins(rows[0], vectors)]
        if begun:
            return self._go_on(max(begun, key=lambda b: len(b.tokens)), rows[0], vectors, room)
        lengths = np.array([len(r) for r in rows], np.int64)
        if not lengths.size or not lengths.min():
            raise QIA3Error("an empty prompt cannot be run: give it some text")
        longest = int(lengths.max())
        tokens = np.zeros((len(rows), longest), np.int64)
        for i, row in enumerate(rows):
            tokens[i, : len(row)] = row
        nothing = np.zeros(len(rows), np.int64)
        capacity = min(longest + max(room, 0), self.context_length)
        arrays = {
            n: np.zeros((len(rows), heads, capacity, size), np.float32) for n, (heads, size) in self.caches.items()
        }
        return self._run(tokens, Cache(Buffers(self.session, arrays, nothing), nothing), lengths, vectors)

    def _go_on(
        self, begun: Begun, row: Sequence[int], vectors: Mapping[str, Floats], room: int
    ) -> tuple[Floats, Cache]:
        """The rest of a prompt, on a copy of the cache of its beginning."""
        cache = begun.cache.copy(min(len(row) + max(room, 0), self.context_length))
        rest = np.array([row[len(begun.tokens) :]], np.int64)
        return self._run(rest, cache, np.array([len(row)], np.int64), vectors)

    def step(self, tokens: Sequence[int], cache: Cache, vectors: Mapping[str, Floats]) -> tuple[Floats, Cache]:
        """One more token a row. `cache` stays good: it may be stepped again with other tokens."""
        if len(tokens) != len(cache.lengths):
            raise ValueError(f"{len(tokens)} tokens for a cache of {len(cache.lengths)} rows")
        return self._run(np.asarray(tokens, np.int64)[:, None], cache, cache.lengths + 1, vectors)

    def _run(
        self, tokens: NDArray[np.int64], cache: Cache, lengths: Lengths, vectors: Mapping[str, Floats]
    ) -> tuple[Floats, Cache]:
        longest = int(lengths.max())
        if longest > self.context_length:
            raise QIA3Error(
                f"{longest} tokens do not fit the bundle's context of {self.context_length}; shorten the text"
            )
        vectors = {**self.ones, **vectors} if self.ones else vectors
        buffers = cache.writable(longest, self.context_length).buffers
        if not buffers.bound(vectors):
            self._check(vectors, len(tokens))
        binding = buffers.binding(vectors)
        mask = (np.arange(longest)[None] < lengths[:, None]).astype(np.int64)
        held = {INPUT_IDS: ort_value(tokens), ATTENTION_MASK: ort_value(mask)}
        for name, value in held.items():
            binding.bind_ortvalue_input(name, value)
        logits = np.empty((len(tokens), 1 if self.last_only else tokens.shape[1], self.vocabulary), np.float32)
        held[LOGITS] = ort_value(logits)  # anew each time: an output that stays bound is overwritten by the next run
        binding.bind_ortvalue_output(LOGITS, held[LOGITS])
        self.session.run_with_iobinding(binding)
        buffers.newest = lengths
        return _last(logits, lengths - cache.lengths), Cache(buffers, lengths)

    def _check(self, vectors: Mapping[str, Floats], rows: int) -> None:
        """A wrong row count could broadcast into a wrong answer, so it is refused before the graph sees it."""
        sizes = self.bundle.vectors
        bad = [f"{n} has no place here" for n in vectors if n not in sizes]
        shapes = {n: v.shape for n, v in vectors.items() if n in sizes}
        bad += [
            f"{n} has shape {list(s)}" for n, s in shapes.items() if s not in ((1, 1, sizes[n]), (rows, 1, sizes[n]))
        ]
        if len({s[0] for s in shapes.values()} | ({1} if len(shapes) < len(sizes) else set())) > 1:
            bad.append("some have one row and some several")
        if bad:
            raise AdapterError(
                f"vectors for {rows} rows are all [1, 1, d] or all [{rows}, 1, d] of the graph's inputs: {'; '.join(bad)}"
            )


def select_rows(vectors: Mapping[str, Floats], index: Sequence[int]) -> Mapping[str, Floats]:
    """The vectors of the rows picked; those that are the same for all rows stay as they are."""
    if all(len(v) == 1 for v in vectors.values()):
        return vectors
    return {name: v if len(v) == 1 else v[list(index)] for name, v in vectors.items()}


def physical_cores() -> int:
    """Physical cores that this process may use.

    ONNX Runtime's own default counts cores that a container or taskset took away.
    """
    allowed = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set(range(os.cpu_count() or 1))
    cores = {
        file.read_text()
        for file in Path("/sys/devices/system/cpu").glob(SIBLINGS)
        if int(file.parts[-3].removeprefix("cpu")) in allowed
    }
    return len(cores) or len(allowed)


def _options(threads: int) -> ort.SessionOptions:
    options = ort.SessionOptions()
    options.log_severity_level = 3  # otherwise one warning per vector with a default
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    return options


def _session(path: Path, threads: int) -> ort.InferenceSession:
    try:
        return ort.InferenceSession(str(path), _options(threads), providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime raises its own types, without a common base
        raise BundleError(f"ONNX Runtime cannot load {path}: {str(error).splitlines()[0]}") from error


def _last(logits: Floats, counts: Lengths) -> Floats:
    """[rows, V]: the graph gives the last valid position, or all of them."""
    last: Floats = logits[:, 0] if logits.shape[1] == 1 else logits[np.arange(len(logits)), counts - 1]
    return last
