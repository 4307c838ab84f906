"""A job as a route sees it: its events up to the last, and its cancellation if the client disconnects."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Any

from starlette.requests import ClientDisconnect, Request

from qia3.errors import QIA3Error
from qia3.server.jobs import Event, Failed, Job, Last, Token

STATUS = {"unfit": 409, "broken": 500, "late": 504, "stopping": 503}


class Refused(QIA3Error):
    """An error response with this status."""

    def __init__(self, status: int, message: str, headers: dict[str, str] | None = None) -> None:
        super().__init__(message)
        self.status, self.headers = status, headers


class Asked:
    """A submitted job: its events up to the last. It is cancelled if the reader stops."""

    job: Job

    def __init__(self, request: Request) -> None:
        self.request = request
        self._loop, self._events = asyncio.get_running_loop(), asyncio.Queue[Event]()

    def tell(self, event: Event) -> None:
        with suppress(RuntimeError):  # the loop has closed
            self._loop.call_soon_threadsafe(self._events.put_nowait, event)

    async def events(self) -> AsyncIterator[Token | Last]:
        """The job's events. Raises Refused if the job failed."""
        gone = asyncio.ensure_future(_gone(self.request))
        try:
            while True:
                event = await self._next(gone)
                if isinstance(event, Failed):
                    raise Refused(STATUS.get(event.reason, 400), event.error)
                yield event
                if not isinstance(event, Token):
                    return
        finally:
            gone.cancel()
            self.job.cancelled.set()

    async def _next(self, gone: asyncio.Future[None]) -> Event:
        coming = asyncio.ensure_future(self._events.get())
        waiting: set[asyncio.Future[Any]] = {coming, gone}
        await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        if coming.done():
            return coming.result()
        coming.cancel()
        raise ClientDisconnect


async def _gone(request: Request) -> None:
    """Returns when the client has disconnected."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
