"""Upgrades manifests of earlier formats. One function per format; errors in them are left for the reader to report.

1    0.1.0's first bundles: model.onnx and model.onnx.data beside the manifest, which does not name them
2    0.1.0: one "graph", a base's grid without keys that had only one value then, layers without a grid of their own
3    this version: several "graphs"; each region names its file, each layer its grid
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from qia3.bundle.layout import FORMAT_1
from qia3.grids import int4, int8
from qia3.grids.blocks import BLOCK_SIZES

Table = dict[str, Any]
RECORD: Table = {"packed": False, "best_step": None, "validation_loss": None}  # defaults for early training records
PROMPT_TOKENS, NEW_TOKENS = 128, 64  # of every measurement before these were recorded


def upgraded(manifest: Mapping[str, Any], to: int) -> Table:
    """The manifest in format `to`. Raises ValueError for an unknown format."""
    table, version = dict(manifest), manifest.get("format")
    if type(version) is not int or version not in (*STEPS, to):
        raise ValueError(f"format is not a whole number from 1 to {to}")
    while table["format"] != to:
        table = STEPS[table["format"]](table)
    return table


def _from_1(old: Table) -> Table:
    graph, data = FORMAT_1
    return old | {"format": 2, "graph": _table(old.get("graph")) | {"file": graph, "data": data}}


def _from_2(old: Table) -> Table:
    graph, base, new = _table(old.get("graph")), _table(old.get("base")), dict(old)
    new.pop("graph", None)
    grid: Table = {"format": "int4", "calibration": "none", "codes": "own"} | _table(base.get("grid"))
    if "embedding" not in grid:  # the embedding's grid, if its regions show that it is on one
        table = {"bits": 4, "inputs": _table(old.get("architecture")).get("hidden_size")}
        grid["embedding"] = {k: v for k, v in _on_its_grid(table, grid).items() if k != "inputs"}
    vectors = _each(graph.get("vectors"), lambda vector: {"placement": "output"} | vector)
    new |= {
        "format": 3,
        "base": base | {"grid": grid},
        "graphs": {"decoder": graph | {"vectors": vectors}},
        "linears": _each(old.get("linears"), lambda layer: _on_its_grid(layer, grid)),
        "tensors": _each(old.get("tensors"), lambda region: {"file": graph.get("data")} | region),
    }
    if isinstance(old.get("training"), dict):
        new["training"] = {n: RECORD | r if isinstance(r, dict) else r for n, r in old["training"].items()}
    if isinstance(old.get("measured"), dict):
        new["measured"] = {"prompt_tokens": PROMPT_TOKENS, "new_tokens": NEW_TOKENS} | old["measured"]
    return new


def _on_its_grid(layer: Table, base: Table) -> Table:
    """The layer with the base's grid made explicit, in the block size in which its rows are shortest."""
    if "block_size" in layer:
        return layer
    inputs, most, symmetric = layer.get("inputs"), base.get("block_size"), base.get("symmetric")
    eight = layer.get("bits") == 8
    block: Any = most
    if _is_size(inputs, 1) and _is_size(most, min(BLOCK_SIZES)) and isinstance(symmetric, bool):
        block = (int8 if eight else int4).block_for(inputs, most, symmetric)
    return layer | {"format": "int8" if eight else "int4", "block_size": block, "symmetric": symmetric}


def _is_size(value: Any, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def _table(value: Any) -> Table:
    return dict(value) if isinstance(value, dict) else {}


def _each(entries: Any, change: Callable[[Table], Table]) -> Any:
    """`change` of each entry that is an object; anything but a list is returned unchanged."""
    if not isinstance(entries, list):
        return entries
    return [change(entry) if isinstance(entry, dict) else entry for entry in entries]


STEPS: dict[int, Callable[[Table], Table]] = {1: _from_1, 2: _from_2}
