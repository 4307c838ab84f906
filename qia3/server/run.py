"""A server from its options to its end: opens the bundles and runs the routes on uvicorn until a signal comes.

Starlette and uvicorn are two packages of plain Python that do streaming and little else. FastAPI would cost more memory
than an index of a thousand adapters, and other model servers schedule requests, not steps.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from qia3.bundle.opened import Bundle
from qia3.errors import ConfigError
from qia3.progress import say
from qia3.runtime.encoder import Encoder
from qia3.runtime.load import open_engine
from qia3.server.app import Limits, Server
from qia3.server.batcher import Batcher
from qia3.server.labeller import Labeller
from qia3.server.listen import HTTP, bound
from qia3.server.model import Model
from qia3.server.models import Served
from qia3.server.place import Place, place_of
from qia3.server.shelf import MEMORY, Shelf


@dataclass(frozen=True)
class Options:
    """`context`: positions per row; None: the bundle's whole context. `key_file`: API keys, one per line."""

    host: str = "127.0.0.1"
    port: int = 8080
    rows: int = 8
    context: int | None = None
    queue: int = 64
    adapters: str | Path | None = None  # a folder, or a store's URL
    adapter_memory: float = MEMORY / 2**20  # MiB
    threads: int | None = None
    packed: Path | None = None
    key_file: Path | None = None
    limits: Limits = field(default_factory=Limits)


def make_server(bundles: Path | Sequence[Path], options: Options) -> Server:
    """Opens the bundles. Raises what opening a bundle raises, and ConfigError for options that do not fit it."""
    paths = [bundles] if isinstance(bundles, Path) else list(bundles)
    opened = [Bundle.open(path) for path in paths]
    keys = _keys(options.key_file)
    place = None if options.adapters is None else place_of(options.adapters)
    if options.context is not None and all(one.architecture.pooling is not None for one in opened):
        raise ConfigError("--context does not apply to an encoder, which always uses its whole context")
    return Server([_served(one, options, place, len(opened) > 1) for one in opened], options.limits, keys)


def _served(bundle: Bundle, options: Options, place: Place | None, several: bool) -> Served:
    """Prepares one bundle. With several, each uses the subfolder with its name in the given folder of adapters."""
    if several and place is not None:
        place = place.within(bundle.name)
    shelf = Shelf(bundle, place, int(options.adapter_memory * 2**20))
    engine = open_engine(bundle, options.threads, options.packed)
    if isinstance(engine, Encoder):
        return Served(Model(engine, shelf), Labeller(engine, options.rows, options.queue))
    return Served(Model(engine, shelf), Batcher(engine, options.rows, options.context, options.queue))


def serve(bundles: Sequence[Path], options: Options) -> None:
    """Serves until SIGINT or SIGTERM; running requests get some time to finish. Raises what make_server does, and
    ConfigError if it cannot listen there.
    """
    sockets = bound(options.host, options.port)
    server = make_server(bundles, options)
    if options.host not in ("127.0.0.1", "localhost", "::1") and not server.keys:
        say(f"warning: {options.host} can be reached from other machines, and no API key is required (--key-file)")
    names = server.models.names()
    say(
        f"serving {len(names)} models on http://{options.host}:{sockets[0].getsockname()[1]}/v1: {', '.join(names[:8])}"
    )
    with suppress(KeyboardInterrupt):
        HTTP(server).run(sockets)


def _keys(file: Path | None) -> Sequence[str]:
    """The API keys in a file. Raises ConfigError if there are none."""
    if file is None:
        return ()
    try:
        found = [line.strip() for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file} cannot be read as a file of API keys: {error}") from error
    if not found:
        raise ConfigError(f"{file} has no API key; write one per line")
    return found
