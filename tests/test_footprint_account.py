"""Law 5, bytes add up; and the small bundle, of unequal sizes everywhere, that the other tests of the footprint use."""

from __future__ import annotations

import itertools
import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qia3.bundle.manifest import (
    Architecture,
    Base,
    File,
    Graph,
    Grid,
    Layer,
    Manifest,
    Prompt,
    Region,
    Stored,
    Vector,
)
from qia3.bundle.records import Agreement, HeldOut, Measured, Parity, Record, Score
from qia3.bundle.task import Task
from qia3.errors import BundleError
from qia3.footprint.account import account, part_of
from qia3.footprint.bits import Shape, grid_bytes, on_grid
from qia3.grids import int8, nf4
from qia3.grids.int4 import bits_per_weight, block_for, quantise

LAYERS, HIDDEN, KEYS, INNER, VOCABULARY, BLOCK = 2, 96, 24, 160, 70, 32
SHAPES = {
    "query": (HIDDEN, HIDDEN),
    "key": (HIDDEN, KEYS),
    "value": (HIDDEN, KEYS),
    "attention_output": (HIDDEN, HIDDEN),
}
SHAPES |= {"feed_forward": (HIDDEN, INNER), "feed_forward_up": (HIDDEN, INNER), "feed_forward_down": (INNER, HIDDEN)}
VECTORS = {"key": KEYS, "value": KEYS, "feed_forward": INNER}


def layer(name: str, role: str, inputs: int, outputs: int, symmetric: bool = False, bits: int = 4) -> Layer:
    """In the block that rows get where BLOCK is the largest."""
    shape = on_grid(outputs, inputs, BLOCK, symmetric, "int8" if bits == 8 else "int4")
    return Layer(name, inputs, outputs, role, bits, shape.format, shape.block, symmetric)


def manifest_of(symmetric: bool = False, tied: bool = True) -> Manifest:
    """A whole manifest, but for its tensors and files."""
    layers = [(f"layers.{i}.{role}", role, *shape) for i in range(LAYERS) for role, shape in SHAPES.items()]
    embedding = on_grid(VOCABULARY, HIDDEN, BLOCK, symmetric)
    exact, shipped = Agreement(1e-4, 2e-9, 1.0, 40), Agreement(1.25, 0.0072, 0.925, 40)
    scored = {"task": "lamps", "kind": "classify", "n": 240, "seconds": 2.0, "examples_per_second": 120.0}
    return Manifest(
        qia3="0.1.0",
        name="small",
        mode="side",
        merged_task=None,
        seed=0,
        versions={"python": "3.11.7", "onnxruntime": "1.32.0"},
        base=Base(
            reference="tiny",
            fingerprint="ab" * 32,
            model_type="llama",
            parameters=sum(i * o for i, o in SHAPES.values()) * LAYERS + VOCABULARY * HIDDEN + HIDDEN,
            grid=Grid("int4", BLOCK, symmetric, "none", "own", Stored(4, "int4", embedding.block, symmetric)),
        ),
        architecture=Architecture(LAYERS, 4, 1, KEYS, HIDDEN, VOCABULARY, 128, tied),
        linears=tuple(layer(*entry, symmetric) for entry in [*layers, ("head", "head", HIDDEN, VOCABULARY)]),
        graphs={
            "decoder": Graph(
                "onnx/model_q4.onnx",
                "onnx/model_q4.onnx_data",
                "ort-cpu",
                4,
                "last",
                tuple(
                    Vector(f"layers.{i}.{r}.ia3_l", n, r, "output") for i in range(LAYERS) for r, n in VECTORS.items()
                ),
            )
        },
        tensors=(),
        prompt=Prompt("", ""),
        stop_tokens=(1,),
        tasks={
            "lamps": Task("lamps", "classify", "{text}", ("on", "off"), 32, ""),
            "notes": Task("notes", "generate", "{text}", None, 32, ""),
        },
        training={"lamps": Record(416, 12, 3.4, 0.5, 16, "bfloat16", {"master": 1664}, False, None, None)},
        evaluation={
            "lamps": HeldOut(
                240,
                before=Score(adapter="none", accuracy=0.35, **scored),
                after=Score(adapter="lamps", accuracy=0.925, **scored),
            )
        },
        parity={"none": Parity(exact, shipped)},
        measured=Measured(
            0.2, 166416384, 68632576, 235048960, 753.4, 124.5, 128, 64, 2, "AMD EPYC, 2 cores, Linux x86_64"
        ),
    )


def write_weights(folder: Path, manifest: Manifest) -> Manifest:
    """onnx/model_q4.onnx_data as the exporter lays it out, each region on a multiple of 64; the manifest with them."""
    random, regions, data = np.random.default_rng(0), [], b""
    stored, symmetric = list(manifest.linears), manifest.base.grid.symmetric
    if not manifest.architecture.tied_embedding:
        stored.append(layer("embedding", "head", HIDDEN, VOCABULARY, symmetric))
    tensors = []
    for entry in stored:
        weight = random.standard_normal((entry.outputs, entry.inputs), np.float32)
        quantised = quantise(weight, BLOCK, symmetric)
        prefix = "embedding_" if entry.role == "head" else ""
        kinds = {"codes": quantised.codes, "scales": quantised.scales, "zero_points": quantised.zero_points}
        tensors += [(f"{entry.name}.{k}", prefix + k, a.tobytes()) for k, a in kinds.items() if a is not None]
    for name, part, content in [
        *tensors,
        ("norm.weight", "norms_and_biases", bytes(HIDDEN * 4)),
        ("cos", "rotary", bytes(1000)),
    ]:
        data += bytes(-len(data) % 64)
        regions.append(Region(name, part, len(content), len(data), "onnx/model_q4.onnx_data"))
        data += content
    (folder / "onnx").mkdir(parents=True, exist_ok=True)
    (folder / "onnx/model_q4.onnx_data").write_bytes(data)
    return replace(manifest, tensors=tuple(regions))


def write_bundle(folder: Path, **changes: Any) -> Manifest:
    """A bundle's folder, not sealed yet; returns its manifest."""
    manifest = write_weights(folder, manifest_of(**changes))
    sizes = {
        "onnx/model_q4.onnx": 3001,
        "tokenizer.json": 2003,
        "tokenizer_config.json": 97,
        "chat_template.jinja": 55,
        "config.json": 401,
    }
    sizes |= {"generation_config.json": 77, "genai_config.json": 203, "LICENSE": 11}
    for name in manifest.tasks:
        sizes |= {f"adapters/{name}.onnx_adapter": 2111, f"adapters/{name}/adapter_config.json": 301}
        sizes |= {f"adapters/{name}/adapter_model.safetensors": 1901}
    for name, size in sizes.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"x" * size)
    return manifest


def du(folder: Path) -> int:
    """The slow second count."""
    return sum(os.path.getsize(os.path.join(where, name)) for where, _, names in os.walk(folder) for name in names)  # noqa: PTH118, PTH202


def listed(folder: Path) -> dict[str, File]:
    found = [f for f in folder.rglob("*") if f.is_file() and f.name != "manifest.json"]
    return {f.relative_to(folder).as_posix(): File("0" * 64, f.stat().st_size) for f in found}


@pytest.mark.parametrize(("symmetric", "tied"), list(itertools.product((False, True), repeat=2)))
def test_law_5_bytes_add_up(tmp_path, symmetric, tied):
    manifest = write_bundle(tmp_path, symmetric=symmetric, tied=tied)
    found = account(tmp_path, manifest)
    assert found.total == sum(found.parts.values()) == du(tmp_path)
    in_file = sum(t.bytes for t in manifest.tensors) + found.parts["padding"]
    assert in_file == (tmp_path / "onnx/model_q4.onnx_data").stat().st_size
    assert found.weights == in_file + 3001
    assert ("zero_points" in found.parts) is not symmetric


def test_each_file_has_its_part(tmp_path):
    found = account(tmp_path, write_bundle(tmp_path)).parts
    assert (found["graph"], found["tokenizer"], found["configs"], found["other_files"]) == (
        3001,
        2003 + 97 + 55,
        401 + 77 + 203,
        11,
    )
    assert (found["vectors"], found["peft_checkpoints"]) == (2 * 2111, 2 * (301 + 1901))
    assert part_of("report.json") == part_of("manifest.json") == "reports_and_manifest"


def test_tied_weights_are_counted_once(tmp_path):
    head = VOCABULARY * HIDDEN
    counts = []
    for tied in (True, False):
        folder = tmp_path / str(tied)
        folder.mkdir()
        found = account(folder, write_bundle(folder, tied=tied))
        assert found.tied is tied
        assert found.bits_per_weight == found.grid_bits_per_weight
        counts.append((found.quantised_weights, found.parts["embedding_codes"]))
    linears = sum(i * o for i, o in SHAPES.values()) * LAYERS
    assert counts == [(linears + head, head // 2), (linears + 2 * head, head)]


@pytest.mark.parametrize("change", [1, -1, 40])
def test_a_changed_byte_count_of_the_weights_fails(tmp_path, change):
    manifest = write_bundle(tmp_path)
    file = tmp_path / "onnx/model_q4.onnx_data"
    data = file.read_bytes()
    file.write_bytes(data + bytes(change) if change > 0 else data[:change])
    with pytest.raises(
        BundleError, match=f"onnx/model_q4.onnx_data.*{abs(change)} bytes too {'many' if change > 0 else 'few'}"
    ):
        account(tmp_path, manifest)


def test_a_missing_weight_file_and_overlapping_tensors_fail(tmp_path):
    manifest = write_bundle(tmp_path)
    first, second, *others = manifest.tensors
    moved = (first, replace(second, offset=second.offset - 1), *others)
    with pytest.raises(BundleError, match="overlaps"):
        account(tmp_path, replace(manifest, tensors=moved))
    (tmp_path / "onnx/model_q4.onnx_data").unlink()
    with pytest.raises(BundleError, match="has 0 bytes"):
        account(tmp_path, manifest)


def test_every_file_that_is_not_as_listed_is_named(tmp_path):
    manifest = write_bundle(tmp_path)
    manifest = replace(manifest, files=listed(tmp_path))
    (tmp_path / "manifest.json").write_text(json.dumps(manifest.to_json()))  # lists the others, not itself
    assert account(tmp_path, manifest).total == du(tmp_path)
    (tmp_path / "tokenizer.json").write_bytes(bytes(2004))
    (tmp_path / "LICENSE").unlink()
    (tmp_path / "stray.txt").write_text("abc")
    with pytest.raises(BundleError) as caught:
        account(tmp_path, manifest)
    said = str(caught.value)
    assert all(
        part in said
        for part in (
            "tokenizer.json: 1 bytes too many",
            "LICENSE is missing",
            "stray.txt is not in the manifest (3 bytes)",
        )
    )


def test_files_behind_a_link_to_a_folder_are_counted(tmp_path):
    """As a hub's cache, or a second disk, makes of a bundle's parts."""
    manifest = write_bundle(tmp_path / "bundle")
    manifest = replace(manifest, files=listed(tmp_path / "bundle"))
    total = account(tmp_path / "bundle", manifest).total
    (tmp_path / "bundle" / "onnx").rename(tmp_path / "elsewhere")
    (tmp_path / "bundle" / "onnx").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "around").symlink_to(tmp_path / "bundle")  # a circle ends
    assert account(tmp_path / "bundle", manifest).total == total


@pytest.mark.parametrize(
    ("inputs", "block", "symmetric"), list(itertools.product((32, 33, 96, 160, 257), (16, 32, 64, 128), (False, True)))
)
def test_grid_arithmetic_is_what_the_quantiser_writes(inputs, block, symmetric):
    weight = np.random.default_rng(inputs).standard_normal((5, inputs), np.float32)
    assert (
        grid_bytes(on_grid(5, inputs, block, symmetric))
        == quantise(weight, block_for(inputs, block, symmetric), symmetric).nbytes
    )
    at_eight = int8.quantise(weight, int8.block_for(inputs, block, symmetric), symmetric)
    assert grid_bytes(on_grid(5, inputs, block, symmetric, "int8")) == at_eight.nbytes
    assert grid_bytes(Shape(5, inputs, 32, True, "nf4")) == nf4.quantise(weight, 32).nbytes


@pytest.mark.parametrize(("block", "symmetric"), list(itertools.product((16, 32, 64, 128, 256), (False, True))))
def test_whole_even_rows_take_the_published_bits(block, symmetric):
    weights = 7 * 8 * block
    assert grid_bytes(on_grid(7, 8 * block, block, symmetric)) * 8 / weights == bits_per_weight(block, symmetric)
    at_eight = grid_bytes(on_grid(7, 8 * block, block, symmetric, "int8")) * 8 / weights
    assert at_eight == int8.bits_per_weight(max(block, 128), symmetric)
    assert (bits_per_weight(32, False), int8.bits_per_weight(32, False)) == (5.125, 9.25)
