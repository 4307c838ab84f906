"""Export targets: which kernel of ONNX Runtime a graph is written for.

One TOML file each in export/, shipped as qia3.export.

    description    = "..."    one line, shown by `qia3 targets`
    accuracy_level = 4        MatMulNBits: 4 rounds activations to int8 (fast), 1 and 0 compute in float32 (exact, slow)
    vectors        = "..."    "optional" (default): inputs with a default of ones; "required": no default, for loaders that feed all inputs
    products       = "..."    "4-bit" (default), or "int8": every product in int8, with int8 weights made of the 4-bit ones
    nf4            = "..."    for an NF4 base: "recode" (default) writes it as int8 or int4, as the build asks; "exact" keeps its codes (MatMulBnb4)
    recode         = "int8"   what that is if the build does not ask
    eight_bit      = true     whether its processors have a kernel for layers at 8 bits
    note           = "..."    what to know before choosing it
    tested_on      = ["..."]  machines it ran on; an empty list means never run, written from the sources only

A new target is a new file; the code names none.
"""

from __future__ import annotations

import tomllib
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from qia3.errors import ConfigError
from qia3.profiles import profile_names, profile_text


class Target(BaseModel):
    """One export target.

    `accuracy_level` is the attribute of MatMulNBits in the shipped graph; `vectors` says how it takes an adapter.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    description: str
    accuracy_level: Literal[0, 1, 4]
    vectors: Literal["optional", "required"] = "optional"
    products: Literal["4-bit", "int8"] = "4-bit"
    nf4: Literal["recode", "exact"] = "recode"
    recode: Literal["int8", "int4"] = "int8"
    eight_bit: bool = True
    note: str = ""
    tested_on: tuple[str, ...] = ()

    def slow_at_eight_bits(self) -> str | None:
        """Why layers at 8 bits are slow with it, or None if they are not."""
        if self.products == "int8":
            return None
        if self.accuracy_level != 4:
            return f"ONNX Runtime multiplies 8-bit weights slowly at accuracy_level {self.accuracy_level}"
        if not self.eight_bit:
            return (
                f"processors of {self.name} have no kernel for layers at 8 bits, which are dequantised for every token; "
                "build with 4 bits throughout"
            )
        return None


def target_names() -> list[str]:
    """The names of all targets, sorted."""
    return profile_names("qia3.export")


def load_target(name: str) -> Target:
    """The target called `name`. Raises ConfigError with the nearest name if there is none."""
    text = profile_text("qia3.export", name, "export target")
    try:
        return Target.model_validate({**tomllib.loads(text), "name": name})
    except (tomllib.TOMLDecodeError, ValidationError) as error:
        raise ConfigError(f"the export target {name}.toml is malformed: {error}") from error


def all_targets() -> list[Target]:
    """Every target, in order of name."""
    return [load_target(name) for name in target_names()]
