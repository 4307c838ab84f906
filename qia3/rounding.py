"""Int8 products in a bundle (qia3.graph.int8_products): which graphs get them, and on what their activations are seen.

                       a decoder                          an encoder-decoder           an encoder
    prompts = "int8"   a second graph, for prompts        the encoder                  the graph
    browser-wasm       the graph                          both graphs                  the graph

An encoder reads a whole text at once, so it needs no second graph: its 4-bit weights are replaced. Graphs that are
replaced are first written with 4-bit products into a folder of their own, `UNROUNDED`, which the parity gate compares
them with and which is not shipped.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import replace
from pathlib import Path

import onnx_ir as ir
import onnxruntime as ort

from qia3.base.family import stacks
from qia3.base.frozen import BaseModel
from qia3.bundle.layout import PROMPT_DATA, PROMPT_GRAPH, int8_name
from qia3.bundle.manifest import DECODER, ENCODER, Layer, Region
from qia3.config import Export
from qia3.describe import places
from qia3.errors import BaseModelError
from qia3.graph.cache import Text
from qia3.graph.external import INT8_WEIGHTS, write_graphs
from qia3.graph.forced import OrtDecoder
from qia3.graph.forced_encoder import OrtEncoder
from qia3.graph.forced_seq2seq import OrtPair
from qia3.graph.int8_products import Seen, Watched, in_memory, int8_graph, prompt_graph
from qia3.targets import Target, load_target

UNROUNDED = "unrounded"
FORCED = 8  # tokens of a prompt that an encoder-decoder's decoder reads as its answer
EXPERTS = "QMoE"


def replaced(export: Export, model: object) -> tuple[str, ...]:
    """The roles of the graphs whose products are replaced by int8 ones."""
    roles = tuple(places(model))
    if load_target(export.target).products == "int8":
        return roles
    return tuple(role for role in roles if role == ENCODER) if export.prompts == "int8" else ()


def shipped_places(model: object, target: Target) -> dict[str, tuple[str, str]]:
    """Paths of the graphs and their data files as they are shipped, by role."""
    found = places(model)
    if target.products == "int8":
        return {role: (int8_name(graph), int8_name(data)) for role, (graph, data) in found.items()}
    return found


def check_rounding(export: Export, model: object, graphs: Mapping[str, ir.Model]) -> None:
    """Raises BaseModelError for a graph with experts, of which no int8 product is written."""
    for role in replaced(export, model):
        if any(node.op_type == EXPERTS for node in graphs[role].graph):
            named = (
                f"target = {export.target!r}" if load_target(export.target).products == "int8" else "prompts = 'int8'"
            )
            raise BaseModelError(f"{named} in [export] has no int8 products for a mixture of experts; choose another")


def add_prompts(folder: Path, graph: str, texts: Iterable[Text], vocabulary: Collection[str]) -> list[Region]:
    """Writes the second graph of a decoder, whose file is `graph`."""
    with_prompts = prompt_graph(folder / graph, _seen({DECODER: folder / graph}, (), texts, False)[DECODER])
    return write_graphs({PROMPT_GRAPH: with_prompts}, PROMPT_DATA, folder, vocabulary)


def write_rounded(
    base: BaseModel, export: Export, folder: Path, texts: Iterable[Text], vocabulary: Collection[str]
) -> list[Region]:
    """Writes the graphs of `folder`/UNROUNDED into `folder`, with int8 products in those that are `replaced`."""
    written, ships = places(base.model), shipped_places(base.model, load_target(export.target))
    which = replaced(export, base.model)
    files = {role: folder / UNROUNDED / graph for role, (graph, _) in written.items()}
    seen = _seen(files, base.start, texts, True)
    made: dict[str, ir.Model] = {}
    for role, file in files.items():
        if role in which:
            made[role] = int8_graph(file, seen[role])
        else:
            made[role] = ir.load(file)
            in_memory(made[role])
    data = next(iter(ships.values()))[1]
    named = {ships[role][0]: graph for role, graph in made.items()}
    return write_graphs(named, data, folder, vocabulary, INT8_WEIGHTS)


def rounded_layers(base: BaseModel, export: Export, linears: Iterable[Layer]) -> tuple[Layer, ...]:
    """The layers, marked where the graph has int8 weights for them."""
    which = replaced(export, base.model)
    if not which:
        return tuple(linears)
    encoder = f"{next(iter(stacks(base.model)))}." if {ENCODER, DECODER} == set(places(base.model)) else ""
    return tuple(
        replace(layer, products="int8") if DECODER in which or layer.name.startswith(encoder) else layer
        for layer in linears
    )


def _seen(
    files: Mapping[str, Path], start: Collection[int], texts: Iterable[Text], every: bool
) -> dict[str, dict[str, Seen]]:
    """What the products of each graph read when the texts are run."""
    watched = {role: Watched(file, every) for role, file in files.items()}
    sessions: Mapping[str, ort.InferenceSession] = watched
    for tokens, vectors in texts:
        if DECODER not in sessions:
            OrtEncoder(sessions[ENCODER]).rows([tokens], vectors)
        elif ENCODER in sessions:
            OrtPair(sessions[ENCODER], sessions[DECODER], list(start)).logits(tokens, tokens[:FORCED], vectors)
        else:
            OrtDecoder(sessions[DECODER]).logits(tokens, [], vectors)
    return {role: session.seen for role, session in watched.items()}
