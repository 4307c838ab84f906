"""Keys and values cached between steps, in buffers that the graph updates in place.

GroupQueryAttention copies its whole past into `present` at every step, unless both are the same memory: then it only
writes the new position. So each buffer has room for more positions than are used, and is bound as past and present at
once. The unused room is never read (it may hold NaN; the tests fill it with that).

    buffer of one row, capacity 6, length 3      k0 k1 k2 .. .. ..      one step      k0 k1 k2 k3 .. ..

Keys and values of an encoder's states are computed once and then only read: those buffers are `fixed`. Rows with the
same prompt share one row of them if the graph supports it.

A Cache still behaves like a value: stepping it twice gives two independent continuations. Only the newest Cache over a
set of buffers may write to them; an older one is copied first. This is the rule of Go's append, with safe aliasing.
"""

from __future__ import annotations

import math
import mmap
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from qia3.bundle.ports import PAST, PRESENT

Floats = NDArray[np.float32]
Lengths = NDArray[np.int64]


class Buffers:
    """The memory and its binding, to the `session` that ran last. `newest` are the lengths of the
    Cache that may write; `fixed` are inputs that no run changes, a row each, or one row for all if they are `shared`;
    `made` maps the name of a fixed input to the output that provides it.
    """

    def __init__(
        self,
        arrays: Mapping[str, NDArray[Any]],
        newest: Lengths,
        fixed: Mapping[str, NDArray[Any]] | None = None,
        shared: bool = False,
    ) -> None:
        self.arrays, self.newest, self.fixed = dict(arrays), newest, dict(fixed or {})
        self.shared = shared
        self.made: Mapping[str, Floats] = {}
        self.capacity = min(
            (a.shape[2] for a in arrays.values()), default=2**62
        )  # positions that fit; unlimited without a cache
        self.vectors: dict[str, Floats] = {}
        self.binding: Any = None
        self.session: ort.InferenceSession | None = None
        self._held: list[ort.OrtValue] = []

    def bound(self, session: ort.InferenceSession, vectors: Mapping[str, Floats]) -> bool:
        """Whether these same objects were bound last time."""
        return self.binding is not None and self.session is session and same_arrays(self.vectors, vectors)

    def bind(self, session: ort.InferenceSession, vectors: Mapping[str, Floats], fed: Mapping[str, Floats]) -> None:
        """An IOBinding with the cache and the inputs from these vectors; valid until others are used."""
        self.binding, self.vectors, self.session = session.io_binding(), dict(vectors), session
        # an OrtValue uses the array's memory and the binding keeps neither alive, so both are kept here
        held = {name: ort_value(array) for name, array in {**fed, **self.arrays, **self.fixed}.items()}
        given = {name: ort_value(array) for name, array in self.made.items()} | {n: held[n] for n in self.arrays}
        for name, value in held.items():
            self.binding.bind_ortvalue_input(name, value)
        for name, value in given.items():
            self.binding.bind_ortvalue_output(name.replace(PAST, PRESENT), value)
        self._held = [*held.values(), *given.values()]


def same_arrays(known: Mapping[str, Floats], vectors: Mapping[str, Floats]) -> bool:
    """Whether these are the same array objects, without comparing their contents."""
    return known.keys() == vectors.keys() and all(known[name] is vector for name, vector in vectors.items())


def ort_value(array: NDArray[Any]) -> ort.OrtValue:
    """An OrtValue on the memory of `array`, or of a contiguous copy, which it keeps alive during its own lifetime."""
    return ort.OrtValue.ortvalue_from_numpy(np.asarray(array, order="C"))


def untouched(shape: tuple[int, ...], kind: type[np.generic] = np.float32) -> NDArray[Any]:
    """Zeros whose pages are only allocated when written: most of a long row never is.

    numpy asks Linux for huge pages of 2 MiB for large arrays; writing one position per head would then allocate most
    of the buffer.
    """
    count = math.prod(shape)
    if not count or not hasattr(mmap, "MADV_NOHUGEPAGE"):
        return np.zeros(shape, kind)
    block = mmap.mmap(-1, np.dtype(kind).itemsize * count, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    block.madvise(mmap.MADV_NOHUGEPAGE)
    return np.frombuffer(block, kind, count).reshape(shape)


class Cache:
    """The number of valid positions per row, and the buffers [rows, kv heads, capacity, head size]."""

    def __init__(self, buffers: Buffers, lengths: Lengths) -> None:
        self.buffers, self.lengths = buffers, lengths

    @property
    def nbytes(self) -> int:
        """Bytes of the buffers, unused room included."""
        return sum(a.nbytes for a in (self.buffers.arrays | self.buffers.fixed).values())

    def expand(self, index: Sequence[int]) -> Cache:
        """Selects or repeats rows; no copy if that changes nothing."""
        if list(index) == list(range(len(self.lengths))):
            return self
        return self._copy(np.asarray(index, np.int64), self.buffers.capacity)

    def writable(self, positions: int, limit: int) -> Cache:
        """This cache or a copy of it, writable and with room for `positions`.

        It never takes more than `limit` positions.
        """
        if self.lengths is self.buffers.newest and positions <= self.buffers.capacity:
            return self
        capacity = self.buffers.capacity
        if positions > capacity:  # grow by half, so that copying costs amortised constant time per token
            capacity = min(max(positions, capacity + capacity // 2), limit)
        return self.copy(capacity)

    def copy(self, capacity: int) -> Cache:
        """A copy with buffers of its own, with room for `capacity` positions, at least those in use."""
        return self._copy(np.arange(len(self.lengths)), max(capacity, int(self.lengths.max(initial=0))))

    def _copy(self, index: Lengths, capacity: int) -> Cache:
        lengths = self.lengths[index]
        used = int(lengths.max(initial=0))
        arrays = {}
        for name, array in self.buffers.arrays.items():
            arrays[name] = np.zeros((len(index), array.shape[1], capacity, array.shape[3]), array.dtype)
            arrays[name][:, :, :used] = array[index, :, :used]
        made = Buffers(arrays, lengths, self._fixed(index), self.buffers.shared)
        return Cache(made, lengths)

    def _fixed(self, index: Lengths) -> Mapping[str, NDArray[Any]]:
        """The fixed inputs for the selected rows: the same arrays if one row serves all, or if all rows stay."""
        fixed, one = self.buffers.fixed, self.buffers.shared and all(len(a) == 1 for a in self.buffers.fixed.values())
        if one or np.array_equal(index, np.arange(len(self.lengths))):
            return fixed
        return {name: array[index] for name, array in fixed.items()}
