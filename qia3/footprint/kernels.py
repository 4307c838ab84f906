"""What a 4-bit layer takes in ONNX Runtime's memory, which differs from its file size.

MatMulNBits packs its weights when a model is loaded. For N rows in B blocks of b inputs (padded: K = B b) it then holds

    kernel        held, bytes                                        bits per weight   read for one token
    x64-int8      N K/2 codes, 4 N B packed scales,                  4 + 96/b          4 + 64/b (the scales it keeps
                  4 B 16 ceil(N/16) block sums, 4 N B kept scales                      are not read)
    float32       N K/2 codes, 4 N B scales                          4 + 32/b          4 + 32/b
    arm-dotprod   N K/2 codes, 4 N B scales, 4 N B block sums        4 + 64/b          the same
      symmetric   N K/2 codes, 2 N B bfloat16 scales, 8 N            4 + 16/b + 64/K   the same
      8 bits      N K codes, 12 N B                                  8 + 96/b          the same
    arm-i8mm      as arm-dotprod; 8 bits: N K codes, 8 N B           8 + 64/b          the same

A layer at 8 bits is the same with N K codes under x64-int8 (measured; as fast per byte as 4 bits, or faster). Under
float32 there is no kernel for it: nothing is packed, and each use dequantises all of it, 4 N K bytes that are held
meanwhile, written and read again. The same holds for NF4 (MatMulBnb4), according to the source (matmul_bnb4.cc).

A layer with int8 weights in place of the grid's (qia3.graph.int8_products) takes N K bytes, 4 N of scales and 4 N of
sums on every processor.

A layer that stays in float32 is packed too: 4 N K bytes held and read; so is a float head (`float_head`), besides the
table that rows are looked up in. What runs only for the prompt (`once`: an encoder's layers, cross-attention's keys and
values) is held, but not read per token.

The scales that x64-int8 keeps are freed, but malloc may or may not return them: a process that loads one layer keeps
them all, SmolLM2-135M in blocks of 64 took 88.4 MiB when loaded (88.2 with them, 80.2 without), Llama-3.2-1B's shapes
757 (810 and 737). They are counted.

x64-int8: x64 at accuracy_level 4, measured with onnxruntime 1.32. float32: accuracy_level 0 and 1, and ARM without dot
products (Raspberry Pi 4) at any level. arm-dotprod and arm-i8mm: ARM at accuracy_level 4, by its instructions, with
KleidiAI for whole blocks of a multiple of 32; other 4-bit layers behave as in the float32 row. What the ARM rows hold
was measured with onnxruntime 1.32 on QEMU's cortex-a72, cortex-a76 and neoverse-v1. Zero points are counted with what
stays mapped from the file.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from qia3 import machine
from qia3.bundle.manifest import PROMPT, Architecture, Dense, Layer, Manifest
from qia3.footprint.account import PROMPTS
from qia3.footprint.bits import (
    Shape,
    embedding_shape,
    grid_bytes,
    in_int8,
    linear_shapes,
    on_their_grid,
    zero_point_bytes,
)

KEPT_PARTS = ("zero_points", "embedding_weights", "dense", "norms_and_biases", "rotary", "positions", "other")


class Blocks(NamedTuple):
    """A layer's rows, block size, blocks per row, bits per code, whether codes are int4's, how often a token reads them
    (once, or never), whether it is symmetric, and whether KleidiAI takes it.
    """

    rows: int
    size: int
    each: int
    bits: int
    packs: bool
    reads: int
    symmetric: bool
    whole: bool

    @property
    def codes(self) -> int:
        """Bytes of codes per block."""
        return self.size * self.bits // 8

    @property
    def packs_on_arm(self) -> bool:
        """Whether it is packed on ARM with dot products."""
        return self.bits == 8 or (self.packs and self.whole)


@dataclass(frozen=True)
class KernelBytes:
    """`held_bytes` for all linear layers, including the head; `streamed_bytes` of them are read per token, of which
    `float_bytes` belong to layers that stay in float32. `unpacked_bytes` of layers for which there is no kernel stay
    mapped from the file.
    """

    held_bytes: int
    streamed_bytes: int
    float_bytes: int = 0
    unpacked_bytes: int = 0


def kernel_bytes(linears: Sequence[Layer], dense: Sequence[Dense] = ()) -> dict[str, KernelBytes]:
    """Bytes by kernel."""
    gridded = on_their_grid(linears)
    layers = [_blocks(s, not layer.once) for s, layer in zip(linear_shapes(gridded), gridded, strict=True)]
    found = {
        "x64-int8": _x64_int8(layers),
        "float32": _float32(layers),
        "arm-dotprod": _arm(layers, eight=12),
        "arm-i8mm": _arm(layers, eight=8),
    }
    held, read = (sum(4 * x.inputs * x.outputs for x in dense if every or not x.once) for every in (True, False))
    rounded = in_int8(linears)
    more, often = (sum(x.outputs * (x.inputs + 8) for x in rounded if every or not x.once) for every in (True, False))
    return {
        name: KernelBytes(k.held_bytes + held + more, k.streamed_bytes + read + often, read)
        for name, k in found.items()
    }


def bundle_kernels(manifest: Manifest, parts: Mapping[str, int]) -> dict[str, KernelBytes]:
    """The same for a bundle: a second graph for prompts holds its int8 weights, and once more what it has in 4 bits. A
    processor without int8 dot products does not load it.
    """
    found = {
        name: replace(k, unpacked_bytes=_unpacked(manifest, name))
        for name, k in kernel_bytes(manifest.linears, (*manifest.dense, *float_head(manifest, parts))).items()
    }
    if PROMPT not in manifest.graphs:
        return found
    rounded = parts.get(PROMPTS, 0)
    rest = max(0.0, 1 - rounded / sum(layer.inputs * layer.outputs for layer in manifest.linears))
    return {
        name: k if name == "float32" else replace(k, held_bytes=k.held_bytes + rounded + int(rest * k.held_bytes))
        for name, k in found.items()
    }


def float_head(manifest: Manifest, parts: Mapping[str, int]) -> tuple[Dense, ...]:
    """The head of a model that generates, if it is not among the layers: as on NF4, where table and head stay float."""
    shape, roles = manifest.architecture, {x.role for x in manifest.linears} | {x.role for x in manifest.dense}
    if shape.pooling is not None or "embedding_weights" not in parts or "head" in roles:
        return ()
    return (Dense("head", shape.hidden_size, shape.vocab_size, "head"),)


def _unpacked(manifest: Manifest, kernel: str) -> int:
    """Codes and scales of the layers on a grid that this kernel does not pack, but for a head whose table is mapped anyway."""
    table = embedding_shape(manifest) if manifest.architecture.tied_embedding else None
    without = {"x64-int8": (), "float32": ("int8", "nf4")}.get(kernel, ("nf4",))
    shapes = linear_shapes(on_their_grid(manifest.linears))
    return sum(grid_bytes(s) - zero_point_bytes(s) for s in shapes if s.format in without and s != table)


def _blocks(shape: Shape, read: bool) -> Blocks:
    whole = shape.block % 32 == 0 and shape.inputs == shape.block * shape.blocks
    return Blocks(
        shape.outputs,
        shape.block,
        shape.blocks,
        shape.bits,
        shape.format == "int4",
        int(read),
        shape.symmetric,
        whole,
    )


def kernel_for(family: str, isa: Collection[str], accuracy_level: int = 4) -> str:
    """The kernel that ONNX Runtime uses on such a processor."""
    if accuracy_level != 4:
        return "float32"
    if family == "x64":
        return "x64-int8"
    return next((f"arm-{name}" for name in ("i8mm", "dotprod") if name in isa), "float32")


def kernel_here(manifest: Manifest) -> str:
    """The kernel on the machine that a bundle was measured on, by its description (`qia3 bench`), or on this machine if
    it was not measured. Another ARM machine is assumed to have dot products.
    """
    here = machine.family() or "x64"
    known = machine.ARCHITECTURES.get(manifest.measured.machine.split()[-1].lower()) if manifest.measured else None
    isa = machine.instruction_sets() if known in (None, here) else ("dotprod",)
    return kernel_for(known or here, isa, manifest.main.accuracy_level)


def mapped_bytes(manifest: Manifest, parts: Mapping[str, int]) -> int:
    """Bytes that stay mapped from the file with any kernel, at most: an embedding that is looked up (besides the packed
    copy of a tied head), and everything else except the layers in float32, which are packed. What a kernel does not
    pack (`unpacked_bytes`) comes on top; its zero points are counted here.
    """
    embedding, tied = embedding_shape(manifest), manifest.architecture.tied_embedding
    gridded = on_their_grid(manifest.linears)
    heads = [s for s, x in zip(linear_shapes(gridded), gridded, strict=True) if x.role == "head" and not tied]
    floats = (*manifest.dense, *(() if tied else float_head(manifest, parts)))
    packed = sum(4 * layer.inputs * layer.outputs for layer in floats)
    rest = max(0, sum(parts.get(part, 0) for part in KEPT_PARTS) - packed)
    # a head's own zero points are counted with the embedding's in `parts`
    return (grid_bytes(embedding) if embedding else 0) + sum(map(zero_point_bytes, heads)) + rest


CACHE_BYTES = {"float32": 4, "int8": 1}  # per number; an int8 cache's scales are the graph's


def kv_cache_bytes(shape: Architecture, positions: int) -> int:
    """Keys and values of one row of `positions` tokens of the decoder; none for an encoder."""
    if shape.pooling is not None:
        return 0
    return 2 * shape.layers * shape.kv_heads * shape.head_size * CACHE_BYTES[shape.cache] * positions


def cross_cache_bytes(shape: Architecture, positions: int) -> int:
    """Keys and values in float32 of the encoder's states, in all decoder layers, for one row of `positions` tokens."""
    return 0 if shape.encoder_layers is None else kv_cache_bytes(shape, positions)


def _x64_int8(layers: list[Blocks]) -> KernelBytes:
    packed = [b.rows * b.each * (b.codes + 4) + 4 * b.each * 16 * -(-b.rows // 16) for b in layers]
    kept = sum(4 * b.rows * b.each for b in layers)
    return KernelBytes(sum(packed) + kept, sum(size * b.reads for size, b in zip(packed, layers, strict=True)))


def _float32(layers: list[Blocks]) -> KernelBytes:
    """int4 layers as they are; for the others, the largest one's floats are held, and each use reads codes and scales
    and moves the floats twice.
    """
    four, others = _scaled([b for b in layers if b.packs], 4, 4), [b for b in layers if not b.packs]
    dense = [4 * b.rows * b.each * b.size for b in others]
    streamed = _scaled(others, 4, 4).streamed_bytes + 2 * sum(n * b.reads for n, b in zip(dense, others, strict=True))
    return KernelBytes(four.held_bytes + max(dense, default=0), four.streamed_bytes + streamed)


def _arm(layers: list[Blocks], eight: int) -> KernelBytes:
    """KleidiAI's layers, those at 8 bits with `eight` bytes per block besides the codes, and the rest as in float32."""
    packed = [b for b in layers if b.packs_on_arm]
    sizes = [b.rows * (b.each * (b.codes + _beside(b, eight)) + 8 * (b.bits == 4 and b.symmetric)) for b in packed]
    rest = _float32([b for b in layers if not b.packs_on_arm])
    read = sum(size * b.reads for size, b in zip(sizes, packed, strict=True))
    return KernelBytes(sum(sizes) + rest.held_bytes, read + rest.streamed_bytes)


def _beside(block: Blocks, eight: int) -> int:
    """Bytes of a packed block besides its codes."""
    if block.bits == 8:
        return eight
    return 2 if block.symmetric else 8


def _scaled(layers: list[Blocks], held: int, streamed: int) -> KernelBytes:
    """Codes, and `held` or `streamed` bytes of scales per block."""
    return KernelBytes(
        sum(b.rows * b.each * (b.codes + held) for b in layers),
        sum(b.rows * b.each * (b.codes + streamed) * b.reads for b in layers),
    )
