"""Layers of a GPTQ or AWQ checkpoint that are stored differently from the rest.

GPTQModel, `dynamic`: a pattern for names, with "-:" before those that stay in float; the first pattern that matches at
the beginning of the name (re.match) counts, as in its `dynamic_get`.

    "dynamic": {"-:.*down_proj": {}, "+:model\\\\.layers\\\\.0\\\\.": {"group_size": 32}, ".*v_proj": {"bits": 8}}

AutoRound, `extra_config`: the layers' own names; 16 bits are floats.

    "extra_config": {"lm_head": {"bits": 16, "data_type": "fp"}, "model.layers.0.mlp.up_proj": {"group_size": 32}}

Source: GPTQModel 7.7.0, quantization/config.py; AutoRound, export/export_to_autoround/export.py.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from qia3.base.layout import refused
from qia3.errors import BaseModelError

FORM = {"bits", "group_size", "sym", "desc_act"}  # settings of a rule that affect how a layer is stored
FINDING = {
    "act_group_aware", "damp_auto_increment", "damp_percent", "data_type", "gptaq", "mse", "pack_dtype",
    "static_groups", "true_sequential", "v2", "v2_alpha",
}  # fmt: skip  # settings about how codes were found, or that the tensors show by themselves


@dataclass(frozen=True)
class Rule:
    """`told` is its name in messages. `form` None: such layers are in float."""

    told: str
    pattern: re.Pattern[str]
    form: Mapping[str, Any] | None


def form_of(name: str, rules: Sequence[Rule]) -> Mapping[str, Any]:
    """The settings that differ for this quantised layer. Raises BaseModelError if its rule says that it is in float."""
    rule = next((rule for rule in rules if rule.pattern.match(name)), None)
    if rule is None:
        return {}
    if rule.form is None:
        raise BaseModelError(f"{rule.told} leaves {name} in float, but the files have codes for it; fetch them again")
    if (bits := rule.form.get("bits", 4)) != 4:
        raise refused(f"{rule.told} gives {name} {bits!r} bits")
    return rule.form


def read_dynamic(table: Any) -> tuple[Rule, ...]:
    """Reads GPTQModel's rules. Raises BaseModelError if a rule is not supported."""
    rules = []
    for text, form in _table("dynamic", table).items():
        told, kind = f"the rule {text!r} of dynamic", text[:2]
        try:
            pattern = re.compile(text[2:] if kind in ("-:", "+:") else text)
        except re.error as error:
            raise BaseModelError(f"{told} is not a regular expression ({error}); correct config.json") from error
        rules.append(Rule(told, pattern, None if kind == "-:" else _form(told, form)))
    return tuple(rules)


def read_extra(table: Any) -> tuple[Rule, ...]:
    """Reads AutoRound's rules. Raises BaseModelError if a rule is not supported."""
    rules = []
    for name, given in _table("extra_config", table).items():
        told = f"extra_config of {name!r}"
        form = _form(told, given)
        bits = form.get("bits", 4)
        floats = isinstance(bits, int) and bits >= 16
        rules.append(Rule(told, re.compile(re.escape(name) + "$"), None if floats else form))
    return tuple(rules)


def _table(key: str, value: Any) -> dict[str, Any]:
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise BaseModelError(f"{key} of quantization_config must be a table, not {value!r}; correct config.json")
    return value


def _form(told: str, form: Any) -> Mapping[str, Any]:
    if not isinstance(form, Mapping):
        raise BaseModelError(f"{told} must be a table, not {form!r}; correct config.json")
    if strange := sorted(set(form) - FORM - FINDING):
        raise refused(f"{told} sets {', '.join(strange)}")
    return form
