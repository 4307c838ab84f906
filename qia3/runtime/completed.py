"""Completes an adapter from elsewhere for a bundle, to be imported (qia3.adapters) or served from a folder
(qia3.server.shelf).
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from qia3.bundle.adapter import Adapter
from qia3.bundle.cache_range import check_range
from qia3.bundle.opened import Bundle
from qia3.bundle.peft import read_peft
from qia3.bundle.task import LABELLED, TAGS, Task, plain_task
from qia3.errors import AdapterError
from qia3.tokens import Tokens


def completed(bundle: Bundle, folder: Path, name: str) -> Adapter:
    """A PEFT checkpoint as a complete adapter of this bundle: vectors of ones where it has none, and a task called
    `name`, either its own or the base's plain prompt.

    Raises AdapterError if it does not fit.
    """
    manifest, sites = bundle.manifest, bundle.manifest.sites
    roles = {layer.name: layer.role for layer in manifest.linears}
    found = read_peft(folder, sites, bundle.fingerprint, roles)
    given = found.vectors
    whole = {s.name: given[s.name] if s.name in given else np.ones(s.size, np.float32) for s in sites}
    alone = manifest.architecture.pooling is not None
    task = plain(bundle, name) if found.task is None else replace(found.task, name=name)
    if found.head is not None and not (alone and task.kind in LABELLED):
        why = "no task.json to go with it" if alone else "this bundle is not an encoder"
        raise AdapterError(f"{folder} has a head, but {why}")
    if (alone and task.kind == "generate") or (not alone and task.kind in ("embed", TAGS)):
        what = "an encoder" if alone else "no encoder"
        raise AdapterError(
            f"the task of {folder} is to {task.kind.replace(TAGS, 'label words')}, but this bundle is {what}"
        )
    check_range(bundle.path, whole, folder)
    return Adapter(whole, found.base, task, found.head)


def plain(bundle: Bundle, name: str) -> Task:
    """Generation with the base's own prompt, ending as the bundle's other tasks do, or by default where the bundle
    stops; for an encoder, embeddings.
    """
    if bundle.architecture.pooling is not None:
        return plain_task(name, bundle.prefix, bundle.suffix, "", "embed")
    end = next((task.end for task in bundle.tasks.values() if task.end), "")
    if not end and bundle.stop_tokens:  # tasks of earlier versions may have no end
        end = Tokens.read(bundle.path / "tokenizer.json").tokenizer.id_to_token(bundle.stop_tokens[0]) or ""
    return plain_task(name, bundle.prefix, bundle.suffix, end)
