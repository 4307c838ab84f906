"""The bundles of one server, each with its engine and its queue, and which of them a name means.

intents              the base of the bundle of that name
intents:lamps        its adapter lamps
lamps                the same, if no other bundle has a model of that name
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from qia3.errors import ConfigError, quoted
from qia3.server.line import Line
from qia3.server.model import Known, Model, UnknownModel, shown
from qia3.server.shelf import Entry

SEPARATOR = ":"


@dataclass(frozen=True)
class Served:
    """A bundle and the thread that runs it."""

    model: Model
    line: Line


class Models:
    def __init__(self, served: Sequence[Served]) -> None:
        self.served = tuple(served)
        self.by_name = {one.model.name: one for one in self.served}
        if len(self.by_name) < len(self.served):
            raise ConfigError(f"two bundles are called {Counter(s.model.name for s in served).most_common(1)[0][0]!r}")

    def names(self) -> list[str]:
        """The names of all models, short if unambiguous."""
        return [self.told(one, name) for one in self.served for name in one.model.names()]

    def told(self, one: Served, name: str) -> str:
        """A model's name as this server lists it."""
        clear = name == one.model.name or sum(other.model.has(name) for other in self.served) == 1
        return (
            name
            if clear and (name == one.model.name or name not in self.by_name)
            else f"{one.model.name}{SEPARATOR}{name}"
        )

    def known(self, name: str) -> tuple[Served, Known]:
        """The model of a name, whose files may have to be read. Raises UnknownModel, PlaceError, and AdapterError for
        an adapter that does not fit.
        """
        one, own = self.place(name)
        return one, one.model.known(own)

    def held(self, name: str) -> tuple[Served, Known] | None:
        """The same if nothing has to be read for it, otherwise None."""
        having, own = self._having(name)
        known = having[0].model.held(own) if len(having) == 1 else None
        return None if known is None else (having[0], known)

    def place(self, name: str) -> tuple[Served, str]:
        """The bundle that a name means, and the name within it. Raises UnknownModel, PlaceError."""
        having, own = self._having(name)
        having = having or self._looked(name)
        if len(having) > 1:
            ways = " or ".join(f"{one.model.name}{SEPARATOR}{name}" for one in having)
            raise UnknownModel(f"several bundles have a model {name!r}: use {ways}")
        if not having:
            raise UnknownModel(f"there is no model {quoted(name)}; available: {shown(self.names())}")
        return having[0], own

    def _having(self, name: str) -> tuple[list[Served], str]:
        """The bundles that a name may mean, without searching a folder, and the name within them."""
        bundle, found, own = name.partition(SEPARATOR)
        if found and bundle in self.by_name:
            return [self.by_name[bundle]], own
        if name in self.by_name or len(self.served) == 1:
            return [self.by_name.get(name, self.served[0])], name
        return [one for one in self.served if one.model.has(name)], name

    def _looked(self, name: str) -> list[Served]:
        """Bundles in whose folders it is new."""
        return [one for one in self.served if one.model.shelf.find(name) is not None]

    def look(self) -> None:
        """Searches the folders for adapters that came or went. Raises PlaceError."""
        for one in self.served:
            one.model.shelf.look()

    def entries(self) -> list[tuple[str, Entry]]:
        """Every adapter, by its name on this server."""
        return [(self.told(one, entry.name), entry) for one in self.served for entry in one.model.shelf.listed()]
