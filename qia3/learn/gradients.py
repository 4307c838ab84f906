"""Losses and gradients of a step, from a bundle's graph that learns (qia3.graph.trainable) in ONNX Runtime.

A step's examples are computed in parts of at most `slots` tokens, one after the other, so that memory does not grow with
the batch. Losses are sums divided by what the whole step counts, so parts add up to the step.

ONNX Runtime's memory arena is off: with it a step of varied lengths keeps the largest of everything it has seen.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence

import numpy as np

from qia3.batching.rows import Batch, Totals, count, packed, padded
from qia3.batching.tables import fed
from qia3.batching.trees import Tree
from qia3.bundle.manifest import TRAIN
from qia3.bundle.opened import Bundle
from qia3.bundle.ports import GRADIENT, LOSSES, TREES
from qia3.errors import ConfigError
from qia3.footprint.learning import PART
from qia3.learn.optimiser import Floats
from qia3.machine import give_back_memory, physical_cores
from qia3.runtime.session import running, session

SLOTS = PART  # tokens that are computed at once, as reports reckon


def check_learns(bundle: Bundle) -> None:
    """Raises ConfigError for a bundle without a graph that learns."""
    if TRAIN not in bundle.manifest.graphs:
        raise ConfigError(
            f"{bundle.path} has no graph that learns: build it with trainable = true in [export] (mode 'side')"
        )


class Gradients:
    """A session. `losses`: those of the three that count."""

    def __init__(
        self, bundle: Bundle, losses: Collection[str], row_tokens: int, slots: int = SLOTS, threads: int | None = None
    ) -> None:
        check_learns(bundle)
        self.path, self.losses, self.row_tokens, self.slots = (
            bundle.path / bundle.manifest.graphs[TRAIN].file,
            losses,
            row_tokens,
            slots,
        )
        self.hidden_size = bundle.architecture.hidden_size
        self.session = session(self.path, threads or physical_cores(), arena=False)
        self.packs = set(TREES) <= {i.name for i in self.session.get_inputs()}
        self.outputs = [o.name for o in self.session.get_outputs()]

    def step(
        self, trees: Sequence[Tree], vectors: Mapping[str, Floats], totals: Totals | None = None
    ) -> tuple[Floats, dict[str, Floats]]:
        """The three losses [3], and the gradients [1, 1, size] of their sum by the vectors' names [size]."""
        whole = totals or count(trees)
        losses, gradients = np.zeros(3, np.float32), dict[str, Floats]()
        shown = {name: vector.reshape(1, 1, -1) for name, vector in vectors.items()}
        for part in self._parts(trees):
            given = fed(self._laid_out(part, whole), self.packs, self.losses)
            with running(self.path):
                found = dict(zip(self.outputs, self.session.run(None, given | shown), strict=True))
            give_back_memory()  # parts differ in size, and what one leaves behind does not fit the next
            losses += found.pop(LOSSES)
            for name, gradient in found.items():
                name = name.removesuffix(GRADIENT)
                gradients[name] = gradients[name] + gradient if name in gradients else gradient
        return losses, gradients

    def _parts(self, trees: Sequence[Tree]) -> Iterator[list[Tree]]:
        """As few parts as keep to `slots` each, of about the same size; one tree is a part in any case."""
        for number in range(1, len(trees) + 1):
            parts: list[list[Tree]] = [[] for _ in range(number)]
            for tree in sorted(trees, key=lambda tree: -_size(tree)):
                min(parts, key=lambda part: sum(map(_size, part))).append(tree)
            if number == len(trees) or all(self._slots(part) <= self.slots for part in parts):
                yield from parts
                return

    def _slots(self, trees: Sequence[Tree]) -> int:
        return int(self._laid_out(trees, None)["input_ids"].size)

    def _laid_out(self, trees: Sequence[Tree], totals: Totals | None) -> Batch:
        return packed(trees, self.row_tokens, self.hidden_size, totals) if self.packs else padded(trees, totals)


def _size(tree: Tree) -> int:
    return len(tree.prompt) + sum(map(len, tree.answers))
