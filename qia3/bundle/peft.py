"""IA³ adapters as PEFT checkpoints, both ways, without PEFT and without torch.

PEFT keeps one tensor per layer, `base_model.model.MODULE.ia3_l`: float [outputs, 1] if the layer's output is scaled,
[1, inputs] if its input is (its `feedforward_modules`). Ours differ in one respect: in a gated feed-forward, PEFT
scales the input of the down projection by default, h = l * (act(gate) * up), and we scale the output of the up
projection, act(gate) * (l * up). Both are the same function, so a vector read from a down projection becomes the up
projection's. Ours are written as up projection vectors, which PEFT loads as they are. An adapter that has both l_up and
l_down computes act(gate) * (l_down * l_up * up): they become one vector, their product.

Which tensors must be there follows from adapter_config.json (peft_config.py): one for each layer that it selects, and
no others. (PEFT itself fills missing ones with ones.)

The base's fingerprint travels in the safetensors header ("qia3.base"), which PEFT ignores.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
from numpy.typing import NDArray
from safetensors.numpy import save

from qia3.bundle.adapter import Adapter, Tensors
from qia3.bundle.head_file import read_head, write_head
from qia3.bundle.peft_config import CAUSAL, CONFIG, FEATURES, SEQ_2_SEQ, Config, read_config, write_config
from qia3.bundle.sites import SUFFIX, Placement, Site, Vectors, check_vectors, refuse
from qia3.bundle.task import read_task, write_task
from qia3.errors import AdapterError, first_line, shown
from qia3.parse import each_once, parse_json, read_bytes

PREFIX = "base_model.model."
BASE_KEY = "qia3.base"
WEIGHTS = "adapter_model.safetensors"
FLOATS = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2"}  # bfloat16 is the upper half of a float32


@dataclass(frozen=True)
class Checkpoint:
    """A PEFT folder as stored: its tensors in float32, in PEFT's shapes, and the base's fingerprint if it has one."""

    folder: Path
    config: Config
    tensors: Tensors
    base: str | None


def write_peft(folder: Path, adapter: Adapter, sites: Sequence[Site], reference: str, encoder: bool = False) -> None:
    """Writes adapter_config.json, adapter_model.safetensors, the head if there is one, and task.json if the adapter has
    a task.

    Absent vectors are written as ones. If a site is in an encoder, the configuration says SEQ_2_SEQ_LM; `encoder` says
    that the base is an encoder alone.
    """
    check_vectors(sites, adapter.vectors)
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {}
    for site in sites:
        flat = adapter.vectors.get(site.name, np.ones(site.size, np.float32))
        tensors[f"{PREFIX}{site.name}"] = np.ascontiguousarray(flat.reshape(_shape(site.placement, site.size)))
    # one metadata key only: the order of several would vary
    data = save(tensors, metadata=None if adapter.base is None else {BASE_KEY: adapter.base})
    (folder / WEIGHTS).write_bytes(data)  # save_file would make it readable by its owner only
    on_input = [s.module for s in sites if s.placement == "input"]
    task_type = FEATURES if encoder else SEQ_2_SEQ if any(site.in_encoder for site in sites) else CAUSAL
    write_config(folder, [s.module for s in sites], on_input, reference, task_type)
    if adapter.task is not None:
        write_task(folder, adapter.task)
    if adapter.head is not None:
        write_head(folder, adapter.head)


def read_peft(
    folder: Path, sites: Sequence[Site], fingerprint: str | None = None, layers: Mapping[str, str] | None = None
) -> Adapter:
    """Reads a PEFT IA³ checkpoint for a base with these sites. `sites` may include query projections.

    `layers` are the roles of all linear layers of the base by path: with them, tensors that the checkpoint lacks are
    noticed even where the base has no site.

    Raises AdapterError for a checkpoint of another kind or another base, and with every tensor that is missing, has no
    site or a wrong shape.
    """
    found = open_peft(folder)
    found.config.check_whole()
    if fingerprint is not None:
        Adapter({}, found.base).check_base(fingerprint, folder)
    vectors = _Reading(found, sites, layers or {}).vectors()
    check_vectors(sites, vectors, str(folder))
    return Adapter(vectors, found.base, read_task(folder, folder.name), read_head(folder))


class _Reading:
    """From PEFT's names and shapes to ours, collecting a clause for every tensor that does not fit."""

    def __init__(self, found: Checkpoint, sites: Sequence[Site], layers: Mapping[str, str]) -> None:
        self.found, self.sites, self.queries = found, sites, False
        known = (
            {s.module: s.role for s in sites} | {s.down: "feed_forward_down" for s in sites if s.down} | dict(layers)
        )
        modules = {key: _module(key) for key in found.tensors}
        self.named = {module: key for key, module in modules.items() if key == f"{PREFIX}{module}{SUFFIX}"}
        self.bad = [
            f"{shown(key)} (not an IA³ vector)" for key, module in modules.items() if self.named.get(module) != key
        ]
        self.roles = dict.fromkeys(self.named, "other") | known
        self.targets = found.config.targets(self.roles)
        self.on_input = found.config.on_input(self.targets)
        self.places: dict[tuple[str, str], Site] = {(s.module, s.placement): s for s in sites}
        self.places |= {(s.down, "input"): s for s in sites if s.down}

    def vectors(self) -> Vectors:
        vectors: Vectors = {}
        for module, key in self.named.items():
            vector = self._vector(module, key, self.found.tensors[key])
            if vector is not None:
                name, flat = vector
                vectors[name] = vectors[name] * flat if name in vectors else flat
        self.bad += [f"{PREFIX}{m}{SUFFIX} (missing)" for m in sorted(self.targets - self.named.keys())]
        if not self.found.tensors and not self.bad:
            self.bad = ["it has no IA³ tensors"]
        hint = "; to use query vectors, build the bundle with query_vectors = true under [export]"
        refuse(self.bad, str(self.found.folder), hint if self.queries else "")
        return vectors

    def _vector(self, module: str, key: str, tensor: NDArray[np.float32]) -> tuple[str, NDArray[np.float32]] | None:
        """Our name and vector for one of PEFT's tensors; None, with a clause in `bad`, if it does not fit."""
        placement: Placement = "input" if module in self.on_input else "output"
        site = self.places.get((module, placement))
        if module not in self.targets:
            self.bad.append(f"{shown(key)} (not among the modules that {CONFIG} names)")
        elif site is None:
            self.bad.append(f"{shown(key)} (this base has no such vector)")
            self.queries |= placement == "output" and self._may_be_query(module)
        elif tensor.shape != (shape := _shape(placement, _inner(site, placement))):
            self.bad.append(f"{shown(key)} (shape {tuple(tensor.shape)}, this base has {shape})")
        elif not np.isfinite(tensor).all():
            self.bad.append(f"{shown(key)} (holds NaN or infinity)")
        else:
            return site.name, _placed(tensor.reshape(-1), site)
        return None

    def _may_be_query(self, module: str) -> bool:
        """By its role if roles are known; otherwise by being a sibling of keys or values."""
        if self.roles[module] != "other":
            return self.roles[module] == "query"
        beside = {s.module.rpartition(".")[0] for s in self.sites if s.role in ("key", "value")}
        return module.rpartition(".")[0] in beside and not any(s.role == "query" for s in self.sites)


def _module(key: str) -> str:
    return key.removeprefix(PREFIX).removesuffix(SUFFIX)


def _shape(placement: Placement, size: int) -> tuple[int, int]:
    return (1, size) if placement == "input" else (size, 1)


def _inner(site: Site, placement: Placement) -> int:
    """Entries of PEFT's vector: half as many as rows for the down projection of a fused gate|up layer."""
    through_down = site.rows is not None and site.down is not None and placement == "input"
    return len(site.rows or ()) if through_down else site.size


def _placed(flat: NDArray[np.float32], site: Site) -> NDArray[np.float32]:
    """A down projection's vector, laid over the up rows of a fused gate|up layer; any other vector as it is."""
    if flat.size == site.size:
        return flat
    full = np.ones(site.size, np.float32)
    full[list(site.rows or ())] = flat
    return full


def open_peft(folder: Path) -> Checkpoint:
    """Opens a PEFT IA³ checkpoint, whatever its base. Raises AdapterError."""
    if not (folder / CONFIG).is_file() or not (folder / WEIGHTS).is_file():
        raise AdapterError(_absent(folder))
    config = read_config(folder)
    tensors, metadata = _read_floats(folder / WEIGHTS)
    return Checkpoint(folder, config, tensors, metadata.get(BASE_KEY))


def _absent(folder: Path) -> str:
    """Why a folder is not a PEFT checkpoint, and what the user may have meant."""
    within = sorted(p.parent.name for p in folder.glob(f"*/{CONFIG}")) if folder.is_dir() else []
    if within and not (folder / CONFIG).is_file():
        return (
            f"{folder} is not an adapter but holds {len(within)}: {', '.join(map(shown, within))}; name one of "
            "these folders"
        )
    said = f"{folder} is not a PEFT checkpoint: it needs {CONFIG} and {WEIGHTS}"
    if (folder / "adapter_model.bin").is_file():
        return f"{said}; its adapter_model.bin is a pickle, which is never opened: save the adapter with safetensors"
    return said


def _read_floats(path: Path) -> tuple[Tensors, dict[str, str]]:
    """Tensors of a safetensors file in float32, and its metadata.

    Raises AdapterError that lists every tensor that is not of a float type.

    The library's numpy reader does not support bfloat16.
    """
    content = read_bytes(path, AdapterError)
    try:
        stored: dict[str, Any] = dict(safetensors.deserialize(content))  # type: ignore[no-untyped-call]
        header = parse_json(content[8 : 8 + int.from_bytes(content[:8], "little")], each_once)
    except Exception as error:  # the library raises types of its own
        raise AdapterError(f"{path} cannot be read: {first_line(error)}") from error
    refused = [f"{shown(name)} ({entry['dtype']})" for name, entry in stored.items() if entry["dtype"] not in FLOATS]
    if refused:
        raise AdapterError(
            f"{path} holds {len(refused)} tensors that are not float64, float32, float16 or bfloat16: "
            f"{', '.join(refused)}"
        )
    return {name: _widened(entry) for name, entry in stored.items()}, header.get("__metadata__") or {}


def _widened(entry: Mapping[str, Any]) -> NDArray[np.float32]:
    raw = np.frombuffer(entry["data"], FLOATS[entry["dtype"]]).reshape(entry["shape"])
    if entry["dtype"] == "BF16":
        return (raw.astype(np.uint32) << 16).view(np.float32)
    if entry["dtype"] != "F64":
        return raw.astype(np.float32)
    with np.errstate(over="ignore"):  # what overflows float32 becomes infinite and is refused later
        return raw.astype(np.float32)
