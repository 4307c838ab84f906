"""An adapter that comes from elsewhere, made whole for a bundle: whether it is put in for good (qia3.adapters) or served
from a folder beside it (qia3.server.shelf).
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from qia3.bundle.adapter import Adapter
from qia3.bundle.cache_range import check_range
from qia3.bundle.opened import Bundle
from qia3.bundle.peft import read_peft
from qia3.bundle.task import LABELLED, Task, plain_task
from qia3.errors import AdapterError
from qia3.tokens import Tokens


def completed(bundle: Bundle, folder: Path, name: str) -> Adapter:
    """A PEFT checkpoint as an adapter of this bundle, whole: a vector of ones where it has none, and a task called `name`,
    its own or else the base's plain prompt.

    Raises AdapterError.
    """
    manifest = bundle.manifest
    roles = {layer.name: layer.role for layer in manifest.linears}
    found = read_peft(folder, manifest.sites, bundle.fingerprint, roles)
    whole = {s.name: found.vectors.get(s.name, np.ones(s.size, np.float32)) for s in manifest.sites}
    alone = manifest.architecture.pooling is not None
    task = plain(bundle, name) if found.task is None else replace(found.task, name=name)
    if found.head is not None and not (alone and task.kind in LABELLED):
        why = "no task.json for it" if alone else "this bundle is no encoder"
        raise AdapterError(f"{folder} has a head, and {why}")
    check_range(bundle.path, whole, folder)
    return Adapter(whole, found.base, task, found.head)


def plain(bundle: Bundle, name: str) -> Task:
    """Generation with the base's own prompt, which ends as the bundle's other tasks do, or else where it stops; of an
    encoder, embeddings.
    """
    if bundle.architecture.pooling is not None:
        return plain_task(name, bundle.prefix, bundle.suffix, "", "embed")
    end = next((task.end for task in bundle.tasks.values() if task.end), "")
    if not end and bundle.stop_tokens:  # tasks of an earlier version, which may say no end
        end = Tokens.read(bundle.path / "tokenizer.json").tokenizer.id_to_token(bundle.stop_tokens[0]) or ""
    return plain_task(name, bundle.prefix, bundle.suffix, end)
