"""A head: the linear layer that turns an encoder's pooled state, or the state of each token, into a task's label
scores. It is trained with the vectors and travels with them.

    logits = W p + b        W [labels, d]   b [labels]   p [d]

    .onnx_adapter    head.weight [1, labels, d] and head.bias [1, labels] beside the vectors, as a graph takes them
    PEFT folder      head.safetensors: weight and bias; PEFT has the vectors alone

In a batch, every head is padded to the widest; the padding has a bias so low that softmax gives it no probability.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qia3.bundle.ports import HEAD_BIAS, HEAD_WEIGHT
from qia3.errors import AdapterError

Floats = NDArray[np.float32]
UNSEEN = -1e9  # the bias of a padded label


@dataclass(frozen=True)
class Head:
    """`weight` float32 [labels, d], `bias` float32 [labels]. `per_token`: the task labels tokens, which the tensors in
    a file do not tell.
    """

    weight: Floats
    bias: Floats
    per_token: bool = False

    @property
    def inputs(self) -> dict[str, Floats]:
        """The head as inputs of a graph, for all rows."""
        return {HEAD_WEIGHT: self.weight[None].copy(), HEAD_BIAS: self.bias[None].copy()}

    def logits(self, pooled: Floats) -> Floats:
        """Pooled states [rows, d] -> logits [rows, labels], in numpy."""
        found: Floats = pooled @ self.weight.T + self.bias
        return found

    @classmethod
    def of(cls, inputs: Mapping[str, NDArray[Any]], where: object) -> Head | None:
        """The head among an adapter's tensors, or None. Raises AdapterError if it is incomplete or has wrong shapes."""
        weight, bias = inputs.get(HEAD_WEIGHT), inputs.get(HEAD_BIAS)
        if weight is None and bias is None:
            return None
        if weight is None or bias is None:
            raise AdapterError(f"{where} has a head without its {'weight' if weight is None else 'bias'}")
        if weight.ndim != 3 or bias.ndim != 2 or weight.shape[:2] != bias.shape or weight.shape[0] != 1:
            raise AdapterError(
                f"{where} has a head of {list(weight.shape)} with a bias of {list(bias.shape)}; the shapes must "
                "be [1, labels, d] and [1, labels]"
            )
        return cls(weight[0], bias[0]).checked(where)

    def checked(self, where: object, labels: int | None = None, width: int | None = None) -> Head:
        """Returns self. Raises AdapterError if it does not fit the task or the base, or is not a valid head."""
        shape = (self.weight.shape[0] if labels is None else labels, self.weight.shape[-1] if width is None else width)
        if self.weight.shape != shape or self.bias.shape != shape[:1] or not all(shape):
            raise AdapterError(
                f"{where} has a head of {list(self.weight.shape)} with a bias of {list(self.bias.shape)}, "
                f"but {list(shape)} is needed: {shape[0]} labels and the base's hidden size {shape[1]}"
            )
        if any(t.dtype != np.float32 or not np.isfinite(t).all() for t in (self.weight, self.bias)):
            raise AdapterError(f"{where} has a head that is not float32, or that holds NaN or infinity")
        return self


def side_by_side(heads: Sequence[Mapping[str, Floats]], width: int) -> dict[str, Floats]:
    """Stacks the inputs of single rows into those of a batch; a row without a head gets one that scores no label."""
    each = [(h[HEAD_WEIGHT][0], h[HEAD_BIAS][0]) if HEAD_WEIGHT in h else _none(width) for h in heads]
    widest = max(len(bias) for _, bias in each)
    weight = np.zeros((len(each), widest, width), np.float32)
    bias = np.full((len(each), widest), UNSEEN, np.float32)
    for row, (own, shift) in enumerate(each):
        weight[row, : len(own)], bias[row, : len(shift)] = own, shift
    return {HEAD_WEIGHT: weight, HEAD_BIAS: bias}


def _none(width: int) -> tuple[Floats, Floats]:
    return np.zeros((1, width), np.float32), np.zeros(1, np.float32)
