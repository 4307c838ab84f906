"""Checks that a base's files are complete: every parameter of the model has a tensor, and every tensor belongs to the
model.

    names in the files  --renamed as transformers renames them-->  names in an empty model of config.json
    missing      the model has it, no file does: transformers would fill it with random numbers
    left over    a file has it, the model does not: transformers would drop it
    misshapen    both have it, in another shape or type
    twice        two tensors are meant for one parameter: transformers takes the first

transformers reports some of this, and hides names that a model class lists as ignorable (GPT-2's pattern `attn.bias`
hides `c_attn.bias`, a real one). So the names are compared here, before anything is read. Which tensors may be absent
or left over is listed in idle.py.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key

from qia3.base.family import auto_class, embeddings, weight_of
from qia3.base.heads import not_heads
from qia3.base.idle import is_computed, not_idle
from qia3.base.shards import Entry
from qia3.errors import BaseModelError

FLOATS = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
LISTED = 12  # names listed one by one, at most
ADAPTER = re.compile(r"\.base_layer\.|lora_[AB]\b|lora_embedding|ia3_l|modules_to_save|\.lora_magnitude")
LAYER = re.compile(r"\.(\d+)\.")


@dataclass
class Misfit:
    """What does not fit, by kind. `wrong` holds whole clauses, the others hold names."""

    missing: list[str] = field(default_factory=list)
    left: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    twice: list[str] = field(default_factory=list)

    def refuse(self, reason: str = "") -> None:
        """Raises BaseModelError, in one line, if anything does not fit."""
        count = len(self.missing) + len(self.left) + len(self.wrong) + len(self.twice)
        if not count:
            return
        named = self._each() if count <= LISTED else self._counted()
        raise BaseModelError(f"the weights do not fit config.json: {'; '.join(named)}{reason and f'; {reason}'}")

    def _each(self) -> list[str]:
        missing = [f"{_and(self.missing)} {'is' if len(self.missing) == 1 else 'are'} missing"] if self.missing else []
        left = (
            [f"{_and(self.left)} {'has' if len(self.left) == 1 else 'have'} no place in the model"] if self.left else []
        )
        return [*missing, *self.wrong, *left, *self.twice]

    def _counted(self) -> list[str]:
        clauses = [*self.wrong[:3], *([f"{len(self.wrong) - 3} more like these"] if len(self.wrong) > 3 else [])]
        if self.missing:
            clauses.insert(0, f"{len(self.missing)} tensors are missing ({_kinds(self.missing)})")
        if self.left:
            clauses.append(f"{len(self.left)} have no place in the model ({_kinds(self.left)})")
        return [
            *clauses,
            *self.twice[:3],
            *([f"{len(self.twice) - 3} more stand twice"] if len(self.twice) > 3 else []),
        ]


def empty(config: Any) -> Any:
    """The model of a configuration with shapes only (meta device)."""
    with torch.device("meta"):
        return auto_class(config).from_config(config, trust_remote_code=False)


def empty_model(folder: Path) -> Any:
    """The model of a folder's config.json with shapes only. transformers may raise any exception."""
    return empty(AutoConfig.from_pretrained(folder, trust_remote_code=False))


def check_places(model: Any, found: Mapping[str, Entry]) -> None:
    """Compares the tensors of float files with an empty model. Raises BaseModelError that lists all that does not fit."""
    wanted = model.state_dict()
    filled, left = _places(model, wanted, found)
    misfit = Misfit(left=not_heads(model.config, not_idle(model.config, left, found), found))
    tied = tied_names(model)
    for name, tensor in wanted.items():
        sources = filled.get(name)
        if sources is None:
            if not any(other in filled for other in tied.get(name, ())) and not is_computed(model, name):
                misfit.missing.append(name)
        elif len(sources) > 1:
            misfit.twice.append(f"{' and '.join(sources)} are both meant for {name}")
        elif sources:
            entry = found[sources[0]]
            types = FLOATS if tensor.is_floating_point() else (tensor.dtype,)
            if entry.shape != tuple(tensor.shape) or entry.dtype not in types:
                misfit.wrong.append(misshapen(sources[0], entry, tuple(tensor.shape), types))
    misfit.refuse(likely(model, misfit, found))


def misshapen(name: str, entry: Entry, shape: tuple[int, ...], types: tuple[torch.dtype, ...]) -> str:
    """If the stored type is right, it is shown as the expected one, too."""
    wanted = entry.dtype if entry.dtype in types else types[0]
    return f"{name} is {_type(entry.dtype)} {list(entry.shape)} and should be {_type(wanted)} {list(shape)}"


def check_report(report: Mapping[str, Any], found: Mapping[str, Entry]) -> None:
    """Checks what transformers reports about its own load. The files' names were compared before; this finds tensors
    that its conversions failed to make. Raises BaseModelError.
    """
    told = [str(m).strip().splitlines()[0] for m in report.get("error_msgs", ()) if str(m).strip()]
    mismatched = [entry if isinstance(entry, str) else entry[0] for entry in report.get("mismatched_keys", ())]
    misfit = Misfit(
        missing=sorted(report.get("missing_keys", ())),
        left=sorted(name for name in report.get("unexpected_keys", ()) if name not in found),
        wrong=[f"{name} has another shape" for name in sorted(mismatched)] + told,
    )
    misfit.refuse()


def ties(model: Any) -> dict[str, str]:
    """Tied names by config.json: each name that shares the tensor of another, and that other name."""
    found: dict[str, str] = model.get_expanded_tied_weights_keys(all_submodels=True)
    return found


def tied_names(model: Any) -> dict[str, set[str]]:
    """For each name that shares its tensor with others by config.json: all of these names."""
    groups: dict[str, set[str]] = {}
    for target, source in ties(model).items():
        group = groups.setdefault(source, {source})
        group.add(target)
        groups[target] = group
    return groups


def held_by(model: Any, present: Collection[str]) -> dict[str, str]:
    """The names that no file has and that config.json ties to others, and whose tensor each one uses, as in
    transformers: that of the name it is tied to, or of the first that is tied to the same one.
    """
    tied, found = ties(model), dict[str, str]()
    for target, source in tied.items():
        there = [name for name in (source, *(t for t, s in tied.items() if s == source)) if name in present]
        found |= {name: there[0] for name in (target, source) if there and name not in present}
    return found


def note_untied(model: Any) -> None:
    """A separate head in the files overrides `tie_word_embeddings` in config.json; the setting is corrected."""
    head, tables = model.get_output_embeddings(), embeddings(model)
    if head is None or not tables or any(weight_of(head) is weight_of(table) for table in tables):
        return
    for config in (model.config, model.config.get_text_config()):
        if getattr(config, "tie_word_embeddings", False):
            config.tie_word_embeddings = False


def likely(model: Any, misfit: Misfit, found: Mapping[str, Entry]) -> str:
    """The likely reason, or nothing."""
    left, missing = misfit.left, misfit.missing
    if any(ADAPTER.search(name) for name in left):
        return "this is the training state of an adapter: merge it into its base (PEFT: merge_and_unload) and save that"
    if any(name.endswith((".qweight", ".qzeros", ".weight_packed", ".quant_map", ".biases")) for name in left):
        return (
            "these are the codes of a quantised model, and config.json has no quantization_config: "
            "fetch config.json (and quantize_config.json or quant_config.json) again"
        )
    if left and len({first for name in found if (first := name.partition(".")[0]) in ("module", "_orig_mod")}):
        return "the names begin with module. or _orig_mod.: save the model itself, not its wrapper"
    ours, theirs = _layers(model.state_dict()), _layers(found)
    if theirs > ours and any(_layer(name) >= ours for name in left):
        return f"config.json asks for {ours} layers, the files have {theirs}"
    if theirs < ours and all(_layer(name) >= theirs for name in missing):
        return f"config.json asks for {ours} layers, the files have {theirs}: is a file of the model missing?"
    head = model.get_output_embeddings()
    if missing and not left and all(_holds(model, name, head) for name in missing):
        return (
            "the head is missing: the weights were saved without it (AutoModel); save the whole model, or set "
            '"tie_word_embeddings": true in config.json if embedding and head share one tensor'
        )
    if left and not missing and all(name.endswith(".bias") for name in left):
        return "config.json says that these layers have no biases: does it lack attention_bias or mlp_bias?"
    kinds = {LAYER.split(name)[-1] for name in missing}
    if missing and not left and all(kind.endswith(".bias") and not _any_ends(found, kind) for kind in kinds):
        return (
            "config.json says that these layers have biases (attention_bias, mlp_bias): does it belong to these files?"
        )
    return "fetch config.json and weights again, both from the same source"


def _places(
    model: Any, wanted: Mapping[str, torch.Tensor], found: Mapping[str, Entry]
) -> tuple[dict[str, list[str]], list[str]]:
    """Which tensors of the files fill each name of the model, and those that fill none. An empty list: transformers
    makes it of several tensors or of a part of one, and checks the shapes itself.
    """
    transforms = get_model_conversion_mapping(model)
    renamings = [t for t in transforms if isinstance(t, WeightRenaming)]
    converters = [t for t in transforms if isinstance(t, WeightConverter)]
    by_pattern = {pattern: converter for converter in converters for pattern in converter.source_patterns}
    filled: dict[str, list[str]] = {}
    left = []
    for name in found:
        new, pattern = rename_source_key(name, renamings, converters, model.base_model_prefix, dict(wanted))
        if new not in wanted and name in wanted:
            new, pattern = rename_source_key(name, [], [], model.base_model_prefix, dict(wanted))
        if new not in wanted:
            left.append(name)
        elif pattern is None:
            filled.setdefault(new, []).append(name)
        else:
            targets = by_pattern[pattern].target_patterns
            filled |= {made: [] for t in targets if (made := new.replace(targets[0], t)) in wanted}
    return filled, left


def _and(names: list[str]) -> str:
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


def _kinds(names: Iterable[str]) -> str:
    """ "13 self_attn.q_proj.weight, 13 self_attn.v_proj.weight; the first is ..." """
    names = sorted(names)
    kinds = Counter(LAYER.split(name)[-1] for name in names)
    said = [f"{count} {kind}" for kind, count in kinds.most_common(LISTED)]
    more = [f"{len(kinds) - LISTED} other kinds"] if len(kinds) > LISTED else []
    return f"{', '.join([*said, *more])}; the first are {', '.join(names[:3])}"


def _any_ends(names: Iterable[str], kind: str) -> bool:
    return any(name == kind or name.endswith(f".{kind}") for name in names)


def _layers(names: Iterable[str]) -> int:
    return 1 + max((_layer(name) for name in names), default=-1)


def _layer(name: str) -> int:
    """The number of the layer that a tensor belongs to, or -1."""
    seen = LAYER.search(name)
    return int(seen[1]) if seen and len(seen[1]) < 9 else -1


def _holds(model: Any, name: str, module: Any) -> bool:
    holder = name.rpartition(".")[0]
    return isinstance(module, nn.Module) and any(n == holder and m is module for n, m in model.named_modules())


def _type(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
