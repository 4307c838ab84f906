"""Graph edits after the export: onnx-ir passes, each with what it requires and ensures.

MatMulNBits at accuracy_level 4 packs its scales when the session is created, but only if they are constants; scales
that are inputs or overridable initializers silently give garbage (measured on ONNX Runtime 1.32). `ConstantWeights`
refuses such a graph.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx_ir as ir
from onnx_ir.passes import InPlacePass, PassResult, PreconditionError, Sequential
from onnx_ir.passes import common as common_passes

from qia3.bundle.ports import ATTENTION_MASK, BATCH, BEFORE, INPUT_IDS, LOGITS, PAST, PRESENT, ROWS, SEQUENCE, TOTAL
from qia3.graph.fusions import CancelPairs, SiLU, SkipNorms, WholeSlices
from qia3.graph.lookup import PlainLookup
from qia3.graph.packing import PackAttention
from qia3.graph.packing_cross import PackCross
from qia3.graph.trimming import LastPositionFirst

# names of dimensions by the prefix of an input's or output's name; the first match counts, numbers stay
Dimensions = Mapping[str, Sequence[str | None]]
DECODER_DIMENSIONS: Dimensions = {
    INPUT_IDS: (BATCH, SEQUENCE),
    ATTENTION_MASK: (BATCH, TOTAL),
    PAST: (BATCH, None, BEFORE, None),
    PRESENT: (BATCH, None, TOTAL, None),
    LOGITS: (BATCH, SEQUENCE, None),
}


class DefaultVectors(InPlacePass):  # type: ignore[misc]
    """Gives each vector, a graph input [rows, 1, d], the default of ones [1, 1, d]: no adapter means the base.

    `required` omits the defaults. JavaScript's ONNX Runtime does not list inputs with defaults, and onnxruntime-web
    refuses to be fed them.
    """

    def __init__(self, sizes: Mapping[str, int], required: bool = False) -> None:
        super().__init__()
        self.sizes, self.required = sizes, required

    def requires(self, model: ir.Model) -> None:
        missing = set(self.sizes) - {v.name for v in model.graph.inputs}
        if missing:
            raise PreconditionError(f"vectors that are not graph inputs: {sorted(missing)}")

    def call(self, model: ir.Model) -> PassResult:
        for value in model.graph.inputs:
            if value.name in self.sizes:
                size = self.sizes[value.name]
                value.shape = ir.Shape([ROWS, 1, size])
                if self.required:
                    continue
                value.const_value = ir.tensor(np.ones((1, 1, size), np.float32), name=value.name)
                model.graph.initializers.add(value)
        return PassResult(model, modified=bool(self.sizes))

    def ensures(self, model: ir.Model) -> None:
        assert self.required or set(self.sizes) <= set(model.graph.initializers)


class NamedDimensions(InPlacePass):  # type: ignore[misc]
    """Sets the dimension names that common loaders look for (`batch_size` above all)."""

    def __init__(self, dimensions: Dimensions) -> None:
        super().__init__()
        self.dimensions = dimensions

    def call(self, model: ir.Model) -> PassResult:
        for value in (*model.graph.inputs, *model.graph.outputs):
            names = next((d for start, d in self.dimensions.items() if (value.name or "").startswith(start)), None)
            if names is not None and value.shape is not None:
                pairs = zip(value.shape, names, strict=True)
                value.shape = ir.Shape([old if new is None or isinstance(old, int) else new for old, new in pairs])
        return PassResult(model, modified=True)


class ModuleNames(InPlacePass):  # type: ignore[misc]
    """Names initializers after the base's own modules, without the export's wrappers: the same in unmerged and merged
    graphs.
    """

    def call(self, model: ir.Model) -> PassResult:
        names = [n for n in model.graph.initializers if n.startswith("model.")]
        for name in names:
            model.graph.initializers[name].name = name.removeprefix("model.").replace(".lowered.", ".")
        return PassResult(model, modified=bool(names))

    def ensures(self, model: ir.Model) -> None:
        assert all(value.name == name and ".lowered." not in name for name, value in model.graph.initializers.items())


class ConstantWeights(InPlacePass):  # type: ignore[misc]
    """Changes nothing, but checks that codes, scales and zero points of every 4-bit product are constant initializers."""

    def call(self, model: ir.Model) -> PassResult:
        inputs = {v.name for v in model.graph.inputs}
        bad = [
            f"{node.name}: {value.name}"
            for node in model.graph
            if node.op_type in ("MatMulNBits", "MatMulBnb4")
            for value in node.inputs[1:4]
            if value is not None and (value.name in inputs or value.name not in model.graph.initializers)
        ]
        if bad:
            raise PreconditionError(f"4-bit weights that are not constant initializers: {bad}")
        return PassResult(model, modified=False)


class StripTrace(InPlacePass):  # type: ignore[misc]
    """Drops the exporter's notes on where each node came from: they double the file, and contain paths of the build
    machine.
    """

    def call(self, model: ir.Model) -> PassResult:
        model.metadata_props.clear()
        model.graph.metadata_props.clear()
        for item in (*model.graph, *model.graph.inputs, *model.graph.outputs, *model.graph.initializers.values()):
            item.metadata_props.clear()
            item.doc_string = None
        for node in model.graph:
            for value in node.outputs:
                value.metadata_props.clear()
                value.doc_string = None
        return PassResult(model, modified=True)


class AccuracyLevel(InPlacePass):  # type: ignore[misc]
    """Sets accuracy_level on every MatMulNBits and QMoE: 0 multiplies in float32, 4 quantises activations to int8."""

    def __init__(self, level: int) -> None:
        super().__init__()
        self.level = level

    def call(self, model: ir.Model) -> PassResult:
        for node in model.graph:
            if node.op_type in ("MatMulNBits", "QMoE"):
                node.attributes["accuracy_level"] = ir.AttrInt64("accuracy_level", self.level)
        return PassResult(model, modified=True)


def run_passes(
    model: ir.Model,
    sizes: Mapping[str, int],
    required: bool = False,
    dimensions: Dimensions = DECODER_DIMENSIONS,
    name: str = "decoder",
) -> ir.Model:
    """Runs all passes in order. `sizes` are the vectors' by input name; `required` is for loaders in JavaScript:
    vectors without defaults, and a look-up for which browsers have kernels.
    """
    model.graph.opset_imports["com.microsoft"] = 1
    model.producer_name, model.producer_version, model.graph.name = "qia3", "", name
    passes = [
        common_passes.InlinePass(),
        common_passes.RemoveUnusedNodesPass(),
        common_passes.CommonSubexpressionEliminationPass(),
        common_passes.RemoveUnusedFunctionsPass(),
        ModuleNames(),
        DefaultVectors(sizes, required),
        NamedDimensions(dimensions),
        CancelPairs(),
        WholeSlices(),
        SkipNorms(),
        SiLU(),
        LastPositionFirst(),
        ConstantWeights(),
        PackAttention(),
        PackCross(),
        *([PlainLookup()] if required else []),
        common_passes.RemoveUnusedNodesPass(),
        StripTrace(),
        ConstantWeights(),
    ]
    return Sequential(*passes)(model).model
