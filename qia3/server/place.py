"""Where a server's adapters are: a local folder, or one in a store that fsspec reads.

    my-adapters      s3://bucket/adapters      gs://...      memory://adapters      file:///srv/adapters

Adapters in a store are copied to a temporary folder when they are read, file by file; the list of adapters is requested
from the store each time.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from qia3.bundle.peft_config import CONFIG
from qia3.errors import AdapterError, ConfigError, first_line


class Place(Protocol):
    def names(self) -> list[str]:
        """Names of what looks like an adapter. Raises AdapterError if the place cannot be listed."""

    @contextmanager
    def files(self, name: str) -> Iterator[Path]:
        """A local folder with an adapter's files, during the block. Raises AdapterError."""

    def within(self, name: str) -> Place | None:
        """The place of this name in it, if there is one."""


class Folder:
    """A local folder. Raises ConfigError if it does not exist."""

    def __init__(self, path: Path) -> None:
        if not path.is_dir():
            raise ConfigError(f"{path} is not a folder of adapters")
        self.path = path

    def __str__(self) -> str:
        return str(self.path)

    def names(self) -> list[str]:
        return sorted(f.name for f in self.path.iterdir() if (f / CONFIG).is_file())

    @contextmanager
    def files(self, name: str) -> Iterator[Path]:
        yield self.path / name

    def within(self, name: str) -> Folder | None:
        return Folder(self.path / name) if (self.path / name).is_dir() else None


class Store:
    """A folder in a store. Raises ConfigError if fsspec is missing, does not know the URL, or finds nothing."""

    def __init__(self, url: str) -> None:
        try:
            import fsspec
        except ModuleNotFoundError as error:
            raise ConfigError(f"{url} needs fsspec: pip install fsspec and its package for this store") from error
        self.url = url.rstrip("/")
        try:
            self.store, self.root = fsspec.core.url_to_fs(self.url)
            there = self.store.isdir(self.root)
        except Exception as error:  # each store can raise anything
            raise ConfigError(f"{url} cannot be opened: {first_line(error)}") from error
        if not there:
            raise ConfigError(f"{url} is not a folder of adapters")

    def __str__(self) -> str:
        return self.url

    def names(self) -> list[str]:
        try:
            self.store.invalidate_cache()
            found = self.store.glob(f"{self.root}/*/{CONFIG}")
        except Exception as error:
            raise AdapterError(f"{self.url} cannot be listed: {first_line(error)}") from error
        return sorted(str(path).split("/")[-2] for path in found)

    @contextmanager
    def files(self, name: str) -> Iterator[Path]:
        with tempfile.TemporaryDirectory() as place:
            try:
                for path in self.store.ls(f"{self.root}/{name}", detail=False):
                    self.store.get_file(path, str(Path(place) / str(path).rpartition("/")[2]))
            except Exception as error:
                raise AdapterError(f"{self.url}/{name} cannot be read: {first_line(error)}") from error
            yield Path(place)

    def within(self, name: str) -> Store | None:
        return Store(f"{self.url}/{name}") if self.store.isdir(f"{self.root}/{name}") else None


def place_of(text: Any) -> Place:
    """The place for a path or URL. Raises ConfigError if it cannot be opened."""
    return Store(text) if isinstance(text, str) and "://" in text else Folder(Path(text))
