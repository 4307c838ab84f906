"""A cached quantised base: made once, read in a second, and the same bytes for every build and process that uses it.

FOLDER/model.safetensors     every tensor of the 4-bit model by name, including those that transformers does not save (rotary tables)
FOLDER/base.json             which modules are 4-bit and how, the fingerprint, what the base was made from
FOLDER/config.json, ...      transformers' configuration and the tokenizer
FOLDER/base.sha256           of all files but the weights, whose fingerprint is in base.json

Calibrated rounding sums floats, and another processor or number of threads sums them in another order: a few codes may
differ, and with them the fingerprint. So builds share what is cached here. A folder is complete or absent; if it is
damaged or changed, it is refused.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import AutoConfig, AutoTokenizer, GenerationConfig

from qia3.base.complete import note_untied
from qia3.base.drift import Rounding
from qia3.base.experts import gathered
from qia3.base.family import auto_class
from qia3.base.frozen import BaseModel, fingerprint, tables
from qia3.base.kinds import KINDS
from qia3.base.modules import GridEmbedding, GridLinear
from qia3.base.shards import file_entries
from qia3.base.weights import GridWeight
from qia3.errors import BaseModelError, first_line
from qia3.parse import read_json_table
from qia3.storage import made_once

WEIGHTS, FACTS, SEAL = "model.safetensors", "base.json", "base.sha256"
FORMAT = 2  # of base.json
AGAIN, MADE_AGAIN = "copy it again", "it is quantised again"
TAKEN = (
    "fingerprint",
    "block_size",
    "symmetric",
    "parameters",
    "calibration",
    "eight_bit",
    "blocks",
    "codes",
    "grid",
)


def keep(base: BaseModel, folder: Path, asked: Mapping[str, Any] | None = None, anew: bool = False) -> None:
    """Writes the base to `folder`, unless another process was faster; `asked` are the settings that it was made for.

    `anew`: replace a damaged one. Raises StorageError.
    """
    if anew or not (folder / FACTS).exists():
        shutil.rmtree(folder, ignore_errors=True)
    with made_once(folder) as scratch:
        save_file(_tensors(base.model), scratch / WEIGHTS)
        base.model.config.save_pretrained(scratch)
        base.model.generation_config.save_pretrained(scratch)
        base.tokenizer.save_pretrained(scratch)
        (scratch / FACTS).write_text(json.dumps(_facts(base) | {"asked": asked}, indent=1) + "\n", encoding="utf-8")
        (scratch / SEAL).write_bytes(_seal(scratch).encode())


def is_kept(folder: Path) -> bool:
    """Whether a folder is a cached base."""
    return (folder / FACTS).is_file()


def kept_as(place: Path, fingerprint: str) -> list[Path]:
    """The cached bases in `place` whose record has this fingerprint."""
    found = []
    for facts in sorted(place.glob(f"*/{FACTS}")):
        try:
            if read_json_table(facts, BaseModelError).get("fingerprint") == fingerprint:
                found.append(facts.parent)
        except BaseModelError:
            continue
    return found


def open_named(folder: Path, asked: Mapping[str, Any]) -> BaseModel:
    """A cached base that a build file names by its folder. Raises BaseModelError if it was made for other settings."""
    facts = read_json_table(folder / FACTS, BaseModelError, AGAIN)
    made_for = facts.get("asked")
    if not isinstance(made_for, dict):
        raise BaseModelError(
            f"the cached base {folder} does not record its settings; name the model that it was made from instead"
        )
    wanted = json.loads(json.dumps(asked))
    if other := [name for name in {**wanted, **made_for} if made_for.get(name) != wanted.get(name)]:
        differs = "; ".join(
            f"{n} {_told(made_for.get(n))}, but this build asks for {_told(wanted.get(n))}" for n in other
        )
        raise BaseModelError(
            f"the cached base {folder} was made with {differs}: change [base] to match it, or name the model "
            "that it was made from"
        )
    return open_kept(folder, str(facts.get("reference")), AGAIN)


def _told(value: Any) -> str:
    return json.dumps(value)


def open_kept(folder: Path, reference: str, remedy: str = MADE_AGAIN) -> BaseModel:
    """Opens a cached base. Raises BaseModelError, with the remedy, if it is damaged or was changed."""
    changed = BaseModelError(f"the cached base {folder} has changed since it was written; {remedy}")
    if not (folder / SEAL).is_file() or (folder / SEAL).read_bytes() != _seal(folder).encode():
        raise changed
    try:
        facts = json.loads((folder / FACTS).read_text(encoding="utf-8"))
        file_entries(folder / WEIGHTS)  # every extent is checked before the file is mapped
        tensors = load_file(folder / WEIGHTS)
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
        with torch.device("meta"):
            model = auto_class(config).from_config(config, trust_remote_code=False)
        _put_modules(model, facts["modules"], tensors)
        gathered(model)
        _put_tensors(model, tensors, facts.get("shared"))
        note_untied(model)
        if stray := sorted(tensors.keys() ^ _tensors(model).keys()):
            raise ValueError(f"{WEIGHTS} and the model have different tensors: {', '.join(stray[:3])}")
        model.generation_config = GenerationConfig.from_pretrained(folder)
        taken: dict[str, Any] = {name: tuple(v) if isinstance(v := facts[name], list) else v for name in TAKEN}
        rounding = facts.get("rounding")  # absent in older ones
        base = BaseModel(
            reference=reference,
            model=model,
            tokenizer=tokenizer,
            rounding=None if rounding is None else Rounding(**rounding),
            **taken,
        )
    except MemoryError:
        raise
    except Exception as error:  # a damaged file can raise any exception in transformers and json
        raise BaseModelError(f"the cached base {folder} cannot be read ({first_line(error)}); {remedy}") from error
    model.eval().requires_grad_(False)
    if fingerprint(model) != base.fingerprint or facts.get("tables") != tables(model):
        raise changed
    return base


def _seal(folder: Path) -> str:
    """SHA-256 over every file but the weights, which the fingerprint covers."""
    digest = hashlib.sha256()
    for file in sorted(f for f in folder.iterdir() if f.is_file() and f.name not in (WEIGHTS, SEAL)):
        digest.update(f"{file.name}|{file.stat().st_size}|".encode() + file.read_bytes())
    return digest.hexdigest()


def _facts(base: BaseModel) -> dict[str, Any]:
    stores: dict[int, str] = {}
    modules = {}
    for name, module in base.model.named_modules(remove_duplicate=False):
        if isinstance(module, GridLinear | GridEmbedding):
            first = stores.setdefault(id(module.store), name)  # a tied head refers to the embedding's bytes
            modules[name] = {
                "store": first,
                "inputs": module.store.inputs,
                "kind": module.store.kind,
                "block": module.store.block_size,
            }
            if isinstance(module, GridEmbedding):
                modules[name]["scale"] = module.scale
    taken = {name: getattr(base, name) for name in TAKEN}
    taken["rounding"] = None if base.rounding is None else asdict(base.rounding)
    return {
        "reference": Path(base.reference).name,
        **taken,
        "tables": tables(base.model),
        "modules": modules,
        "shared": _shared(base.model),
    }


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    """Every tensor once, including those that a state_dict leaves out."""
    found = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    return {name: tensor.detach().contiguous() for name, tensor in found.items()}


def _put_modules(model: nn.Module, modules: dict[str, dict[str, Any]], tensors: dict[str, Tensor]) -> None:
    stores: dict[str, GridWeight] = {}
    for name, facts in sorted(modules.items(), key=lambda item: item[1]["store"] != item[0]):  # owners first
        first = facts["store"]
        if first not in stores:
            start = f"{first}.store."
            own = {name.removeprefix(start): tensor for name, tensor in tensors.items() if name.startswith(start)}
            stores[first] = KINDS[facts["kind"]].from_tensors(own, facts["inputs"], facts["block"])
        new: nn.Module
        if "scale" in facts:
            new = GridEmbedding(stores[first], torch.float32, facts["scale"])
        else:
            new = GridLinear(stores[first], tensors.get(f"{name}.bias"))
        holder, _, child = name.rpartition(".")
        parent = model.get_submodule(holder)
        parent._parameters.pop(child, None)  # experts are a tensor of their own in the float model
        setattr(parent, child, new)


def _shared(model: nn.Module) -> dict[str, str]:
    """Aliases of shared parameters, each with the name that it was written under."""
    first: dict[int, str] = {}
    named = model.named_parameters(remove_duplicate=False)
    return {name: first[id(p)] for name, p in named if first.setdefault(id(p), name) != name}


def _put_tensors(model: Any, tensors: dict[str, Tensor], shared: Mapping[str, str] | None) -> None:
    """Sets norms, biases and buffers in place of the empty ones. A float head that is tied to the embedding was written
    once; bases cached before `shared` was recorded are tied by the configuration.

    Raises KeyError with the name of a missing tensor.
    """
    absent = []
    for prefix, module in model.named_modules():
        start = f"{prefix}." if prefix else ""
        for name, parameter in module.named_parameters(recurse=False):
            if parameter.is_meta and start + name in tensors:
                setattr(module, name, nn.Parameter(tensors[start + name], requires_grad=False))
            elif parameter.is_meta:
                absent.append(start + name)
        for name, buffer in module.named_buffers(recurse=False):
            if buffer.is_meta:
                module._buffers[name] = tensors[start + name]
    if absent and shared is None:
        model.tie_weights()
    for name, first in (shared or {}).items():
        holder, _, child = name.rpartition(".")
        setattr(model.get_submodule(holder), child, model.get_parameter(first))
    if lost := [name for name in absent if model.get_parameter(name).is_meta]:
        raise KeyError(lost[0])
