"""Several turns of a chat, through the chat template of a bundle's tokenizer (tokenizer_config.json).

A bundle was built with the prompt of one turn: a prefix, the user's words, a suffix. For several turns, the template is
only used if it gives exactly that prompt for one turn, with or without an empty system turn. The last user message
stands for {text} and stays plain text, whatever it contains. Earlier messages are part of what the template renders, so
one that spells a control token is refused: it would become a real one. A template comes with a bundle and is a
program, so it runs with limits on time and memory (qia3/bounded.py).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NoReturn

from qia3.bounded import bounded
from qia3.bundle.opened import Bundle
from qia3.errors import BundleError, ConfigError, first_line
from qia3.parse import each_once, read_json_table
from qia3.tokens import SLOT, Tokens

CONFIG = "tokenizer_config.json"
Turn = Mapping[str, str]


@dataclass(frozen=True)
class Template:
    """`opening`: turns that are put before a conversation without a system turn."""

    render: Callable[[Sequence[Turn]], str]
    opening: tuple[Turn, ...]


class Chats:
    def __init__(self, bundle: Bundle, tokens: Callable[[], Tokens]) -> None:
        self.bundle, self._tokens = bundle, tokens

    def prompt(self, turns: Sequence[Turn]) -> tuple[str, str]:
        """A prompt with {text}, and the words of the last turn, which is the user's. Raises ConfigError if that fails."""
        template, last = self.template, turns[-1]["content"]
        controls = [*self._tokens().control.values(), SLOT]
        spelt = [text for turn in turns[:-1] for text in controls if text in turn["content"]]
        if spelt:
            raise ConfigError(
                f"a message before the last one contains {spelt[0]!r}, which would become a control token; remove it"
            )
        before = () if turns[0]["role"] == "system" else template.opening
        try:
            text = template.render([*before, *turns[:-1], {"role": "user", "content": SLOT}])
        except ValueError as error:
            raise ConfigError(f"the bundle's chat template refuses these messages: {first_line(error)}") from error
        if text.count(SLOT) != 1:
            raise ConfigError("the bundle's chat template changes the last message")
        return text, last

    @cached_property
    def template(self) -> Template:
        """The bundle's template. Raises ConfigError if it has none, or was built with another prompt."""
        try:
            table = read_json_table(self.bundle.path / CONFIG, BundleError, "", pairs=each_once)
        except BundleError:
            table = {}
        source = table.get("chat_template")
        if not isinstance(source, str):
            raise ConfigError(f"{self.bundle.name!r} has no chat template: send one user message only")
        render = _renderer(source, {k: v for k, v in table.items() if k.endswith("_token") and isinstance(v, str)})
        own = f"{self.bundle.prefix}{SLOT}{self.bundle.suffix}"
        asked = {"role": "user", "content": SLOT}
        for opening in ((), ({"role": "system", "content": ""},)):
            try:
                if render([*opening, asked]) == own:
                    return Template(render, opening)
            except ValueError:  # some refuse a system turn
                continue
        raise ConfigError(
            f"{self.bundle.name!r} was built with a prompt that differs from its chat template: send one user "
            "message only"
        )


def _renderer(source: str, special: Mapping[str, str]) -> Callable[[Sequence[Turn]], str]:
    """Renders a template as transformers does: in a sandbox, with the same few names. It is also compiled with limits, as
    jinja computes constant expressions then. The result raises ValueError, in one line, whatever the template raises.
    """
    try:
        from jinja2.ext import loopcontrols
        from jinja2.sandbox import ImmutableSandboxedEnvironment
    except ModuleNotFoundError as error:
        raise ConfigError("several messages need jinja2: pip install 'qia3[serve]'") from error
    made = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols])
    made.filters["tojson"] = lambda value, **more: json.dumps(value, ensure_ascii=False, **more)
    made.globals |= {"raise_exception": _refuse}

    def render(turns: Sequence[Turn]) -> str:
        names = {"messages": list(turns), "add_generation_prompt": True, **special}
        return str(bounded(lambda: made.from_string(source).render(names)))

    return render


def _refuse(message: Any) -> NoReturn:
    raise ConfigError(str(message))
