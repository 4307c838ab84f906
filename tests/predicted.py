"""What the sizes of a base's configuration say of a bundle, held against the bundle."""

from __future__ import annotations

import json
from pathlib import Path

import onnx
import pytest

from qia3.bundle.opened import Bundle
from qia3.footprint.kernels import KernelBytes
from qia3.footprint.shapes import Form
from qia3.footprint.verdict import load_of
from qia3.footprint.weights import weights_of
from qia3.ia3.shapes import read_shapes

ON_GRID = ("codes", "scales", "zero_points", "embedding_codes", "embedding_scales", "embedding_zero_points")


def hold_against(base: Path, bundle: Path, block: int) -> None:
    """Bytes on the grid, what kernels hold and read, the cache, vectors: each as the built bundle has them."""
    manifest = Bundle.open(bundle).manifest
    report = json.loads((bundle / "report.json").read_text())
    shapes, form = read_shapes(str(base)), Form("int4", block)
    weights = weights_of(shapes, form)
    parts = report["account"]["parts"]
    assert shapes.parameters == manifest.base.parameters
    assert form.layers(shapes) == (manifest.linears, manifest.dense)
    on_grid = sum(s for p, s in weights.parts.items() if p != "norms_biases_and_positions") - parts.get("dense", 0)
    assert on_grid == sum(parts.get(part, 0) for part in ON_GRID)
    load = load_of(shapes, form, manifest.architecture.context_length, 1)
    assert weights.kernels is not None
    assert weights.kernels == {n: KernelBytes(**k) for n, k in report["memory"]["kernels"].items()}
    assert load.cache_bytes == report["memory"]["kv_cache_bytes"] + report["memory"].get("cross_cache_bytes", 0)
    assert load.nodes == report["memory"]["nodes"]
    graph = onnx.load(bundle / manifest.main.file, load_external_data=False).graph
    assert load.nodes == pytest.approx(len(graph.node), rel=0.35)
    # the rotation's tables, scalars and padding are a graph's own
    assert load.mapped_bytes == pytest.approx(report["memory"]["mapped_bytes"], rel=0.4)
    assert load.mapped_bytes <= report["memory"]["mapped_bytes"]
    assert [s.name for s in shapes.sites] == [v.name for g in manifest.graphs.values() for v in g.vectors]
