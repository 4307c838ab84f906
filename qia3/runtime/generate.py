"""Generation, and streaming its text.

A token is not a text: its bytes may be half a character, and whether a word begins with a space can depend on the word
before. So new text is the difference between decoding a short window of tokens with and without the new one. It is held
back while it ends in U+FFFD, which stands for an incomplete character. The window begins where the last piece began, so
the cost per token does not grow with the text.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence

from tokenizers import Tokenizer

from qia3.runtime.beams import beam_search
from qia3.runtime.cache import Floats
from qia3.runtime.decoding import GREEDY, Chooser, Decoding
from qia3.runtime.engine import Engine

UNFINISHED = "\ufffd"


def generate(
    engine: Engine,
    prompt: Sequence[int],
    vectors: Mapping[str, Floats],
    max_new_tokens: int,
    stop: Collection[int],
    decoding: Decoding = GREEDY,
) -> Iterator[int]:
    """Token ids, by default greedy, until one of `stop`, the limit, or the end of the context. With beam search they
    all come at the end.
    """
    if decoding.beams > 1:
        yield from beam_search(engine, prompt, vectors, max_new_tokens, stop, decoding)
        return
    choose = Chooser(decoding)
    logits, cache = engine.prefill([prompt], vectors, room=min(max_new_tokens, 256))
    for count in range(1, max_new_tokens + 1):
        token = choose(logits)
        if token in stop:
            return
        yield token
        if count == max_new_tokens or int(cache.lengths[0]) + 1 >= engine.context_length:
            return
        logits, cache = engine.step([token], cache, vectors)


def stream_text(tokenizer: Tokenizer, tokens: Iterable[int]) -> Iterator[str]:
    """The text of `tokens` in pieces, each as soon as it is definite; together they equal decoding all tokens at once."""
    pieces = Pieces(tokenizer)
    for token in tokens:
        if piece := pieces.add(token):
            yield piece
    if rest := pieces.rest():
        yield rest


class Pieces:
    """The text of tokens that come one by one."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        self.window: list[int] = []
        self.shown = 0  # tokens of the window whose text was already returned

    def add(self, token: int) -> str:
        """The text that is definite by now and was not returned yet; may be ""."""
        self.window.append(token)
        piece = self.rest()
        if not piece or piece.endswith(UNFINISHED):
            return ""
        self.window, self.shown = self.window[self.shown :], len(self.window) - self.shown
        return piece

    def rest(self) -> str:
        """The text of the remaining tokens, complete or not."""
        before = self.tokenizer.decode(list(self.window[: self.shown])) if self.shown else ""
        text: str = self.tokenizer.decode(list(self.window))
        return text[len(before) :]
