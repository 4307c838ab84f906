"""What a task's training was asked to be, as stored in WORK/TASK/plan.json: enough to tell one plan from another, and
to say in the build file's terms where they differ.

    {"base": "3f0c...", "shots": 0, "seed": 0, "training": {"steps": 96, ...}, "init_adapter": null,
     "sources": [{"prompt": ["Which? {text}"], "eval_prompt": "Which? {text}", "template": {...}, "choices": ["lamp"],
                  "train": "128 examples, SHA-256 77ab...", "validation": "0 examples, SHA-256 4f53..."}]}

The first source is the task itself, the others are those of its mixture. Long data is stored as its SHA-256. What
cannot change the vectors is left out: file names, and the checkpoint interval.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from qia3.batching.examples import Source
from qia3.batching.prompts import Wrapping
from qia3.errors import ConfigError
from qia3.examples import Example
from qia3.parse import read_json_table

PLAN = "plan.json"
SHORT = 60  # characters of a value in a message

Asked = dict[str, Any]


def asked_of(source: Source, validation: Sequence[Example]) -> Asked:
    """The plan of one source of examples."""
    wrap = source.wrap
    return {
        "prompt": list(source.prompts),
        "eval_prompt": source.question,
        "template": {"prefix": wrap.prefix, "suffix": wrap.suffix, "end": wrap.end, **_start(wrap)},
        "choices": None if source.choices is None else list(source.choices),
        "train": _digest(source.examples),
        "validation": _digest(validation),
    }


def _start(wrap: Wrapping) -> Asked:
    """The start tokens of an encoder-decoder; nothing for a decoder."""
    return {"start": list(wrap.start)} if wrap.start else {}


def read_asked(folder: Path) -> Asked | None:
    """The plan stored in a task's work folder, or None. Raises ConfigError if it cannot be read."""
    path = folder / PLAN
    remedy = "delete it to train again"
    return read_json_table(path, ConfigError, remedy) if path.is_file() else None


def write_asked(asked: Asked, folder: Path) -> None:
    (folder / PLAN).write_text(json.dumps(asked, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def differences(was: Asked, now: Asked) -> list[str]:
    """Each key whose value differs, by its place: "training.steps was 96, is 120"."""
    before, after = dict(_leaves(was)), dict(_leaves(now))
    keys = dict.fromkeys((*after, *before))
    return [
        f"{key} was {_short(before.get(key))}, is {_short(after.get(key))}"
        for key in keys
        if before.get(key) != after.get(key)
    ]


def _leaves(value: Any, place: str = "") -> Iterator[tuple[str, Any]]:
    """Values by dotted place; a list of plain values is one value. The task's own source has no prefix."""
    if isinstance(value, dict):
        for key, entry in value.items():
            yield from _leaves(entry, f"{place}.{key}" if place else key)
    elif isinstance(value, list) and any(isinstance(entry, dict) for entry in value):
        for i, entry in enumerate(value):
            yield from _leaves(entry, f"mixture[{i - 1}]" if i else "")
    else:
        yield place, value


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= SHORT else f"{text[:SHORT]}..."


def _digest(examples: Sequence[Example]) -> str:
    content = json.dumps([e.content() for e in examples])
    return f"{len(examples)} examples, SHA-256 {hashlib.sha256(content.encode()).hexdigest()[:16]}"
