r"""From a task's words to token ids.

The prompt used in training is stored in the bundle, and the device fills in the same one.

A chat base's template is rendered once, around a marker, at build time. What comes before and after the marker is all
that the device needs, so it runs no template engine. The answer starts right after the prompt and ends with the token
that ends a turn:

    <|im_start|>user\n{text}<|im_end|>\n<|im_start|>assistant\n  +  lights  +  <|im_end|>
    prefix                  suffix                                 answer     end

An encoder-decoder reads the prompt in its encoder, with whatever its tokenizer adds around a text, and answers in its
decoder, which starts with its own token:

    {text}</s>                                                     <pad>  +  lights  +  </s>
    prefix "", suffix "</s>"                                       start     answer     end

Demonstrations, if a task shows any, come before the question in the user's turn: "Which? lamp on lights\n\nWhich? play
a song music\n\n".
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from qia3.batching.prompts import Wrapping
from qia3.errors import ConfigError
from qia3.tokens import Tokens
from qia3.train.template import render


def wrapping(
    tokenizer: Any,
    generation_config: Any,
    chat: bool,
    end: str | None = None,
    questions: Sequence[str] = (),
    start: tuple[int, ...] = (),
    reads: bool = False,
) -> Wrapping:
    """The base's chat template around a user's words. Without a template (or with chat=False): its beginning-of-text
    token, or, for an encoder, everything that its tokenizer adds.

    `end` ends answers instead of the base's end-of-text token; the template is tried on `questions`; `start` is what an
    encoder-decoder's decoder starts with (qia3.base.start); `reads`: the base is an encoder alone. Raises ConfigError
    if the template cannot be used.
    """
    if reads:
        return Wrapping(*_around(tokenizer), "", (), headed=True)
    stops = [*([] if end is None else [tokenizer.convert_tokens_to_ids(end)]), *configured_stops(generation_config)]
    if tokenizer.eos_token_id is not None:
        stops.append(tokenizer.eos_token_id)
    warnings: tuple[str, ...] = ()
    if chat and tokenizer.chat_template:
        template = render(tokenizer, questions)
        prefix, suffix, warnings = template.prefix, template.suffix, template.warnings
    elif start:
        prefix, suffix = _around(tokenizer)
    else:
        with_special, bare = tokenizer.encode("a"), tokenizer.encode("a", add_special_tokens=False)
        begins = tokenizer.bos_token or ""
        added = begins and with_special != bare and with_special[0] == tokenizer.bos_token_id
        prefix, suffix = begins if added else "", ""
    ending = (tokenizer.eos_token or "") if end is None else end
    return Wrapping(prefix, suffix, ending, tuple(dict.fromkeys(stops)), warnings, start)


def _around(tokenizer: Any) -> tuple[str, str]:
    """The texts of the tokens that a tokenizer adds before and after any text."""
    whole, bare = tokenizer.encode("a"), tokenizer.encode("a", add_special_tokens=False)
    ahead = next(n for n in range(len(whole)) if whole[n : n + len(bare)] == bare)
    before, after = whole[:ahead], whole[ahead + len(bare) :]
    return tuple("".join(tokenizer.convert_ids_to_tokens(part)) for part in (before, after))  # type: ignore[return-value]


def configured_stops(generation_config: Any) -> list[int]:
    """The ids that end a text, by the base's configuration."""
    configured = getattr(generation_config, "eos_token_id", None)
    return [configured] if isinstance(configured, int) else list(configured or [])


def check_end(tokens: Tokens, end: str, known: bool, task: str) -> None:
    """Checks that an answer ends with one control token that the base has an embedding for and that a file names.

    `known`: it is named by the build file, the base's tokenizer files or its configuration. Raises ConfigError.
    """
    found = tokens.control_token(end) if end else None
    if found is None:
        what = f"{end!r}, its end token, is not one control token of its tokenizer" if end else "it names no end token"
    elif tokens.rows is not None and found >= tokens.rows:
        what = f"{end!r}, its end token, has id {found}, but the base has {tokens.rows} embeddings"
    elif not known:
        what = f"none of its files names an end token ({end!r} is the library's guess)"
    else:
        return
    raise ConfigError(
        f"task {task!r} does not know where an answer of this base ends: {what}; "
        f'set end = "..." in the [[task]], or eos_token in its tokenizer_config.json{_ends(tokens)}'
    )


def _ends(tokens: Tokens) -> str:
    rows = tokens.rows or 1 << 62
    known = [repr(text) for i, text in sorted(tokens.control.items()) if i < rows]
    return f" (its control tokens: {', '.join(known[:8])}{', ...' if known[8:] else ''})" if known else ""
