"""Looking up rows of a 4-bit table with plain operators.

ONNX Runtime's GatherBlockQuantized does it in one operator, which is faster natively. But a browser cannot open it:
onnxruntime-web's WebGPU build, which transformers.js loads, has no CPU kernel for it, and its WebGPU kernel refuses
packed zero points if a row has an odd number of blocks (576 / 64 = 9). OpenVINO reads it but fails to compile it for
the same odd number. Small operators that all of them have, 28 instead of one, give the same bits:

    c = Cast(Gather(codes, ids))            two codes per byte
    high, low = Floor(c / 16), c - 16 high
    row = (interleave(low, high) - zero point) * scale         per block

The tables do not change, so a tied head still shares its bytes (external.py).

Operator replaced: docs/ContribOperators.md of ONNX Runtime 1.32, com.microsoft.GatherBlockQuantized.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx_ir as ir
from onnx_ir import convenience
from onnx_ir.passes import InPlacePass, PassResult

from qia3.graph.packing import constant
from qia3.grids import int4, int8

KIND = "GatherBlockQuantized"
# the implicit zero point by bits per code
SYMMETRIC = {4: float(int4.SYMMETRIC_ZERO), 8: float(int8.SYMMETRIC_ZERO)}


class PlainLookup(InPlacePass):  # type: ignore[misc]
    """Requires look-ups along the first dimension of tables whose rows are whole blocks; ensures that none are left."""

    def call(self, model: ir.Model) -> PassResult:
        found = [node for node in model.graph if node.op_type == KIND]
        for node in found:
            lookup = Lookup(model, node)
            rows = lookup.rows()
            model.graph.insert_before(node, lookup.nodes)
            rows.shape, rows.type = node.outputs[0].shape, node.outputs[0].type
            convenience.replace_all_uses_with(node.outputs[0], rows)
            model.graph.remove(node, safe=True)
        return PassResult(model, modified=bool(found))

    def ensures(self, model: ir.Model) -> None:
        assert not any(node.op_type == KIND for node in model.graph)


@dataclass
class Lookup:
    """The nodes that replace one look-up, in order."""

    model: ir.Model
    node: ir.Node
    nodes: list[ir.Node] = field(default_factory=list)

    @property
    def lead(self) -> list[int]:
        """Reshape's zeros, which keep the dimensions of the ids."""
        ids = self.node.inputs[1]
        assert ids is not None
        assert ids.shape is not None
        return [0] * len(ids.shape)

    def rows(self) -> ir.Value:
        """float32 [..., H], ids [...]."""
        codes, ids, scales, *zeros = self.node.inputs
        assert codes is not None
        assert scales is not None
        bits, block = (self.node.attributes[name].as_int() for name in ("bits", "block_size"))
        blocks = int(_dims(scales)[1])
        lead = self.lead
        held = self.reshaped(self.entries(codes, bits), [*lead, blocks, block])
        if zeros and zeros[0] is not None:
            zero = self.unsqueezed(self.first(self.entries(zeros[0], bits), blocks, bits, len(lead)))
        else:
            zero = self.number(SYMMETRIC[bits])
        scale = self.unsqueezed(self.op("Gather", [scales, ids], axis=0))
        values = self.op("Mul", [self.op("Sub", [held, zero]), scale])
        return self.reshaped(values, [*lead, blocks * block])

    def entries(self, table: ir.Value, bits: int) -> ir.Value:
        """float32 [..., m] of a uint8 table's rows: the bytes at 8 bits; two per byte at 4 bits, the low nibble first."""
        picked = self.op("Gather", [table, self.node.inputs[1]], axis=0)
        bytes_ = self.op("Cast", [picked], to=ir.DataType.FLOAT)
        if bits == 8:
            return bytes_
        high = self.op("Floor", [self.op("Mul", [bytes_, self.number(1 / 16)])])
        low = self.op("Sub", [bytes_, self.op("Mul", [high, self.number(16.0)])])
        pairs = self.op("Concat", [self.unsqueezed(low), self.unsqueezed(high)], axis=-1)
        return self.reshaped(pairs, [*self.lead, 2 * int(_dims(table)[1])])

    def first(self, entries: ir.Value, count: int, bits: int, axis: int) -> ir.Value:
        """The first `count` entries: an odd number of 4-bit zero points leaves a spare nibble."""
        if bits == 8 or count % 2 == 0:
            return entries
        ends = [self.whole(n) for n in (0, count, axis)]
        return self.op("Slice", [entries, *ends])

    def reshaped(self, value: ir.Value, dims: list[int]) -> ir.Value:
        name = "lookup_" + "_".join(map(str, dims))
        return self.op("Reshape", [value, constant(self.model, name, np.array(dims, np.int64))])

    def unsqueezed(self, value: ir.Value) -> ir.Value:
        return self.op("Unsqueeze", [value, self.whole(-1)])

    def whole(self, value: int) -> ir.Value:
        return constant(self.model, f"lookup_at_{value}", np.array([value], np.int64))

    def number(self, value: float) -> ir.Value:
        return constant(self.model, f"lookup_{value}", np.array(value, np.float32))

    def op(self, kind: str, inputs: list[ir.Value | None], **attributes: Any) -> ir.Value:
        self.nodes.append(ir.node(kind, inputs, attributes))
        return self.nodes[-1].outputs[0]


def _dims(table: ir.Value) -> tuple[int, ...]:
    """The shape of a constant."""
    assert table.const_value is not None, "tables are constant initializers"
    return tuple(int(d) for d in table.const_value.shape.numpy())
