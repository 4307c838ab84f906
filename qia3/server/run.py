"""A server from its options to its end: the bundle opened, the routes on uvicorn, until a signal comes.

Starlette and uvicorn are two packages of plain Python with streaming and nothing more; FastAPI would add what costs more
memory than a thousand adapters' index, and the other servers schedule requests, not steps.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import uvicorn

from qia3.bundle.opened import Bundle
from qia3.errors import ConfigError
from qia3.progress import say
from qia3.runtime.encoder import Encoder
from qia3.runtime.load import open_engine
from qia3.server.app import Limits, Server
from qia3.server.batcher import Batcher
from qia3.server.labeller import Labeller
from qia3.server.line import Line
from qia3.server.model import Model
from qia3.server.shelf import Shelf


@dataclass(frozen=True)
class Options:
    """`context`: positions of a row, None is the bundle's whole context. `key_file`: API keys, one on a line."""

    host: str = "127.0.0.1"
    port: int = 8080
    rows: int = 8
    context: int | None = None
    queue: int = 64
    adapters: Path | None = None
    keep: int = 256
    threads: int | None = None
    packed: Path | None = None
    key_file: Path | None = None
    limits: Limits = field(default_factory=Limits)


def make_server(bundle: Path, options: Options) -> Server:
    """Raises what opening a bundle raises, and ConfigError for options that do not fit it."""
    opened = Bundle.open(bundle)
    keys = _keys(options.key_file)
    shelf = Shelf(opened, options.adapters, options.keep)
    engine = open_engine(opened, options.threads, options.packed)
    line: Line
    if isinstance(engine, Encoder):
        if options.context is not None:
            raise ConfigError("--context is for what writes: an encoder reads its whole context")
        line = Labeller(engine, options.rows, options.queue)
    else:
        line = Batcher(engine, options.rows, options.context, options.queue)
    return Server(Model(engine, shelf), line, options.limits, keys)


def serve(bundle: Path, options: Options) -> None:
    """Until SIGINT or SIGTERM; running requests get their grace."""
    server = make_server(bundle, options)
    if options.host not in ("127.0.0.1", "localhost", "::1") and not server.keys:
        say(f"warning: {options.host} can be reached from elsewhere, and no key is asked for (--key-file)")
    names = server.model.names()
    say(f"serving {len(names)} models on http://{options.host}:{options.port}/v1: {', '.join(names[:8])}")
    uvicorn.run(
        server.app(),
        host=options.host,
        port=options.port,
        log_level="warning",
        access_log=False,
        timeout_graceful_shutdown=int(options.limits.grace) + 1,
    )


def _keys(file: Path | None) -> Sequence[str]:
    """Raises ConfigError for a file without keys."""
    if file is None:
        return ()
    try:
        found = [line.strip() for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file} cannot be read as a file of API keys: {error}") from error
    if not found:
        raise ConfigError(f"{file} has no API key; write one on a line")
    return found
