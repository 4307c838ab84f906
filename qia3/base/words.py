"""A layer of a GPTQ or AWQ checkpoint: codes and zero points packed into int32 words (grids/gptq.py, grids/awq.py).

    NAME.qweight  NAME.qzeros  NAME.scales  [NAME.g_idx]

    {"quant_method": "gptq", "bits": 4, "group_size": 128, "sym": true, "desc_act": false, "checkpoint_format": "gptq" or "gptq_v2"}
    {"quant_method": "awq", "bits": 4, "group_size": 128, "zero_point": true, "version": "gemm"}
    {"w_bit": 4, "q_group_size": 128, "zero_point": true, "version": "GEMM"}        quant_config.json of AutoAWQ, before 0.1.6

    {"quant_method": "auto-round", "packing_format": "auto_round:auto_gptq" or "auto_round:auto_awq", ...}   the very same tensors

Single layers may be stored differently (rules.py). Only the settings for bits, groups and packing are trusted; whether
zero points are 8 and groups are in order is read from the tensors. In a file that says that it is symmetric every zero
point is 8, and that decides between GPTQ's two conventions, whatever `checkpoint_format` says: there are files with the
wrong label, and each weight would be off by one step.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from torch import Tensor, nn

from qia3.base.layout import FLOATS, WORDS, Layer, Loaded, Need, marked, refused
from qia3.base.rules import Rule, form_of, read_dynamic, read_extra
from qia3.base.tensors import Tensors
from qia3.base.weights import Int4Weight
from qia3.grids import awq, gptq
from qia3.grids.grouped import block_of, group_inputs
from qia3.grids.int4 import SYMMETRIC_ZERO, Int4

TYPES = {"qweight": WORDS, "qzeros": WORDS, "scales": FLOATS, "g_idx": WORDS, "bias": FLOATS}
AUTO_ROUND = {
    "auto_round:auto_gptq": "gptq",
    "auto_round:gptq": "gptq",
    "auto_round:auto_awq": "awq",
    "auto_round:awq": "awq",
}


@dataclass(frozen=True)
class Words:
    """`codes` is "gptq", "gptq_v2" or "awq"; group_size -1 means one group per row.

    `sorted_by_activation` and `symmetric` are what the file says.
    """

    codes: str
    group_size: int
    sorted_by_activation: bool = False
    symmetric: bool = False

    def needs(self, name: str, inputs: int, outputs: int, tensors: Tensors) -> dict[str, Need]:
        block_of(group_inputs(self.group_size, inputs))
        shapes = (awq.shapes if self.codes == "awq" else gptq.shapes)(inputs, outputs, self.group_size)
        if f"{name}.g_idx" in tensors.places:
            shapes["g_idx"] = (inputs,)
        return {kind: (TYPES[kind], shape) for kind, shape in shapes.items()}

    def load(self, name: str, tensors: Tensors) -> Loaded:
        kinds = [kind for kind in TYPES if f"{name}.{kind}" in tensors.places]
        return Loaded(Int4Weight(self.unpack({kind: tensors.read(f"{name}.{kind}") for kind in kinds})))

    def unpack(self, tensors: Mapping[str, Tensor]) -> Int4:
        """A layer's codes. Raises ValueError if the tensors are invalid or contradict the settings."""
        words = [tensors[kind].numpy() for kind in ("qweight", "qzeros")]
        scales = tensors["scales"].float().numpy()
        if self.codes == "awq":
            weight = awq.unpack_awq(words[0], words[1], scales, self.group_size)
            if self.symmetric and weight.zero_points is not None:
                raise ValueError("config.json says zero_point false, but its zero points are not all 8")
            return weight
        self._in_order(tensors.get("g_idx"))
        return gptq.unpack_gptq(words[0], words[1], scales, self.group_size, self._convention(words[1]))

    def _convention(self, qzeros: gptq.Words) -> str:
        """GPTQ's convention, according to the zero points. Raises ValueError if they contradict the settings."""
        bytes_ = np.unique(gptq.as_bytes(qzeros))
        stored = {*(bytes_ & 15).tolist(), *(bytes_ >> 4).tolist()}
        eights = [name for name, below in gptq.STORED_BELOW.items() if stored == {SYMMETRIC_ZERO - below}]
        if self.symmetric and not eights:
            raise ValueError("config.json says sym true, but its zero points are not all 8")
        if eights and not self.symmetric and eights != [self.codes]:
            raise ValueError(
                f"every zero point is stored as {min(stored)}, which is 8 in checkpoint_format {eights[0]}; "
                "but config.json "
                f'says {self.codes}, and not that it is symmetric: correct "checkpoint_format" there'
            )
        return eights[0] if eights else self.codes

    def _in_order(self, g_idx: Tensor | None) -> None:
        plain = (
            not self.sorted_by_activation
            if g_idx is None
            else gptq.is_plain(g_idx.numpy().astype(np.int32), self.group_size)
        )
        if not plain:
            raise ValueError(
                "its inputs were sorted by activation (desc_act), so its groups are not blocks; use a file "
                "with desc_act false"
            )


@dataclass(frozen=True)
class WordsLayout:
    """`words` is the form of layers without a rule."""

    words: Words
    rules: tuple[Rule, ...] = ()

    @property
    def codes(self) -> str:
        return self.words.codes

    def layers(self, model: nn.Module, tensors: Tensors) -> Mapping[str, Layer]:
        return {name: self._stored(form_of(name, self.rules)) for name in marked(tensors, ".qweight")}

    def _stored(self, form: Mapping[str, Any]) -> Words:
        return replace(
            self.words,
            group_size=_group(form.get("group_size", self.words.group_size)),
            sorted_by_activation=bool(form.get("desc_act", self.words.sorted_by_activation)),
            symmetric=bool(form.get("sym", self.words.symmetric)),
        )


def read_words(method: str, settings: Mapping[str, Any]) -> WordsLayout:
    """`method`: "gptq" or "awq". Raises BaseModelError, listing what is supported, for anything else."""
    bits, group = settings.get("bits", settings.get("w_bit")), settings.get("group_size", settings.get("q_group_size"))
    key = "version" if method == "awq" else "checkpoint_format"
    packing = str(settings.get(key) or ("gemm" if method == "awq" else "gptq")).lower()
    if packing not in (("gemm",) if method == "awq" else tuple(gptq.STORED_BELOW)) or settings.get("is_marlin_format"):
        raise refused(
            f"its {method.upper()} weights are packed for {'marlin' if settings.get('is_marlin_format') else packing!r}"
        )
    if bits != 4:
        raise refused(f"its {method.upper()} weights have {bits!r} bits")
    symmetric = settings.get("zero_point") is False if method == "awq" else settings.get("sym") is True
    codes = "awq" if method == "awq" else packing
    words = Words(codes, _group(group), bool(settings.get("desc_act")), symmetric)
    return WordsLayout(words, read_dynamic(settings.get("dynamic")))


def read_auto_round(settings: Mapping[str, Any]) -> WordsLayout:
    """Reads AutoRound's folders with GPTQ or AWQ tensors. Raises BaseModelError for its other packings."""
    packing = str(settings.get("packing_format"))
    if (method := AUTO_ROUND.get(packing)) is None:
        raise refused(f"its weights are packed by AutoRound for {packing!r}")
    if (kind := settings.get("data_type", "int")) != "int":
        raise refused(f"its weights are quantised by AutoRound to {kind!r}")
    if isinstance(inputs := settings.get("act_bits"), int) and inputs < 16:
        raise refused(f"the inputs of its layers are quantised to {inputs} bits (AutoRound, act_bits)")
    told = {key: settings.get(key) for key in ("bits", "group_size")}
    told |= {"zero_point": not settings.get("sym", True)} if method == "awq" else {"sym": settings.get("sym", True)}
    return replace(read_words(method, told), rules=read_extra(settings.get("extra_config")))


def _group(group: Any) -> int:
    if not isinstance(group, int) or isinstance(group, bool) or not (group == -1 or group > 0):
        raise refused(f"its group_size is {group!r}")
    return group
