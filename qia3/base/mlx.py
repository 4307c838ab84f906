"""A layer of an MLX checkpoint as mlx-lm saves it (grids/mlx.py), including the embedding.

    NAME.weight uint32  NAME.scales  NAME.biases  [NAME.bias, the layer's own]

    "quantization": {"group_size": 64, "bits": 4, "mode": "affine",            (again as "quantization_config" since 2024)
                     "model.layers.0.mlp.down_proj": {"group_size": 64, "bits": 8}, "lm_head": false}

A layer is quantised if it has scales; a table under its name is its own form, and false means float. 4-bit layers keep
their codes and scales, group by group, if the zero point is a whole number up to rounding; other groups are rounded
again. How far weights move is recorded in the manifest and the report. Layers with 2, 3, 5, 6 or 8 bits are
dequantised, and quantised as the build asks, like everything that a checkpoint leaves in float.

Source: mlx-lm, utils.py (`load_model`, `quantize_model`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import nn

from qia3.base.drift import Moved
from qia3.base.layout import FLOATS, Layer, Loaded, Need, marked, refused
from qia3.base.tensors import Tensors, kind
from qia3.base.weights import Int4Weight
from qia3.errors import BaseModelError
from qia3.grids.mlx import BITS, UNITS, dequantise_mlx, shapes, unpack_mlx

TYPES = {"weight": (torch.uint32,), "scales": FLOATS, "biases": FLOATS}


@dataclass(frozen=True)
class Affine:
    """The form in which one layer is stored."""

    bits: int
    group_size: int

    def needs(self, name: str, inputs: int, outputs: int, tensors: Tensors) -> dict[str, Need]:
        found = shapes(inputs, outputs, self.group_size, self.bits)
        return {kind: (TYPES[kind], shape) for kind, shape in found.items()}

    def load(self, name: str, tensors: Tensors) -> Loaded:
        stored = {kind(tensors.places[f"{name}.{part}"]) for part in ("scales", "biases")}
        words = tensors.read(f"{name}.weight").numpy()
        scales, biases = (tensors.read(f"{name}.{part}").float().numpy() for part in ("scales", "biases"))
        if self.bits != 4:
            return Loaded(torch.from_numpy(dequantise_mlx(words, scales, biases, self.bits)))
        grid, anew = unpack_mlx(words, scales, biases, max(UNITS[name] for name in stored))
        weight = Int4Weight(grid)
        dense = torch.from_numpy(dequantise_mlx(words, scales, biases))
        return Loaded(weight, Moved.between(dense, weight, int(np.count_nonzero(anew))))


@dataclass(frozen=True)
class MlxLayout:
    """`form` is that of layers without an entry in `own`; an entry of None means float."""

    form: Affine
    own: Mapping[str, Affine | None] = field(default_factory=dict)
    codes: str = "mlx"

    def layers(self, model: nn.Module, tensors: Tensors) -> Mapping[str, Layer]:
        found = marked(tensors, ".scales")
        wrong = [name for name, form in self.own.items() if (form is not None) is not (name in found)]
        wrong = [name for name in wrong if self.own[name] is not None or name in found]
        if found and wrong:
            says = "in float" if self.own[wrong[0]] is None else "quantised"
            raise BaseModelError(
                f"quantization of config.json says that {wrong[0]} is {says}, but the files disagree; fetch "
                "config.json and weights again, both from the same source"
            )
        return {name: form for name in found if (form := self.own.get(name, self.form)) is not None}


def read_mlx(settings: Mapping[str, Any]) -> MlxLayout:
    """`quantization` of a config.json. Raises BaseModelError that names what is not supported."""
    whole = {key: value for key, value in settings.items() if not isinstance(value, dict | bool)}
    form = _affine("its MLX weights", {key: value for key, value in whole.items() if key != "quant_method"})
    if form.bits != 4:
        raise refused(f"its MLX weights have {form.bits} bits")
    own: dict[str, Affine | None] = {}
    for name, given in settings.items():
        if isinstance(given, dict):
            told = f"{name} of its MLX weights"
            own[name] = _affine(told, {"bits": form.bits, "group_size": form.group_size, **given})
        elif given is False:
            own[name] = None
    return MlxLayout(form, own)


def _affine(told: str, table: Mapping[str, Any]) -> Affine:
    """The form in this table. Raises BaseModelError if it is not supported."""
    bits, group, mode = table.get("bits"), table.get("group_size"), table.get("mode") or "affine"
    if mode != "affine":
        raise refused(f"{told} are in mode {mode!r}" if told.startswith("its") else f"{told} is in mode {mode!r}")
    if bits not in BITS or type(bits) is not int or type(group) is not int or group <= 0:
        raise refused(f"{told}: {bits!r} bits in groups of {group!r}")
    if strange := sorted(set(table) - {"bits", "group_size", "mode"}):
        raise refused(f"{told}: {', '.join(strange)} of quantization in config.json")
    return Affine(bits, group)
