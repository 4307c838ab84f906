"""What one adapter is trained on: the examples of one or more tasks, each turned into a tree of tokens whenever its
turn comes.

A task may have several prompts, of which one is drawn each time, and may show `shots` other examples before the
question, drawn too. The draw takes a random generator of the step's own, so step 700 is the same whether the run began
at 0 or at 690.

Where wrong answers count, a step compares the right answer with at most `at_most` - 1 of them, drawn anew each time:
what a step costs must not grow with a task's labels. What is ranked (validation, tests) has them all.

The device encodes prompt and answer apart, by qia3.tokens, and so does this. What is longer than `max_length` loses
demonstrations first, then the end of the user's words, never the instruction and never the answer. In an
encoder-decoder `max_length` bounds the prompt and the answer each.
"""

from __future__ import annotations

import random
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from qia3.batching.prompts import Wrapping, ask, demonstration
from qia3.batching.trees import Tree
from qia3.config import Task
from qia3.errors import ConfigError
from qia3.examples import Example
from qia3.tokens import SLOT, Tokens

KEPT = 1 << 14  # texts whose tokens are kept


@dataclass(frozen=True)
class Source:
    """Examples of one task.

    `prompts` hold {text} once; `question` is the one that is not drawn: for validation and for the bundle.

    `unshown`: places of examples whose words hold control tokens. A demonstration is a part of the template, where they
    would be what they spell.
    """

    prompts: tuple[str, ...]
    question: str
    wrap: Wrapping
    examples: tuple[Example, ...]
    choices: tuple[str, ...] | None
    unshown: frozenset[int] = frozenset()

    def on_device(self, shots: int, seed: int) -> str:
        """The prompt that the device fills in, holding {text}, with its demonstrations in it: the same ones for every
        question.
        """
        return ask(self.wrap, self.question, self.demonstrations(self.question, shots, random.Random(seed)))

    def demonstrations(self, prompt: str, count: int, draw: random.Random, without: int | None = None) -> list[str]:
        """`count` examples, or as many as there are, drawn without the one that is asked.

        A text that holds {text} cannot be shown, nor one of `unshown`.
        """
        able = [
            i
            for i, e in enumerate(self.examples)
            if i != without and i not in self.unshown and SLOT not in e.text + e.answer
        ]
        picked = draw.sample(able, min(count, len(able)))
        return [demonstration(prompt, self.examples[i].text, self.examples[i].answer) for i in picked]


def source_of(tokens: Tokens, wrap: Wrapping, task: Task, examples: tuple[Example, ...], choices: Any) -> Source:
    """Examples of a task of the build file. A demonstration is encoded as a part of the template."""

    def shows(prompt: str, e: Example) -> bool:
        words, answer = demonstration(prompt, SLOT, e.answer), demonstration(prompt, e.text, SLOT)
        return tokens.plain(words, e.text) and tokens.plain(answer, e.answer)

    asked = {*task.prompts, task.question} if task.shots else ()
    unshown = frozenset(i for i, e in enumerate(examples) if not all(shows(prompt, e) for prompt in asked))
    return Source(task.prompts, task.question, wrap, examples, choices, unshown)


class Examples:
    """All examples of an adapter's training, by index.

    `ranked`: wrong answers are encoded too, for the losses that need them.

    `at_most`: answers of a tree that is drawn; None for all. `labels`: of an encoder's head, whose answers are numbers.
    """

    def __init__(
        self,
        tokens: Tokens,
        sources: Sequence[Source],
        max_length: int,
        ranked: bool = False,
        shots: int = 0,
        at_most: int | None = None,
        labels: Sequence[str] | None = None,
    ) -> None:
        self.sources, self.max_length, self.ranked, self.shots, self.at_most = (
            sources,
            max_length,
            ranked,
            shots,
            at_most,
        )
        self.places = [(source, i) for source in sources for i in range(len(source.examples))]
        self.answer = tokens.answer if labels is None else lambda text, end: (labels.index(text),)
        self.labels = tuple(labels or ())
        self.encoded = lru_cache(KEPT)(tokens.prompt)
        self.placed = lru_cache(KEPT)(tokens.words)
        self.fitting = lru_cache(KEPT)(tokens.fitting)

    def __len__(self) -> int:
        return len(self.places)

    def tree(self, index: int, draw: random.Random | None = None) -> Tree:
        """The example's tree, with a drawn prompt and drawn demonstrations; without `draw`, with the question and the
        same ones each time.
        """
        source, place = self.places[index]
        prompt = source.question if draw is None else draw.choice(source.prompts)
        shown = source.demonstrations(prompt, self.shots, draw or random.Random(place), place) if self.shots else []
        example = source.examples[place]
        if example.words:
            return self._tagged(source.wrap, prompt, example)
        answers, right = self._answers(source, example)
        if draw is not None and self.at_most is not None and len(answers) > self.at_most:
            wrong = draw.sample([i for i in range(len(answers)) if i != right], self.at_most - 1)
            kept = sorted([right, *wrong])
            answers, right = tuple(answers[i] for i in kept), kept.index(right)
        room = source.wrap.room(self.max_length, max(map(len, answers)))
        return Tree(self._prompt(source.wrap, prompt, example.text, shown, room), answers, right)

    def _tagged(self, wrap: Wrapping, prompt: str, example: Example) -> Tree:
        """Each word's label, at its first token; of as many words as fit."""
        template, words = ask(wrap, prompt), example.words
        counts = range(1, len(words) + 1)
        fitting = bisect_right(counts, self.max_length, key=lambda n: len(self.placed(template, words[:n])[0]))
        if not fitting:
            raise ConfigError(f"max_length = {self.max_length} has no room for the prompt and a word: {prompt!r}")
        ids, places = self.placed(template, words[:fitting])
        return Tree(ids, (tuple(map(self.labels.index, example.tags[:fitting])),), places=places)

    def longest_path(self) -> int:
        """Tokens of the longest tree's longest path, at most; with demonstrations, the limit. An encoder-decoder's
        paths are those of its decoder.
        """
        if self.shots:
            return self.max_length
        longest = 1
        for source, place in self.places:
            example = source.examples[place]
            answer = max(len(a) for a in self._answers(source, example)[0])
            room = source.wrap.room(self.max_length, answer)
            prompt = max(
                len(self._prompt(source.wrap, p, example.text, [], room)) for p in {*source.prompts, source.question}
            )
            longest = max(longest, (len(source.wrap.start) or prompt) + answer)
        return min(longest, self.max_length)

    def _answers(self, source: Source, example: Example) -> tuple[tuple[tuple[int, ...], ...], int]:
        """Tokens of the answers, and which is right. Of several right ones the first stands for all."""
        choices = (example.choices or source.choices) if self.ranked else None
        texts = tuple(c for c in choices or (example.answer,) if c not in example.also)
        return tuple(self.answer(text, source.wrap.end) for text in texts), texts.index(example.answer)

    def _prompt(self, wrap: Wrapping, prompt: str, text: str, shown: Sequence[str], room: int) -> tuple[int, ...]:
        """With as many demonstrations as fit in `room`; else with as much of the words as fits."""
        for first in range(len(shown) + 1):
            ids = self.encoded(ask(wrap, prompt, shown[first:]), text)
            if len(ids) <= room:
                return ids
        words = self.fitting(ask(wrap, prompt), text, room) if room > 0 else None
        if words is None:
            raise ConfigError(f"max_length = {self.max_length} has no room for the prompt and an answer: {prompt!r}")
        return self.encoded(ask(wrap, prompt), words)
