"""A quantised base kept on disk: made once, read in a second, and the same bytes for every build and process that uses it.

FOLDER/model.safetensors     every tensor of the 4-bit model, by its name in it; those that transformers does not save (rotary tables) too
FOLDER/base.json             which modules are 4-bit and how, the fingerprint, what the base was made from
FOLDER/config.json, ...      transformers' configuration and the tokenizer

Calibrated rounding adds up floats, and another processor or another number of threads adds them in another order: the codes may differ in a few
places, and with them the fingerprint. So what is kept is what all builds share. A folder is whole or absent; torn or changed, it is refused.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from qia3.base.frozen import BaseModel, fingerprint
from qia3.base.kinds import KINDS
from qia3.base.modules import GridEmbedding, GridLinear
from qia3.base.weights import GridWeight
from qia3.errors import BaseModelError
from qia3.storage import made_once

WEIGHTS, FACTS = "model.safetensors", "base.json"
TAKEN = ("block_size", "symmetric", "parameters", "calibration", "eight_bit", "codes", "format")


def keep(base: BaseModel, folder: Path) -> None:
    """Writes the base to `folder`, unless another process did so first. Raises StorageError."""
    if not (folder / FACTS).exists():
        shutil.rmtree(folder, ignore_errors=True)
    with made_once(folder) as scratch:
        save_file(_tensors(base.model), scratch / WEIGHTS)
        base.model.config.save_pretrained(scratch)
        base.model.generation_config.save_pretrained(scratch)
        base.tokenizer.save_pretrained(scratch)
        (scratch / FACTS).write_text(json.dumps(_facts(base), indent=1) + "\n", encoding="utf-8")


def open_kept(folder: Path, reference: str) -> BaseModel:
    """The base as it was kept. Raises BaseModelError where it is torn or changed."""
    try:
        facts = json.loads((folder / FACTS).read_text(encoding="utf-8"))
        tensors = load_file(folder / WEIGHTS)
        config, tokenizer = AutoConfig.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config)
        _put_modules(model, facts["modules"], tensors)
        _put_tensors(model, tensors)
        model.generation_config = GenerationConfig.from_pretrained(folder)
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        raise BaseModelError(
            f"the kept base {folder} cannot be read ({str(error).splitlines()[0]}); delete it, and it is made again"
        ) from error
    model.eval().requires_grad_(False)
    if (found := fingerprint(model)) != facts["fingerprint"]:
        raise BaseModelError(f"the kept base {folder} has changed since it was written; delete it, and it is made again")
    taken: dict[str, Any] = {k: tuple(v) if isinstance(v := facts[k], list) else v for k in TAKEN}
    return BaseModel(reference, model, tokenizer, found, **taken)


def _facts(base: BaseModel) -> dict[str, Any]:
    stores: dict[int, str] = {}
    modules = {}
    for name, module in base.model.named_modules(remove_duplicate=False):
        if isinstance(module, GridLinear | GridEmbedding):
            first = stores.setdefault(id(module.store), name)  # a tied head names the embedding's bytes
            modules[name] = {"store": first, "inputs": module.store.inputs, "kind": module.store.kind, "block": module.store.block_size}
            if isinstance(module, GridEmbedding):
                modules[name]["scale"] = module.scale
    taken = {k: getattr(base, k) for k in TAKEN}
    return {"reference": Path(base.reference).name, "fingerprint": base.fingerprint, **taken, "modules": modules}


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    """Every tensor once, the ones that a state_dict leaves out among them."""
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
        parent, _, child = name.rpartition(".")
        new: nn.Module
        if "scale" in facts:
            new = GridEmbedding(stores[first], torch.float32, facts["scale"])
        else:
            new = GridLinear(stores[first], tensors.get(f"{name}.bias"))
        setattr(model.get_submodule(parent), child, new)


def _put_tensors(model: nn.Module, tensors: dict[str, Tensor]) -> None:
    """Norms, biases and buffers in place of the empty ones. Raises KeyError with the name of one that is not there."""
    for prefix, module in model.named_modules():
        start = f"{prefix}." if prefix else ""
        for name, parameter in module.named_parameters(recurse=False):
            if parameter.is_meta:
                setattr(module, name, nn.Parameter(tensors[start + name], requires_grad=False))
        for name, buffer in module.named_buffers(recurse=False):
            if buffer.is_meta:
                module._buffers[name] = tensors[start + name]
