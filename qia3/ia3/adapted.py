"""A frozen 4-bit base with vectors attached: it is trained, compared, exported and merged."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qia3.base.family import is_encoder
from qia3.base.frozen import BaseModel
from qia3.bundle.sites import Site
from qia3.ia3.roles import Roles, find_roles
from qia3.ia3.vectors import Scaled, attach, detach, fold, make_constant, set_vectors


@dataclass(frozen=True)
class AdaptedBase:
    """`scaled` are the layers with a vector, by the vector's name; `roles` the roles of all linear layers."""

    base: BaseModel
    roles: Roles
    scaled: dict[str, Scaled]

    @classmethod
    def of(cls, base: BaseModel, query_vectors: bool = False) -> AdaptedBase:
        """The base with vectors of ones on keys, values and feed-forwards; on queries too, if asked for."""
        roles = find_roles(base.model)
        return cls(base, roles, attach(base.model, (*roles.queries, *roles.sites) if query_vectors else roles.sites))

    @property
    def model(self) -> Any:
        """transformers' model, its layers on a grid."""
        return self.base.model

    @property
    def sites(self) -> tuple[Site, ...]:
        return tuple(layer.site for layer in self.scaled.values())

    @contextmanager
    def wearing(self, vectors: Mapping[str, NDArray[np.float32]]) -> Iterator[None]:
        """Applies these vectors, in float32, during the block; {} is the base alone. Raises AdapterError if they do not
        fit.
        """
        before = {name: (layer.delta.detach().clone(), layer.precision) for name, layer in self.scaled.items()}
        try:
            set_vectors(self.scaled, vectors)
            yield
        finally:
            for name, (delta, precision) in before.items():
                self.scaled[name].delta.data.copy_(delta)
                self.scaled[name].precision = precision

    def merge(self, vectors: Mapping[str, NDArray[np.float32]]) -> None:
        """Folds the vectors into scales and biases permanently. Raises AdapterError if one cannot be folded; in an
        encoder it stays, as a constant.
        """
        set_vectors(self.scaled, vectors)
        kept = make_constant(self.model, self.scaled) if is_encoder(self.model.config) else set()
        folded = {name: layer for name, layer in self.scaled.items() if name not in kept}
        fold(folded)
        detach(self.model, folded)
        self.scaled.clear()
