"""Responses in the format of OpenAI's API: complete, in chunks, models, errors.

A chat's answer is a message, a completion's a text. When streaming, a chat begins with a chunk that gives the role,
each part is a chunk, the last part gives the finish reason, and the usage comes in its own chunk if it was requested.
"""

from __future__ import annotations

import base64
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from qia3.runtime.cache import Floats
from qia3.runtime.load import AnyEngine
from qia3.server.jobs import Token
from qia3.server.shelf import Entry

TYPES = {401: "authentication_error", 404: "not_found_error", 409: "conflict_error", 429: "rate_limit_error"}


@dataclass(frozen=True)
class Part:
    """A piece of text, its tokens, and how the answer ended if this is the last piece."""

    text: str
    tokens: Sequence[Token]
    count: int
    reason: str | None


@dataclass
class Shape:
    chat: bool
    id: str
    model: str
    engine: AnyEngine
    created: int = field(default_factory=lambda: int(time.time()))
    prompt_tokens: int = 0
    new_tokens: int = 0

    def whole(self, parts: Sequence[Part]) -> dict[str, Any]:
        text, tokens = "".join(part.text for part in parts), [t for part in parts for t in part.tokens]
        self.new_tokens = sum(part.count for part in parts)
        answer = {"message": {"role": "assistant", "content": text}} if self.chat else {"text": text}
        ended = {"index": 0, **answer, "logprobs": self._logprobs(tokens), "finish_reason": parts[-1].reason}
        kind = "chat.completion" if self.chat else "text_completion"
        return self._object(kind, [ended]) | {"usage": self._usage()}

    def opening(self) -> Iterator[dict[str, Any]]:
        if self.chat:
            yield self._chunk({"delta": {"role": "assistant", "content": ""}}, (), None)

    def chunks(self, part: Part) -> Iterator[dict[str, Any]]:
        self.new_tokens += part.count
        if part.text or part.tokens:
            yield self._chunk(
                {"delta": {"content": part.text}} if self.chat else {"text": part.text}, part.tokens, None
            )
        if part.reason is not None:
            yield self._chunk({"delta": {}} if self.chat else {"text": ""}, (), part.reason)

    def closing(self) -> dict[str, Any]:
        return self._object("chat.completion.chunk" if self.chat else "text_completion", []) | {"usage": self._usage()}

    def _chunk(self, answer: dict[str, Any], tokens: Sequence[Token], reason: str | None) -> dict[str, Any]:
        choice = {"index": 0, **answer, "logprobs": self._logprobs(tokens), "finish_reason": reason}
        return self._object("chat.completion.chunk" if self.chat else "text_completion", [choice])

    def _object(self, kind: str, choices: list[dict[str, Any]]) -> dict[str, Any]:
        return {"id": self.id, "object": kind, "created": self.created, "model": self.model, "choices": choices}

    def _usage(self) -> dict[str, int]:
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.new_tokens,
            "total_tokens": self.prompt_tokens + self.new_tokens,
        }

    def _logprobs(self, tokens: Sequence[Token]) -> dict[str, Any] | None:
        if not any(token.logprob is not None for token in tokens):
            return None
        if self.chat:
            entries = [
                self._entry(t.id, t.logprob) | {"top_logprobs": [self._entry(i, p) for i, p in t.likeliest]}
                for t in tokens
            ]
            return {"content": entries, "refusal": None}
        return {
            "tokens": [self._text(t.id) for t in tokens],
            "token_logprobs": [t.logprob for t in tokens],
            "top_logprobs": [{self._text(i): p for i, p in t.likeliest} for t in tokens],
            "text_offset": None,
        }

    def _entry(self, token: int, logprob: float | None) -> dict[str, Any]:
        text = self._text(token)
        return {"token": text, "logprob": logprob, "bytes": list(text.encode())}

    def _text(self, token: int) -> str:
        text: str = self.engine.tokenizer.decode([token], skip_special_tokens=False)
        return text


def models(names: Sequence[str]) -> dict[str, Any]:
    return {"object": "list", "data": [model(name) for name in names]}


def model(name: str) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": 0, "owned_by": "qia3"}


def embeddings(model: str, vectors: Sequence[Floats], form: str, count: int) -> dict[str, Any]:
    """`form`: "float", or "base64" of little-endian float32."""
    shown = [
        base64.b64encode(v.astype("<f4").tobytes()).decode() if form == "base64" else [float(x) for x in v]
        for v in vectors
    ]
    data = [{"object": "embedding", "index": i, "embedding": v} for i, v in enumerate(shown)]
    return {
        "object": "list",
        "model": model,
        "data": data,
        "usage": {"prompt_tokens": count, "total_tokens": count},
    }


def adapter(name: str, entry: Entry) -> dict[str, Any]:
    found = {
        "name": name,
        "state": entry.state,
        "own": entry.own,
        "bytes": entry.nbytes,
        "hits": entry.hits,
    }
    return found | ({} if entry.error is None else {"error": entry.error})


def error(status: int, message: str) -> dict[str, Any]:
    kind = TYPES.get(status, "invalid_request_error" if status < 500 else "server_error")
    return {"error": {"message": message, "type": kind, "param": None, "code": status}}
