"""Roughly how many operators run per token: by layers, as counted in exported graphs."""

from __future__ import annotations

from qia3.bundle.manifest import Architecture

# Nodes per layer besides its linear layers and vectors, and per graph besides its layers, according to ONNX Runtime's
# profile of a step: two norms, attention, an activation and its product, minus the two products that packing q|k|v
# saves. SmolLM2-135M: 411 run (414 in the file), 30 layers with 7 linear layers and 3 vectors each; Llama-3.2-1B: 229
# (232); flan-t5-base's decoder: 366 (462 before ONNX Runtime fuses and folds some), 12 with 9 and 5.
OTHER_NODES, START_NODES = 3, 20
CROSS_NODES, CROSS_START_NODES = 13, 41  # if a layer also attends to an encoder


def node_count(linears: int, vectors: int, shape: Architecture) -> int:
    """Roughly how many operators run per token of the answer, for the linear layers and vectors that take part in it."""
    alone = shape.encoder_layers is None
    others, start = (OTHER_NODES, START_NODES) if alone else (CROSS_NODES, CROSS_START_NODES)
    return linears + vectors + others * shape.layers + start
