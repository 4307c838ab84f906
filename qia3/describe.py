"""What a bundle says of itself: its manifest, made from the plan, the base and what was trained.

No folder of the build machine is in it.
"""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from torch import nn

from qia3 import __version__
from qia3.base.frozen import BaseModel
from qia3.base.modules import GridEmbedding, GridLinear
from qia3.base.weights import GridWeight
from qia3.bundle.layout import DATA, GRAPH
from qia3.bundle.opened import FORMAT
from qia3.config import Build, Task
from qia3.graph.external import Region
from qia3.graph.folder import head_size
from qia3.ia3.roles import Roles
from qia3.ia3.vectors import Scaled
from qia3.recipe import Train
from qia3.train.task import Trained

PACKAGES = ("torch", "transformers", "onnxruntime", "onnx-ir", "onnx", "numpy", "peft", "tokenizers")


def positions(plan: Build, base: BaseModel) -> int:
    """The context that the graph is made for: as the plan asks, within what the base was made for."""
    return min(
        plan.export.context_length,
        getattr(base.model.config.get_text_config(), "max_position_embeddings", None) or 10**9,
    )


def linear_layers(model: nn.Module, roles: Roles) -> list[dict[str, Any]]:
    """Every linear layer with its shape and role."""
    plain = {name.replace(".base", ""): m for name, m in model.named_modules() if isinstance(m, GridLinear)}
    return [
        {
            "name": n,
            "inputs": m.in_features,
            "outputs": m.out_features,
            "role": roles.linears.get(n, "other"),
            **_grid(m.store),
        }
        for n, m in plain.items()
    ]


def _grid(store: GridWeight) -> dict[str, Any]:
    """What a layer's bytes are on, which may be another grid than the one asked for."""
    symmetric = getattr(store, "zero_points", None) is None
    return {"bits": store.bits, "format": store.kind, "block_size": store.block_size, "symmetric": symmetric}


def describe(
    plan: Build,
    base: BaseModel,
    scaled: Mapping[str, Scaled],
    trained: Sequence[Trained],
    linears: list[dict[str, Any]],
    regions: Sequence[Region],
    accuracy_level: int,
) -> dict[str, Any]:
    """All but what is measured afterwards: parity, evaluation, memory and speed, and the list of files."""
    config = base.model.config.get_text_config()
    wrap = next((t.wrapping for t in trained if t.task.chat), trained[0].wrapping)  # what the base alone speaks through
    side = plan.export.mode == "side"
    embedding, head = base.model.get_input_embeddings(), base.model.get_output_embeddings()
    return {
        "format": FORMAT,
        "qia3": __version__,
        "name": plan.name,
        "mode": plan.export.mode,
        "merged_task": plan.export.merge_task if not side else None,
        "seed": plan.seed,
        "versions": {"python": platform.python_version(), **_versions()},
        "base": {
            "reference": _reference(base.reference),
            "fingerprint": base.fingerprint,
            "model_type": config.model_type,
            "parameters": base.parameters,
            "grid": {
                "format": base.grid,
                "block_size": base.block_size,
                "symmetric": base.symmetric,
                "calibration": base.calibration,
                "codes": base.codes,
                "embedding": _grid(embedding.store) if isinstance(embedding, GridEmbedding) else None,
            }
            | ({} if base.rounding is None else {"rounding": asdict(base.rounding)})
            | ({"eight_bit": list(base.eight_bit)} if base.eight_bit else {})
            | ({"blocks": dict(base.blocks)} if base.blocks else {}),
        },
        "architecture": {
            "layers": config.num_hidden_layers,
            "heads": config.num_attention_heads,
            "kv_heads": getattr(config, "num_key_value_heads", None) or config.num_attention_heads,
            "head_size": head_size(config),
            "hidden_size": config.hidden_size,
            "vocab_size": config.vocab_size,
            "context_length": positions(plan, base),
            "tied_embedding": head is not None and _bytes_of(embedding) is _bytes_of(head),
        },
        "linears": linears,
        "graph": {
            "file": GRAPH,
            "data": DATA,
            "target": plan.export.target,
            "accuracy_level": accuracy_level,
            "logits": plan.export.logits,
            "vectors": [
                {
                    "name": n,
                    "size": s.site.size,
                    "role": s.site.role,
                    "placement": s.site.placement,
                    "down": s.site.down,
                }
                | ({} if s.site.rows is None else {"rows": list(s.site.rows)})
                for n, s in scaled.items()
            ]
            if side
            else [],
        },
        "tensors": [asdict(r) for r in regions],
        "prompt": {"prefix": wrap.prefix, "suffix": wrap.suffix},
        "stop_tokens": list(
            dict.fromkeys(stop for t in (wrap, *(t.wrapping for t in trained)) for stop in t.stop_tokens)
        ),
        "tasks": {
            t.task.name: {
                "kind": t.task.kind,
                "prompt": t.prompt,
                "choices": None if t.choices is None else list(t.choices),
                "ranking": t.ranking,
                "max_new_tokens": t.task.max_new_tokens,
                "end": t.wrapping.end,
            }
            for t in trained
        },
        "training": {t.task.name: vars(t.record) for t in trained},
        "config": _as_asked(plan),
    }


def _bytes_of(module: nn.Module) -> object:
    """What a layer points at: its weight on a grid, or its float weight."""
    return getattr(module, "store", None) or getattr(module, "weight", module)


def _as_asked(plan: Build) -> dict[str, Any]:
    """The build file's content, without the build machine's folders."""
    content = plan.model_dump(mode="json", by_alias=True, exclude={"output", "work"})
    content["base"] |= {"model": _reference(plan.base.model), "calibration": _reference(plan.base.calibration)}
    return content | {
        "train": _names(plan.train.model_dump(mode="json"), plan.train),
        "task": [_task_as_asked(t) for t in plan.task],
    }


def _reference(model: str) -> str:
    """A model reference; of a local one the last part."""
    return Path(model).name if Path(model).exists() else model


def _task_as_asked(task: Task) -> dict[str, Any]:
    """A task without the build machine's folders."""
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
