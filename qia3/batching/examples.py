"""What one adapter is trained on: the examples of one or more tasks, each turned into a tree of tokens when its turn
comes.

A task may have several prompts, one of which is drawn each time, and may show `shots` other examples before the
question, also drawn. Each step has its own random generator, so step 700 is the same whether the run started at 0 or
resumed at 690.

If wrong answers count, a step compares the right answer with at most `at_most` - 1 of them, drawn anew each time, so
that the cost of a step does not grow with the number of labels. Validation and tests rank all of them.

The device encodes prompt and answer separately, with qia3.tokens, and so does this. A text longer than `max_length`
loses demonstrations first, then the end of the user's words; never the instruction or the answer. In an encoder-decoder
`max_length` limits prompt and answer separately.
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

KEPT = 1 << 14  # texts whose tokens are cached


@dataclass(frozen=True)
class Source:
    """Examples of one task.

    `prompts` contain {text} once; `question` is the fixed one, for validation and for the bundle.

    `unshown`: indices of examples whose words contain control tokens. A demonstration is part of the template, where
    they would act as control tokens.
    """

    prompts: tuple[str, ...]
    question: str
    wrap: Wrapping
    examples: tuple[Example, ...]
    choices: tuple[str, ...] | None
    unshown: frozenset[int] = frozenset()

    def on_device(self, shots: int, seed: int) -> str:
        """The prompt that the device fills in, containing {text}, with its demonstrations: the same ones for every
        question.
        """
        return ask(self.wrap, self.question, self.demonstrations(self.question, shots, random.Random(seed)))

    def demonstrations(self, prompt: str, count: int, draw: random.Random, without: int | None = None) -> list[str]:
        """`count` examples, or as many as there are, drawn without the one that is asked.

        A text that contains {text} cannot be shown, nor one in `unshown`.
        """
        able = [
            i
            for i, e in enumerate(self.examples)
            if i != without and i not in self.unshown and SLOT not in e.text + e.answer
        ]
        picked = draw.sample(able, min(count, len(able)))
        return [demonstration(prompt, self.examples[i].text, self.examples[i].answer) for i in picked]


def source_of(tokens: Tokens, wrap: Wrapping, task: Task, examples: tuple[Example, ...], choices: Any) -> Source:
    """A source from a task of the build file. A demonstration is encoded as part of the template."""

    def shows(prompt: str, e: Example) -> bool:
        words, answer = demonstration(prompt, SLOT, e.answer), demonstration(prompt, e.text, SLOT)
        return tokens.plain(words, e.text) and tokens.plain(answer, e.answer)

    asked = {*task.prompts, task.question} if task.shots else ()
    unshown = frozenset(i for i, e in enumerate(examples) if not all(shows(prompt, e) for prompt in asked))
    return Source(task.prompts, task.question, wrap, examples, choices, unshown)


class Examples:
    """All examples of an adapter's training, by index.

    `ranked`: also encode wrong answers, for the losses that need them.

    `at_most`: maximum answers of a drawn tree; None for all. `labels`: those of an encoder's head, whose answers are
    numbers.
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
        """The example's tree, with a drawn prompt and drawn demonstrations; without `draw`, with the fixed question and
        fixed demonstrations.
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
        """A tree with each word's label at its first token, for as many words as fit."""
        template, words = ask(wrap, prompt), example.words
        counts = range(1, len(words) + 1)
        fitting = bisect_right(counts, self.max_length, key=lambda n: len(self.placed(template, words[:n])[0]))
        if not fitting:
            raise ConfigError(
                f"max_length = {self.max_length} leaves no room for a word after the prompt {prompt!r}; raise it "
                "in [train]"
            )
        ids, places = self.placed(template, words[:fitting])
        return Tree(ids, (tuple(map(self.labels.index, example.tags[:fitting])),), places=places)

    def longest_path(self) -> int:
        """Upper bound on the tokens of any tree's longest path; with demonstrations, the limit. In an encoder-decoder,
        paths are those of the decoder.
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
        """Tokens of the answers, and the index of the right one. The first of several right ones represents them."""
        choices = (example.choices or source.choices) if self.ranked else None
        texts = tuple(c for c in choices or (example.answer,) if c not in example.also)
        return tuple(self.answer(text, source.wrap.end) for text in texts), texts.index(example.answer)

    def _prompt(self, wrap: Wrapping, prompt: str, text: str, shown: Sequence[str], room: int) -> tuple[int, ...]:
        """The prompt with as many demonstrations as fit in `room`; if none do, with as much of the words as fits."""
        for first in range(len(shown) + 1):
            ids = self.encoded(ask(wrap, prompt, shown[first:]), text)
            if len(ids) <= room:
                return ids
        words = self.fitting(ask(wrap, prompt), text, room) if room > 0 else None
        if words is None:
            raise ConfigError(
                f"max_length = {self.max_length} leaves no room for an answer after the prompt {prompt!r}; raise "
                "it in [train]"
            )
        return self.encoded(ask(wrap, prompt), words)
