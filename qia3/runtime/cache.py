"""Keys and values kept between steps, in buffers that the graph writes in place.

GroupQueryAttention copies its whole past into `present` at every step, unless both are the same memory: then it writes
the new position and nothing else. So each buffer has room for more positions than are used, and is bound as past and
present at once. The unused room is never read (it may hold NaN, which the tests fill it with).

    buffer of one row, capacity 6, length 3      k0 k1 k2 .. .. ..      one step      k0 k1 k2 k3 .. ..

What an encoder's states give a decoder, keys and values too, is made once and only read: those buffers are `fixed`.
Rows of one prompt share one row of them where the graph takes that.

A Cache is a value all the same: stepping it twice gives two futures that do not disturb each other. Only the newest
Cache over a set of buffers may write to them; an older one is copied first. That is the rule of Go's append, with the
aliasing made safe.
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
    """The memory and the bindings to it. `newest` are the lengths of the Cache that may write; `fixed` are inputs that no
    run changes, a row each, or one row for all where they are `shared`; `made` is what the run gives that they are of, by
    the input's name.
    """

    def __init__(
        self,
        session: ort.InferenceSession,
        arrays: Mapping[str, NDArray[Any]],
        newest: Lengths,
        fixed: Mapping[str, NDArray[Any]] | None = None,
        shared: bool = False,
    ) -> None:
        self.session, self.arrays, self.newest, self.fixed = session, dict(arrays), newest, dict(fixed or {})
        self.shared = shared
        self.made: Mapping[str, Floats] = {}
        self.capacity = min(
            (a.shape[2] for a in arrays.values()), default=2**62
        )  # positions that fit; unlimited where there is no cache
        self.vectors: dict[str, Floats] = {}
        self.binding: Any = None
        self._held: list[ort.OrtValue] = []

    def bound(self, vectors: Mapping[str, Floats]) -> bool:
        """Whether these very arrays went in last time."""
        return self.binding is not None and same_arrays(self.vectors, vectors)

    def bind(self, vectors: Mapping[str, Floats], fed: Mapping[str, Floats]) -> None:
        """An IOBinding with the cache bound, and what goes in of these vectors; it is good until the vectors are others."""
        self.binding, self.vectors = self.session.io_binding(), dict(vectors)
        # a value made of an array is on the array's own memory and the binding keeps neither, so both are kept here
        held = {name: ort_value(array) for name, array in {**fed, **self.arrays, **self.fixed}.items()}
        given = {name: ort_value(array) for name, array in self.made.items()} | {n: held[n] for n in self.arrays}
        for name, value in held.items():
            self.binding.bind_ortvalue_input(name, value)
        for name, value in given.items():
            self.binding.bind_ortvalue_output(name.replace(PAST, PRESENT), value)
        self._held = [*held.values(), *given.values()]


def same_arrays(known: Mapping[str, Floats], vectors: Mapping[str, Floats]) -> bool:
    """Whether these are the very arrays that are known, not equal ones: it costs no look at what is in them."""
    return known.keys() == vectors.keys() and all(known[name] is vector for name, vector in vectors.items())


def ort_value(array: NDArray[Any]) -> ort.OrtValue:
    """A value on the memory of `array`, or of a contiguous copy of it, which it keeps alive for as long as it lives
    itself.
    """
    return ort.OrtValue.ortvalue_from_numpy(np.asarray(array, order="C"))


def untouched(shape: tuple[int, ...], kind: type[np.generic] = np.float32) -> NDArray[Any]:
    """Zeros that take memory page by page, as they are written to: most of a long row never is.

    numpy asks Linux for huge pages of 2 MiB in large arrays; then the first position of one head would take all of them.
    """
    count = math.prod(shape)
    if not count or not hasattr(mmap, "MADV_NOHUGEPAGE"):
        return np.zeros(shape, kind)
    block = mmap.mmap(-1, np.dtype(kind).itemsize * count, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    block.madvise(mmap.MADV_NOHUGEPAGE)
    return np.frombuffer(block, kind, count).reshape(shape)


class Cache:
    """How many positions of each row are valid, and the buffers [rows, kv heads, capacity, head size] that hold them."""

    def __init__(self, buffers: Buffers, lengths: Lengths) -> None:
        self.buffers, self.lengths = buffers, lengths

    @property
    def nbytes(self) -> int:
        """Bytes of the buffers, unused room included."""
        return sum(a.nbytes for a in (self.buffers.arrays | self.buffers.fixed).values())

    def expand(self, index: Sequence[int]) -> Cache:
        """Rows picked or repeated; no copy where that changes nothing."""
        if list(index) == list(range(len(self.lengths))):
            return self
        return self._copy(np.asarray(index, np.int64), self.buffers.capacity)

    def writable(self, positions: int, limit: int) -> Cache:
        """This cache, or a copy of it, with room for `positions` and leave to write.

        It never takes more than `limit` positions.
        """
        if self.lengths is self.buffers.newest and positions <= self.buffers.capacity:
            return self
        capacity = self.buffers.capacity
        if positions > capacity:  # half as much again, so that the copies of a long text cost a constant a token
            capacity = min(max(positions, capacity + capacity // 2), limit)
        return self.copy(capacity)

    def copy(self, capacity: int) -> Cache:
        """On buffers of its own, with room for `capacity` positions, which are at least those that are used."""
        return self._copy(np.arange(len(self.lengths)), max(capacity, int(self.lengths.max(initial=0))))

    def _copy(self, index: Lengths, capacity: int) -> Cache:
        lengths = self.lengths[index]
        used = int(lengths.max(initial=0))
        arrays = {}
        for name, array in self.buffers.arrays.items():
            arrays[name] = np.zeros((len(index), array.shape[1], capacity, array.shape[3]), array.dtype)
            arrays[name][:, :, :used] = array[index, :, :used]
        made = Buffers(self.buffers.session, arrays, lengths, self._fixed(index), self.buffers.shared)
        return Cache(made, lengths)

    def _fixed(self, index: Lengths) -> Mapping[str, NDArray[Any]]:
        """What is fixed for the rows picked: the same arrays where one row serves all, or where all rows stay."""
        fixed, one = self.buffers.fixed, self.buffers.shared and all(len(a) == 1 for a in self.buffers.fixed.values())
        if one or np.array_equal(index, np.arange(len(self.lengths))):
            return fixed
        return {name: array[index] for name, array in fixed.items()}
