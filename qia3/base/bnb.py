"""A layer of a checkpoint that bitsandbytes saved in NF4 (`save_pretrained` of a model loaded with BitsAndBytesConfig).

    NAME.weight                                        uint8 [N K / 2, 1]     codes, two per byte, the even entry in the high nibble
    NAME.weight.absmax                                 float32 [N K / block], or uint8 if the scales themselves are quantised
    NAME.weight.quant_map                              float32 [16]           the levels
    NAME.weight.nested_absmax, .nested_quant_map       float32 [ceil(m / 256)], [256]: for m double-quantised scales
    NAME.weight.quant_state.bitsandbytes__nf4          uint8 [...]            JSON:

    {"quant_type": "nf4", "blocksize": 64, "dtype": "bfloat16", "shape": [N, K],
     "nested_blocksize": 256, "nested_dtype": "float32", "nested_offset": 0.0321}

Scales are read before anything runs (bitsandbytes repacks in place on some processors). Double-quantised ones become
plain float32 (grids/nf4.py), since a fold needs float32 scales. Source: bitsandbytes 0.50, functional.py,
QuantState.as_dict and from_dict.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from qia3.base.layout import Layer, Loaded, Need, marked, refused
from qia3.base.nf4 import Nf4Weight
from qia3.base.tensors import Tensors
from qia3.grids import nf4

STATE = ".weight.quant_state.bitsandbytes__nf4"
BYTES, FLOAT = (torch.uint8,), (torch.float32,)
LARGEST_STATE = 1 << 16  # bytes of JSON


@dataclass(frozen=True)
class State:
    """The fields of the JSON that are used. `nested_block` None: plain scales."""

    block_size: int
    shape: tuple[int, int]
    nested_block: int | None
    offset: float


@dataclass(frozen=True)
class BnbLayout:
    """`codes` is the name of the format in the base's record."""

    codes: str = "nf4"

    def layers(self, model: nn.Module, tensors: Tensors) -> Mapping[str, Layer]:
        return dict.fromkeys(marked(tensors, STATE), self)

    def needs(self, name: str, inputs: int, outputs: int, tensors: Tensors) -> dict[str, Need]:
        """Types and shapes of a layer's tensors, by the suffix of their names. Raises ValueError if they cannot be
        right.
        """
        state = read_state(name, tensors)
        if state.shape != (outputs, inputs):
            raise ValueError(
                f"its shape is {list(state.shape)}, but the model's layer has {outputs} outputs and {inputs} inputs"
            )
        entries = inputs * outputs
        scales = -(-entries // state.block_size)
        found: dict[str, Need] = {
            "weight": (BYTES, (-(-entries // 2), 1)),
            "weight.absmax": (FLOAT if state.nested_block is None else BYTES, (scales,)),
            "weight.quant_map": (FLOAT, (16,)),
            STATE.removeprefix("."): (BYTES, tensors.places[name + STATE].shape),
        }
        if state.nested_block is not None:
            found["weight.nested_absmax"] = (FLOAT, (-(-scales // state.nested_block),))
            found["weight.nested_quant_map"] = (FLOAT, (256,))
        return found

    def load(self, name: str, tensors: Tensors) -> Loaded:
        """The layer's weight, with plain scales. Raises ValueError if levels or scales are invalid."""
        state = read_state(name, tensors)
        if not np.array_equal(tensors.read(f"{name}.weight.quant_map").numpy(), nf4.LEVELS):
            raise ValueError("its levels are not NF4's")
        scales = tensors.read(f"{name}.weight.absmax").numpy()
        if state.nested_block is not None:
            levels, wide = (tensors.read(f"{name}.weight.nested_{kind}").numpy() for kind in ("quant_map", "absmax"))
            scales = nf4.unnest(scales, levels, wide, state.offset, state.nested_block)
        if not np.isfinite(scales).all():
            raise ValueError("its scales hold NaN or infinity")
        codes = tensors.read(f"{name}.weight").numpy().reshape(-1)
        return Loaded(Nf4Weight(nf4.Nf4(codes, scales, state.block_size, *state.shape)))


def read_bitsandbytes(settings: Mapping[str, Any]) -> BnbLayout:
    """{"quant_method": "bitsandbytes", "load_in_4bit": true, "bnb_4bit_quant_type": "nf4"}. Raises BaseModelError."""
    kind, storage = settings.get("bnb_4bit_quant_type"), settings.get("bnb_4bit_quant_storage") or "uint8"
    if not settings.get("load_in_4bit") or kind != "nf4" or storage != "uint8":
        what = f"{kind} stored as {storage}" if settings.get("load_in_4bit") else "8 bits"
        raise refused(f"its weights are quantised by bitsandbytes to {what}")
    return BnbLayout()


def read_state(name: str, tensors: Tensors) -> State:
    """Raises ValueError on one that is damaged or of another kind."""
    place = tensors.places[name + STATE]
    if place.dtype != torch.uint8 or len(place.shape) != 1 or place.shape[0] > LARGEST_STATE:
        raise ValueError("its quant_state is not JSON")
    try:
        found = json.loads(tensors.read(name + STATE).numpy().tobytes())
        kind, block, shape = found["quant_type"], found["blocksize"], found["shape"]
        nested = found.get("nested_blocksize")
        offset = float(found.get("nested_offset") or 0.0)
    except (ValueError, KeyError, TypeError, RecursionError, AttributeError) as error:
        raise ValueError(f"its quant_state is damaged ({error})") from error
    if kind != "nf4" or block not in nf4.BLOCK_SIZES:
        raise ValueError(
            f"it is {kind!r} in blocks of {block!r}; supported is NF4 in blocks of "
            f"{', '.join(map(str, nf4.BLOCK_SIZES))}"
        )
    if not (isinstance(shape, list) and len(shape) == 2 and all(type(n) is int and n > 0 for n in shape)):
        raise ValueError(f"its shape is invalid: {shape!r}")
    if (nested is not None and not (type(nested) is int and 0 < nested <= 1 << 20)) or not np.isfinite(offset):
        raise ValueError("its nested_blocksize or nested_offset is invalid")
    return State(block, (shape[0], shape[1]), nested, offset)
