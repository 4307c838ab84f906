"""What a model's weights take in each form before it is built, on disk and in ONNX Runtime's memory."""

from __future__ import annotations

from dataclasses import dataclass

from qia3.bundle.manifest import Architecture
from qia3.footprint.bits import bits_each, zero_point_bytes
from qia3.footprint.kernels import KernelBytes, cross_cache_bytes, kernel_bytes, kv_cache_bytes
from qia3.footprint.shapes import Form, Shapes, total

BLOCKS = (32, 64, 128)
USUAL = Form("int4", 64)  # what `qia3 build` makes
FORMS = (Form("float32"), Form("bfloat16"), Form("nf4", 64), *(Form("int4", block) for block in BLOCKS))


@dataclass(frozen=True)
class Weights:
    """A form's. `kernels` is what ONNX Runtime holds and reads (int4 alone), `mapped_bytes` what stays in the file."""

    form: str
    bits_per_number: float
    disk_bytes: int
    parts: dict[str, int]
    kernels: dict[str, KernelBytes] | None
    mapped_bytes: int


def weights_of(shapes: Shapes, form: Form) -> Weights:
    parts = form.bytes_by_part(shapes)
    linears, dense = form.layers(shapes)
    int4 = form.name == "int4"
    mapped = sum(map(form.table_bytes, shapes.tables)) + parts.get("norms_biases_and_positions", 0)
    own = [m for m in shapes.matrices if not (shapes.architecture.tied_embedding and m.role == "head")]
    mapped += sum(zero_point_bytes(shape) for m in own if (shape := form.shape(m)) is not None)
    return Weights(
        form=form.label,
        bits_per_number=bits_each(total(parts), shapes.parameters),
        disk_bytes=total(parts),
        parts=parts,
        kernels=kernel_bytes(linears, dense) if int4 else None,
        mapped_bytes=mapped if int4 else total(parts),
    )


def cache_bytes(shape: Architecture, positions: int) -> int:
    """Of one row of the decoder, and what it has of the encoder's states."""
    return kv_cache_bytes(shape, positions) + cross_cache_bytes(shape, positions)
