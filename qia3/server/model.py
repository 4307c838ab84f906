"""A bundle being served: the names it answers to, and jobs made from texts.

Every adapter is a model with its own name; the bundle's name is the base without an adapter. A text is put into the
task's prompt, as in `qia3 run`. With several bundles, models.py decides which one is meant.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

from qia3.bundle.ports import HEAD_WEIGHT
from qia3.bundle.task import Task
from qia3.errors import quoted
from qia3.names import NONE
from qia3.runtime.adapters import AdapterBank
from qia3.runtime.answer import answer_of, beginning, prompt_of, task_of
from qia3.runtime.cache import Floats
from qia3.runtime.encoder import Encoder
from qia3.runtime.load import AnyEngine
from qia3.runtime.tags import words_of
from qia3.server.bodies import BadBody
from qia3.server.chats import Chats, Turn
from qia3.server.shelf import Shelf


class UnknownModel(BadBody):
    """404."""


@dataclass(frozen=True)
class Known:
    """A requested name: its task, its vectors, and the length of its prompts' common prefix."""

    name: str
    task: Task
    vectors: Mapping[str, Floats]
    shared: int


class Model:
    def __init__(self, engine: AnyEngine, shelf: Shelf) -> None:
        self.engine, self.shelf, self.name = engine, shelf, engine.bundle.name
        self._beginnings = lru_cache(4096)(lambda task: len(beginning(engine, task)))
        self.chats = Chats(engine.bundle, lambda: engine.tokens)
        self.embeds = isinstance(engine, Encoder)
        self._base = None if engine.bundle.mode == "merged" else task_of(engine, NONE)
        self._ones = {} if self._base is None else AdapterBank(engine.bundle).vectors(NONE)

    def names(self) -> list[str]:
        """The base first, unless the bundle is merged."""
        base = [] if self._base is None else [self.name]
        return [*base, *(entry.name for entry in self.shelf.listed() if entry.name not in base)]

    def has(self, name: str) -> bool:
        """Whether it answers to a name, as far as is known without reading the folder."""
        return name in self.shelf.entries or (name == self.name and self._base is not None)

    def known(self, name: str) -> Known:
        """The model of this name. Raises UnknownModel, AdapterError for an adapter that does not fit, PlaceError."""
        if self._is_base(name):
            return self._bare(name)  # before the shelf searches its folder
        try:
            return self._known(name, *self.shelf.get(name))
        except KeyError as error:
            raise UnknownModel(f"there is no model {quoted(name)}; available: {shown(self.names())}") from error

    def held(self, name: str) -> Known | None:
        """The model of this name if its vectors are in memory."""
        if self._is_base(name):
            return self._bare(name)
        held = self.shelf.hit(name)
        return None if held is None else self._known(name, *held)

    def _is_base(self, name: str) -> bool:
        return name == self.name and self._base is not None and name not in self.shelf.entries

    def _bare(self, name: str) -> Known:
        assert self._base is not None
        return Known(name, self._base, self._ones, 0)

    def _known(self, name: str, task: Task, vectors: Mapping[str, Floats]) -> Known:
        return Known(name, task, vectors, self._beginnings(replace(task, name=NONE)))

    def prompt(self, known: Known, text: str) -> list[int]:
        return prompt_of(self.engine, known.task, text)

    def chat(self, known: Known, turns: Sequence[Turn]) -> list[int]:
        """Several turns, for tasks with the base's own prompt. Raises BadBody, ConfigError."""
        if len(turns) == 1:
            return self.prompt(known, turns[0]["content"])
        bundle = self.engine.bundle
        if known.task.prompt != f"{bundle.prefix}{{text}}{bundle.suffix}":
            raise BadBody(
                f"{known.name!r} takes one user message in 'messages': its instructions and examples are in its prompt"
            )
        template, text = self.chats.prompt(turns)
        return prompt_of(self.engine, replace(known.task, prompt=template), text)

    def raw(self, text: str) -> list[int]:
        """A text to continue, without a prompt around it."""
        return prompt_of(
            self.engine, replace(self._base or next(iter(self.engine.bundle.tasks.values())), prompt="{text}"), text
        )

    def words(self, known: Known, text: str) -> tuple[list[int], list[int], tuple[str, ...]]:
        """For a task that labels words: the prompt, where each word begins in it, and the words. Raises DataError."""
        given = words_of(text)
        prompt, places = self.engine.tokens.words(known.task.prompt, given)
        return list(prompt), list(places), given

    def choices(self, known: Known, given: Sequence[str]) -> tuple[tuple[str, ...], list[list[int]]]:
        """Answers to rank and their tokens; by default the task's. An encoder has only those of its head. Raises
        BadBody.
        """
        if self.embeds and (given or not (self.engine.bundle.mode == "merged" or HEAD_WEIGHT in known.vectors)):
            raise BadBody(
                f"{known.name!r} has {'fixed labels; leave out choices' if given else 'no labels, only embeddings'}"
            )
        found = tuple(given) or known.task.choices or ()
        if not found:
            raise BadBody(f"{known.name!r} has no choices of its own; give 'choices'")
        if len(set(found)) != len(found) or not all(found) or len(found) < 2:
            raise BadBody("'choices' must be two or more different texts")
        return found, [answer_of(self.engine, known.task, choice) for choice in found]


def shown(names: Sequence[str]) -> str:
    return ", ".join(names[:20]) + (f" and {len(names) - 20} more" if len(names) > 20 else "")
