"""What an adapter is for: the prompt, the possible answers, and the token that ends an answer.

It is stored in a bundle's manifest, and as task.json beside an adapter that travels alone.

    {"kind": "classify", "prompt": "Which device? {text}", "choices": ["lamp", "lock"], "ranking": "sum",
     "max_new_tokens": 32, "end": "<|im_end|>"}
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from qia3.bundle.checked import plain
from qia3.errors import AdapterError
from qia3.parse import each_once, read_json

Kind = Literal["classify", "generate", "embed", "token-classification"]
TAGS: Kind = "token-classification"  # a label for each word
LABELLED = ("classify", TAGS)
Ranking = Literal["sum", "mean"]
TASK = "task.json"
MOST_TOKENS = 2**31 - 1
PLAIN_TOKENS = 32  # limit of an answer for an adapter without a task


@dataclass(frozen=True)
class Task:
    """One job: the whole prompt, which holds {text} once, and the text of the token that ends an answer.

    `choices` are None for generation, and if every example brings its own. `ranking` says how choices of different
    lengths compare (qia3.runtime.score); files of older bundles lack it, which means "sum".
    """

    name: str
    kind: Kind
    prompt: str
    choices: tuple[str, ...] | None
    max_new_tokens: int
    end: str
    ranking: Ranking = "sum"
    later: Mapping[str, Any] = field(default_factory=dict, hash=False)  # keys that a later version wrote in a manifest

    def to_json(self) -> dict[str, Any]:
        """All but the name, which is the key or the folder's name."""
        return {
            "kind": self.kind,
            "prompt": self.prompt,
            "choices": None if self.choices is None else list(self.choices),
            "ranking": self.ranking,
            "max_new_tokens": self.max_new_tokens,
            "end": self.end,
        }

    @classmethod
    def from_json(cls, name: str, value: Any) -> Task:
        """Reads a task from a manifest; keys of later versions are kept.

        Raises ValueError, in one line, that lists everything that is wrong.
        """
        if bad := _wrong(value):
            raise ValueError("; ".join(bad))
        known = {key: value[key] for key in RULES if key in value}
        choices = None if value["choices"] is None else tuple(value["choices"])
        later = plain({key: entry for key, entry in value.items() if key not in RULES})
        return cls(name, **{**known, "choices": choices, "later": later})


def plain_task(name: str, prefix: str, suffix: str, end: str, kind: Kind = "generate") -> Task:
    """The base's own prompt, for an adapter without a task; with an encoder it makes embeddings."""
    return Task(name, kind, f"{prefix}{{text}}{suffix}", None, PLAIN_TOKENS, end)


def write_task(folder: Path, task: Task) -> None:
    """Writes task.json into an adapter's folder."""
    text = json.dumps(task.to_json(), indent=1, ensure_ascii=False) + "\n"
    (folder / TASK).write_text(text, encoding="utf-8")


def read_task(folder: Path, name: str) -> Task | None:
    """The task in an adapter's folder, or None without task.json. Raises AdapterError if it is not a valid task."""
    path = folder / TASK
    if not path.exists():
        return None
    value = read_json(path, AdapterError, pairs=each_once)
    unknown = (
        [f"{key!r} is not a key of a task" for key in value if key not in RULES] if isinstance(value, dict) else []
    )
    if bad := unknown + _wrong(value):
        raise AdapterError(f"{path} is not a task: {'; '.join(bad)}; `qia3 adapter export` writes one that is")
    return Task.from_json(name, value)


def _wrong(value: Any) -> list[str]:
    """A clause for every reason why a JSON value is not a task."""
    if not isinstance(value, dict):
        return ["it must be a JSON object"]
    bad = [f"{key!r} is missing" for key in RULES if key not in value and key != "ranking"]
    bad += [f"{key!r} is not {words}" for key, (fits, words) in RULES.items() if key in value and not fits(value[key])]
    if not bad and value["kind"] not in LABELLED and value["choices"] is not None:
        bad = [f"'choices' are only for classification, but its kind is {value['kind']!r}"]
    return bad


def _is_text(value: Any) -> bool:
    """A string that UTF-8 can encode: JSON may contain half a surrogate pair."""
    return isinstance(value, str) and not any("\ud800" <= character <= "\udfff" for character in value)


def _is_prompt(value: Any) -> bool:
    return _is_text(value) and value.count("{text}") == 1


def _are_choices(value: Any) -> bool:
    """Null, or distinct answers."""
    if value is None:
        return True
    return isinstance(value, list) and all(_is_text(v) and v for v in value) and len(set(value)) == len(value) > 0


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= MOST_TOKENS


# key: what its value must be, as a test and in words
RULES: dict[str, tuple[Callable[[Any], bool], str]] = {
    "kind": (lambda value: value in get_args(Kind), "'classify', 'generate', 'embed' or 'token-classification'"),
    "prompt": (_is_prompt, "a string that holds {text} exactly once"),
    "choices": (_are_choices, "null or a list of distinct strings, none empty"),
    "ranking": (lambda value: value in get_args(Ranking), "'sum' or 'mean'"),
    "max_new_tokens": (_is_count, f"a whole number from 1 to {MOST_TOKENS:,}"),
    "end": (_is_text, "a string"),
}
