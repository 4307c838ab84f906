"""The bundles of one server, each with its engine and its queue, and which of them a name means.

intents              the base of the bundle of that name
intents:lamps        its adapter lamps
lamps                the same, if no other bundle has a model of that name
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from qia3.errors import ConfigError
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
        """The model of a name. Raises UnknownModel, and AdapterError for an adapter that does not fit."""
        one, own = self.place(name)
        return one, one.model.known(own)

    def place(self, name: str) -> tuple[Served, str]:
        """The bundle that a name means, and the name within it. Raises UnknownModel."""
        bundle, found, own = name.partition(SEPARATOR)
        if found and bundle in self.by_name:
            return self.by_name[bundle], own
        if name in self.by_name or len(self.served) == 1:
            return self.by_name.get(name, self.served[0]), name
        having = [one for one in self.served if one.model.has(name)] or self._looked(name)
        if len(having) > 1:
            ways = " or ".join(f"{one.model.name}{SEPARATOR}{name}" for one in having)
            raise UnknownModel(f"several bundles have a model {name!r}: use {ways}")
        if not having:
            raise UnknownModel(f"there is no model {name!r}; available: {shown(self.names())}")
        return having[0], name

    def _looked(self, name: str) -> list[Served]:
        """Bundles that have it after searching their folders."""
        for one in self.served:
            one.model.shelf.look()
        return [one for one in self.served if one.model.has(name)]

    def entries(self) -> list[tuple[str, Entry]]:
        """Every adapter, by its name on this server."""
        return [(self.told(one, entry.name), entry) for one in self.served for entry in one.model.shelf.listed()]
