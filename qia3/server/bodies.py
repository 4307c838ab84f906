"""Request bodies in OpenAI's format, checked by hand: every complaint in one line, and nothing that would change the
answer is silently ignored.

Known keys without effect on the answer (a user's name, metadata) are ignored. Requests for something that is not
supported (tools, several answers, penalties) are refused by name, unless the value means "off": `n` 1, a penalty of 0.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from qia3.errors import ConfigError, QIA3Error
from qia3.parse import each_once
from qia3.runtime.decoding import GREEDY, Decoding

MOST_STOPS, MOST_TOP = 4, 20
ROLES = ("system", "user", "assistant")
PASSED_OVER = {"user", "metadata", "store", "safety_identifier", "prompt_cache_key", "service_tier"}
# what is not supported, and the values that mean "off"
NOTHING: dict[str, tuple[Any, ...]] = {
    "n": (1, None),
    "best_of": (1, None),
    "echo": (False, None),
    "suffix": (None, ""),
    "presence_penalty": (0, None),
    "frequency_penalty": (0, None),
    "logit_bias": (None, {}),
    "response_format": (None, {"type": "text"}),
    "tools": (None, []),
    "tool_choice": (None, "none", "auto"),
    "parallel_tool_calls": (None, True, False),
    "modalities": (None, ["text"]),
}


class BadBody(QIA3Error):
    """A request that is malformed or not supported: 400."""


@dataclass(frozen=True)
class Writing:
    """Settings for generation. `limit` and `top` are None if not given."""

    decoding: Decoding
    limit: int | None
    stops: tuple[str, ...]
    top: int | None
    stream: bool
    usage: bool  # send the usage at the end of a stream


class Body:
    """A JSON object whose keys are taken one by one; `check` reports everything that was wrong or not taken."""

    def __init__(self, raw: bytes) -> None:
        try:
            found = json.loads(raw.decode("utf-8"), object_pairs_hook=each_once)
        except (ValueError, RecursionError) as error:
            raise BadBody(f"the body is not JSON: {str(error).splitlines()[0]}") from error
        if not isinstance(found, dict):
            raise BadBody("the body is not a JSON object")
        self.values: dict[str, Any] = found
        self.bad: list[str] = []
        self.taken: set[str] = set(PASSED_OVER)

    def take(self, name: str, kinds: type | tuple[type, ...], words: str, default: Any = None) -> Any:
        """A value of one of `kinds`; null means the default. Booleans do not count as numbers."""
        self.taken.add(name)
        value = self.values.get(name)
        if value is None:
            return default
        wrong = isinstance(value, bool) and kinds is not bool
        if wrong or not isinstance(value, kinds):
            self.bad.append(f"{name!r} is not {words}")
            return default
        return value

    def text(self, name: str) -> str:
        """A required string."""
        if self.values.get(name) is None:
            self.bad.append(f"{name!r} is missing")
        found: str = self.take(name, str, "a string", "")
        return found

    def number(self, name: str, low: float, high: float) -> float | None:
        value = self.take(name, (int, float), "a number")
        if value is not None and not low <= value <= high:
            self.bad.append(f"{name!r} must be from {low:g} to {high:g}")
            return None
        return value  # type: ignore[no-any-return]

    def count(self, name: str, high: int) -> int | None:
        value = self.take(name, int, "a whole number")
        if value is not None and not 1 <= value <= high:
            self.bad.append(f"{name!r} must be from 1 to {high:,}")
            return None
        return value  # type: ignore[no-any-return]

    def texts(self, name: str, most: int) -> tuple[str, ...]:
        """A string or a list of them."""
        value = self.take(name, (str, list), "a string or a list of strings", [])
        found = [value] if isinstance(value, str) else value
        if not all(isinstance(entry, str) for entry in found):
            self.bad.append(f"{name!r} is not a string or a list of strings")
            return ()
        if len(found) > most:
            self.bad.append(f"{name!r} has {len(found)} entries, more than the limit of {most}")
        return tuple(found)

    def check(self) -> None:
        """Raises BadBody with every complaint."""
        for name, idle in NOTHING.items():
            self.taken.add(name)
            if name in self.values and not any(_same(self.values[name], value) for value in idle):
                self.bad.append(f"{name!r} is not supported, except {_shown(idle)}")
        self.bad += [f"{name!r} is not a known key" for name in self.values if name not in self.taken]
        if self.bad:
            raise BadBody("; ".join(self.bad))


def _same(value: Any, other: Any) -> bool:
    """Whether two values are equal; true is not 1."""
    return bool(value == other) and isinstance(value, bool) == isinstance(other, bool)


def _shown(idle: tuple[Any, ...]) -> str:
    return " or ".join(json.dumps(value) for value in idle)


def writing(body: Body, chat: bool) -> Writing:
    """Settings from a completion's body; call `check` afterwards. Without a temperature, or at 0, decoding is greedy."""
    temperature = body.number("temperature", 0, 2)
    top_p, top_k = body.number("top_p", 0, 1), body.count("top_k", 1 << 20)
    min_p, seed = body.number("min_p", 0, 1), body.take("seed", int, "a whole number")
    limits = [body.count(name, 2**31 - 1) for name in ("max_tokens", "max_completion_tokens")]
    stops = body.texts("stop", MOST_STOPS)
    if not all(stops):
        body.bad.append("'stop' has an empty string")
    options: Mapping[str, Any] = body.take("stream_options", dict, "an object", {})
    decoding = GREEDY
    if temperature:
        try:
            decoding = Decoding(
                temperature=float(temperature),
                top_k=top_k or 0,
                top_p=1.0 if top_p is None else top_p,
                min_p=min_p or 0.0,
                seed=None if seed is None else seed % 2**63,
            )
        except ConfigError as error:
            body.bad.append(str(error))
    return Writing(
        decoding=decoding,
        limit=next((limit for limit in reversed(limits) if limit is not None), None),
        stops=stops,
        top=_top(body, chat),
        stream=body.take("stream", bool, "true or false", False),
        usage=options.get("include_usage") is True,
    )


def _top(body: Body, chat: bool) -> int | None:
    """Number of most likely tokens to report: chat has a flag and a count, completions only a count."""
    if not chat:
        value = body.take("logprobs", int, "a whole number")
    else:
        flag, value = (
            body.take("logprobs", bool, "true or false", False),
            body.take("top_logprobs", int, "a whole number"),
        )
        if value is not None and not flag:
            body.bad.append("'top_logprobs' needs 'logprobs' true")
        value = (value or 0) if flag else None
    if value is not None and not 0 <= value <= MOST_TOP:
        body.bad.append(f"log-probabilities are available for 0 to {MOST_TOP} tokens, not {value}")
    return value  # type: ignore[no-any-return]


def turns_of(body: Body) -> list[dict[str, str]]:
    """The messages of a chat: role and text of each, the last one the user's."""
    messages = body.take("messages", list, "a list", [])
    bad = [m for m in messages if not isinstance(m, dict) or not isinstance(m.get("role"), str)]
    if not messages or bad:
        body.bad.append("'messages' must be a list of objects with 'role' and 'content'")
        return []
    turns = [{"role": m["role"], "content": _content(body, m.get("content"))} for m in messages]
    if strange := sorted({t["role"] for t in turns} - set(ROLES)):
        body.bad.append(f"a message's 'role' must be one of {', '.join(ROLES)}, not {strange[0]!r}")
    elif turns[-1]["role"] != "user":
        body.bad.append(f"the last of 'messages' must be the user's, not the {turns[-1]['role']}'s")
    return turns


def _content(body: Body, content: Any) -> str:
    if isinstance(content, list):  # a list of parts
        parts = [p.get("text") if isinstance(p, dict) and p.get("type") == "text" else None for p in content]
        content = "".join(parts) if all(isinstance(p, str) for p in parts) else None  # type: ignore[arg-type]
    if not isinstance(content, str):
        body.bad.append("the message's 'content' is not text")
        return ""
    return content
