"""From the slots of a step to the batch that the model runs."""

from __future__ import annotations

from dataclasses import dataclass

from qia3.batching.rows import Totals
from qia3.batching.schedule import Slot
from qia3.batching.trees import Tree
from qia3.train.batches import Batch, packed, padded
from qia3.train.pairs import beside


@dataclass(frozen=True)
class Collator:
    """Turns slots into a batch: packed into rows of at most `row_tokens`, or one row per answer if the model cannot pack.

    `start`: the tokens before an encoder-decoder's answers in its decoder; empty for a decoder alone.
    """

    packs: bool
    row_tokens: int
    hidden_size: int
    start: tuple[int, ...] = ()

    def __call__(self, slots: list[Slot]) -> Batch:
        share = len(slots) / slots[0].batch
        whole = slots[0].totals
        return self.lay_out(
            [s.tree for s in slots], Totals(whole.right * share, whole.wrong * share, whole.chosen * share)
        )

    def lay_out(self, trees: list[Tree], totals: Totals | None = None) -> Batch:
        if self.start:
            return beside(trees, self.start, self.row_tokens if self.packs else 1, self.hidden_size, totals)
        return packed(trees, self.row_tokens, self.hidden_size, totals) if self.packs else padded(trees, totals)
