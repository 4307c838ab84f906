"""Where a bundle's bytes are. The parts sum to the bytes on disk exactly (law 5): what does not add up is an error, not a remainder.

The weight file is split by the manifest's list of regions, each of which holds one tensor, or one that several share (a tied embedding and
head); bytes between regions are padding. Every other file belongs to one part by its name.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qia3.errors import BundleError
from qia3.grids.int4 import bits_per_weight

DATA, GRAPH = "model.onnx.data", "model.onnx"
SEALED = ("report.md", "report.json", "manifest.json")
QUANTISED = ("codes", "scales", "zero_points", "embedding_codes", "embedding_scales", "embedding_zero_points")


@dataclass(frozen=True)
class Account:
    """Bytes by part, in the order of the report. `tied`: the embedding and the head are one tensor, counted once."""

    parts: dict[str, int]
    tied: bool
    measured_bits_per_weight: float
    grid_bits_per_weight: float

    @property
    def total(self) -> int:
        return sum(self.parts.values())

    @property
    def weights(self) -> int:
        """Bytes of the weight file and the graph: what a device maps."""
        return sum(n for part, n in self.parts.items() if part not in ("tokenizer", "vectors", "peft_checkpoints", "configurations", "reports", "other_files"))


def account(folder: Path, manifest: Mapping[str, Any], sealed: Mapping[str, int] | None = None) -> Account:
    """`sealed` gives the sizes that report and manifest are about to have, while they are being written. Raises BundleError."""
    sizes = {str(f.relative_to(folder)): f.stat().st_size for f in sorted(folder.rglob("*")) if f.is_file()}
    sizes |= dict(sealed or {})
    parts = _weight_parts(manifest["tensors"], sizes.pop(DATA, 0))
    for name, size in sizes.items():
        part = _part(name)
        parts[part] = parts.get(part, 0) + size
    grid = manifest["base"]["grid"]
    stored = sum(parts.get(p, 0) for p in QUANTISED) * 8
    weights = quantised_weights(manifest)
    return Account(
        parts=parts,
        tied=bool(manifest["architecture"]["tied_embedding"]),
        measured_bits_per_weight=stored / weights if weights else 0.0,
        grid_bits_per_weight=bits_per_weight(grid["block_size"], grid["symmetric"]),
    )


def quantised_weights(manifest: Mapping[str, Any]) -> int:
    """How many weights the 4-bit regions hold: all linear layers, and the embedding where it is one with no head or apart from it."""
    shape = manifest["architecture"]
    linears = sum(layer["inputs"] * layer["outputs"] for layer in manifest["linears"])
    embedded = any(t["part"] == "embedding_codes" for t in manifest["tensors"])
    apart = not shape["tied_embedding"] and sum(t["part"] == "embedding_codes" for t in manifest["tensors"]) > 1
    head = any(layer["role"] == "head" for layer in manifest["linears"])
    return int(linears + (shape["vocab_size"] * shape["hidden_size"] if embedded and (apart or not head) else 0))


def _weight_parts(tensors: list[Mapping[str, Any]], file_bytes: int) -> dict[str, int]:
    """The weight file by part; regions may not overlap or reach past its end."""
    parts: dict[str, int] = {}
    end = 0
    for tensor in tensors:
        if tensor["offset"] < end:
            raise BundleError(f"{DATA}: {tensor['name']} overlaps the tensor before it; build the bundle again")
        parts["padding"] = parts.get("padding", 0) + tensor["offset"] - end
        parts[tensor["part"]] = parts.get(tensor["part"], 0) + tensor["bytes"]
        end = tensor["offset"] + tensor["bytes"]
    if end != file_bytes:
        raise BundleError(f"{DATA} has {file_bytes} bytes, its tensors make {end}; build the bundle again")
    return dict(sorted(parts.items(), key=lambda item: -item[1]))


def _part(name: str) -> str:
    if name == GRAPH:
        return "graph"
    if name in SEALED:
        return "reports"
    if name.startswith("adapters/"):
        return "vectors" if name.endswith(".onnx_adapter") else "peft_checkpoints"
    if name.startswith(("tokenizer", "special_tokens", "vocab", "merges", "added_tokens", "chat_template")):
        return "tokenizer"
    return "configurations" if name.endswith("config.json") else "other_files"
