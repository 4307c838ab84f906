"""What a bundle says about itself: its manifest, made from the plan, the base and the trained tasks.

It contains no paths of the build machine.
"""

from __future__ import annotations

import platform
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, cast

from torch import nn
from transformers import PreTrainedModel

from qia3 import __version__
from qia3.base.architecture import architecture, text_config
from qia3.base.family import is_encoder, positions_of, stacks
from qia3.base.frozen import BaseModel
from qia3.base.modules import GridEmbedding, grid_linears, named_modules
from qia3.base.start import start_of
from qia3.base.weights import GridWeight
from qia3.bundle.layout import (
    DATA,
    DECODER_GRAPH,
    ENCODER_GRAPH,
    GRAPH,
    PROMPT_DATA,
    PROMPT_GRAPH,
    SHARED_DATA,
    TRAIN_GRAPH,
)
from qia3.bundle.manifest import (
    DECODER,
    ENCODER,
    PROMPT,
    TRAIN,
    Architecture,
    Base,
    Code,
    Dense,
    Graph,
    Grid,
    Layer,
    Manifest,
    Prompt,
    Region,
    Stored,
    Vector,
)
from qia3.bundle.ports import Cache
from qia3.bundle.records import Drift, Rounding
from qia3.bundle.sites import Site
from qia3.config import Build, Task
from qia3.ia3.roles import POSITIONS, Roles
from qia3.ia3.vectors import Scaled
from qia3.recipe import Train
from qia3.train.task import Trained

PACKAGES = ("torch", "transformers", "onnxruntime", "onnx-ir", "onnx", "numpy", "tokenizers")


def positions(plan: Build, base: BaseModel) -> int:
    """The context length of the graphs: what the plan asks for, limited to what the base was made for."""
    if is_encoder(base.model.config):
        return min(plan.export.context_length, positions_of(base.model) or 10**9)
    return min(
        plan.export.context_length,
        getattr(text_config(base.model.config), "max_position_embeddings", None) or 10**9,
    )


def linear_layers(model: PreTrainedModel, roles: Roles, once: Collection[str]) -> tuple[Layer, ...]:
    """Every quantised linear layer with its shape and role, except those that see no text, of which the graph holds
    only the results (graph/distance.py); `once` are those that run for the prompt only.
    """
    return tuple(
        Layer(name, m.in_features, m.out_features, roles.linears.get(name, "other"), *_stored(m.store), name in once)
        for name, m in grid_linears(model)
        if roles.linears.get(name) != POSITIONS
    )


def dense_layers(model: PreTrainedModel, roles: Roles, once: Collection[str]) -> tuple[Dense, ...]:
    """The linear layers that stay in float; a float head is described with the embedding."""
    head = model.get_output_embeddings()
    return tuple(
        Dense(name, m.in_features, m.out_features, roles.linears.get(name, "other"), name in once)
        for name, m in named_modules(model, nn.Linear)
        if m is not head
    )


def _stored(store: GridWeight) -> tuple[int, Code, int, bool]:
    """A layer's own grid, which may differ from the one asked for."""
    return store.bits, cast(Code, store.kind), store.block_size, getattr(store, "zero_points", None) is None


def describe(
    plan: Build,
    base: BaseModel,
    scaled: Mapping[str, Scaled],
    trained: Sequence[Trained],
    linears: tuple[Layer, ...],
    dense: tuple[Dense, ...],
    regions: Sequence[Region],
    files: Mapping[str, tuple[str, str]],
    accuracy_level: int,
    cache: Cache | None,
    drift: Drift | None = None,
) -> Manifest:
    """The manifest without what is measured later: parity, evaluation, memory and speed, and the list of files.
    `files`: paths of the graphs and their data files, by role.
    """
    wrap = next((t.wrapping for t in trained if t.task.chat), trained[0].wrapping)  # the prompt of the base alone
    wraps = (wrap, *(t.wrapping for t in trained))
    side = plan.export.mode == "side"
    return Manifest(
        qia3=__version__,
        name=plan.name,
        mode=plan.export.mode,
        merged_task=None if side else plan.export.merge_task,
        seed=plan.seed,
        versions={"python": platform.python_version(), **_versions()},
        base=_base(base, drift),
        architecture=_shipped(_architecture(base, positions(plan, base), cache), plan, linears),
        linears=linears,
        dense=dense,
        graphs=_graphs(plan, base, [s.site for s in scaled.values()] if side else [], accuracy_level, files, regions),
        tensors=tuple(regions),
        prompt=Prompt(wrap.prefix, wrap.suffix),
        stop_tokens=tuple(dict.fromkeys(stop for w in wraps for stop in w.stop_tokens)),
        tasks={t.task.name: t.shipped for t in trained},
        training={t.task.name: t.record for t in trained},
        config=_as_asked(plan),
    )


def places(model: Any) -> dict[str, tuple[str, str]]:
    """Paths of a bundle's graphs and their data files, by role."""
    if not model.config.is_encoder_decoder:
        return {ENCODER if is_encoder(model.config) else DECODER: (GRAPH, DATA)}
    return {ENCODER: (ENCODER_GRAPH, SHARED_DATA), DECODER: (DECODER_GRAPH, SHARED_DATA)}


def _graphs(
    plan: Build,
    base: BaseModel,
    sites: Sequence[Site],
    level: int,
    files: Mapping[str, tuple[str, str]],
    regions: Sequence[Region],
) -> dict[str, Graph]:
    """The graphs, each with the sites of its own layers."""
    encoder = next(iter(stacks(base.model))) if len(files) > 1 else None
    found: dict[str, list[Vector]] = {name: [] for name in files}
    for site in sites:
        inside = encoder is not None and site.module.startswith(f"{encoder}.")
        found[ENCODER if inside or DECODER not in found else DECODER].append(Vector.of(site))
    export = plan.export
    graphs = {
        name: Graph(file, data, export.target, level, export.logits, tuple(found[name]))
        for name, (file, data) in files.items()
    }
    if any(region.file == PROMPT_DATA for region in regions):
        graphs[PROMPT] = replace(graphs[DECODER], file=PROMPT_GRAPH, data=PROMPT_DATA)
    if export.trainable:
        graphs[TRAIN] = replace(graphs[DECODER], file=TRAIN_GRAPH, accuracy_level=0)
    return graphs


def _base(base: BaseModel, drift: Drift | None) -> Base:
    embedding = base.model.get_input_embeddings()
    grid = Grid(
        format=cast(Code, base.grid),
        block_size=base.block_size,
        symmetric=base.symmetric,
        calibration=base.calibration,
        codes=base.codes,
        embedding=Stored(*_stored(embedding.store)) if isinstance(embedding, GridEmbedding) else None,
        eight_bit=tuple(base.eight_bit),
        blocks={str(size): tuple(roles) for size, roles in base.blocks.items()},
        rounding=None if base.rounding is None else Rounding(**vars(base.rounding)),
    )
    whole = base.model.config
    model_type = whole.model_type if whole.is_encoder_decoder else whole.get_text_config().model_type
    return Base(_reference(base.reference), base.fingerprint, model_type, base.parameters, grid, drift)


def _architecture(base: BaseModel, context_length: int, cache: Cache | None) -> Architecture:
    embedding, head = base.model.get_input_embeddings(), base.model.get_output_embeddings()
    tied = head is not None and _bytes_of(embedding) is _bytes_of(head)
    found = architecture(base.model.config, context_length, tied, start_of(base.model))
    return found if cache is None else replace(found, kv_heads=cache.heads, head_size=cache.size)


def _shipped(shape: Architecture, plan: Build, linears: Sequence[Layer]) -> Architecture:
    """With the cache that the graph has, and with a head of its own where that is in int8 and the embedding is not."""
    alone = any(layer.role == "head" and layer.products == "int8" for layer in linears)
    return replace(shape, cache=plan.export.cache, tied_embedding=shape.tied_embedding and not alone)


def _bytes_of(module: nn.Module) -> object:
    """The object that a layer refers to: its weight on a grid, or its float weight."""
    return getattr(module, "store", None) or getattr(module, "weight", module)


def _as_asked(plan: Build) -> dict[str, Any]:
    """The build file's content, without paths of the build machine."""
    content = plan.model_dump(mode="json", by_alias=True, exclude={"output", "work"})
    content["base"] |= {"model": _reference(plan.base.model), "calibration": _reference(plan.base.calibration)}
    return content | {
        "train": _names(plan.train.model_dump(mode="json"), plan.train),
        "task": [_task_as_asked(t) for t in plan.task],
    }


def _reference(model: str) -> str:
    """A model reference; for a local one only the last part of its path."""
    return Path(model).name if Path(model).exists() else model


def _task_as_asked(task: Task) -> dict[str, Any]:
    """A task without paths of the build machine."""
    content = dict(task.model_dump(mode="json", by_alias=True))
    files = [file.name for file in task.train_files]
    training = {k: v.name if isinstance(v, Path) else v for k, v in task.overrides.items()}
    return content | {
        "train": files[0] if isinstance(task.train, Path) else files,
        "test": task.test.name,
        "training": training,
    }


def _names(content: dict[str, Any], train: Train) -> dict[str, Any]:
    """A training table with names of files instead of their paths."""
    return content | {k: v.name for k in ("validation", "init_adapter") if isinstance(v := getattr(train, k), Path)}


def _versions() -> dict[str, str]:
    found = {}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
