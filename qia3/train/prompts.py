r"""From a task's words to token ids.

The prompt that trains is stored in the bundle and is the prompt that the device fills in.

A chat base's template is rendered once, around a mark, at build time: what stands before the mark and after it is all
that the device needs, so it runs no template engine. The answer starts right after the prompt and ends with the token
that ends a turn:

    <|im_start|>user\n{text}<|im_end|>\n<|im_start|>assistant\n  +  lights  +  <|im_end|>
    prefix                  suffix                                 answer     end

Demonstrations, where a task shows some, stand in the user's turn before the question: "Which? lamp on lights\n\nWhich?
play a song music\n\n".
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

MARK = "\u0001text\u0001"


@dataclass(frozen=True)
class Wrapping:
    """What a base puts around a user's words.

    `end` is the text of the token that ends an answer, `stop_tokens` every id that does.
    """

    prefix: str
    suffix: str
    end: str
    stop_tokens: tuple[int, ...]


def wrapping(tokenizer: Any, generation_config: Any, chat: bool) -> Wrapping:
    """The base's chat template around a user's words; without a template (or chat=False), its beginning-of-text token
    and a space after.
    """
    end = tokenizer.eos_token or ""
    configured = getattr(generation_config, "eos_token_id", None)
    stops = [configured] if isinstance(configured, int) else list(configured or [])
    if tokenizer.eos_token_id is not None:
        stops.append(tokenizer.eos_token_id)
    if chat and tokenizer.chat_template:
        prefix, suffix = _render(tokenizer).split(MARK)
    else:
        with_special, bare = tokenizer.encode("a"), tokenizer.encode("a", add_special_tokens=False)
        begins = tokenizer.bos_token or ""
        prefix, suffix = (
            (begins if begins and with_special != bare and with_special[0] == tokenizer.bos_token_id else ""),
            "",
        )
    return Wrapping(prefix, suffix, end, tuple(dict.fromkeys(stops)))


def _render(tokenizer: Any) -> str:
    """The template around the mark, with an empty system turn where the template takes one: a default persona costs
    tokens every time.
    """
    user = {"role": "user", "content": MARK}
    for messages in ([{"role": "system", "content": ""}, user], [user]):
        try:
            text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        except Exception:  # templates raise what they like on a system turn
            continue
        if isinstance(text, str) and text.count(MARK) == 1:
            return text
    raise ValueError("the base's chat template changes the user's words; set chat = false for this task")


def ask(wrap: Wrapping, prompt: str, shown: Sequence[str] = ()) -> str:
    """The whole prompt, still holding {text}: demonstrations, then the question, inside the base's chat template."""
    return f"{wrap.prefix}{''.join(shown)}{prompt}{wrap.suffix}"


def demonstration(prompt: str, text: str, answer: str) -> str:
    """One example as it stands in a prompt before the question."""
    return f"{prompt.replace('{text}', text)} {answer}\n\n"
