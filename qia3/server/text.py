"""The text of an answer as it is generated: in definite pieces, up to the first stop string.

A stop string may arrive in several pieces, so anything that could be the beginning of one is held back:

stop "\\n\\n" pieces "yes" "\\n" "\\nno" returned "yes" "" "" and the end
"""

from __future__ import annotations

from collections.abc import Sequence

from tokenizers import Tokenizer

from qia3.runtime.generate import Pieces


class Text:
    """`stopped` once a stop string has appeared; it and what follows are not returned."""

    def __init__(self, tokenizer: Tokenizer, stops: Sequence[str] = ()) -> None:
        self.pieces, self.stops = Pieces(tokenizer), tuple(stops)
        self.held, self.stopped = "", False

    def add(self, token: int) -> str:
        return "" if self.stopped else self._until(self.pieces.add(token))

    def rest(self) -> str:
        """The text that was held back, once no stop string can follow."""
        if self.stopped:
            return ""
        given = self._until(self.pieces.rest())
        return given if self.stopped else given + self.held

    def _until(self, piece: str) -> str:
        text = self.held + piece
        found = [at for stop in self.stops if (at := text.find(stop)) >= 0]
        if found:
            self.stopped, self.held = True, ""
            return text[: min(found)]
        kept = max((_beginning(text, stop) for stop in self.stops), default=0)
        self.held = text[len(text) - kept :]
        return text[: len(text) - kept]


def _beginning(text: str, stop: str) -> int:
    """The length of the longest suffix of `text` that is a prefix of `stop`."""
    return next((n for n in range(min(len(stop) - 1, len(text)), 0, -1) if text.endswith(stop[:n])), 0)
