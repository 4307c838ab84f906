"""Greedy generation, and text that appears as it is made."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence

from tokenizers import Tokenizer

from qia3.runtime.engine import Engine, Floats


def generate(
    engine: Engine, prompt: Sequence[int], vectors: Mapping[str, Floats], max_new_tokens: int, stop: Collection[int]
) -> Iterator[int]:
    """Token ids, the likeliest each time, until one of `stop` or the limit."""
    logits, cache = engine.prefill([prompt], vectors)
    for count in range(1, max_new_tokens + 1):
        token = int(logits[0].argmax())
        if token in stop:
            return
        yield token
        if count == max_new_tokens or len(prompt) + count >= engine.bundle.context_length:
            return
        logits, cache = engine.step([token], cache, vectors)


def stream_text(tokenizer: Tokenizer, tokens: Iterable[int]) -> Iterator[str]:
    """The text of `tokens` in pieces, as soon as each is sure: a character split over two tokens waits for the second."""
    ids: list[int] = []
    shown = ""
    for token in tokens:
        ids.append(token)
        text = tokenizer.decode(ids)
        if not text.endswith("\ufffd") and text.startswith(shown) and len(text) > len(shown):
            yield text[len(shown) :]
            shown = text
    rest = tokenizer.decode(ids) if ids else ""
    if len(rest) > len(shown):
        yield rest[len(shown) :]
