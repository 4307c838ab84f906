"""The graph on disk: one .onnx and one file of external data, every region of it accounted for.

Each tensor starts on a multiple of 64 bytes. Tensors with the same bytes share one region, whatever their shapes: so a
tied embedding, whose codes GatherBlockQuantized wants as [V, H/2] and MatMulNBits as [V, B, block/2], is stored once.
The defaults of the vectors stay inside the .onnx, where they are overridable initializers.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection
from pathlib import Path

import onnx_ir as ir

from qia3.bundle.layout import DATA, GRAPH
from qia3.bundle.manifest import Region
from qia3.graph.packing import PACKED

ALIGNMENT = 64
SMALLEST = 128  # bytes; smaller tensors that are no weights stay inside the .onnx
KINDS = ("codes", "scales", "zero_points")


def write_graph(model: ir.Model, folder: Path, vocabulary_modules: Collection[str]) -> list[Region]:
    """Writes GRAPH and DATA into `folder`. `vocabulary_modules` are the module paths of the embedding and the head."""
    regions: list[Region] = []
    seen: dict[str, Region] = {}
    inputs = {v.name for v in model.graph.inputs}
    data_file = folder / DATA
    data_file.parent.mkdir(parents=True, exist_ok=True)
    with data_file.open("wb") as out:
        for name, value in model.graph.initializers.items():
            tensor = value.const_value
            small = tensor is not None and tensor.nbytes < SMALLEST and name.rpartition(".")[2] not in KINDS
            if tensor is None or small or name in inputs:
                continue
            data = tensor.tobytes()
            digest = hashlib.sha256(data).hexdigest()
            if digest not in seen:
                out.write(b"\0" * (-out.tell() % ALIGNMENT))
                seen[digest] = Region(
                    name, _part(name, vocabulary_modules), len(data), out.tell(), DATA, value.meta.get(PACKED, ())
                )
                regions.append(seen[digest])
                out.write(data)
            region = seen[digest]
            shape = ir.Shape(tensor.shape.numpy())
            value.const_value = ir.ExternalTensor(
                data_file.name,
                region.offset,
                region.bytes,
                tensor.dtype,
                shape=shape,
                name=name,
                base_dir=data_file.parent,
            )
    ir.save(model, folder / GRAPH)
    return regions


def _part(name: str, vocabulary_modules: Collection[str]) -> str:
    """The footprint's part for an initializer, from the module it belongs to."""
    kind = name.rpartition(".")[2]
    vocabulary = any(name.startswith(f"{module}.") for module in vocabulary_modules)
    if kind in KINDS:
        return f"embedding_{kind}" if vocabulary else kind
    if vocabulary and kind == "weight":
        return "embedding_weights"
    if name in ("cos", "sin") or kind.startswith("rotary_"):
        return "rotary"
    return "norms_and_biases" if kind in ("weight", "bias") else "other"
