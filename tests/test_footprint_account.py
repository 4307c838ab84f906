"""Law 5, bytes add up; and the small bundle, of unequal sizes everywhere, that the other tests of the footprint use."""

from __future__ import annotations

import itertools
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

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


def layer(name: str, role: str, inputs: int, outputs: int) -> dict[str, Any]:
    return {"name": name, "inputs": inputs, "outputs": outputs, "role": role, "bits": 4}


def manifest_of(symmetric: bool = False, tied: bool = True) -> dict[str, Any]:
    """A whole manifest, but for its tensors and files."""
    linears = [layer(f"layers.{i}.{role}", role, *shape) for i in range(LAYERS) for role, shape in SHAPES.items()]
    agreement = {"max_difference": 1e-4, "kl": 2e-9, "top1": 1.0, "positions": 40}
    return {
        "format": 2,
        "name": "small",
        "mode": "side",
        "merged_task": None,
        "versions": {"python": "3.11.7", "onnxruntime": "1.32.0"},
        "base": {
            "reference": "tiny",
            "fingerprint": "ab" * 32,
            "model_type": "llama",
            "parameters": sum(i * o for i, o in SHAPES.values()) * LAYERS + VOCABULARY * HIDDEN + HIDDEN,
            "grid": {"format": "int4", "block_size": BLOCK, "symmetric": symmetric},
        },
        "architecture": {"layers": LAYERS, "heads": 4, "kv_heads": 1, "head_size": KEYS, "hidden_size": HIDDEN}
        | {"vocab_size": VOCABULARY, "context_length": 128, "tied_embedding": tied},
        "linears": [*linears, layer("head", "head", HIDDEN, VOCABULARY)],
        "graph": {
            "file": "onnx/model_q4.onnx",
            "data": "onnx/model_q4.onnx_data",
            "target": "ort-cpu",
            "accuracy_level": 4,
            "logits": "last",
            "vectors": [
                {"name": f"layers.{i}.{r}.ia3_l", "size": n, "role": r}
                for i in range(LAYERS)
                for r, n in VECTORS.items()
            ],
        },
        "tasks": {
            "lamps": {"kind": "classify", "choices": ["on", "off"]},
            "notes": {"kind": "generate", "choices": None},
        },
        "training": {"lamps": {"parameters": 416, "steps": 12, "seconds": 3.4, "examples": 16, "compute": "bfloat16"}},
        "evaluation": {"lamps": {"n": 240, "before": {"accuracy": 0.35}, "after": {"accuracy": 0.925}}},
        "parity": {
            "none": {"exact": agreement, "shipped": agreement | {"max_difference": 1.25, "kl": 0.0072, "top1": 0.925}}
        },
        "measured": {
            "load_seconds": 0.2,
            "peak_anonymous_bytes": 166416384,
            "peak_file_bytes": 68632576,
            "peak_resident_bytes": 235048960,
        }
        | {
            "prompt_tokens_per_second": 753.4,
            "decode_tokens_per_second": 124.5,
            "threads": 2,
            "machine": "AMD EPYC, 2 cores, Linux x86_64",
        },
    }


def write_weights(folder: Path, manifest: dict[str, Any]) -> None:
    """onnx/model_q4.onnx_data as the exporter lays it out, each region on a multiple of 64; and manifest["tensors"]."""
    random, regions, data = np.random.default_rng(0), [], b""
    stored = list(manifest["linears"])
    if not manifest["architecture"]["tied_embedding"]:
        stored.append(layer("embedding", "head", HIDDEN, VOCABULARY))
    tensors = []
    for entry in stored:
        grid = manifest["base"]["grid"]
        weight = random.standard_normal((entry["outputs"], entry["inputs"]), np.float32)
        quantised = quantise(weight, grid["block_size"], grid["symmetric"])
        prefix = "embedding_" if entry["role"] == "head" else ""
        kinds = {"codes": quantised.codes, "scales": quantised.scales, "zero_points": quantised.zero_points}
        tensors += [(f"{entry['name']}.{k}", prefix + k, a.tobytes()) for k, a in kinds.items() if a is not None]
    for name, part, content in [
        *tensors,
        ("norm.weight", "norms_and_biases", bytes(HIDDEN * 4)),
        ("cos", "rotary", bytes(1000)),
    ]:
        data += bytes(-len(data) % 64)
        regions.append({"name": name, "part": part, "bytes": len(content), "offset": len(data)})
        data += content
    (folder / "onnx").mkdir(parents=True, exist_ok=True)
    (folder / "onnx/model_q4.onnx_data").write_bytes(data)
    manifest["tensors"] = regions


def write_bundle(folder: Path, **changes: Any) -> dict[str, Any]:
    """A bundle's folder, not sealed yet; returns its manifest."""
    manifest = manifest_of(**changes)
    write_weights(folder, manifest)
    sizes = {
        "onnx/model_q4.onnx": 3001,
        "tokenizer.json": 2003,
        "tokenizer_config.json": 97,
        "chat_template.jinja": 55,
        "config.json": 401,
    }
    sizes |= {"generation_config.json": 77, "genai_config.json": 203, "LICENSE": 11}
    for name in manifest["tasks"]:
        sizes |= {f"adapters/{name}.onnx_adapter": 2111, f"adapters/{name}/adapter_config.json": 301}
        sizes |= {f"adapters/{name}/adapter_model.safetensors": 1901}
    for name, size in sizes.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"x" * size)
    return manifest


def du(folder: Path) -> int:
    """The slow second count."""
    return sum(os.path.getsize(os.path.join(where, name)) for where, _, names in os.walk(folder) for name in names)  # noqa: PTH118, PTH202


def listed(folder: Path) -> dict[str, Any]:
    found = [f for f in folder.rglob("*") if f.is_file() and f.name != "manifest.json"]
    return {f.relative_to(folder).as_posix(): {"sha256": "", "bytes": f.stat().st_size} for f in found}


@pytest.mark.parametrize(("symmetric", "tied"), list(itertools.product((False, True), repeat=2)))
def test_law_5_bytes_add_up(tmp_path, symmetric, tied):
    manifest = write_bundle(tmp_path, symmetric=symmetric, tied=tied)
    found = account(tmp_path, manifest)
    assert found.total == sum(found.parts.values()) == du(tmp_path)
    in_file = sum(t["bytes"] for t in manifest["tensors"]) + found.parts["padding"]
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
    manifest["tensors"][1]["offset"] -= 1
    with pytest.raises(BundleError, match="overlaps"):
        account(tmp_path, manifest)
    (tmp_path / "onnx/model_q4.onnx_data").unlink()
    manifest["tensors"][1]["offset"] += 1
    with pytest.raises(BundleError, match="has 0 bytes"):
        account(tmp_path, manifest)


def test_every_file_that_is_not_as_listed_is_named(tmp_path):
    manifest = write_bundle(tmp_path)
    manifest["files"] = listed(tmp_path)
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))  # lists the others, not itself
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
