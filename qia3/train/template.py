r"""A base's chat template, rendered once around a marker: what comes before and after it is all that a device needs.
That only works if the template leaves the words unchanged and writes the same around all of them. So it is tried on
words that would reveal a change and on the first questions of the task, in a child process (bounded.py) and before any
weight is loaded.

Templates that expect a message's content as a list of parts, like those of vision models, get the words as one part.

A template that writes today's date gives another prompt every day. The date is fixed at `DATE`, for all builds, in
training and on the device, and a warning says so.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from transformers.utils import chat_template_utils

from qia3.bounded import bounded
from qia3.errors import ConfigError

MARK = "\u0001text\u0001"
SHOWING = "Aß \"x\" 'y' <b>&amp; \\n{1}\n\tÉ 1,5  z."  # upper, lower and odd characters, two spaces, line ends
# various questions: short and long, one line and several, words and numbers
PROBES = (SHOWING, "x", "42", "What is the capital of France?", "Hello.\nPlease lock the door!", "one word more " * 300)
DATE, ANOTHER = datetime(2024, 7, 26), datetime(2031, 11, 3)
REMEDY = "correct the template in the base's folder, or set chat = false in this [[task]]"


@dataclass(frozen=True)
class Template:
    """The text around a user's words, and warnings about it."""

    prefix: str
    suffix: str
    warnings: tuple[str, ...] = ()


TRIED: dict[tuple[type, str, str], Template] = {}  # each task asks several times


def render(tokenizer: Any, questions: Sequence[str] = ()) -> Template:
    """The template as prefix and suffix; also tried on `questions`. Without questions it is tried once in a process.

    Raises ConfigError if the template fails, does not end, changes the words, or writes different text around some of
    them.
    """
    # all that a template reads
    key = type(tokenizer), repr(tokenizer.chat_template), repr(tokenizer.special_tokens_map)
    if key in TRIED and not questions:
        return TRIED[key]
    try:
        found = bounded(lambda: _tried(tokenizer, questions))
    except ValueError as error:
        raise ConfigError(f"the base's chat template cannot be used: {error}; {REMEDY}") from error
    TRIED[key] = Template(found["prefix"], found["suffix"], tuple(found["warnings"]))
    return TRIED[key]


def _tried(tokenizer: Any, questions: Sequence[str]) -> dict[str, Any]:
    """The template around the mark, tried. Raises ValueError."""
    with _clock(DATE):
        turns, text = _turns(tokenizer)
        prefix, suffix = text.split(MARK)
        if "{text}" in prefix + suffix:
            raise ValueError("it contains {text} itself, the placeholder for a question's words")
        for words in (asked.strip() for asked in (*PROBES, *questions)):
            if (said := _filled(tokenizer, turns, words)) != prefix + words + suffix:
                what = "writes different text around some questions" if words in said else "changes a question's words"
                raise ValueError(f"it {what} ({_difference(prefix + words + suffix, said)})")
        spaced = _filled(tokenizer, turns, f" {SHOWING} ")
    warnings = []
    if spaced != f"{prefix} {SHOWING} {suffix}":
        if spaced != prefix + SHOWING + suffix:
            raise ValueError("it changes the spaces around a question")
        warnings.append("the base's chat template strips spaces around a question; here they are kept")
    with _clock(ANOTHER):
        if _filled(tokenizer, turns, MARK) != text:
            warnings.append(
                f"the base's chat template writes today's date into every prompt; it is fixed at {DATE:%d %b %Y}, in "
                "training and on the device (set chat = false in a [[task]] to skip the template)"
            )
    return {"prefix": prefix, "suffix": suffix, "warnings": warnings}


def _turns(tokenizer: Any) -> tuple[tuple[bool, bool], str]:
    """The first kind of conversation in which the template keeps the marker, and the rendered text."""
    reasons = []
    for turns in ((True, False), (False, False), (True, True), (False, True)):
        try:
            text = _filled(tokenizer, turns, MARK)
        except MemoryError:
            raise
        except Exception as error:  # templates can raise anything
            reasons.append(str(error) or type(error).__name__)
            continue
        if text.count(MARK) == 1:
            return turns, text
        reasons.append(f"it changes a question's words ({_difference(MARK, text)})")
    raise ValueError(reasons[1])


def _filled(tokenizer: Any, turns: tuple[bool, bool], words: str) -> str:
    """`turns`: with an empty system turn (a default persona would cost tokens every time), and with parts."""
    system, parts = turns

    def content(text: str) -> Any:
        return [{"type": "text", "text": text}] if parts else text

    messages = [{"role": "system", "content": content("")}] if system else []
    messages.append({"role": "user", "content": content(words)})
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    if not isinstance(text, str):
        raise ValueError("it does not return text")
    return text


def _difference(expected: str, found: str) -> str:
    """The place where they begin to differ."""
    pairs = zip(expected, found, strict=False)
    start = next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(expected), len(found)))
    return f"{found[max(0, start - 8) : start + 8]!r} instead of {expected[max(0, start - 8) : start + 8]!r}"


@contextmanager
def _clock(now: datetime) -> Iterator[None]:
    """What strftime_now says in a template, within: in the child process, where there is one."""

    class Held(datetime):
        @classmethod
        def now(cls, tz: Any = None) -> Held:
            return cls(now.year, now.month, now.day, tzinfo=tz)

    before = chat_template_utils.datetime
    chat_template_utils.datetime = Held
    try:
        yield
    finally:
        chat_template_utils.datetime = before
