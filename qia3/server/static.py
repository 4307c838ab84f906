"""A folder of plain files over HTTP, with the headers that isolate a page, which WebAssembly needs for threads."""

from __future__ import annotations

import socket
from contextlib import suppress
from pathlib import Path

import uvicorn
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.routing import Mount
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from qia3.progress import say

HEADERS = {
    b"cross-origin-opener-policy": b"same-origin",
    b"cross-origin-embedder-policy": b"require-corp",
    b"x-content-type-options": b"nosniff",
    b"cache-control": b"no-cache",  # the browser asks again; the file is sent only if it has changed
}


class Isolated:
    """Middleware that adds the headers to every response."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def sending(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], *HEADERS.items()]
            await send(message)

        await self.app(scope, receive, sending)


def files_app(folder: Path) -> Starlette:
    """An app that serves every file of a folder, and index.html for the folder itself."""
    everything = Mount("/", StaticFiles(directory=folder, html=True))
    return Starlette(routes=[everything], middleware=[Middleware(Isolated)])


def serve_files(folder: Path, host: str, sockets: list[socket.socket]) -> None:
    """Serves a folder until SIGINT or SIGTERM, on sockets of `bound`."""
    say(f"serving {folder} on http://{host}:{sockets[0].getsockname()[1]}/")
    with suppress(KeyboardInterrupt):
        uvicorn.Server(uvicorn.Config(files_app(folder), log_level="warning", access_log=False)).run(sockets)
