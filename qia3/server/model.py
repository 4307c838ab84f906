"""A bundle that is being served: which names it answers to, and jobs made of texts.

Every adapter is a model, under its own name; the bundle's name is the base without one. A text goes into the task's
prompt, as `qia3 run` has it. Which bundle of several is meant: models.py.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

from qia3.bundle.ports import HEAD_WEIGHT
from qia3.bundle.task import Task
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
    """A name that was asked for: its task, its vectors and where its prompts' common beginning ends."""

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
        """Whether it answers to a name, as far as is known without a look into the folder."""
        return name in self.shelf.entries or (name == self.name and self._base is not None)

    def known(self, name: str) -> Known:
        """Raises UnknownModel, and AdapterError for an adapter that does not fit."""
        if name == self.name and self._base is not None and name not in self.shelf.entries:
            return Known(name, self._base, self._ones, 0)  # before the shelf looks into its folder for it
        try:
            task, vectors = self.shelf.get(name)
        except KeyError as error:
            raise UnknownModel(f"there is no model {name!r}; there are: {shown(self.names())}") from error
        return Known(name, task, vectors, self._beginnings(replace(task, name=NONE)))

    def prompt(self, known: Known, text: str) -> list[int]:
        return prompt_of(self.engine, known.task, text)

    def chat(self, known: Known, turns: Sequence[Turn]) -> list[int]:
        """Several turns, for whoever has the base's own prompt. Raises BadBody, ConfigError."""
        if len(turns) == 1:
            return self.prompt(known, turns[0]["content"])
        bundle = self.engine.bundle
        if known.task.prompt != f"{bundle.prefix}{{text}}{bundle.suffix}":
            raise BadBody(
                f"'messages' is one message of the user for {known.name!r}: its instructions and examples stand in its prompt"
            )
        template, text = self.chats.prompt(turns)
        return prompt_of(self.engine, replace(known.task, prompt=template), text)

    def raw(self, text: str) -> list[int]:
        """A text that is gone on with, without a prompt around it."""
        return prompt_of(
            self.engine, replace(self._base or next(iter(self.engine.bundle.tasks.values())), prompt="{text}"), text
        )

    def words(self, known: Known, text: str) -> tuple[list[int], list[int], tuple[str, ...]]:
        """Of a task that labels words: the prompt, where each word begins in it, and the words. Raises DataError."""
        given = words_of(text)
        prompt, places = self.engine.tokens.words(known.task.prompt, given)
        return list(prompt), list(places), given

    def choices(self, known: Known, given: Sequence[str]) -> tuple[tuple[str, ...], list[list[int]]]:
        """Answers to rank, the task's where none are given, and their tokens. An encoder has those of its head alone.
        Raises BadBody.
        """
        if self.embeds and (given or not (self.engine.bundle.mode == "merged" or HEAD_WEIGHT in known.vectors)):
            raise BadBody(f"{known.name!r} has {'its own labels and no others' if given else 'no labels: it embeds'}")
        found = tuple(given) or known.task.choices or ()
        if not found:
            raise BadBody(f"{known.name!r} has no choices of its own: give 'choices'")
        if len(set(found)) != len(found) or not all(found) or len(found) < 2:
            raise BadBody("'choices' are two or more different texts")
        return found, [answer_of(self.engine, known.task, choice) for choice in found]


def shown(names: Sequence[str]) -> str:
    return ", ".join(names[:20]) + (f" and {len(names) - 20} more" if len(names) > 20 else "")
