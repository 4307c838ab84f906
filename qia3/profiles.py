"""Profiles, shipped as one TOML file each in a data package (qia3.export, qia3.devices): their names, and the text of
one.
"""

from __future__ import annotations

import difflib
from importlib import resources

from qia3.errors import ConfigError


def profile_names(package: str) -> list[str]:
    """Every profile of `package`, sorted."""
    return sorted(
        entry.name.removesuffix(".toml") for entry in resources.files(package).iterdir() if entry.name.endswith(".toml")
    )


def profile_text(package: str, name: str, kind: str) -> str:
    """The file of the profile called `name`.

    Raises ConfigError with the nearest name if there is none; `kind` is the word for it in the message.
    """
    names = profile_names(package)
    if name not in names:
        near = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(names)}"
        raise ConfigError(f"unknown {kind} {name!r}; {hint}")
    return resources.files(package).joinpath(f"{name}.toml").read_text(encoding="utf-8")
