"""Several turns of a chat, through the chat template that a bundle's tokenizer brings (tokenizer_config.json).

A bundle was built with the prompt of one turn: a prefix, the user's words, a suffix. A template is used for more turns only
where it gives that very prompt for one, with an empty system turn or without: then what comes before is rendered as it
would have been. The last words of the user stand for {text} and stay text, whatever is in them. Earlier words are part of
what the template writes, so a control token that is spelt in them is refused: there it would be one.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NoReturn

from qia3.bundle.opened import Bundle
from qia3.errors import BundleError, ConfigError, first_line
from qia3.parse import each_once, read_json_table
from qia3.tokens import SLOT, Tokens

CONFIG = "tokenizer_config.json"
Turn = Mapping[str, str]


@dataclass(frozen=True)
class Template:
    """`opening`: turns that stand before a conversation without a system turn."""

    render: Callable[[Sequence[Turn]], str]
    opening: tuple[Turn, ...]


class Chats:
    def __init__(self, bundle: Bundle, tokens: Callable[[], Tokens]) -> None:
        self.bundle, self._tokens = bundle, tokens

    def prompt(self, turns: Sequence[Turn]) -> tuple[str, str]:
        """A prompt with {text}, and the words of the last turn, which is the user's. Raises ConfigError."""
        template, last = self.template, turns[-1]["content"]
        controls = [*self._tokens().control.values(), SLOT]
        spelt = [text for turn in turns[:-1] for text in controls if text in turn["content"]]
        if spelt:
            raise ConfigError(f"a message before the last one spells {spelt[0]!r}, which would be more than text there")
        before = () if turns[0]["role"] == "system" else template.opening
        try:
            text = template.render([*before, *turns[:-1], {"role": "user", "content": SLOT}])
        except Exception as error:  # templates raise what they like
            raise ConfigError(f"the bundle's chat template refuses these messages: {first_line(error)}") from error
        if text.count(SLOT) != 1:
            raise ConfigError("the bundle's chat template does not leave the last message as it is")
        return text, last

    @cached_property
    def template(self) -> Template:
        """Raises ConfigError where the bundle has none, or one that is not what it was built with."""
        try:
            table = read_json_table(self.bundle.path / CONFIG, BundleError, "", pairs=each_once)
        except BundleError:
            table = {}
        source = table.get("chat_template")
        if not isinstance(source, str):
            raise ConfigError(f"{self.bundle.name!r} has no chat template: send one message of the user")
        render = _compiled(source, {k: v for k, v in table.items() if k.endswith("_token") and isinstance(v, str)})
        own = f"{self.bundle.prefix}{SLOT}{self.bundle.suffix}"
        asked = {"role": "user", "content": SLOT}
        for opening in ((), ({"role": "system", "content": ""},)):
            try:
                if render([*opening, asked]) == own:
                    return Template(render, opening)
            except Exception:  # some refuse a system turn
                continue
        raise ConfigError(
            f"{self.bundle.name!r} was built with another prompt than its chat template's: send one message"
        )


def _compiled(source: str, special: Mapping[str, str]) -> Callable[[Sequence[Turn]], str]:
    """As transformers compiles one: in a sandbox, with its few names."""
    try:
        from jinja2.ext import loopcontrols
        from jinja2.sandbox import ImmutableSandboxedEnvironment
    except ModuleNotFoundError as error:
        raise ConfigError("several messages need jinja2: pip install 'qia3[serve]'") from error
    made = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols])
    made.filters["tojson"] = lambda value, **more: json.dumps(value, ensure_ascii=False, **more)
    made.globals |= {"raise_exception": _refuse}
    template = made.from_string(source)
    return lambda turns: template.render(messages=list(turns), add_generation_prompt=True, **special)


def _refuse(message: Any) -> NoReturn:
    raise ConfigError(str(message))
