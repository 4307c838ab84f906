"""Where a server listens, and how it stops.

The address is taken before anything is loaded, so that one in use is reported at once.

uvicorn by itself waits for running requests before it tells the app that the server stops: after the grace, theirs would
be cut off in the middle. Here the queues are told first, so that every request gets an answer: its own, or 503.
"""

from __future__ import annotations

import asyncio
import socket

import uvicorn

from qia3.errors import ConfigError, first_line
from qia3.server.app import Server


def bound(host: str, port: int) -> list[socket.socket]:
    """Sockets of all addresses of a host, with one port; 0: any free one. Raises ConfigError."""
    sockets: list[socket.socket] = []
    try:
        for family, kind, _, _, address in socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        ):
            made = socket.socket(family, kind)
            sockets.append(made)
            made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            taken = sockets[0].getsockname()[1] or port
            made.bind((address[0], taken, *address[2:]))
    except (OSError, UnicodeError) as error:
        for made in sockets:
            made.close()
        reason = (isinstance(error, OSError) and error.strerror) or first_line(error)
        raise ConfigError(
            f"cannot listen on {host}:{port}: {reason}; choose another --port or --host (port 0: any free one)"
        ) from error
    return sockets


class HTTP(uvicorn.Server):
    """uvicorn with a server's app. `port` is for one that runs without sockets of `bound`."""

    def __init__(self, server: Server, port: int = 0) -> None:
        grace = int(server.limits.grace) + 1
        super().__init__(
            uvicorn.Config(
                server.app(), port=port, log_level="warning", access_log=False, timeout_graceful_shutdown=grace
            )
        )
        self.server = server

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        stopping = asyncio.ensure_future(self.server.stop())
        await super().shutdown(sockets)
        await stopping
