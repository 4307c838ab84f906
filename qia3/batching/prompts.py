"""The parts that a prompt is made of: what a base puts around a user's words, demonstrations, and the question. Where a
base's template comes from: qia3.train.prompts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Wrapping:
    """What a base puts around a user's words.

    `end` is the text of the token that ends an answer, `stop_tokens` every id that does. `start` are the ids that an
    encoder-decoder's answer stands behind in its decoder; a decoder's stands behind its prompt. `headed`: the base is an
    encoder, whose answers are labels of a head and no tokens.
    """

    prefix: str
    suffix: str
    end: str
    stop_tokens: tuple[int, ...]
    warnings: tuple[str, ...] = field(default=(), compare=False)
    start: tuple[int, ...] = ()
    headed: bool = False

    def room(self, limit: int, answer: int) -> int:
        """Tokens left for a prompt where `limit` bounds prompt and answer together; in an encoder-decoder, each of the
        two, and there is no room where the answer takes more.
        """
        if self.headed:
            return limit
        if not self.start:
            return limit - answer
        return limit if len(self.start) + answer <= limit else 0


def ask(wrap: Wrapping, prompt: str, shown: Sequence[str] = ()) -> str:
    """The whole prompt, still holding {text}: demonstrations, then the question, inside the base's chat template."""
    return f"{wrap.prefix}{''.join(shown)}{prompt}{wrap.suffix}"


def demonstration(prompt: str, text: str, answer: str) -> str:
    """One example as it stands in a prompt before the question."""
    return f"{prompt.replace('{text}', text)} {answer}\n\n"
