"""adapter_config.json of a PEFT IA³ adapter: which modules it trains, and on which side.

The keys that decide that, with PEFT's own rules (peft 0.21.2, tuners/tuners_utils.py, check_target_module_exists, and
tuners/ia3/model.py):

    target_modules       a string is a regular expression that the whole module path matches; "all-linear" is every linear
                         layer but the head. A list means a module by its path, or by the end of it after a dot.
    exclude_modules      takes modules out again, by the same rules
    feedforward_modules  which of them scale their input: a string as above; a list by the end of the path, with no dot
    modules_to_save      whole layers that were trained, too; a bundle's adapter cannot hold those

The other known keys do not change what an adapter computes; an unknown key is refused unless it is empty.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qia3.bundle.patterns import full_matches
from qia3.errors import AdapterError, shown
from qia3.parse import each_once, read_json_table

CONFIG = "adapter_config.json"
ALL_LINEAR = "all-linear"
CAUSAL, SEQ_2_SEQ, FEATURES = TASK_TYPES = ("CAUSAL_LM", "SEQ_2_SEQ_LM", "FEATURE_EXTRACTION")
# these do not affect the arithmetic; fan_in_fan_out is for merging, init_ia3_weights for training
UNUSED = {
    "auto_mapping",
    "base_model_name_or_path",
    "fan_in_fan_out",
    "inference_mode",
    "init_ia3_weights",
    "peft_version",
    "revision",
    "runtime_config",
}
Names = str | tuple[str, ...] | None


@dataclass(frozen=True)
class Config:
    """What adapter_config.json at `path` says; None where a key is absent."""

    path: Path
    target_modules: Names
    feedforward_modules: Names
    exclude_modules: Names
    modules_to_save: Names

    def check_whole(self) -> None:
        """Raises AdapterError if modules are not named, which leaves PEFT to choose them by the base's type."""
        empty = [key for key in ("target_modules", "feedforward_modules") if getattr(self, key) is None]
        if empty:
            raise AdapterError(
                f"{self.path} does not set {' and '.join(empty)}; name the modules that PEFT uses for this base there"
            )

    def targets(self, layers: Mapping[str, str]) -> set[str]:
        """The modules that have a vector, out of `layers` (the role of each linear layer by module path)."""
        if isinstance(self.target_modules, str) and self.target_modules.lower() == ALL_LINEAR:
            found = {module for module, role in layers.items() if role != "head"}
        else:
            found = self._matching("target_modules", layers, ".")
        return found - self._matching("exclude_modules", found, ".")

    def on_input(self, modules: Collection[str]) -> set[str]:
        """Those whose vector scales the input."""
        return self._matching("feedforward_modules", modules, "")

    def _matching(self, key: str, modules: Collection[str], dot: str) -> set[str]:
        names: Names = getattr(self, key)
        if not names:  # PEFT, too, takes an empty string for nothing
            return set()
        if not isinstance(names, str):
            ends = tuple(f"{dot}{name}" for name in names)
            return {module for module in modules if module in names or module.endswith(ends)}
        try:
            return full_matches(names, modules)
        except ValueError as error:
            raise AdapterError(
                f"{self.path}: {key} is {names[:200]!r}, but {error}; list the modules instead"
            ) from error


def read_config(folder: Path) -> Config:
    """The configuration of an IA³ adapter. Raises AdapterError for another kind of adapter, or unknown settings."""
    path = folder / CONFIG
    table = read_json_table(path, AdapterError, pairs=each_once)
    kind = table.get("peft_type")
    if kind != "IA3":
        raise AdapterError(f"{folder} is a {shown(kind)[:80]} adapter; only IA3 adapters can be used")
    names = {key: _names(path, table, key) for key in Config.__annotations__ if key != "path"}
    if unknown := sorted(
        key for key, value in table.items() if value and key not in {*names, *UNUSED, "peft_type", "task_type"}
    ):
        raise AdapterError(
            f"{path} has unknown keys: {', '.join(map(shown, unknown))}; remove them if they do not change the adapter"
        )
    task_type = table.get("task_type")
    if task_type is not None and task_type not in TASK_TYPES:
        raise AdapterError(
            f"{path} is for {task_type!r}; only adapters of language models ({', '.join(TASK_TYPES)}) can be used"
        )
    if saved := names["modules_to_save"]:
        listed = shown(saved) if isinstance(saved, str) else ", ".join(map(shown, saved))
        raise AdapterError(
            f"{folder} trains whole layers beside its vectors (modules_to_save: {listed}), but a bundle's "
            "adapter holds "
            "vectors only; train it without modules_to_save"
        )
    return Config(path, **names)


def write_config(
    folder: Path, targets: Sequence[str], feed_forward: Sequence[str], reference: str, task_type: str
) -> None:
    """Writes the configuration that PEFT writes for an adapter that is ready for inference."""
    config = {
        "auto_mapping": None,
        "base_model_name_or_path": reference,
        "exclude_modules": None,
        "fan_in_fan_out": False,
        "feedforward_modules": sorted(feed_forward),
        "inference_mode": True,
        "init_ia3_weights": True,
        "modules_to_save": None,
        "peft_type": "IA3",
        "revision": None,
        "target_modules": sorted(targets),
        "task_type": task_type,
    }
    (folder / CONFIG).write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")


def _names(path: Path, table: Mapping[str, Any], key: str) -> Names:
    """A string, a list of strings, or None. Raises AdapterError for anything else."""
    value = table.get(key)
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, list) and all(isinstance(name, str) for name in value):
        return tuple(value)
    raise AdapterError(f"{path}: {key} must be a string, a list of strings or null, not {json.dumps(value)[:80]}")
