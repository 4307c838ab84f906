"""Export targets: which kernel of ONNX Runtime a graph is written for. One TOML file each in export/, shipped as qia3.export.

    description    = "..."    one line, shown by `qia3 targets`
    accuracy_level = 4        MatMulNBits: 4 rounds activations to int8 (fast), 1 and 0 compute in float32 (exact, slow)
    note           = "..."    what to know before choosing it
    tested_on      = ["..."]  machines it ran on; an empty list means that it was read from sources and never run

A new target is a new file: nothing here names one.
"""

from __future__ import annotations

import difflib
import tomllib
from importlib import resources
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from qia3.errors import ConfigError


class Target(BaseModel):
    """One export target. `accuracy_level` is the attribute of MatMulNBits in the shipped graph."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    description: str
    accuracy_level: Literal[0, 1, 4]
    note: str = ""
    tested_on: tuple[str, ...] = ()


def target_names() -> list[str]:
    """Every target that can be asked for, sorted."""
    return sorted(entry.name.removesuffix(".toml") for entry in resources.files("qia3.export").iterdir() if entry.name.endswith(".toml"))


def load_target(name: str) -> Target:
    """The target called `name`. Raises ConfigError with the nearest name where there is none."""
    names = target_names()
    if name not in names:
        near = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(names)}"
        raise ConfigError(f"unknown export target {name!r}; {hint}")
    text = resources.files("qia3.export").joinpath(f"{name}.toml").read_text(encoding="utf-8")
    try:
        return Target.model_validate({**tomllib.loads(text), "name": name})
    except (tomllib.TOMLDecodeError, ValidationError) as error:
        raise ConfigError(f"the export target {name}.toml is malformed: {error}") from error


def all_targets() -> list[Target]:
    """Every target, in order of name."""
    return [load_target(name) for name in target_names()]
