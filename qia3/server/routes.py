"""The handlers of the routes listed in app.py."""

from __future__ import annotations

import asyncio
import json
import time
import uuid
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import suppress
from importlib.resources import files
from typing import TYPE_CHECKING, Any, TypeVar

from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response, StreamingResponse

from qia3.bundle.task import TAGS
from qia3.errors import AdapterError, QIA3Error, first_line, quoted
from qia3.names import NONE
from qia3.runtime.score import chosen
from qia3.runtime.tags import told
from qia3.server import openai
from qia3.server.asked import Asked, Refused
from qia3.server.bodies import BadBody, Body, turns_of, writing
from qia3.server.chats import Turn
from qia3.server.jobs import Embedded, Ended, Marked, Ranked, Token
from qia3.server.line import Busy, Stopping
from qia3.server.model import Known, UnknownModel, shown
from qia3.server.models import Served
from qia3.server.place import PlaceError
from qia3.server.shelf import Entry
from qia3.server.text import Text

if TYPE_CHECKING:
    from qia3.server.app import Server

MOST_INPUTS, MOST_CHOICES = 64, 1000
SHORT = 4096  # characters that are tokenised at once
T_ = TypeVar("T_")


async def models(server: Server, _: Request) -> Response:
    await asyncio.to_thread(_look, server)
    return JSONResponse(openai.models(server.models.names()))


async def model(server: Server, request: Request) -> Response:
    await asyncio.to_thread(_look, server)
    name, names = request.path_params["name"], server.models.names()
    if name not in names:
        raise UnknownModel(f"there is no model {quoted(name)}; available: {shown(names)}")
    return JSONResponse(openai.model(name))


async def chat(server: Server, request: Request) -> Response:
    body = await server.body(request)
    return await _write(server, request, body, turns_of(body), chat=True)


async def completions(server: Server, request: Request) -> Response:
    body = await server.body(request)
    return await _write(server, request, body, [{"role": "user", "content": body.text("prompt")}], chat=False)


async def _write(server: Server, request: Request, body: Body, turns: Sequence[Turn], chat: bool) -> Response:
    name, asked = body.text("model"), writing(body, chat)
    body.check()
    served, known = await _known(server, name)
    model = served.model
    shape = openai.Shape(chat, f"{'chatcmpl' if chat else 'cmpl'}-{uuid.uuid4().hex}", name, model.engine)
    if known.task.kind == "classify":
        if asked.top is not None or asked.stops:
            raise BadBody(f"{known.name!r} classifies text; use /v1/classify for its probabilities")
        choices, tokens = model.choices(known, ())
        prompt = await _turns(turns, lambda: model.chat(known, turns))
        job = server.ask(request, served, known, prompt, choices=tokens, ranking=known.task.ranking)
        label = chosen(choices, (await _last(job, Ranked)).scores).label
        parts = _one(openai.Part(label, (), len(tokens[choices.index(label)]), "stop"))
    elif known.task.kind != "generate":
        raise BadBody(f"{known.name!r} does not generate text: its task is to {known.task.kind}")
    else:
        own = chat or known.task.name != NONE
        prompt = await _turns(turns, lambda: model.chat(known, turns) if own else model.raw(turns[-1]["content"]))
        limit = known.task.max_new_tokens if asked.limit is None else asked.limit
        stop = frozenset(model.engine.bundle.stop_tokens)
        job = server.ask(
            request,
            served,
            known,
            prompt,
            limit=limit,
            stop=stop,
            decoding=asked.decoding,
            top=asked.top,
            task_prompt=own,
        )
        parts = _parts(server, job, Text(model.engine.tokenizer, asked.stops))
    shape.prompt_tokens = len(prompt)
    if asked.stream:
        return _streamed(server, request, shape, parts, asked.usage)
    return JSONResponse(shape.whole([part async for part in parts]))


async def _known(server: Server, name: str) -> tuple[Served, Known]:
    """The model of a name: at once if it is in memory, whatever other requests have to read."""
    held = server.models.held(name)
    return held if held is not None else await asyncio.to_thread(server.models.known, name)


async def _tokens(texts: Sequence[Any], make: Callable[[], T_]) -> T_:
    """What `make` makes of the texts: at once, or in a thread if that takes more than a few milliseconds."""
    return make() if len(str(texts)) <= SHORT else await asyncio.to_thread(make)


async def _turns(turns: Sequence[Any], make: Callable[[], T_]) -> T_:
    """The same for a chat: several turns run the bundle's template, which may take its time, so others must not wait."""
    return await (_tokens(turns, make) if len(turns) == 1 else asyncio.to_thread(make))


async def _one(part: openai.Part) -> AsyncIterator[openai.Part]:
    yield part


async def _parts(server: Server, asked: Asked, text: Text) -> AsyncIterator[openai.Part]:
    """The answer in pieces, each with its tokens; the last one says how it ended."""
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
    """Server-sent events. An error after the first is sent as an event, too, since the status is already sent."""
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
        except asyncio.CancelledError:  # the client has disconnected
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
    if not texts and not body.bad:
        body.bad.append("'input' is missing")
    body.check()
    served, known = await _known(server, name)
    choices, tokens = await _tokens(given, lambda: served.model.choices(known, given))
    if known.task.kind == TAGS:
        return await _words(server, request, served, known, texts, tokens)
    prompts = await _tokens(texts, lambda: [served.model.prompt(known, text) for text in texts])
    what = {"choices": tokens, "ranking": known.task.ranking}
    ranked = await _all(server, request, served, known, prompts, Ranked, [what] * len(prompts))
    answers = [chosen(choices, event.scores) for event in ranked]
    data = [{"index": i, "label": a.label, "scores": a.scores} for i, a in enumerate(answers)]
    return _listed(name, data, prompts)


async def _words(
    server: Server,
    request: Request,
    served: Served,
    known: Known,
    texts: Sequence[str],
    choices: Sequence[Sequence[int]],
) -> Response:
    """Labels the words of each text."""
    placed = await _tokens(texts, lambda: [served.model.words(known, text) for text in texts])
    prompts = [prompt for prompt, _, _ in placed]
    what = [{"choices": choices, "places": places} for _, places, _ in placed]
    marked = await _all(server, request, served, known, prompts, Marked, what)
    answers = [told(words, known.task, event.logits) for (_, _, words), event in zip(placed, marked, strict=True)]
    data = [{"index": i, "words": a.words, "labels": a.labels, "scores": a.scores} for i, a in enumerate(answers)]
    return _listed(known.name, data, prompts)


def _listed(model: str, data: Sequence[Any], prompts: Sequence[Sequence[int]]) -> Response:
    count = sum(map(len, prompts))
    usage = {"prompt_tokens": count, "total_tokens": count}
    return JSONResponse({"object": "list", "model": model, "data": data, "usage": usage})


async def embeddings(server: Server, request: Request) -> Response:
    body = await server.body(request)
    name, texts = body.text("model"), body.texts("input", MOST_INPUTS)
    form = body.take("encoding_format", str, "a string", "float")
    if form not in ("float", "base64"):
        body.bad.append(f"'encoding_format' must be float or base64, not {form!r}")
    if not texts and not body.bad:
        body.bad.append("'input' is missing")
    body.check()
    served, known = await _known(server, name)
    if not served.model.embeds:
        raise BadBody(f"{served.model.name!r} is not an encoder and has no embeddings")
    prompts = await _tokens(texts, lambda: [served.model.prompt(known, text) for text in texts])
    what = [{"embed": True}] * len(prompts)
    vectors = [event.vector for event in await _all(server, request, served, known, prompts, Embedded, what)]
    return JSONResponse(openai.embeddings(name, vectors, form, sum(map(len, prompts))))


E_ = TypeVar("E_", Ranked, Embedded, Marked)


async def _all(
    server: Server,
    request: Request,
    served: Served,
    known: Known,
    prompts: Sequence[list[int]],
    kind: type[E_],
    what: Sequence[dict[str, Any]],
) -> list[E_]:
    """The results of several prompts' jobs; if one fails, all fail."""
    jobs: list[Asked] = []
    try:
        for prompt, more in zip(prompts, what, strict=True):
            jobs.append(server.ask(request, served, known, prompt, **more))
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
    await asyncio.to_thread(_look, server)
    return JSONResponse({"object": "list", "data": [openai.adapter(*entry) for entry in server.models.entries()]})


async def add_adapter(server: Server, request: Request) -> Response:
    body = await server.body(request)
    name = body.text("name")
    body.check()
    return JSONResponse(openai.adapter(name, await asyncio.to_thread(_add, server, name)), 201)


def _add(server: Server, name: str) -> Entry:
    served, own = _place(server, name)
    shelf = served.model.shelf
    try:
        return shelf.add(own)
    except KeyError as error:
        where = shelf.place
        message = (
            f"{where} has no adapter {quoted(own)}" if where else "this server has no folder of adapters (--adapters)"
        )
        raise Refused(404, message) from error


async def remove_adapter(server: Server, request: Request) -> Response:
    await asyncio.to_thread(_remove, server, request.path_params["name"])
    return Response(status_code=204)


def _remove(server: Server, name: str) -> None:
    served, own = _place(server, name)
    try:
        served.model.shelf.remove(own)
    except KeyError as error:
        raise Refused(404, f"there is no adapter {quoted(name)}") from error


def _place(server: Server, name: str) -> tuple[Served, str]:
    try:
        return server.models.place(name)
    except UnknownModel as error:
        raise Refused(404, f"there is no adapter {quoted(name)}; with several bundles, use BUNDLE:NAME") from error


def _look(server: Server) -> None:
    """What is listed is what the folders hold; if they cannot be read now, what they held before."""
    with suppress(PlaceError):
        server.models.look()


async def page(_server: Server, _request: Request) -> Response:
    """The page for trying tasks. It loads nothing from elsewhere, and its policy forbids that."""
    text = files("qia3.server").joinpath("page.html").read_text(encoding="utf-8")
    policy = (
        "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; connect-src 'self'; img-src data:"
    )
    return Response(text, media_type="text/html", headers={"Content-Security-Policy": policy})


async def metrics(server: Server, _: Request) -> Response:
    content, kind = server.metrics.text()
    return Response(content, media_type=kind)


async def health(server: Server, _: Request) -> Response:
    """Whether the thread that runs the model is alive."""
    alive = all(one.line.alive for one in server.models.served)
    return JSONResponse({"status": "ok" if alive else "stopped"}, 200 if alive else 503)


async def ready(server: Server, _: Request) -> Response:
    """Whether every bundle would accept one more request."""
    lines = [one.line for one in server.models.served]
    free = all(line.alive and len(line.queue) < line.waiting for line in lines)
    return JSONResponse({"status": "ready" if free else "busy"}, 200 if free else 503)


def refusal(error: Exception) -> Response:
    status, headers = 500, None
    if isinstance(error, Refused):
        status, headers = error.status, error.headers
    elif isinstance(error, Busy):
        status, headers = 429, {"Retry-After": f"{error.seconds:.0f}"}
    elif isinstance(error, UnknownModel):
        status = 404
    elif isinstance(error, Stopping | PlaceError):
        status = 503
    elif isinstance(error, AdapterError):
        status = 409
    elif isinstance(error, QIA3Error):
        status = 400
    elif isinstance(error, ClientDisconnect):
        status = 499  # for the log only: the client has gone
    message = str(error) if isinstance(error, QIA3Error) else f"{type(error).__name__}: {first_line(error)}"
    return JSONResponse(openai.error(status, message), status, headers)
