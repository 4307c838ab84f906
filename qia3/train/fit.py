"""Measures every line of a task's files before anything is loaded: does it fit the context, and training's limit?

A line fits the context if prompt and longest answer do; the answer's last token is predicted but never read:

    prompt tokens + longest answer's tokens - 1 <= context

An encoder-decoder has two contexts: the prompt in its encoder, and the answer after a start token in its decoder.

    prompt tokens <= context        start tokens + longest answer's tokens - 1 <= context

A line that does not fit is refused with its file and number, or, if the task says `overlong = "cut"`, loses the end of
its words; instruction, template and answer stay complete. `max_length`, which limits the cost of a training step, cuts
in the same way during training and is only counted here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from qia3.batching.data import Data
from qia3.batching.examples import source_of
from qia3.batching.prompts import Wrapping, ask
from qia3.bundle.task import TAGS
from qia3.config import Task
from qia3.errors import ConfigError, DataError, quoted
from qia3.examples import Example, listed
from qia3.progress import say
from qia3.recipe import Train
from qia3.tokens import Tokens


def fitted(
    task: Task, data: Data, tokens: Tokens, wrap: Wrapping, settings: Sequence[Train], seed: int, context: int
) -> Data:
    """The data, with lines cut if the task says so. Raises DataError with each line that does not fit.

    `settings`: those of every training that uses the task's examples.
    """
    drawn = [ask(wrap, prompt) for prompt in dict.fromkeys((*task.prompts, task.question))]
    _check_templates(task, drawn, tokens)
    ruler = _Ruler(task, data, tokens, wrap, context)
    train = ruler.fitted(data.train, drawn)
    validation = ruler.fitted(data.validation, drawn[-1:])
    own = source_of(tokens, wrap, task, train, data.choices)
    test = ruler.fitted(data.test, [own.on_device(task.shots, seed)])
    ruler.tell()
    _count_cut(ruler, train, drawn, settings)
    return replace(data, train=train, validation=validation, test=test)


def _check_templates(task: Task, templates: Sequence[str], tokens: Tokens) -> None:
    """Reports once what would affect every line. Raises ConfigError."""
    for template in templates:
        try:
            tokens.prompt(template, "")
        except DataError as error:
            raise ConfigError(
                f"task {task.name!r} cannot be used with this base: in its prompt with the chat template, "
                f"{error}, or set chat = false in the [[task]]"
            ) from error


class _Ruler:
    """Measures lines and collects problems."""

    def __init__(self, task: Task, data: Data, tokens: Tokens, wrap: Wrapping, context: int) -> None:
        self.task, self.data, self.tokens, self.wrap, self.context = task, data, tokens, wrap, context
        self.bad: list[str] = []
        self.cut: list[Example] = []

    def words(self, example: Example, templates: Sequence[str], room: int) -> list[str | None]:
        """The part of an example's words that fits each template; None if the template alone does not fit."""
        return [self.tokens.fitting(template, example.text, room) if room > 0 else None for template in templates]

    def longest(self, example: Example, ranked: bool = True) -> int:
        """Tokens of the longest answer that is compared; 0 for labels of a head."""
        if self.wrap.headed:
            return 1
        choices = (example.choices or self.data.choices) if ranked else None
        return max(len(self.tokens.answer(text, self.wrap.end)) for text in choices or (example.answer,))

    def longest_answer(self, example: Example, ranked: bool = True) -> str:
        """The longest answer, and the first line that has it."""
        choices = (example.choices or self.data.choices) if ranked else None
        text = max(choices or (example.answer,), key=lambda text: len(self.tokens.answer(text, self.wrap.end)))
        where = next((e.place for e in self.data.train if text in (e.answer, *e.also)), None)
        return quoted(text) + (f" ({where})" if where else "")

    def fitted(self, examples: Sequence[Example], templates: Sequence[str]) -> tuple[Example, ...]:
        """The examples, cut if the task allows it."""
        return tuple(self._fitted(example, templates) for example in examples)

    def _fitted(self, example: Example, templates: Sequence[str]) -> Example:
        try:
            words = self.words(example, templates, self.wrap.room(self.context, self.longest(example) - 1))
            for template in templates if example.words else ():
                self.tokens.words(template, example.words)
        except DataError as error:
            self.bad.append(f"{example.place}: {error}")
            return example
        shortest = min((w for w in words if w is not None), key=len, default="")
        if None in words or not shortest.strip():
            raise ConfigError(
                f"task {self.task.name!r}: its prompt and its longest answer, {self.longest_answer(example)}, leave no "
                f"room for the words of {example.place} in a context of {self.context} tokens; "
                "raise context_length in [export] or shorten them"
            )
        if shortest == example.text:
            return example
        self.cut.append(example)
        return replace(example, text=shortest)

    def tell(self) -> None:
        """Raises DataError for refused lines, and reports cut ones."""
        cut = [f"{e.place}: {len(e.text):,} characters" for e in self.cut]
        if self.task.overlong == "refuse" and cut:
            many = f"these {len(cut)} lines do" if len(cut) > 1 else "this line does"
            remedy = "split" if self.task.kind == TAGS else 'set overlong = "cut" in the [[task]], shorten'
            self.bad.append(
                f"{many} not fit the context of {self.context} tokens beside prompt and answer: {listed(cut)}; "
                f"{remedy}, or raise context_length in [export]"
            )
        if self.bad:
            raise DataError(f"task {self.task.name!r}: {listed(self.bad)}")
        if cut:
            say(
                f"warning: task {self.task.name!r}: {_lines(len(cut))} cut to fit the context of {self.context} "
                f"tokens: {listed(cut)}"
            )


def _count_cut(ruler: _Ruler, train: Sequence[Example], templates: Sequence[str], settings: Sequence[Train]) -> None:
    """Reports how many lines training will cut."""
    over = []
    limit, ranked = min(s.max_length for s in settings), any(s.ranked for s in settings)
    for example in train:
        words = ruler.words(example, templates, ruler.wrap.room(limit, ruler.longest(example, ranked)))
        if None in words:
            raise ConfigError(
                f"task {ruler.task.name!r}: max_length = {limit} leaves no room for the words of {example.place} beside its "
                f"prompt and its longest answer, {ruler.longest_answer(example, ranked)}; raise max_length in [train]"
            )
        if any(w != example.text for w in words):
            over.append(example)
    if over:
        say(
            f"warning: task {ruler.task.name!r}: {_lines(len(over))} cut in training, to max_length = {limit} tokens "
            f"(their words, not the instruction; the first is {over[0].place})"
        )


def _lines(count: int) -> str:
    return f"{count} lines are" if count > 1 else "1 line is"
