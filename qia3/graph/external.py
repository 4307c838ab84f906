"""Graphs on disk: one .onnx per graph and one file of external data, with every region accounted for.

Each tensor starts at a multiple of 64 bytes. Tensors with the same bytes share one region, whatever their shapes. So a
tied embedding, whose codes are [V, H/2] for GatherBlockQuantized and [V, B, block/2] for MatMulNBits, is stored once,
and so is what an encoder and its decoder share, and what a training graph reads separately where the decoder has
queries, keys and values concatenated. The vectors' default values stay inside the .onnx, as overridable initializers.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path

import onnx_ir as ir

from qia3.bundle.layout import DATA, GRAPH
from qia3.bundle.manifest import Region
from qia3.graph.distance import BUFFERS
from qia3.graph.int8_products import INT8, INT8_SCALES, NORM, SMOOTHING
from qia3.graph.leaves import DENSE
from qia3.graph.packing import PACKED
from qia3.graph.relative import TABLE

ALIGNMENT = 64
SMALLEST = 128  # bytes; smaller tensors that are not weights stay inside the .onnx
KINDS = ("codes", "scales", "zero_points")
PROMPT_WEIGHTS, INT8_WEIGHTS = "prompt_weights", "int8_weights"


def write_graph(model: ir.Model, folder: Path, vocabulary_modules: Collection[str]) -> list[Region]:
    """Writes GRAPH and DATA into `folder`. `vocabulary_modules` are the module paths of the embedding and the head."""
    return write_graphs({GRAPH: model}, DATA, folder, vocabulary_modules)


def write_graphs(
    models: Mapping[str, ir.Model],
    data: str,
    folder: Path,
    vocabulary_modules: Collection[str],
    int8_part: str = PROMPT_WEIGHTS,
) -> list[Region]:
    """Writes the graphs, by file name, and the data file `data` that they share. `int8_part` is the footprint's name
    for the weights of int8 products.
    """
    regions: list[Region] = []
    seen: dict[str, int] = {}  # offset of the bytes with this digest
    data_file = folder / data
    data_file.parent.mkdir(parents=True, exist_ok=True)
    with data_file.open("wb") as out:
        for model in models.values():
            for name, value in _stored(model):
                tensor = value.const_value
                assert tensor is not None
                content = tensor.tobytes()
                digest = hashlib.sha256(content).hexdigest()
                if digest not in seen:
                    out.write(b"\0" * (-out.tell() % ALIGNMENT))
                    part, packed = _part(value, vocabulary_modules, int8_part), value.meta.get(PACKED, ())
                    regions.append(Region(name, part, len(content), out.tell(), data, packed))
                    seen |= _parts(content, packed, out.tell()) | {digest: out.tell()}
                    out.write(content)
                value.const_value = _external(tensor, name, seen[digest], data_file)
    for file, model in models.items():
        ir.save(model, folder / file)
    return regions


def _stored(model: ir.Model) -> list[tuple[str, ir.Value]]:
    """The initializers that go into the data file."""
    inputs = {v.name for v in model.graph.inputs}
    found: list[tuple[str, ir.Value]] = []
    for name, value in model.graph.initializers.items():
        tensor = value.const_value
        if isinstance(tensor, ir.ExternalTensor):  # in another graph's file
            continue
        small = tensor is not None and tensor.nbytes < SMALLEST and name.rpartition(".")[2] not in KINDS
        if tensor is not None and not small and name not in inputs:
            found.append((name, value))
    return found


def _parts(content: bytes, packed: Iterable[tuple[str, int]], start: int) -> dict[str, int]:
    """The offset of each tensor in a concatenation, by digest: other graphs may read it separately."""
    found = {}
    end = 0
    for _, size in packed:
        begin, end = end, end + size
        found[hashlib.sha256(content[begin:end]).hexdigest()] = start + begin
    return found


def _external(tensor: ir.TensorProtocol, name: str, offset: int, data_file: Path) -> ir.ExternalTensor:
    """The same tensor as external data at its place in the file."""
    shape = ir.Shape(tensor.shape.numpy())
    place = (data_file.name, offset, tensor.nbytes, tensor.dtype)
    return ir.ExternalTensor(*place, shape=shape, name=name, base_dir=data_file.parent)


def _part(value: ir.Value, vocabulary_modules: Collection[str], int8_part: str) -> str:
    """The footprint part of an initializer, by the module it belongs to and, for what has rows, by its use."""
    name = value.name or ""
    kind = name.rpartition(".")[2]
    vocabulary = any(name.startswith(f"{module}.") for module in vocabulary_modules)
    if kind in KINDS:
        return f"embedding_{kind}" if vocabulary else kind
    if vocabulary and kind == "weight":
        return "embedding_weights"
    if kind in (INT8, INT8_SCALES, SMOOTHING) or kind.startswith(NORM):
        return int8_part
    if kind == DENSE:
        return "dense"
    if name in ("cos", "sin") or kind.startswith("rotary_"):
        return "rotary"
    if kind.startswith((*BUFFERS, TABLE)) or (kind == "weight" and _is_looked_up(value)):
        return "positions"
    if kind == "weight" and len(value.shape or ()) > 1:  # a mixture's router
        return "other"
    return "norms_and_biases" if kind in ("weight", "bias", "vector") else "other"


def _is_looked_up(value: ir.Value) -> bool:
    """Whether rows are taken from it: a table of positions or of segments."""
    takes = [use.node for use in value.uses() if use.idx == 0 and use.node.op_type in ("Gather", "Slice")]
    return len(value.shape or ()) > 1 and bool(takes)
