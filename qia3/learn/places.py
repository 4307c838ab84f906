"""A bundle's vectors while they train: offsets from one of the entries that do, and the vectors that they make."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from qia3.bundle.sites import Site, Vectors
from qia3.learn.optimiser import Floats, Offsets, bfloat16


class Places:
    """`limits`: the largest |l| of an entry, by name, where the bundle's cache holds no more (bundle/cache_range.py)."""

    def __init__(self, sites: Sequence[Site], limits: Mapping[str, Floats]) -> None:
        self.sites, self.limits = tuple(sites), dict(limits)

    @property
    def parameters(self) -> int:
        return sum(site.parameters for site in self.sites)

    def offsets(self, start: Mapping[str, Floats] | None) -> Offsets:
        """Of vectors [size], or of ones; copies [parameters]."""
        ones = {s.name: np.ones(s.size, np.float32) for s in self.sites}
        given = ones | {n: v.reshape(-1) for n, v in (start or {}).items()}
        return {s.name: self._trained(s, given[s.name]) - np.float32(1) for s in self.sites}

    def vectors(self, offsets: Offsets) -> Vectors:
        """float32 [size], one where nothing trains."""
        return {s.name: self._whole(s, 1 + bfloat16(offsets[s.name])) for s in self.sites}

    def gradients(self, found: Mapping[str, Floats]) -> Offsets:
        """Of the entries that train, from those of whole vectors, [1, 1, size] or [size]."""
        return {s.name: self._trained(s, found[s.name].reshape(-1)) for s in self.sites}

    def hold(self, offsets: Offsets) -> None:
        """Takes the vectors back to within the limits, in place."""
        for site in self.sites:
            if (most := self.limits.get(site.name)) is not None:
                limit = self._trained(site, most)
                np.clip(offsets[site.name], -limit - 1, limit - 1, out=offsets[site.name])

    @staticmethod
    def _trained(site: Site, vector: Floats) -> Floats:
        return vector.copy() if site.rows is None else vector[list(site.rows)]

    @staticmethod
    def _whole(site: Site, trained: Floats) -> Floats:
        if site.rows is None:
            return trained
        whole = np.ones(site.size, np.float32)
        whole[list(site.rows)] = trained
        return whole
