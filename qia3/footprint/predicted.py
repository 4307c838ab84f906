"""The memory and time that a bundle should take on a calibrated machine, compared with what `qia3 bench` measured
there.

    held      the process + what the kernels pack + the cache + the working memory of a prompt
    mapped    libraries + what stays in the file and is touched
    times     as in speed.py

The layers of a prompt work in twice the outputs of one layer's products: it was 0.7 to 1.2 times that in stacks of ten
shapes. A page that is touched brings in its neighbours, AROUND bytes in total (Linux's fault-around), so a small tensor
takes more than its size. A table in which rows are looked up counts completely: how much one row brings in depends on
the page cache (64 KiB if a file was written in small pieces, about 1 MiB if in large ones), and it can be dropped.

Without calibration, memory is predicted with what such a process takes elsewhere, and speeds are not predicted.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from qia3.bundle.manifest import PROMPT, Architecture, Dense, Layer, Manifest
from qia3.bundle.records import Measured
from qia3.footprint.account import INT8, QUANTISED
from qia3.footprint.bits import (
    Shape,
    embedding_shape,
    grid_bytes,
    in_int8,
    int8_bytes,
    linear_shapes,
    on_grid,
    on_their_grid,
    stored_shapes,
    zero_point_bytes,
)
from qia3.footprint.device import Device
from qia3.footprint.kernels import (
    KernelBytes,
    cross_cache_bytes,
    float_head,
    kernel_bytes,
    kernel_for,
    kv_cache_bytes,
)
from qia3.footprint.nodes import node_count
from qia3.footprint.shapes import Form, Shapes
from qia3.footprint.speed import prompt_seconds, token_seconds

AROUND = 2**16
WORK_BYTES = 8  # per output of a layer's products: float32, twice
HELD, MAPPED = 30 * 2**20, 40 * 2**20  # for a process on x64, onnxruntime 1.32: Python, numpy, ONNX Runtime, tokenizers


@dataclass(frozen=True)
class Compared:
    """`predicted` or `measured` may be None. `error`: predicted / measured - 1."""

    name: str
    unit: str
    predicted: float | None
    measured: float | None
    error: float | None

    @classmethod
    def of(cls, name: str, unit: str, predicted: float | None, measured: float | None) -> Compared:
        apart = None if predicted is None or not measured else predicted / measured - 1
        return cls(name, unit, predicted, measured, apart)


@dataclass(frozen=True)
class Sizes:
    """Sizes of a graph. `tables`: bytes of each table for token ids; `others`: of norms and biases; `nodes`: as in Load."""

    linears: Sequence[Layer]
    dense: Sequence[Dense]
    architecture: Architecture
    tables: Sequence[int]
    others: int
    kernel: KernelBytes
    nodes: int | None
    int8_prompts: bool = False

    @property
    def layers(self) -> Sequence[Layer | Dense]:
        return (*self.linears, *self.dense)

    def cache_bytes(self, prompt: int, new: int) -> int:
        """The cache after a prompt and `new` tokens."""
        shape = self.architecture
        if shape.encoder_layers is None:
            return kv_cache_bytes(shape, prompt + new)
        return kv_cache_bytes(shape, len(shape.decoder_start) + new) + cross_cache_bytes(shape, prompt)

    def work_bytes(self, prompt: int) -> int:
        """Working memory of a prompt, besides the cache."""
        return prompt * _work_bytes(self.layers, self.architecture)

    def prompt_operations(self, prompt: int) -> int:
        """Operations of a prompt's products. The head runs for the last position only, and an encoder-decoder's decoder
        for one.
        """
        reads = [x.inputs * x.outputs for x in _reads(self.layers, self.architecture)]
        rest = sum(x.inputs * x.outputs for x in self.layers) - sum(reads)
        return 2 * (prompt * sum(reads) + rest)

    def prompt_outputs(self, prompt: int) -> int:
        """Numbers that those products compute."""
        reads = sum(x.outputs for x in _reads(self.layers, self.architecture))
        return prompt * reads + sum(x.outputs for x in self.layers) - reads

    def touched_bytes(self) -> int:
        """Bytes of the file that get mapped."""
        points = [zero_point_bytes(shape) for shape in linear_shapes(on_their_grid(self.linears))]
        small = sum(max(size, AROUND) for size in points if size)
        return small + sum(self.tables) + self.others


def _reads(layers: Iterable[Layer | Dense], shape: Architecture) -> list[Layer | Dense]:
    """The layers that run for every token of a prompt."""
    return [x for x in layers if x.role != "head" and (x.once or shape.encoder_layers is None)]


def _work_bytes(layers: Iterable[Layer | Dense], shape: Architecture) -> int:
    read = sum(x.outputs for x in _reads(layers, shape) if x.role != "experts")  # a token uses only a few
    return WORK_BYTES * read // max(1, shape.encoder_layers or shape.layers)


def work_bytes(shapes: Shapes, form: Form, rows: int) -> int:
    """Working memory of one position of a prompt, in `rows` rows."""
    linears, dense = form.layers(shapes)
    return rows * _work_bytes((*linears, *dense), shapes.architecture)


def of_bundle(manifest: Manifest, parts: Mapping[str, int], kernel: KernelBytes, nodes: int | None) -> Sizes:
    """The sizes of a bundle, with the kernel of the machine that it was measured on."""
    embedding, head = embedding_shape(manifest), float_head(manifest, parts)
    floats = [parts["embedding_weights"]] if "embedding_weights" in parts else []
    return Sizes(
        linears=manifest.linears,
        dense=(*manifest.dense, *head),
        architecture=manifest.architecture,
        tables=[*(tensors(embedding) if embedding else []), *floats],
        others=sum(parts.get(part, 0) for part in ("norms_and_biases", "rotary", "positions", "other")),
        kernel=kernel,
        nodes=nodes,
        int8_prompts=PROMPT in manifest.graphs or bool(in_int8(manifest.linears)),
    )


def of_shapes(shapes: Shapes, form: Form, device: Device) -> Sizes:
    """The sizes of an int4 build that does not exist yet, with vectors unmerged."""
    linears, dense = form.layers(shapes)
    tables: list[int] = []
    for table in shapes.tables:
        block = form.block_of(table)
        grid = None if block is None else on_grid(table.rows, table.width, block, form.symmetric)
        tables += [4 * table.numbers] if grid is None else tensors(grid)
    kernel = kernel_for(device.family, device.isa.value)
    others, nodes = 4 * (shapes.others + shapes.tabled), nodes_of(shapes)
    return Sizes(linears, dense, shapes.architecture, tables, others, kernel_bytes(linears, dense)[kernel], nodes)


def nodes_of(shapes: Shapes) -> int:
    vectors = sum(not site.in_encoder for site in shapes.sites)
    return node_count(sum(not m.once for m in shapes.matrices), vectors, shapes.architecture)


def tensors(shape: Shape) -> list[int]:
    """Bytes of codes, scales and zero points of a table."""
    scales, points = 4 * shape.outputs * shape.blocks, zero_point_bytes(shape)
    return [size for size in (grid_bytes(shape) - scales - points, scales, points) if size]


def compared(sizes: Sizes, measured: Measured, device: Device | None) -> list[Compared]:
    """Predictions and measurements. `device`: the profile of the measuring machine, if it was calibrated."""
    prompt, new = measured.prompt_tokens, measured.new_tokens
    held, mapped = process(device)
    held += sizes.kernel.held_bytes + sizes.cache_bytes(prompt, new) + sizes.work_bytes(prompt)
    mapped += sizes.touched_bytes()
    load, first, token = (None, None, None) if device is None else times(sizes, device, prompt)
    speed = measured.prompt_tokens_per_second
    return [
        Compared.of("memory, held", "bytes", held, measured.peak_anonymous_bytes),
        Compared.of("memory, mapped", "bytes", mapped, measured.peak_file_bytes),
        Compared.of("memory, resident", "bytes", held + mapped, measured.peak_resident_bytes),
        Compared.of("load", "seconds", load, measured.load_seconds),
        Compared.of(f"first token, after {prompt}", "seconds", first, prompt / speed if speed else None),
        Compared.of("prompt", "tokens/s", None if first is None else prompt / first, speed),
        Compared.of("decoding", "tokens/s", None if token is None else 1 / token, measured.decode_tokens_per_second),
    ]


def process(device: Device | None) -> tuple[int, int]:
    """Bytes held and mapped by a process with only a tiny graph."""
    if device is None or device.process_held_bytes is None or device.process_mapped_bytes is None:
        return HELD, MAPPED
    return int(device.process_held_bytes.value), int(device.process_mapped_bytes.value)


def times(sizes: Sizes, device: Device, prompt: int) -> tuple[float | None, float | None, float | None]:
    """Seconds for loading, for a prompt with its first token, and per token; None if the device was not calibrated."""
    node, load, bandwidth = (
        device.node_seconds,
        device.load_bytes_per_second,
        device.decode_bandwidth_low_bytes_per_second,
    )
    if node is None or load is None or bandwidth is None:
        return None, None, None
    first, token, seconds = None, None, sizes.kernel.held_bytes / load.value
    if sizes.nodes is None:
        return seconds, None, None
    if not sizes.int8_prompts:  # a machine is calibrated with 4-bit products
        first = prompt_seconds(sizes.prompt_operations(prompt), sizes.prompt_outputs(prompt), sizes.nodes, device)
    if sizes.architecture.pooling is None:
        token = token_seconds(sizes.kernel, sizes.nodes, bandwidth.value, node.value, device)
    if first is not None and token is not None and sizes.architecture.encoder_layers is not None:
        first += token  # the decoder's first step follows the encoder and reads its weights like any other
    return seconds, first, token


def on_disk(manifest: Manifest, parts: Mapping[str, int]) -> Compared:
    """The layers on the grid, in int8 and in float32: computed, compared with the file."""
    grids = sum(map(grid_bytes, stored_shapes(manifest))) + int8_bytes(manifest.linears)
    floats = sum(4 * x.inputs * x.outputs for x in manifest.dense)
    stored = sum(parts.get(part, 0) for part in (*QUANTISED, INT8, "dense"))
    return Compared.of("layers on disk", "bytes", grids + floats, stored)
