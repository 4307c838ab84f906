"""Export leaves: modules whose forward emits one of ONNX Runtime's own operators instead of torch's.

`torch.onnx.ops.symbolic` puts an operator into the exported program by name, with its output type and shape; nothing is
computed. Each leaf is made from the module that it replaces and refers to the same buffers, so the bytes that were
trained become the initializers of the graph:

    GridLinear    -> com.microsoft::MatMulNBits(x, codes, scales[, zero points][, bias])
    GridEmbedding -> com.microsoft::GatherBlockQuantized(codes [V, H/2] (8 bits: [V, H]), ids, scales[, zero points])
    Linear        -> MatMul(x, weight [K, N])[ + bias], in an encoder-decoder, where some layers stay in float
    Scaled        -> Mul by a graph input [rows, 1, d], after the layer's own operator
    Multiplied    -> Mul by a constant [d], before it
    RMSNorm       -> SimplifiedLayerNormalization, if a numeric check shows that the module is one

Operators: docs/ContribOperators.md of ONNX Runtime 1.32.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.onnx.ops import symbolic

from qia3.base.int8 import Int8Weight
from qia3.base.modules import GridEmbedding, GridLinear
from qia3.base.nf4 import Nf4Weight
from qia3.base.weights import Int4Weight
from qia3.errors import BaseModelError
from qia3.ia3.vectors import Multiplied, Scaled

Attributes = dict[str, int | float | str | bool | Sequence[int] | Sequence[float] | Sequence[str] | Sequence[bool]]

DENSE = "dense"  # the name of a float layer's weight in a graph
NF4 = 1  # MatMulBnb4's quant_type


@dataclass
class Inputs:
    """What one trace of the graph passes to its leaves.

    A plain object: torch.export refuses tensors that are assigned to modules.
    """

    vectors: dict[str, Tensor] = field(default_factory=dict)
    past: list[Tensor] = field(default_factory=list)
    present: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict)
    last: Tensor | None = None
    seqlens: Tensor | None = None
    total: Tensor | None = None
    bias: Tensor | None = None
    total_length: int | torch.SymInt = 0
    batch: int | torch.SymInt = 1
    dense: bool = False  # whether float layers are leaves, whose weights keep their names


class MatMulNBits(nn.Module):
    """codes uint8 [N, B, block/2], scales float32 [N, B], zero points uint8 [N, ceil(B/2)]; at 8 bits [N, B, block] and
    [N, B].
    """

    weight = None  # T5 looks at its type

    def __init__(self, store: Int4Weight | Int8Weight, bias: Tensor | None, accuracy_level: int) -> None:
        super().__init__()
        self.codes, self.scales = nn.Buffer(store.codes), nn.Buffer(store.scales)
        self.zero_points = None if store.zero_points is None else nn.Buffer(store.zero_points)
        self.bias = None if bias is None else nn.Buffer(bias)
        self.outputs = store.outputs
        self.attributes: Attributes = {
            "K": store.inputs,
            "N": store.outputs,
            "bits": store.bits,
            "block_size": store.block_size,
            "accuracy_level": accuracy_level,
        }

    def forward(self, x: Tensor) -> Tensor:
        # x [..., K] -> [..., N]
        inputs: list[Tensor | None] = [x, self.codes, self.scales, self.zero_points, None, self.bias]
        while inputs[-1] is None:
            inputs.pop()
        out: Tensor = symbolic(
            "com.microsoft::MatMulNBits",
            inputs,
            self.attributes,
            dtype=x.dtype,
            shape=(*x.shape[:-1], self.outputs),
            version=1,
        )
        return out


class MatMulBnb4(nn.Module):
    """codes uint8 [N K / 2], scales float32 [N K / block]: bitsandbytes' own layout, which the operator takes
    unchanged.
    """

    weight = None

    def __init__(self, store: Nf4Weight, bias: Tensor | None) -> None:
        super().__init__()
        self.codes, self.scales = nn.Buffer(store.codes), nn.Buffer(store.scales)
        self.bias = None if bias is None else nn.Buffer(bias)
        self.outputs = store.outputs
        self.attributes: Attributes = {
            "K": store.inputs,
            "N": store.outputs,
            "block_size": store.block_size,
            "quant_type": NF4,
        }

    def forward(self, x: Tensor) -> Tensor:
        # x [..., K] -> [..., N]
        inputs, shape = (x, self.codes, self.scales), (*x.shape[:-1], self.outputs)
        out: Tensor = symbolic(
            "com.microsoft::MatMulBnb4", inputs, self.attributes, dtype=x.dtype, shape=shape, version=1
        )
        return out if self.bias is None else out + self.bias


class Dense(nn.Module):
    """A float layer with its weight as MatMul takes it: the exporter would give a Linear's weight a numbered name."""

    weight = None

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.dense = nn.Buffer(linear.weight.detach().T.contiguous())
        self.bias = None if linear.bias is None else nn.Buffer(linear.bias.detach())

    def forward(self, x: Tensor) -> Tensor:
        # x [..., K] -> [..., N]
        return x @ self.dense if self.bias is None else x @ self.dense + self.bias


class GatherBlockQuantized(nn.Module):
    """Rows of the table at `ids`. Its codes are the head's bytes in another shape, and are stored once."""

    def __init__(self, store: Int4Weight | Int8Weight, scale: float | None) -> None:
        super().__init__()
        self.codes = nn.Buffer(store.codes.view(store.outputs, -1))
        self.scales = nn.Buffer(store.scales)
        self.zero_points = None if store.zero_points is None else nn.Buffer(store.zero_points)
        self.size, self.scale = store.inputs, scale
        self.attributes: Attributes = {
            "bits": store.bits,
            "block_size": store.block_size,
            "gather_axis": 0,
            "quantize_axis": 1,
        }

    def forward(self, ids: Tensor) -> Tensor:
        # ids [B, S] -> [B, S, H]
        inputs = [self.codes, ids, self.scales] + ([] if self.zero_points is None else [self.zero_points])
        rows: Tensor = symbolic(
            "com.microsoft::GatherBlockQuantized",
            inputs,
            self.attributes,
            dtype=torch.float32,
            shape=(*ids.shape, self.size),
            version=1,
        )
        return rows if self.scale is None else rows * self.scale


class ScaledLeaf(nn.Module):
    """The layer's operator and a Mul by the graph input of its name."""

    weight = None

    def __init__(self, scaled: Scaled, inner: nn.Module, inputs: Inputs) -> None:
        super().__init__()
        self.lowered, self.name, self.on_input, self.graph_inputs = (
            inner,
            scaled.site.name,
            scaled.site.placement == "input",
            inputs,
        )

    def forward(self, x: Tensor) -> Tensor:
        # the vector is [rows, 1, d] and x [batch, S, d]: rows is 1 or batch, which torch's shapes cannot express, so
        # Mul is emitted by name
        x = self._scale(x) if self.on_input else x
        y: Tensor = self.lowered(x)
        return y if self.on_input else self._scale(y)

    def _scale(self, x: Tensor) -> Tensor:
        # OPT flattens rows and positions into one dimension, which is split again here
        rows = x if x.dim() == 3 else x.view(self.graph_inputs.batch, -1, x.shape[-1])
        out: Tensor = symbolic(
            "Mul", (rows, self.graph_inputs.vectors[self.name]), {}, dtype=x.dtype, shape=rows.shape, version=14
        )
        return out if rows is x else out.view(x.shape)


class MultipliedLeaf(nn.Module):
    """Mul by a constant and the layer's operator."""

    weight = None

    def __init__(self, multiplied: Multiplied, inner: nn.Module) -> None:
        super().__init__()
        self.lowered, self.vector = inner, nn.Buffer(multiplied.multiplier)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.lowered(x * self.vector)
        return y


class LastPosition(nn.Module):
    """The head, on the last valid position of each row only: `inputs.last`, or the last one if all rows have the same
    length.
    """

    def __init__(self, head: nn.Module, inputs: Inputs) -> None:
        super().__init__()
        self.lowered, self.graph_inputs = head, inputs

    def forward(self, hidden: Tensor) -> Tensor:
        # hidden [B, S, H] -> [B, 1, V]
        if self.graph_inputs.last is None:
            out: Tensor = self.lowered(hidden[:, -1:])
            return out
        index = self.graph_inputs.last[:, None, None].expand(-1, 1, hidden.shape[-1])
        out = self.lowered(hidden.gather(1, index))
        return out


class RMSNorm(nn.Module):
    """x / rms(x) * weight."""

    def __init__(self, weight: Tensor, epsilon: float) -> None:
        super().__init__()
        self.weight, self.epsilon = nn.Buffer(weight), epsilon

    def forward(self, x: Tensor) -> Tensor:
        attributes: Attributes = {"axis": -1, "epsilon": self.epsilon, "stash_type": 1}
        out: Tensor = symbolic(
            "SimplifiedLayerNormalization", (x, self.weight), attributes, dtype=x.dtype, shape=x.shape, version=1
        )
        return out

    @classmethod
    def matching(cls, module: nn.Module) -> RMSNorm | None:
        """The leaf for a module that computes an RMS norm with weight w or 1 + w, found by trying; None if it computes
        something else.
        """
        weight = getattr(module, "weight", None)
        epsilon = next(
            (
                float(getattr(module, n))
                for n in ("variance_epsilon", "eps", "epsilon")
                if getattr(module, n, None) is not None
            ),
            None,
        )
        if (
            not isinstance(weight, Tensor)
            or weight.dim() != 1
            or epsilon is None
            or getattr(module, "bias", None) is not None
        ):
            return None
        x = torch.randn(3, weight.numel(), generator=torch.Generator().manual_seed(0)) * 2 + 0.3
        normal = x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + epsilon)
        with torch.no_grad():
            seen = module(x)
        for candidate in (weight.detach(), 1 + weight.detach()):
            if isinstance(seen, Tensor) and torch.allclose(normal * candidate, seen, rtol=1e-4, atol=1e-5):
                return cls(candidate.clone(), epsilon)
        return None


def product(linear: GridLinear, accuracy_level: int) -> nn.Module:
    """The leaf that multiplies by a weight of this grid. Raises BaseModelError if there is none."""
    if isinstance(linear.store, Int4Weight | Int8Weight):
        return MatMulNBits(linear.store, linear.bias, accuracy_level)
    if isinstance(linear.store, Nf4Weight):
        return MatMulBnb4(linear.store, linear.bias)
    raise BaseModelError(f"no operator multiplies by weights on the {linear.store.kind} grid")


def lookup(embedding: GridEmbedding) -> nn.Module:
    """The leaf that looks rows up in a table on this grid. Raises BaseModelError if there is none."""
    if isinstance(embedding.store, Int4Weight | Int8Weight):
        return GatherBlockQuantized(embedding.store, embedding.scale)
    raise BaseModelError(f"no operator looks rows up on the {embedding.store.kind} grid")
