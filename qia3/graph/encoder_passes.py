"""Edits of an encoder's graph after the export: defaults for inputs that a caller may leave out.

DefaultTypes    token_type_ids [1, 1] of zero: a single text
DefaultHead     a head [1, 1, d] of zeros: no task, a single meaningless logit
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx_ir as ir
from onnx_ir.passes import InPlacePass, PassResult

from qia3.bundle.ports import HEAD_BIAS, HEAD_WEIGHT, TOKEN_TYPES


def _give(model: ir.Model, defaults: Mapping[str, np.ndarray]) -> PassResult:
    for value in model.graph.inputs:
        if value.name in defaults:
            value.const_value = ir.tensor(defaults[value.name], name=value.name)
            model.graph.initializers.add(value)
    return PassResult(model, modified=True)


class DefaultTypes(InPlacePass):  # type: ignore[misc]
    """A caller with a single text need not feed token types."""

    def call(self, model: ir.Model) -> PassResult:
        return _give(model, {TOKEN_TYPES: np.zeros((1, 1), np.int64)})


class DefaultHead(InPlacePass):  # type: ignore[misc]
    """Without a task, the graph still returns states and embeddings."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width

    def call(self, model: ir.Model) -> PassResult:
        nought = {HEAD_WEIGHT: np.zeros((1, 1, self.width), np.float32), HEAD_BIAS: np.zeros((1, 1), np.float32)}
        return _give(model, nought)
