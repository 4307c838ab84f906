"""Where a server's adapters are: a local folder, or one in a store that fsspec reads.

    my-adapters      s3://bucket/adapters      gs://...      memory://adapters      file:///srv/adapters

Adapters in a store are copied to a temporary folder when they are read: the files of an adapter, and nothing else that
is beside them. What a store said before is not trusted: it is asked each time.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from qia3.bundle.head_file import FILE as HEAD
from qia3.bundle.peft import WEIGHTS
from qia3.bundle.peft_config import CONFIG
from qia3.bundle.task import TASK
from qia3.errors import AdapterError, ConfigError, QIA3Error, first_line

PARTS = (CONFIG, WEIGHTS, TASK, HEAD)


class PlaceError(QIA3Error):
    """The place cannot be read at the moment: 503."""


class Place(Protocol):
    def names(self) -> list[str]:
        """Names of what looks like an adapter. Raises PlaceError if the place cannot be listed."""

    def has(self, name: str) -> bool:
        """Whether there is what looks like an adapter of this name. Raises PlaceError."""

    @contextmanager
    def files(self, name: str) -> Iterator[Path]:
        """A local folder with an adapter's files, during the block. Raises PlaceError."""

    def within(self, name: str) -> Place | None:
        """The place of this name in it, if there is one. Raises PlaceError."""


class Folder:
    """A local folder. Raises ConfigError if it does not exist."""

    def __init__(self, path: Path) -> None:
        if not path.is_dir():
            raise ConfigError(f"{path} is not a folder of adapters")
        self.path = path

    def __str__(self) -> str:
        return str(self.path)

    def names(self) -> list[str]:
        with _asking(f"{self.path} cannot be listed"):
            return sorted(f.name for f in self.path.iterdir() if (f / CONFIG).is_file())

    def has(self, name: str) -> bool:
        with _asking(f"{self.path / name} cannot be read"):
            there = (self.path / name / CONFIG).is_file()
        if not there and not self.path.is_dir():
            raise PlaceError(f"{self.path} is not there any more")
        return there

    @contextmanager
    def files(self, name: str) -> Iterator[Path]:
        yield self.path / name

    def within(self, name: str) -> Folder | None:
        return Folder(self.path / name) if (self.path / name).is_dir() else None


class Store:
    """A folder in a store. Raises ConfigError if a package is missing, the URL is not known, or nothing is there."""

    def __init__(self, url: str) -> None:
        try:
            import fsspec
        except ModuleNotFoundError as error:
            raise ConfigError(f"{url} needs fsspec: pip install fsspec and its package for this store") from error
        self.url = url.rstrip("/")
        if "://" not in self.url:
            raise ConfigError(f"{url} names no folder in a store; write it like s3://bucket/adapters")
        try:
            self.store, self.root = fsspec.core.url_to_fs(self.url)
            self.store.ls(self.root, detail=False)  # unlike isdir, it says why not
            folder = self.store.isdir(self.root)
        except FileNotFoundError as error:
            raise ConfigError(
                f"there is nothing at {url} ({first_line(error)}); put the first adapter there before the server starts, "
                "since a store keeps no empty folder"
            ) from error
        except Exception as error:  # each store can raise anything
            raise ConfigError(f"{url} cannot be opened: {first_line(error)}") from error
        if not folder:
            raise ConfigError(f"{url} is not a folder of adapters")

    def __str__(self) -> str:
        return self.url

    def names(self) -> list[str]:
        with _asking(f"{self.url} cannot be listed"):
            self.store.invalidate_cache()
            found = self.store.find(self.root)  # pages of keys; a glob would ask for every folder
        places = [str(path).removeprefix(self.root).strip("/").split("/") for path in found]
        return sorted(place[0] for place in places if place[1:] == [CONFIG])

    def has(self, name: str) -> bool:
        with _asking(f"{self.url}/{name} cannot be read"):
            return self._kind(f"{self.root}/{name}/{CONFIG}") == "file"

    @contextmanager
    def files(self, name: str) -> Iterator[Path]:
        with tempfile.TemporaryDirectory() as place:
            folder = Path(place)
            with _asking(f"{self.url}/{name} cannot be read"):
                self.store.invalidate_cache()
                for path in self.store.ls(f"{self.root}/{name}", detail=False):
                    if (part := str(path).rpartition("/")[2]) in PARTS:
                        self.store.get_file(path, str(folder / part))
            try:
                yield folder
            except AdapterError as error:
                raise AdapterError(str(error).replace(str(folder), f"{self.url}/{name}")) from error

    def within(self, name: str) -> Store | None:
        with _asking(f"{self.url}/{name} cannot be read"):
            there = self._kind(f"{self.root}/{name}") == "directory"
        return Store(f"{self.url}/{name}") if there else None

    def _kind(self, path: str) -> str | None:
        """What is there, if anything; unlike `isfile`, it raises if the store does not answer."""
        self.store.invalidate_cache()
        try:
            return str(self.store.info(path)["type"])
        except FileNotFoundError:
            return None


@contextmanager
def _asking(what: str) -> Iterator[None]:
    """Raises PlaceError, in one line, for whatever a file system or a store raises."""
    try:
        yield
    except Exception as error:  # each store can raise anything
        raise PlaceError(f"{what}: {first_line(error)}") from error


def place_of(text: Any) -> Place:
    """The place for a path or URL. Raises ConfigError if it cannot be opened."""
    return Store(text) if isinstance(text, str) and "://" in text else Folder(Path(text))
