"""Compares a tokenizer's ids with the embedding's rows. Tokens that were added after training, to a model that was
never resized, have no row; reading one would give arbitrary numbers.

More rows than tokens are common (vocabularies padded to a multiple of 64) and harmless. Tokens beyond the rows are not:

    of the vocabulary, or added without being a control token    ordinary text contains them: refused
    in the chat template, or the token that begins or ends text  every prompt or answer contains them: refused
    other control tokens (Gemma 3's <image_soft_token>)          only their own name produces them: reported here, and a prompt
                                                                 with one is refused when it is read (tokens.py)
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import Any

from qia3.bounded import bounded
from qia3.errors import BaseModelError
from qia3.progress import say
from qia3.tokens import is_control

LISTED = 8


def check_ids(tokenizer: Any, rows: int) -> None:
    """Raises BaseModelError if prompts can contain tokens that have no row."""
    beyond = {i: token for token, i in tokenizer.get_vocab().items() if i >= rows}
    if not beyond:
        return
    added = tokenizer.added_tokens_decoder
    ordinary = {i for i in beyond if i not in added or not is_control(added[i].content, added[i].special)}
    used = _always_used(tokenizer) & beyond.keys()
    if ordinary or used:
        names = _named(beyond[i] for i in sorted(ordinary | used))
        why = "its chat template, start or end uses them" if used else "ordinary text contains them"
        raise BaseModelError(
            f"the tokenizer has tokens beyond the embedding's {rows} rows ({names}), and {why}: the model was not "
            "resized for this tokenizer; use the tokenizer that it was trained with"
        )
    say(f"{len(beyond)} tokens are beyond the embedding's {rows} rows and cannot be used: {_named(beyond.values())}")


def _always_used(tokenizer: Any) -> set[int]:
    """Ids of the tokens that begin and end a text, and of a short chat. Template errors are reported elsewhere."""
    ids = {tokenizer.bos_token_id, tokenizer.eos_token_id, *tokenizer.encode("a")}
    if tokenizer.chat_template:
        chat = [
            {"role": "user", "content": "a"},
            {"role": "assistant", "content": "a"},
            {"role": "user", "content": "a"},
        ]
        for messages in (chat, chat[:1]):
            try:
                text = bounded(partial(_rendered, tokenizer, messages))
                ids |= set(tokenizer.encode(text, add_special_tokens=False))
            except Exception:  # templates can raise anything
                continue
    return {i for i in ids if isinstance(i, int)}


def _rendered(tokenizer: Any, messages: list[dict[str, str]]) -> Any:
    return tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)


def _named(tokens: Iterable[str]) -> str:
    names = list(tokens)
    return ", ".join(map(repr, names[:LISTED])) + (f" and {len(names) - LISTED} more" if len(names) > LISTED else "")
