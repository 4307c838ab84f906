"""What is to be learned: the question, its answers and examples, as a bundle asks them.

A new task is asked inside the bundle's own chat template, as its other tasks are. One that goes on from an adapter of
the bundle (`after`) is asked as that one is, with its answers, and starts from its vectors.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from qia3.batching.asked import Asked, asked_of
from qia3.batching.data import Data, read_files
from qia3.batching.examples import Examples, Source
from qia3.batching.prompts import Wrapping, ask
from qia3.bundle.opened import Bundle
from qia3.bundle.sites import Vectors, digest
from qia3.bundle.task import Kind, Task
from qia3.errors import ConfigError, DataError
from qia3.examples import ANSWER
from qia3.parse import parse_json, read_text
from qia3.recipe import Train
from qia3.runtime.adapters import AdapterBank
from qia3.runtime.completed import plain
from qia3.tokens import Tokens

KINDS: tuple[Kind, ...] = ("classify", "generate")


@dataclass(frozen=True)
class Lesson:
    """What is asked for on the command line. `prompt` holds {text} once; None: the words alone, or as `after` asks.
    `choices` are all answers there are; None: those of the examples, or of `after`.
    """

    name: str
    file: Path
    kind: Kind | None = None
    prompt: str | None = None
    after: str | None = None
    choices: tuple[str, ...] | None = None
    max_new_tokens: int | None = None
    seed: int = 0
    settings: Train = field(default_factory=Train)


@dataclass(frozen=True)
class Prepared:
    """A lesson whose examples are read: the task as the bundle will have it, and where its vectors start."""

    task: Task
    source: Source
    data: Data
    settings: Train
    start: Vectors | None

    def examples(self, tokens: Tokens, held_back: bool = False) -> Examples:
        source, settings = self.source, self.settings
        given = self.data.validation if held_back else source.examples
        sources = [Source(source.prompts, source.question, source.wrap, given, source.choices)] if given else []
        return Examples(tokens, sources, settings.max_length, settings.ranked, at_most=settings.answers)

    def asked(self, fingerprint: str, seed: int) -> Asked:
        """What tells this plan from another (qia3.batching.asked)."""
        out = {"validation", "init_adapter", "accumulate", "gradient_checkpointing", "compute"}
        left_out = out | (set() if self.data.validation else {"checkpoint_every"})
        return {
            "base": fingerprint,
            "sources": [asked_of(self.source, self.data.validation)],
            "task": self.task.to_json(),
            "training": self.settings.model_dump(mode="json", exclude=left_out),
            "seed": seed,
            "start": digest(self.start),
        }


def prepare(bundle: Bundle, lesson: Lesson, test: Path | None = None) -> Prepared:
    """Reads and checks everything, before long work. Raises DataError with file and line, ConfigError, AdapterError."""
    settings = lesson.settings
    if settings.optimizer != "adamw":
        raise ConfigError(f"learning on a device has AdamW alone, not {settings.optimizer!r}")
    before = None if lesson.after is None else _before(bundle, lesson.after)
    kind = lesson.kind or (before.kind if before else kind_of_file(lesson.file))
    if before is not None and kind != before.kind:
        raise ConfigError(f"{lesson.after!r} is of the kind {before.kind!r}, not {kind!r}: leave out one of the two")
    if kind == "generate":
        settings = settings.model_copy(update={"losses": ("lm",)})
    known = lesson.choices or (before.choices if before else None)
    if lesson.choices and (kind == "generate" or len(set(lesson.choices)) < max(2, len(lesson.choices))):
        raise ConfigError("choices are two or more, all different, of a task that classifies")
    remedy = "name all answers (--choice)"
    data = read_files(lesson.name, kind, [lesson.file], test, known, settings, remedy)
    wrap, question = _question(bundle, lesson, before)
    tokens = (before.max_new_tokens if before else 32) if lesson.max_new_tokens is None else lesson.max_new_tokens
    task = Task(lesson.name, kind, ask(wrap, question), data.choices, tokens, wrap.end, settings.ranking)
    start = None
    if lesson.after is not None:
        start = {name: vector.reshape(-1) for name, vector in AdapterBank(bundle).vectors(lesson.after).items()}
    return Prepared(task, Source((question,), question, wrap, data.train, data.choices), data, settings, start)


def kind_of_file(file: Path) -> Kind:
    """By the keys of its first line. Raises DataError."""
    first = next((line for line in read_text(file, DataError).split("\n") if line.strip()), "")
    try:
        row = parse_json(first)
    except ValueError:
        row = None
    keys = row.keys() if isinstance(row, dict) else ()
    found = [kind for kind in KINDS if ANSWER[kind] in keys or (kind == "classify" and "labels" in keys)]
    if len(found) != 1:
        told = "a 'label' (classify) or a 'target' (generate)"
        raise DataError(f"{file}, line 1: an example to learn has 'text' and {told}; or say --kind")
    return found[0]


def _before(bundle: Bundle, name: str) -> Task:
    if name not in bundle.adapters or name not in bundle.tasks:
        known = ", ".join(n for n in bundle.adapters if n in bundle.tasks) or "none"
        raise ConfigError(f"{bundle.path} has no adapter {name!r} to go on from; it has: {known}")
    task = bundle.tasks[name]
    if task.kind not in KINDS:
        raise ConfigError(f"{name!r} is of the kind {task.kind!r}, which is not learned on a device")
    return task


def _question(bundle: Bundle, lesson: Lesson, before: Task | None) -> tuple[Wrapping, str]:
    """What stands around a question, and the question."""
    if lesson.prompt is not None and lesson.prompt.count("{text}") != 1:
        raise ConfigError(f"a prompt must contain {{text}} exactly once: {lesson.prompt!r}")
    if before is not None and lesson.prompt is None:
        return Wrapping("", "", before.end, bundle.stop_tokens), before.prompt
    end = before.end if before else plain(bundle, lesson.name).end
    return Wrapping(bundle.prefix, bundle.suffix, end, bundle.stop_tokens), lesson.prompt or "{text}"
