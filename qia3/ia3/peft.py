"""IA³ adapters as PEFT checkpoints, both ways.

PEFT keeps one tensor per layer, `base_model.model.MODULE.ia3_l`: float [outputs, 1] where the layer's output is scaled,
[1, inputs] where its input is (its `feedforward_modules`). Ours differ in one place: in a gated feed-forward PEFT's
default scales the input of the down projection, h = l * (act(gate) * up), and ours the output of the up projection,
act(gate) * (l * up). Both are the same function, so a vector read from a down projection becomes the up projection's;
ours are written as up projection vectors, which PEFT loads as they are.

The base's fingerprint travels in the safetensors header ("qia3.base"), where PEFT leaves it alone.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from qia3.bundle.sites import Site, Vectors, check_vectors
from qia3.errors import AdapterError

PREFIX = "base_model.model."
BASE_KEY = "qia3.base"
WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"


def write_peft(
    folder: Path, vectors: Mapping[str, NDArray[np.float32]], sites: Sequence[Site], reference: str, fingerprint: str
) -> None:
    """Writes adapter_config.json and adapter_model.safetensors.

    Vectors are float32 [size] by site name; absent ones are ones.
    """
    from peft import IA3Config

    check_vectors(sites, vectors)
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {}
    for site in sites:
        flat = np.asarray(vectors.get(site.name, np.ones(site.size, np.float32)), np.float32)
        tensors[f"{PREFIX}{site.name}"] = np.ascontiguousarray(
            flat[None, :] if site.placement == "input" else flat[:, None]
        )
    save_file(tensors, str(folder / WEIGHTS), metadata={BASE_KEY: fingerprint})  # of two keys the order would vary
    config = IA3Config(
        task_type="CAUSAL_LM",
        base_model_name_or_path=reference,
        inference_mode=True,
        target_modules=sorted({s.module for s in sites}),
        feedforward_modules=sorted({s.module for s in sites if s.placement == "input"}),
    ).to_dict()
    text = json.dumps(
        {k: sorted(v) if isinstance(v, set) else v for k, v in config.items()}, indent=1, default=str, sort_keys=True
    )
    (folder / CONFIG).write_text(text + "\n")


def read_peft(folder: Path, sites: Sequence[Site], fingerprint: str | None = None) -> Vectors:
    """The vectors of a PEFT IA³ checkpoint by site name, float32 [size]. `sites` may include query projections.

    Raises AdapterError for a checkpoint of another kind, a foreign base, and with every tensor that has no place or a
    wrong shape.
    """
    config, tensors, base = open_peft(folder)
    if base is not None and fingerprint is not None and base != fingerprint:
        raise AdapterError(
            f"{folder} was trained on another base (fingerprint {base[:12]}…, this one is {fingerprint[:12]}…)"
        )
    feed_forward = config.get("feedforward_modules") or []
    patterns = [feed_forward] if isinstance(feed_forward, str) else list(feed_forward)
    by_module: dict[tuple[str, str], Site] = {(s.module, s.placement): s for s in sites}
    by_module |= {(s.down, "input"): s for s in sites if s.down}
    vectors, bad = {}, []
    for key, tensor in tensors.items():
        module = key.removeprefix(PREFIX).removesuffix(".ia3_l")
        placement = "input" if any(module == p or module.endswith(p) for p in patterns) else "output"
        site = by_module.get((module, placement))
        if site is None or not key.endswith(".ia3_l"):
            bad.append(f"{key} (no place for it in this base)")
            continue
        inner = site.size if site.rows is None or site.down is None or placement == "output" else len(site.rows)
        if tensor.shape != ((1, inner) if placement == "input" else (inner, 1)):
            bad.append(
                f"{key} (shape {tuple(tensor.shape)}, this base has {(1, inner) if placement == 'input' else (inner, 1)})"
            )
            continue
        vectors[site.name] = _placed(tensor.reshape(-1), site)
    if bad:
        raise AdapterError(f"{folder} does not fit this base; {len(bad)} bad tensors: " + "; ".join(bad))
    check_vectors(sites, vectors)
    return vectors


def _placed(flat: NDArray[np.float32], site: Site) -> NDArray[np.float32]:
    """A down projection's vector, laid over the up rows of a fused gate|up layer; any other vector as it is."""
    if flat.size == site.size:
        return flat
    full = np.ones(site.size, np.float32)
    full[list(site.rows or ())] = flat
    return full


def open_peft(folder: Path) -> tuple[dict[str, Any], dict[str, NDArray[np.float32]], str | None]:
    """The configuration, the tensors in float32, and the fingerprint if the file carries one."""
    try:
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        with safe_open(str(folder / WEIGHTS), framework="pt") as file:
            base = (file.metadata() or {}).get(BASE_KEY)
            tensors = {key: file.get_tensor(key).float().numpy() for key in list(file.keys())}
    except FileNotFoundError as error:
        raise AdapterError(f"{folder} is no PEFT checkpoint: it needs {CONFIG} and {WEIGHTS}") from error
    except (json.JSONDecodeError, UnicodeDecodeError, SafetensorError) as error:
        raise AdapterError(f"{folder} cannot be read: {error}") from error
    if config.get("peft_type") != "IA3":
        raise AdapterError(f"{folder} is a {config.get('peft_type')} adapter; only IA3 ones can be used here")
    return config, tensors, base
