r"""A batch of an encoder-decoder: prompts in the encoder, each once; answers in the decoder, after its start token.

If the decoder sees positions only as distances (T5's buckets, rotary embeddings), the answers of one example share a
decoder row, each with its own start token, and a mask separates them (qia3.batching.rows): what precedes an answer in
the row shifts it, but distances within it stay the same. A row reads the states of one prompt, so examples do not share
rows. Prompt "a b </s>", answers "x <end>" and "y z <end>", start token s:

    encoder    a  b  </s>          slot       s  x  s  y  z        sees  s  x  s  y  z        predict
                                   tree       0  0  1  1  1          s   1                    x
                                                                     x   1  1                 <end>
                                                                     s   .  .  1              y
                                                                     y   .  .  1  1           z
                                                                     z   .  .  1  1  1        <end>

Otherwise (BART's learned positions) each answer has its own row, and the rows of an example read the same states, which
are computed once.

These are added to a batch of E examples whose longest prompt has S tokens:

    prompts       int64 [E, S]   padded on the right          prompt_mask   int64 [E, S]   1 at tokens
    source        int64 [R]      the prompt whose states a row reads

The cost of a row of L slots, in the units of qia3.batching.trees: its slots, their attention over the row and over S
states, and the keys and values of those states, which are computed for each row (2 h² of a slot's 12 h²):

    L (1 + (L + S) / (2 h)) + S / 6

Number and length of rows are chosen for the lowest cost; no row exceeds the limit, unless a single answer does.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from qia3.batching.rows import Totals, count
from qia3.batching.trees import Piece, Tree
from qia3.train.batches import Batch, lay_out

Row = list[Piece]


def beside(
    trees: Sequence[Tree], start: tuple[int, ...], limit: int, hidden_size: int, totals: Totals | None = None
) -> Batch:
    """`start`: the tokens that precede every answer. A `limit` of 1 gives each answer a row of its own."""
    answers = [Tree(start, tree.answers, tree.right) for tree in trees]
    longest = max(len(tree.prompt) for tree in trees)
    rows = _cheapest(answers, limit, longest, hidden_size)
    batch = lay_out(answers, rows, totals or count(trees), shares=False)
    batch.pop("position_ids", None)  # a decoder row counts its slots
    return batch | {
        "prompts": torch.tensor([[*tree.prompt, *[0] * (longest - len(tree.prompt))] for tree in trees]),
        "prompt_mask": torch.tensor([[int(i < len(tree.prompt)) for i in range(longest)] for tree in trees]),
        "source": torch.tensor([row[0].example for row in rows]),
    }


def _cheapest(answers: Sequence[Tree], limit: int, prompt: int, hidden_size: int) -> list[Row]:
    """The cheapest rows, trying lengths of a half, a third, ... of what the example with the most slots needs."""

    def cost(rows: list[Row]) -> float:
        length = max(map(_slots, rows))
        return len(rows) * (length * (1 + (length + prompt) / (2 * hidden_size)) + prompt / 6)

    whole = max(_slots(_alone(e, tree)) for e, tree in enumerate(answers))
    lengths = {min(limit, -(-whole // parts)) for parts in range(1, max(len(t.answers) for t in answers) + 1)}
    tried = [
        [row for e, tree in enumerate(answers) for row in _filled(e, tree, length)]
        for length in sorted(lengths, reverse=True)
    ]
    return min(tried, key=cost)


def _filled(example: int, tree: Tree, length: int) -> list[Row]:
    """An example's answers in rows of at most `length` slots, or of one answer."""
    rows: list[Row] = []
    for piece in _alone(example, tree):
        if rows and _slots([*rows[-1], piece]) <= length:
            rows[-1].append(piece)
        else:
            rows.append([piece])
    return rows


def _alone(example: int, tree: Tree) -> Row:
    """Each answer after its own start."""
    return [Piece(example, tree, (index,)) for index in range(len(tree.answers))]


def _slots(row: Row) -> int:
    return sum(piece.slots for piece in row)
