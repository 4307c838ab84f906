"""What a model's weights take in each form before it is built, on disk and in ONNX Runtime's memory."""

from __future__ import annotations

from dataclasses import dataclass

from qia3.bundle.manifest import Architecture
from qia3.footprint.bits import bits_each, grid_bytes, zero_point_bytes
from qia3.footprint.kernels import KernelBytes, cross_cache_bytes, kernel_bytes, kv_cache_bytes
from qia3.footprint.shapes import Form, Shapes, total

BLOCKS = (32, 64, 128)
MIXED_BITS = 5.1  # what docs/results.md recommends first if more than 4 bits are acceptable
USUAL = Form("int4", 64)  # what `qia3 build` makes
FORMS = (Form("float32"), Form("bfloat16"), Form("nf4", 64), *(Form("int4", block) for block in BLOCKS))


@dataclass(frozen=True)
class Weights:
    """Weights in one form. `kernels`: what ONNX Runtime holds and reads (int4 and int8), `mapped_bytes`: what stays in
    the file.
    """

    form: str
    bits_per_number: float
    disk_bytes: int
    parts: dict[str, int]
    kernels: dict[str, KernelBytes] | None
    mapped_bytes: int


def weights_of(shapes: Shapes, form: Form) -> Weights:
    parts = form.bytes_by_part(shapes)
    linears, dense = form.layers(shapes)
    packed = form.name in ("int4", "int8")
    mapped = sum(map(form.table_bytes, shapes.tables)) + parts.get("norms_biases_and_positions", 0)
    own = [m for m in shapes.matrices if not (shapes.architecture.tied_embedding and m.role == "head")]
    mapped += sum(zero_point_bytes(shape) for m in own if (shape := form.shape(m)) is not None)
    return Weights(
        form=form.label,
        bits_per_number=bits_each(total(parts), shapes.parameters),
        disk_bytes=total(parts),
        parts=parts,
        kernels=kernel_bytes(linears, dense) if packed else None,
        mapped_bytes=mapped if packed else total(parts),
    )


def takes_bits(shapes: Shapes) -> bool:
    """Whether a build can choose layers by `bits`: an encoder generates no text to choose by, and experts stay at 4
    bits.
    """
    return shapes.architecture.pooling is None and not any(m.role == "experts" for m in shapes.matrices)


def mixed(shapes: Shapes, bits: float = MIXED_BITS) -> Weights:
    """A build with `bits`: as many layers at 8 bits as fit. A text decides which ones; here all layers count the same,
    so each figure is interpolated between 4 and 8 bits, in blocks of 64.
    """
    low, high = USUAL, Form("int8", USUAL.block)
    four, eight = weights_of(shapes, low), weights_of(shapes, high)
    least, most = (_bits_of(shapes, form) for form in (low, high))
    share = min(1.0, max(0.0, (bits - least) / (most - least)))

    def between(a: int, b: int) -> int:
        return round(a + share * (b - a))

    tables = 0 if shapes.architecture.tied_embedding else eight.parts["embedding"] - four.parts["embedding"]
    wide = eight.parts | {"embedding": eight.parts["embedding"] - tables}  # one that is not a layer is unchanged
    parts = {part: between(size, wide[part]) for part, size in four.parts.items()}
    assert four.kernels is not None
    assert eight.kernels is not None
    kernels = {
        name: KernelBytes(
            between(kernel.held_bytes, eight.kernels[name].held_bytes),
            between(kernel.streamed_bytes, eight.kernels[name].streamed_bytes),
            between(kernel.float_bytes, eight.kernels[name].float_bytes),
        )
        for name, kernel in four.kernels.items()
    }
    return Weights(
        form=f"int4, bits = {bits:g}",
        bits_per_number=bits_each(total(parts), shapes.parameters),
        disk_bytes=total(parts),
        parts=parts,
        kernels=kernels,
        mapped_bytes=between(four.mapped_bytes, eight.mapped_bytes - tables),
    )


def _bits_of(shapes: Shapes, form: Form) -> float:
    """Average bits per weight of the linear layers on the grid, as a build counts them."""
    found = [shape for m in shapes.matrices if (shape := form.shape(m)) is not None]
    return bits_each(sum(map(grid_bytes, found)), sum(x.outputs * x.inputs for x in found))


def cache_bytes(shape: Architecture, positions: int) -> int:
    """Cache bytes of one row of the decoder, including keys and values of the encoder's states."""
    return kv_cache_bytes(shape, positions) + cross_cache_bytes(shape, positions)
