"""A layer of a compressed-tensors checkpoint (llm-compressor's W4A16, grids/compressed.py), and which layers are
quantised.

    NAME.weight_packed  NAME.weight_scale  NAME.weight_shape  [NAME.weight_zero_point]  [NAME.weight_g_idx]

    {"quant_method": "compressed-tensors", "format": "pack-quantized", "ignore": ["lm_head"],
     "config_groups": {"group_0": {"targets": ["Linear"], "input_activations": null, "output_activations": null,
                                   "weights": {"num_bits": 4, "type": "int", "symmetric": true, "strategy": "group", "group_size": 128}}},
     "kv_cache_scheme": null, "sparsity_config": {}, "transform_config": {}}

A target is a layer's name, a pattern ("re:" before it, matched at the beginning of the name) or a class; `ignore`
likewise. Names take precedence over patterns and patterns over classes; among patterns the first in alphabetical order
counts, as in the library. The groups are compared with the files: a layer that has codes and should not, or has none
and should, is an error.

Checkpoints that also quantise inputs, outputs or caches, or use sparsity or rotations, are refused. Source:
compressed-tensors 0.20.0, quantization/quant_config.py, quant_args.py, utils/match.py (`match_targets`).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from qia3.base.layout import FLOATS, WORDS, Layer, Loaded, Need, marked, refused
from qia3.base.tensors import Tensors
from qia3.base.weights import Int4Weight
from qia3.errors import BaseModelError
from qia3.grids.compressed import shapes, unpack_compressed
from qia3.grids.gptq import is_plain
from qia3.grids.grouped import block_of, group_inputs

PACKED = "pack-quantized"
WHOLE = (torch.int64, torch.int32)
TYPES = {"weight_packed": WORDS, "weight_scale": FLOATS, "weight_zero_point": WORDS, "weight_shape": WHOLE}
EMPTY = ("kv_cache_scheme", "sparsity_config", "transform_config", "moe_sparsity_config")
WEIGHTS = {  # allowed keys of a group's `weights`; the others only say how the codes were found
    "num_bits", "type", "symmetric", "strategy", "group_size", "dynamic", "actorder", "block_structure",
    "observer", "observer_kwargs", "scale_dtype", "zp_dtype",
}  # fmt: skip


@dataclass(frozen=True)
class Scheme:
    """How the layers of one of the `config_groups` are stored; group_size -1 means one group per row."""

    group_size: int
    symmetric: bool

    def needs(self, name: str, inputs: int, outputs: int, tensors: Tensors) -> dict[str, Need]:
        block_of(group_inputs(self.group_size, inputs))
        found = shapes(inputs, outputs, self.group_size, self.symmetric)
        needs: dict[str, Need] = {kind: (TYPES[kind], shape) for kind, shape in found.items()}
        if f"{name}.weight_g_idx" in tensors.places:
            needs["weight_g_idx"] = (WHOLE, (inputs,))
        return needs

    def load(self, name: str, tensors: Tensors) -> Loaded:
        packed, scales = (tensors.read(f"{name}.{kind}") for kind in ("weight_packed", "weight_scale"))
        zeros = None if self.symmetric else tensors.read(f"{name}.weight_zero_point").numpy()
        outputs, inputs = (int(n) for n in tensors.read(f"{name}.weight_shape"))
        if f"{name}.weight_g_idx" in tensors.places:
            order = tensors.read(f"{name}.weight_g_idx").numpy().astype(np.int32)
            if not is_plain(order, self.group_size):
                raise ValueError(
                    'its inputs were sorted by activation (actorder "group"), so its groups are not blocks; use a file '
                    'with actorder "weight" or without actorder'
                )
        if (outputs, -(-inputs // 8)) != tuple(packed.shape):
            raise ValueError(
                f"its weight_shape is [{outputs}, {inputs}], but weight_packed has shape {list(packed.shape)}"
            )
        grid = unpack_compressed(packed.numpy(), scales.float().numpy(), zeros, self.group_size, inputs)
        return Loaded(Int4Weight(grid))


@dataclass(frozen=True)
class CompressedLayout:
    """`targets`: names and patterns in order of precedence."""

    targets: Mapping[str, Scheme]
    ignored: tuple[str, ...]
    codes: str = "compressed-tensors"

    def layers(self, model: nn.Module, tensors: Tensors) -> Mapping[str, Layer]:
        wanted: dict[str, Layer] = {}
        for name, module in model.named_modules():
            if isinstance(module, nn.Linear | nn.Embedding) and (scheme := self._scheme_of(name, module)) is not None:
                wanted[name] = scheme
        found = set(marked(tensors, ".weight_packed"))
        lacking = [
            f"{name} should be quantised (config_groups) but has no codes" for name in sorted(set(wanted) - found)
        ]
        extra = [f"{name} has codes, but config_groups leaves it in float" for name in sorted(found - set(wanted))]
        if found and (wrong := lacking + extra):
            more = f"; {len(wrong) - 3} more like these" if len(wrong) > 3 else ""
            raise BaseModelError(
                f"the weights do not fit config.json: {'; '.join(wrong[:3])}{more}; fetch config.json and weights "
                "again, both from the same source"
            )
        return wanted if found else {}

    def _scheme_of(self, name: str, module: nn.Module) -> Scheme | None:
        classes = {kind.__name__ for kind in type(module).__mro__}
        if any(_names(target, name) or target in classes for target in self.ignored):
            return None
        named = [target for target in self.targets if _names(target, name)]
        first = next(iter([*named, *(target for target in self.targets if target in classes)]), None)
        return None if first is None else self.targets[first]


def read_compressed(settings: Mapping[str, Any]) -> CompressedLayout:
    """Raises BaseModelError that names what is not supported."""
    for key in EMPTY:
        if settings.get(key):
            raise refused(f"it has a {key} (compressed-tensors)")
    groups, ignored = settings.get("config_groups"), settings.get("ignore") or []
    if not isinstance(groups, dict) or not groups or not all(isinstance(g, dict) for g in groups.values()):
        raise BaseModelError("config_groups of quantization_config must be a table of tables; fetch config.json again")
    if not _texts(ignored):
        raise BaseModelError(f"ignore of quantization_config must be a list of names, not {ignored!r}")
    targets: dict[str, Scheme] = {}
    for name, group in groups.items():
        scheme = _scheme(name, group, settings.get("format"))
        if not _texts(group.get("targets")):
            raise BaseModelError(
                f"targets of {name!r} in config_groups are not a list of names; fetch config.json again"
            )
        targets |= dict.fromkeys(group["targets"], scheme)
    for pattern in [*targets, *ignored]:
        _compiled(pattern)
    order = sorted(targets, key=lambda target: ("re:" in target, target))
    return CompressedLayout({target: targets[target] for target in order}, tuple(ignored))


def _scheme(name: str, group: Mapping[str, Any], whole: Any) -> Scheme:
    """The scheme of one of the config_groups. Raises BaseModelError for a scheme that is not supported."""
    told = f"group {name!r} of compressed-tensors"
    for key in ("input_activations", "output_activations"):
        if group.get(key) is not None:
            raise refused(f"{told} also quantises inputs or outputs of its layers ({key})")
    weights = group.get("weights")
    if (packing := group.get("format") or whole) != PACKED:
        raise refused(f"{told} is stored as {packing!r}")
    if not isinstance(weights, dict):
        raise BaseModelError(f"{told} has no table of weights; fetch config.json again")
    bits, kind, strategy = weights.get("num_bits"), weights.get("type", "int"), weights.get("strategy")
    size = weights.get("group_size")
    if bits != 4 or kind != "int":
        raise refused(f"{told} has weights of {bits!r} bits, {kind!r}")
    if strategy not in ("group", "channel") or weights.get("dynamic") or weights.get("block_structure"):
        raise refused(f"{told} has scales by {strategy!r}{', dynamic' if weights.get('dynamic') else ''}")
    if strategy == "channel":
        size = -1
    elif type(size) is not int or size <= 0:
        raise refused(f"{told} has a group_size of {size!r}")
    if strange := sorted(set(weights) - WEIGHTS):
        raise refused(f"{told} sets {', '.join(strange)} for its weights")
    symmetric = weights.get("symmetric", True)
    return Scheme(int(size), symmetric is not False)


def _names(target: str, name: str) -> bool:
    return bool(_compiled(target).match(name)) if target.startswith("re:") else target == name


def _compiled(target: str) -> re.Pattern[str]:
    try:
        return re.compile(target.removeprefix("re:") if target.startswith("re:") else re.escape(target))
    except re.error as error:
        raise BaseModelError(
            f"{target!r} in quantization_config is not a regular expression ({error}); correct config.json"
        ) from error


def _texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(text, str) for text in value)
