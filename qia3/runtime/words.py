"""A bundle's tokenizer, read on first use, and the context that prompts have to fit."""

from __future__ import annotations

from functools import cached_property

from tokenizers import Tokenizer

from qia3.bundle.opened import Bundle
from qia3.errors import QIA3Error
from qia3.runtime.cache import Lengths
from qia3.tokens import Tokens


class Words:
    """The base of every engine: a `bundle`, and the `vocabulary`, the number of its embedding's rows."""

    bundle: Bundle
    vocabulary: int
    context_length: int

    @cached_property
    def tokens(self) -> Tokens:
        """The bundle's tokenizer. Raises BundleError if it cannot be read."""
        return Tokens.read(self.bundle.path / "tokenizer.json", self.vocabulary)

    @property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer that decodes tokens."""
        return self.tokens.tokenizer

    def encode(self, text: str) -> list[int]:
        """Token ids of a user's words: control tokens written in them are text (qia3.tokens)."""
        return list(self.tokens.encode(text))

    def _fitting(self, lengths: Lengths) -> int:
        """The longest length. Raises QIA3Error if it exceeds the context."""
        longest = int(lengths.max())
        if longest > self.context_length:
            raise QIA3Error(
                f"{longest} tokens do not fit the bundle's context of {self.context_length}; shorten the text"
            )
        return longest
