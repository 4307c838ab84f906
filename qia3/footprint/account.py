"""Where a bundle's bytes are.

The parts sum to the bytes on disk exactly (law 5): a difference is an error, not a remainder.

The weight file is divided by the manifest's list of regions. Each holds one tensor, or one that several share (a tied
embedding and head); bytes between regions are padding, and the last region ends where the file ends. Every other file
belongs to one part, by its name. If the manifest lists its files, the folder is compared with the list, and every file
that grew, shrank, appeared or disappeared is named.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from qia3.bundle.layout import MANIFEST, WRITTEN_ANEW
from qia3.bundle.manifest import TRAIN, File, Manifest, Region
from qia3.bundle.seal import files_on_disk
from qia3.errors import BundleError, shown
from qia3.footprint.bits import bits_each, grid_bytes, in_int8, int8_bytes, stored_shapes, weight_count

PROMPTS = "prompt_weights"  # in a file of their own
INT8 = "int8_weights"  # in place of the grid's
QUANTISED = ("codes", "scales", "zero_points", "embedding_codes", "embedding_scales", "embedding_zero_points")
TENSORS = (
    *QUANTISED,
    "embedding_weights",
    "dense",
    "norms_and_biases",
    "rotary",
    "positions",
    "other",
    "padding",
    INT8,
    PROMPTS,
)
WEIGHTS = (*TENSORS, "graph")
LEARNS = "training_graph"
FILES = ("graph", LEARNS, "tokenizer", "vectors", "peft_checkpoints", "configs", "reports_and_manifest", "other_files")
TOKENIZER = ("tokenizer", "special_tokens", "vocab", "merges", "added_tokens", "chat_template", "spiece")


@dataclass(frozen=True)
class Account:
    """Bytes by part, in the order of TENSORS and FILES, without empty parts.

    `tied`: embedding and head are one tensor, counted once. `code_bits`: the widths of codes on a grid, 4, 8 or both.
    `bits_per_weight` is what the regions on a grid (4-bit layers, and those kept at 8 bits) and int8 weights in their
    place take on disk per weight of their `quantised_weights`; `grid_bits_per_weight` is the arithmetic for the same
    layers.
    """

    parts: dict[str, int]
    tied: bool
    quantised_weights: int
    bits_per_weight: float
    grid_bits_per_weight: float
    code_bits: tuple[int, ...] = ()

    @property
    def total(self) -> int:
        """Bytes on disk."""
        return sum(self.parts.values())

    @property
    def weights(self) -> int:
        """Bytes of the weight file and the graph: the model without tokenizer, adapters and reports."""
        return sum(self.parts.get(part, 0) for part in WEIGHTS)


def account(folder: Path, manifest: Manifest, sealed: Mapping[str, int] | None = None) -> Account:
    """`sealed`: the sizes that report and manifest will have, while they are being written.

    Raises BundleError, naming the difference, if the regions do not add up to the weight file or the files differ from
    the manifest.
    """
    sizes = files_on_disk(folder) | dict(sealed or {})
    if manifest.files:
        _same_files(folder, sizes, manifest.files)
    parts: dict[str, int] = {}
    for data in sorted({graph.data for graph in manifest.graphs.values()} | {t.file for t in manifest.tensors}):
        tensors = [t for t in manifest.tensors if t.file == data]
        _add(parts, _tensor_parts(folder / data, tensors, sizes.pop(data, 0)))
    graphs = {graph.file: LEARNS if role == TRAIN else "graph" for role, graph in manifest.graphs.items()}
    for file, part in graphs.items():
        _add(parts, {part: sizes.pop(file, 0)})
    for name, size in sizes.items():
        _add(parts, {part_of(name): size})
    order = {part: i for i, part in enumerate((*TENSORS, *FILES))}
    shapes = stored_shapes(manifest)
    arithmetic = sum(grid_bytes(shape) for shape in shapes) + int8_bytes(manifest.linears)
    count = weight_count(shapes) + sum(layer.inputs * layer.outputs for layer in in_int8(manifest.linears))
    return Account(
        parts={part: parts[part] for part in sorted(parts, key=lambda p: order.get(p, len(order))) if parts[part]},
        tied=manifest.architecture.tied_embedding,
        quantised_weights=count,
        bits_per_weight=bits_each(sum(parts.get(part, 0) for part in (*QUANTISED, INT8)), count),
        grid_bits_per_weight=bits_each(arithmetic, count),
        code_bits=tuple(sorted({shape.bits for shape in shapes})),
    )


def part_of(name: str) -> str:
    """The part that a file other than the graph and its weights belongs to."""
    if name in WRITTEN_ANEW:
        return "reports_and_manifest"
    if name.startswith("adapters/"):
        return "vectors" if name.endswith(".onnx_adapter") else "peft_checkpoints"
    if name.startswith(TOKENIZER):
        return "tokenizer"
    return "configs" if name.endswith("config.json") else "other_files"


def _tensor_parts(file: Path, tensors: Sequence[Region], file_bytes: int) -> dict[str, int]:
    """The weight file by part. Regions must not overlap, and must end where the file ends."""
    parts: dict[str, int] = {}
    end = 0
    for tensor in tensors:
        if tensor.offset < end:
            raise BundleError(f"{file}: {shown(tensor.name)} overlaps the tensor before it; build the bundle again")
        _add(parts, {"padding": tensor.offset - end})
        _add(parts, {tensor.part: tensor.bytes})
        end = tensor.offset + tensor.bytes
    if end != file_bytes:
        raise BundleError(
            f"{file} has {file_bytes:,} bytes, but its tensors add up to {end:,}: {_apart(file_bytes - end)}; "
            "build the bundle again"
        )
    return parts


def _add(parts: dict[str, int], more: Mapping[str, int]) -> None:
    for part, size in more.items():
        parts[part] = parts.get(part, 0) + size


def _same_files(folder: Path, sizes: Mapping[str, int], listed: Mapping[str, File]) -> None:
    """Names every file that differs from the manifest's list."""
    found = {name: size for name, size in sizes.items() if name != MANIFEST}
    wrong = [f"{name} is missing" for name in listed if name not in found]
    wrong += [f"{name} is not in the manifest ({found[name]:,} bytes)" for name in found if name not in listed]
    wrong += [
        f"{n}: {_apart(found[n] - listed[n].bytes)}" for n in listed if n in found and found[n] != listed[n].bytes
    ]
    if wrong:
        raise BundleError(
            f"{folder} differs from its manifest: {'; '.join(wrong)}; copy the bundle again or build it again"
        )


def _apart(difference: int) -> str:
    return f"{abs(difference):,} bytes too {'many' if difference > 0 else 'few'}"
