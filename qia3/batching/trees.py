"""Examples as trees of tokens, and which of them share a row.

A tree is a prompt and its possible answers. The cost of a row is that of its slots: their matrix products, and
attention of each slot to every slot of its row. Products take about 12 h² multiplications per slot and layer (h the
hidden size), attention 2 L h in a row of L slots, and attention runs in float32 at about a third of the products'
speed, so

    cost of R rows of L slots = R L (1 + L / (2 h))

The common prefix of all prompts of a batch (a chat template's first words, an instruction) appears once in each row,
before its trees. With b such tokens a row of pieces of s1, s2, ... slots takes b + (s1 - b) + (s2 - b) + ... of them.

A few long rows waste no padding but compute much that the mask then hides; many short rows do the opposite. `plan`
tries every number of rows, fills them by giving the largest piece to the emptiest row, and keeps the cheapest. No row
exceeds the limit, unless a prompt with one answer does: a tree with more answers than fit is cut into pieces, each with
the whole prompt.

    sizes 60 55 12 10 9, limit 128
    b = 0     one row: 146 slots, too many    two: 2 x 76    three: 3 x 60    -> two rows: 60+10, 55+12+9
    b = 5     one row: 5 + 55 + 50 + 7 + 5 + 4 = 126 slots                    -> one row
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import takewhile


@dataclass(frozen=True)
class Tree:
    """One example: the tokens of its prompt, of each answer (its end token included), and which answer is right.

    `places` are the prompt's tokens that a head labels; the answer then holds the labels' numbers.
    """

    prompt: tuple[int, ...]
    answers: tuple[tuple[int, ...], ...]
    right: int = 0
    places: tuple[int, ...] = ()

    @property
    def longest_path(self) -> int:
        """Tokens from the start of the prompt to the end of the longest answer."""
        return len(self.prompt) + max(map(len, self.answers))


@dataclass(frozen=True)
class Piece:
    """A tree's prompt with some of its answers.

    `example` and `answers` are indices: of the tree in its batch, of answers in the tree.
    """

    example: int
    tree: Tree
    answers: tuple[int, ...]

    @property
    def slots(self) -> int:
        """Tokens that are run; the last of an answer is only predicted."""
        return len(self.tree.prompt) + sum(len(self.tree.answers[a]) - 1 for a in self.answers)


def pieces(trees: Sequence[Tree], limit: int) -> Iterator[Piece]:
    """Whole trees if they fit in `limit` slots, otherwise cut between answers."""
    for example, tree in enumerate(trees):
        held: list[int] = []
        room = limit - len(tree.prompt)
        for index, answer in enumerate(tree.answers):
            if held and len(answer) - 1 > max(room, 0):
                yield Piece(example, tree, tuple(held))
                held, room = [], limit - len(tree.prompt)
            held.append(index)
            room -= len(answer) - 1
        yield Piece(example, tree, tuple(held))


def singles(trees: Sequence[Tree]) -> list[list[Piece]]:
    """The plain batch: every answer has its own row with its own copy of the prompt."""
    return [
        [Piece(example, tree, (index,))] for example, tree in enumerate(trees) for index in range(len(tree.answers))
    ]


def beginning(trees: Sequence[Tree]) -> int:
    """Tokens of the common prefix; without any prompt's last token, after which its answers begin."""
    prompts = [tree.prompt for tree in trees]
    most = max(0, min(map(len, prompts)) - 1)
    columns = zip(*(prompt[:most] for prompt in prompts), strict=True)
    return sum(1 for _ in takewhile(lambda column: len(set(column)) == 1, columns))


def plan(trees: Sequence[Tree], limit: int, hidden_size: int) -> list[list[Piece]]:
    """The cheapest rows of at most `limit` slots each."""
    parts = sorted(pieces(trees, limit), key=lambda p: -p.slots)
    shared, longest = beginning(trees), max(limit, parts[0].slots)
    tried = [_fill(parts, count, shared) for count in range(1, len(parts) + 1)]
    allowed = [rows for rows in tried if _length(rows, shared) <= longest]

    def cost(rows: list[list[Piece]]) -> float:
        length = _length(rows, shared)
        return len(rows) * length * (1 + length / (2 * hidden_size))

    return min(allowed, key=cost)


def _fill(parts: Sequence[Piece], count: int, shared: int) -> list[list[Piece]]:
    """`parts`, largest first, each into the emptiest of `count` rows."""
    rows: list[list[Piece]] = [[] for _ in range(count)]
    used = [shared] * count
    for part in parts:
        emptiest = used.index(min(used))
        rows[emptiest].append(part)
        used[emptiest] += part.slots - shared
    return rows


def _length(rows: Sequence[Sequence[Piece]], shared: int) -> int:
    return max(shared + sum(p.slots - shared for p in row) for row in rows)
