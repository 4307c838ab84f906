"""Every grid that a base's weights can be on, by its name in a cached base."""

from __future__ import annotations

from qia3.base.int8 import Int8Weight
from qia3.base.nf4 import Nf4Weight
from qia3.base.weights import GridWeight, Int4Weight

KINDS: dict[str, type[GridWeight]] = {weight.kind: weight for weight in (Int4Weight, Int8Weight, Nf4Weight)}
