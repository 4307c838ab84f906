"""The routes: OpenAI's for generation, one for ranking, and those for the server itself.

    GET    /v1/models                the base and every adapter of every bundle
    GET    /v1/models/NAME           one of them
    POST   /v1/chat/completions      one user message, put into the task's prompt (a classifying task answers its label), or
                                     several, put into the bundle's chat template, for the base and tasks with its prompt
    POST   /v1/completions           for an adapter the same with 'prompt'; for the base a text to continue
    POST   /v1/classify              {"model", "input": text or texts, "choices"?} -> label and probabilities; for a task that
                                     labels words, the words and their labels
    POST   /v1/embeddings            encoders only: {"model", "input"} -> vectors, as numbers or in base64
    GET    /v1/adapters              state, bytes and hits of every adapter
    POST   /v1/adapters {"name"}     reads one from the folder of adapters, again if it is known
    DELETE /v1/adapters/NAME         forgets it; its files stay
    GET    /health, /ready, /metrics
    GET    /                         a page to try tasks side by side

Errors have OpenAI's form: {"error": {"message", "type", "code"}}.

    400 a body that is malformed or not supported                  429 the queue is full; Retry-After says when to ask again
    401 no key, or not the right one                                500 a bug of qia3, or of what it stands on
    404 no such model, adapter or route                             503 the server is stopping, or a store does not answer
    408 a body that does not arrive                                 504 the request timed out
    409 an adapter for another base, or one that changes nothing
    413 a body that is too large

A request whose client has disconnected is dropped before the next step. Logs are JSON, one line per request, without
any of its text.
"""

from __future__ import annotations

import asyncio
import hmac
import json
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Match, Route

from qia3.errors import shown
from qia3.server import openai, routes
from qia3.server.asked import Asked, Refused
from qia3.server.bodies import Body
from qia3.server.jobs import Job
from qia3.server.metrics import Metrics
from qia3.server.model import Known
from qia3.server.models import Models, Served

CLOSE = {"Connection": "close"}  # what may still come is not a request
Answer = Callable[["Server", Request], Awaitable[Response]]


@dataclass(frozen=True)
class Limits:
    """Seconds that a request may take, bytes of its body, and seconds that running requests get when the server stops."""

    deadline: float = 120.0
    body_bytes: int = 1 << 20
    grace: float = 10.0


class Server:
    def __init__(self, served: Sequence[Served], limits: Limits, keys: Sequence[str] = ()) -> None:
        self.models, self.limits, self.keys = Models(served), limits, tuple(keys)
        self.metrics = Metrics(self.models)

    def app(self) -> Starlette:
        paths = [
            Route("/v1/models", self._guarded(routes.models)),
            Route("/v1/models/{name}", self._guarded(routes.model)),
            Route("/v1/chat/completions", self._guarded(routes.chat), methods=["POST"]),
            Route("/v1/completions", self._guarded(routes.completions), methods=["POST"]),
            Route("/v1/classify", self._guarded(routes.classify), methods=["POST"]),
            Route("/v1/embeddings", self._guarded(routes.embeddings), methods=["POST"]),
            Route("/v1/adapters", self._guarded(routes.adapters)),
            Route("/v1/adapters", self._guarded(routes.add_adapter), methods=["POST"]),
            Route("/v1/adapters/{name}", self._guarded(routes.remove_adapter), methods=["DELETE"]),
            Route("/metrics", self._guarded(routes.metrics)),
            Route("/", self._told(routes.page)),
            Route("/health", self._told(routes.health)),
            Route("/ready", self._told(routes.ready)),
        ]
        return Starlette(routes=paths, lifespan=self._lifespan, exception_handlers={404: _no_route, 405: _no_route})

    @asynccontextmanager
    async def _lifespan(self, _: Starlette) -> AsyncIterator[None]:
        for one in self.models.served:
            one.line.start()
        yield
        await self.stop()

    async def stop(self) -> None:
        """Accepts no more jobs, gives running ones the grace, and tells the rest that the server stops."""
        lines = [one.line for one in self.models.served]
        await asyncio.gather(*(asyncio.to_thread(line.stop, self.limits.grace) for line in lines))

    def _guarded(self, route: Answer) -> Callable[[Request], Awaitable[Response]]:
        """A route that needs an API key, if the server has keys."""

        async def answer(server: Server, request: Request) -> Response:
            given = request.headers.get("authorization", "").removeprefix("Bearer ").encode()
            if self.keys and not any(hmac.compare_digest(given, key.encode()) for key in self.keys):
                raise Refused(401, "an API key is needed: Authorization: Bearer KEY", {"WWW-Authenticate": "Bearer"})
            return await route(server, request)

        return self._told(answer)

    def _told(self, route: Answer) -> Callable[[Request], Awaitable[Response]]:
        """A route whose errors become responses, with a line in the log."""

        async def answer(request: Request) -> Response:
            started, request.state.facts = time.monotonic(), {}
            try:
                response = await route(self, request)
            except Exception as error:
                response = routes.refusal(error)
                request.state.facts["error"] = type(error).__name__
            if not isinstance(response, StreamingResponse):
                self.log(request, response.status_code, started)
            return response

        return answer

    def log(self, request: Request, status: int, started: float) -> None:
        seconds = time.monotonic() - started
        self.metrics.request(request.url.path, status, seconds)
        line = {
            "time": round(time.time(), 3),
            "route": request.url.path,
            "status": status,
            "ms": round(seconds * 1e3, 1),
        }
        print(json.dumps(line | request.state.facts), file=sys.stderr, flush=True)

    async def body(self, request: Request) -> Body:
        parts, size = [], 0
        try:
            async with asyncio.timeout(self.limits.deadline):
                async for part in request.stream():
                    size += len(part)
                    if size > self.limits.body_bytes:
                        raise Refused(413, f"the body is longer than {self.limits.body_bytes:,} bytes")
                    parts.append(part)
        except TimeoutError as error:
            raise Refused(408, f"the body did not arrive within {self.limits.deadline:g} s", CLOSE) from error
        return Body(b"".join(parts))

    def ask(self, request: Request, served: Served, known: Known, prompt: list[int], **what: Any) -> Asked:
        """Puts a job into the queue; returns its events."""
        asked = Asked(request)
        shared = known.shared if what.pop("task_prompt", True) else 0
        deadline = time.monotonic() + self.limits.deadline
        asked.job = Job(prompt, known.vectors, asked.tell, deadline=deadline, shared=shared, **what)
        served.line.submit(asked.job)
        request.state.facts |= {"model": self.models.told(served, known.name), "prompt_tokens": len(prompt)}
        return asked


async def _no_route(request: Request, error: Exception) -> Response:
    status = getattr(error, "status_code", 404)
    what = "there is no route" if status == 404 else f"{request.method} is not allowed for"
    message = f"{what} {shown(request.url.path)[:200]}"
    if status == 404:
        return JSONResponse(openai.error(status, message), status)
    found = [route for route in request.app.routes if route.matches(request.scope)[0] != Match.NONE]
    allowed = {method for route in found for method in route.methods}
    return JSONResponse(openai.error(status, message), status, {"Allow": ", ".join(sorted(allowed))})
