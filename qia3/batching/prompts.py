"""The parts of a prompt: what a base needs around a user's words, demonstrations, and the question. qia3.train.prompts
finds the text around them in a base's chat template.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Wrapping:
    """The text and tokens that a base needs around a user's words.

    `end` is the text of the token that ends an answer, `stop_tokens` all ids that do. `start` are the ids that precede
    an encoder-decoder's answer in its decoder; a decoder's answer follows its prompt. `headed`: the base is an encoder,
    whose answers are labels of a head, not tokens.
    """

    prefix: str
    suffix: str
    end: str
    stop_tokens: tuple[int, ...]
    warnings: tuple[str, ...] = field(default=(), compare=False)
    start: tuple[int, ...] = ()
    headed: bool = False

    def room(self, limit: int, answer: int) -> int:
        """Tokens left for a prompt if `limit` applies to prompt and answer together. In an encoder-decoder it applies
        to each, and there is no room if the answer exceeds it.
        """
        if self.headed:
            return limit
        if not self.start:
            return limit - answer
        return limit if len(self.start) + answer <= limit else 0


def ask(wrap: Wrapping, prompt: str, shown: Sequence[str] = ()) -> str:
    """The whole prompt, still with {text}: demonstrations, then the question, inside the base's chat template."""
    return f"{wrap.prefix}{''.join(shown)}{prompt}{wrap.suffix}"


def demonstration(prompt: str, text: str, answer: str) -> str:
    """One example as shown in a prompt before the question."""
    return f"{prompt.replace('{text}', text)} {answer}\n\n"
