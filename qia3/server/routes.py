"""What each route answers (app.py has the list)."""

from __future__ import annotations

import asyncio
import json
import time
import uuid
from collections.abc import AsyncIterator, Sequence
from contextlib import suppress
from importlib.resources import files
from typing import TYPE_CHECKING, Any, TypeVar

from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response, StreamingResponse

from qia3.errors import AdapterError, QIA3Error, first_line
from qia3.names import NONE
from qia3.runtime.score import chosen
from qia3.server import openai
from qia3.server.asked import Asked, Refused
from qia3.server.bodies import BadBody, Body, user_text, writing
from qia3.server.jobs import Embedded, Ended, Ranked, Token
from qia3.server.line import Busy, Stopping
from qia3.server.model import Known, UnknownModel
from qia3.server.text import Text

if TYPE_CHECKING:
    from qia3.server.app import Server

MOST_INPUTS, MOST_CHOICES = 64, 1000


async def models(server: Server, _: Request) -> Response:
    return JSONResponse(openai.models(server.model.names()))


async def chat(server: Server, request: Request) -> Response:
    body = await server.body(request)
    return await _write(server, request, body, user_text(body), chat=True)


async def completions(server: Server, request: Request) -> Response:
    body = await server.body(request)
    return await _write(server, request, body, body.text("prompt"), chat=False)


async def _write(server: Server, request: Request, body: Body, text: str, chat: bool) -> Response:
    name, asked = body.text("model"), writing(body, chat)
    body.check()
    known = await asyncio.to_thread(server.model.known, name)
    shape = openai.Shape(chat, f"{'chatcmpl' if chat else 'cmpl'}-{uuid.uuid4().hex}", known.name, server.model.engine)
    if known.task.kind == "classify":
        if asked.top is not None or asked.stops:
            raise BadBody(f"{known.name!r} classifies: its probabilities are had from /v1/classify")
        choices, tokens = server.model.choices(known, ())
        prompt = server.model.prompt(known, text)
        job = server.ask(request, known, prompt, choices=tokens, ranking=known.task.ranking)
        label = chosen(choices, (await _last(job, Ranked)).scores).label
        parts = _one(openai.Part(label, (), len(tokens[choices.index(label)]), "stop"))
    elif known.task.kind != "generate":
        raise BadBody(f"{known.name!r} writes no text: its task is to {known.task.kind}")
    else:
        own = chat or known.task.name != NONE
        prompt = server.model.prompt(known, text) if own else server.model.raw(text)
        limit = known.task.max_new_tokens if asked.limit is None else asked.limit
        stop = frozenset(server.model.engine.bundle.stop_tokens)
        job = server.ask(
            request, known, prompt, limit=limit, stop=stop, decoding=asked.decoding, top=asked.top, task_prompt=own
        )
        parts = _parts(server, job, Text(server.model.engine.tokenizer, asked.stops))
    shape.prompt_tokens = len(prompt)
    if asked.stream:
        return _streamed(server, request, shape, parts, asked.usage)
    return JSONResponse(shape.whole([part async for part in parts]))


async def _one(part: openai.Part) -> AsyncIterator[openai.Part]:
    yield part


async def _parts(server: Server, asked: Asked, text: Text) -> AsyncIterator[openai.Part]:
    """Text as it is made, each with the tokens that it is made of, and how it ended."""
    since: list[Token] = []
    events = asked.events()
    try:
        async for event in events:
            if isinstance(event, Token):
                server.metrics.first_token(asked.job)
                since.append(event)
                piece = text.add(event.id)
                if piece or text.stopped:
                    yield openai.Part(piece, tuple(since), len(since), "stop" if text.stopped else None)
                    since = []
                if text.stopped:
                    return
            elif isinstance(event, Ended):
                yield openai.Part(text.rest(), tuple(since), len(since), "stop" if text.stopped else event.reason)
    finally:
        await events.aclose()  # type: ignore[attr-defined]  # an async generator


def _streamed(
    server: Server, request: Request, shape: openai.Shape, parts: AsyncIterator[openai.Part], usage: bool
) -> Response:
    """Server-sent events. What goes wrong after the first is an event, too: the status has been sent."""
    started = time.monotonic()

    async def lines() -> AsyncIterator[str]:
        status = 200
        try:
            for chunk in shape.opening():
                yield _event(chunk)
            async for part in parts:
                for chunk in shape.chunks(part):
                    yield _event(chunk)
            if usage:
                yield _event(shape.closing())
            yield "data: [DONE]\n\n"
        except (QIA3Error, ClientDisconnect) as error:
            answer = refusal(error)
            status = answer.status_code
            yield f"data: {bytes(answer.body).decode()}\n\n"
        except asyncio.CancelledError:  # the client has gone
            status = 499
            raise
        finally:
            with suppress(Exception):
                await parts.aclose()  # type: ignore[attr-defined]
            request.state.facts["new_tokens"] = shape.new_tokens
            server.log(request, status, started)

    return StreamingResponse(lines(), media_type="text/event-stream", headers={"Cache-Control": "no-cache"})


def _event(value: Any) -> str:
    return f"data: {json.dumps(value, ensure_ascii=False)}\n\n"


async def classify(server: Server, request: Request) -> Response:
    body = await server.body(request)
    name, texts, given = body.text("model"), body.texts("input", MOST_INPUTS), body.texts("choices", MOST_CHOICES)
    if not texts:
        body.bad.append("'input' is missing")
    body.check()
    known = await asyncio.to_thread(server.model.known, name)
    choices, tokens = server.model.choices(known, given)
    prompts = [server.model.prompt(known, text) for text in texts]
    ranked = await _all(server, request, known, prompts, Ranked, choices=tokens, ranking=known.task.ranking)
    answers = [chosen(choices, event.scores) for event in ranked]
    data = [{"index": i, "label": a.label, "scores": a.scores} for i, a in enumerate(answers)]
    count = sum(map(len, prompts))
    usage = {"prompt_tokens": count, "total_tokens": count}
    return JSONResponse({"object": "list", "model": known.name, "data": data, "usage": usage})


async def embeddings(server: Server, request: Request) -> Response:
    body = await server.body(request)
    name, texts = body.text("model"), body.texts("input", MOST_INPUTS)
    form = body.take("encoding_format", str, "a string", "float")
    if form not in ("float", "base64"):
        body.bad.append(f"'encoding_format' is float or base64, not {form!r}")
    if not texts:
        body.bad.append("'input' is missing")
    body.check()
    known = await asyncio.to_thread(server.model.known, name)
    if not server.model.embeds:
        raise BadBody(f"{server.model.name!r} is no encoder: it writes, and gives no embeddings")
    prompts = [server.model.prompt(known, text) for text in texts]
    vectors = [event.vector for event in await _all(server, request, known, prompts, Embedded, embed=True)]
    return JSONResponse(openai.embeddings(known.name, vectors, form, sum(map(len, prompts))))


E_ = TypeVar("E_", Ranked, Embedded)


async def _all(
    server: Server, request: Request, known: Known, prompts: Sequence[list[int]], kind: type[E_], **what: Any
) -> list[E_]:
    """What jobs of several prompts come to; where one fails, so do all."""
    jobs: list[Asked] = []
    try:
        for prompt in prompts:
            jobs.append(server.ask(request, known, prompt, **what))
        return [await _last(job, kind) for job in jobs]
    finally:
        for job in jobs:
            job.job.cancelled.set()


async def _last(asked: Asked, kind: type[E_]) -> E_:
    async for event in asked.events():
        if isinstance(event, kind):
            return event
    raise QIA3Error("a job ended without its answer")


async def adapters(server: Server, _: Request) -> Response:
    return JSONResponse({"object": "list", "data": [openai.adapter(e) for e in server.model.shelf.listed()]})


async def add_adapter(server: Server, request: Request) -> Response:
    body = await server.body(request)
    name = body.text("name")
    body.check()
    try:
        entry = await asyncio.to_thread(server.model.shelf.add, name)
    except KeyError as error:
        where = server.model.shelf.folder
        message = f"{where} has no adapter {name!r}" if where else "this server has no folder of adapters (--adapters)"
        raise Refused(404, message) from error
    return JSONResponse(openai.adapter(entry), 201)


async def remove_adapter(server: Server, request: Request) -> Response:
    name = request.path_params["name"]
    try:
        server.model.shelf.remove(name)
    except KeyError as error:
        raise Refused(404, f"there is no adapter {name!r}") from error
    return Response(status_code=204)


async def page(_server: Server, _request: Request) -> Response:
    """It asks for nothing from elsewhere, and may not."""
    text = files("qia3.server").joinpath("page.html").read_text(encoding="utf-8")
    policy = (
        "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; connect-src 'self'; img-src data:"
    )
    return Response(text, media_type="text/html", headers={"Content-Security-Policy": policy})


async def metrics(server: Server, _: Request) -> Response:
    content, kind = server.metrics.text()
    return Response(content, media_type=kind)


async def health(server: Server, _: Request) -> Response:
    """Whether the thread that runs the model lives."""
    alive = server.line.alive
    return JSONResponse({"status": "ok" if alive else "stopped"}, 200 if alive else 503)


async def ready(server: Server, _: Request) -> Response:
    """Whether one more request would be taken."""
    free = server.line.alive and len(server.line.queue) < server.line.waiting
    return JSONResponse({"status": "ready" if free else "busy"}, 200 if free else 503)


def refusal(error: Exception) -> Response:
    status, headers = 500, None
    if isinstance(error, Refused):
        status, headers = error.status, error.headers
    elif isinstance(error, Busy):
        status, headers = 429, {"Retry-After": f"{error.seconds:.0f}"}
    elif isinstance(error, UnknownModel):
        status = 404
    elif isinstance(error, Stopping):
        status = 503
    elif isinstance(error, AdapterError):
        status = 409
    elif isinstance(error, QIA3Error):
        status = 400
    elif isinstance(error, ClientDisconnect):
        status = 499  # nobody reads it; for the log
    message = str(error) if isinstance(error, QIA3Error) else f"{type(error).__name__}: {first_line(error)}"
    return JSONResponse(openai.error(status, message), status, headers)
