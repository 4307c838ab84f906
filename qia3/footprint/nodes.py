"""How many operators run for one token, about: by layers, as they were counted in graphs that were exported."""

from __future__ import annotations

from qia3.bundle.manifest import Architecture

# Nodes of a layer beside its linear layers and vectors, and of a graph beside its layers, as ONNX Runtime's profile of a
# step has them: two norms, attention, an activation and its product, less the two products that q|k|v being one saves.
# SmolLM2-135M: 411 run (414 in the file), 30 layers with 7 linear layers and 3 vectors each; Llama-3.2-1B: 229 (232);
# flan-t5-base's decoder: 366 (462 before ONNX Runtime fuses and folds some), 12 with 9 and 5.
OTHER_NODES, START_NODES = 3, 20
CROSS_NODES, CROSS_START_NODES = 13, 41  # where a layer attends to an encoder as well


def node_count(linears: int, vectors: int, shape: Architecture) -> int:
    """What runs for one token of the answer, about: of so many linear layers and vectors that take part in it."""
    alone = shape.encoder_layers is None
    others, start = (OTHER_NODES, START_NODES) if alone else (CROSS_NODES, CROSS_START_NODES)
    return linears + vectors + others * shape.layers + start
