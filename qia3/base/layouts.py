"""Which 4-bit layout a checkpoint is in, from the `quantization_config` of its config.json; what it holds for a layer, and that layer's codes.

    {"quant_method": "gptq", "bits": 4, "group_size": 128, "sym": true, "desc_act": false, "checkpoint_format": "gptq" or "gptq_v2"}
    {"quant_method": "awq", "bits": 4, "group_size": 128, "zero_point": true, "version": "gemm"}

Only what is said of the bits, the groups and the packing is believed; whether zero points are 8 and groups are in order is seen in the tensors.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from qia3.errors import BaseModelError
from qia3.grids import awq, gptq
from qia3.grids.grouped import block_of, group_inputs
from qia3.grids.int4 import Int4

READ = "4-bit GPTQ (checkpoint_format gptq or gptq_v2), 4-bit AWQ (version gemm), GGUF files, and float weights in safetensors"
FLOATS = ("F16", "BF16", "F32")
TYPES: dict[str, tuple[str, ...]] = {"qweight": ("I32",), "qzeros": ("I32",), "scales": FLOATS, "g_idx": ("I32",), "bias": FLOATS}


@dataclass(frozen=True)
class Layout:
    """`codes` is "gptq", "gptq_v2" or "awq"; group_size -1 is a group a row. `sorted_by_activation` is what the file says."""

    codes: str
    group_size: int
    sorted_by_activation: bool = False

    def shapes(self, inputs: int, outputs: int) -> dict[str, tuple[int, ...]]:
        """What is there for a layer. Raises ValueError where it cannot be in this layout or not on our grid."""
        block_of(group_inputs(self.group_size, inputs))
        shapes = awq.shapes if self.codes == "awq" else gptq.shapes
        return shapes(inputs, outputs, self.group_size)

    def unpack(self, tensors: Mapping[str, Tensor]) -> Int4:
        """A layer's codes. Raises ValueError."""
        words = [tensors[kind].numpy() for kind in ("qweight", "qzeros")]
        scales = tensors["scales"].float().numpy()
        if self.codes == "awq":
            return awq.unpack_awq(words[0], words[1], scales, self.group_size)
        self._in_order(tensors.get("g_idx"))
        return gptq.unpack_gptq(words[0], words[1], scales, self.group_size, self.codes)

    def _in_order(self, g_idx: Tensor | None) -> None:
        plain = not self.sorted_by_activation if g_idx is None else gptq.is_plain(g_idx.numpy().astype(np.int32), self.group_size)
        if not plain:
            raise ValueError(
                "its inputs were sorted by activation (desc_act), so its groups are no blocks; take a file with desc_act false"
            )


def read_layout(settings: Mapping[str, Any]) -> Layout:
    """Raises BaseModelError, naming what is read, for any other layout."""
    method = str(settings.get("quant_method", "gptq")).lower()
    bits, group = settings.get("bits", settings.get("w_bit")), settings.get("group_size", settings.get("q_group_size"))
    if method not in ("gptq", "awq"):
        raise _refused(f"its weights are quantised by {method!r}")
    key = "version" if method == "awq" else "checkpoint_format"
    packing = str(settings.get(key) or ("gemm" if method == "awq" else "gptq")).lower()
    if packing not in (("gemm",) if method == "awq" else tuple(gptq.STORED_BELOW)) or settings.get("is_marlin_format"):
        raise _refused(f"its {method.upper()} weights are packed for {'marlin' if settings.get('is_marlin_format') else packing!r}")
    if bits != 4:
        raise _refused(f"its {method.upper()} weights have {bits!r} bits")
    if not isinstance(group, int) or isinstance(group, bool) or not (group == -1 or group > 0):
        raise _refused(f"its group_size is {group!r}")
    return Layout("awq" if method == "awq" else packing, group, bool(settings.get("desc_act")))


def _refused(what: str) -> BaseModelError:
    return BaseModelError(f"{what}, which is not read; what is: {READ}")
