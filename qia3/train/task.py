"""A task's training, kept in its work folder: skipped when it is done, resumed when it was interrupted, begun anew when the plan changed.

WORK/TASK/key          what was asked for: base, data, prompt, settings and seed, as a SHA-256
WORK/TASK/checkpoints  the Trainer's
WORK/TASK/adapter      the vectors, a PEFT checkpoint
WORK/TASK/record.json  what the run cost; written last, so its presence means done
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from qia3.base.load import BaseModel
from qia3.config import Task, Train
from qia3.errors import ConfigError
from qia3.ia3.peft import read_peft, write_peft
from qia3.ia3.vectors import Scaled, Vectors, get_vectors
from qia3.progress import say
from qia3.runtime.examples import Example
from qia3.storage import writing
from qia3.train.prompts import Wrapping, encode, wrapping
from qia3.train.run import Record, read_record, train_vectors, write_record


@dataclass(frozen=True)
class Trained:
    """A task's adapter and everything that its use on a device needs."""

    task: Task
    prompt: str
    wrapping: Wrapping
    choices: tuple[str, ...] | None
    vectors: Vectors
    record: Record


def full_prompt(base: BaseModel, task: Task) -> tuple[str, Wrapping]:
    """The task's prompt inside the base's chat template, still holding {text}."""
    wrap = wrapping(base.tokenizer, base.model.generation_config, task.chat)
    return f"{wrap.prefix}{task.prompt}{wrap.suffix}", wrap


def train_task(
    base: BaseModel,
    scaled: Mapping[str, Scaled],
    task: Task,
    settings: Train,
    seed: int,
    examples: Sequence[Example],
    choices: tuple[str, ...] | None,
    folder: Path,
) -> Trained:
    """Trains one adapter, or takes it from `folder` when the same plan was finished there."""
    prompt, wrap = full_prompt(base, task)
    key = _key(base, prompt, settings, seed, examples)
    if _is_done(folder, key):
        say(f"{task.name}: trained before with the same plan, kept ({folder})")
        return load_task(base, scaled, task, choices, folder)
    sequences = encode(base.tokenizer, prompt, wrap.end, [(e.text, e.answer) for e in examples], settings.max_length)
    with writing(folder):
        _prepare(folder, key)
        record = train_vectors(base.model, scaled, sequences, settings, seed, folder / "checkpoints", task.name)
        vectors = get_vectors(scaled)
        write_peft(folder / "adapter", vectors, [s.site for s in scaled.values()], base.reference, base.fingerprint)
        write_record(record, folder / "record.json")
    shutil.rmtree(folder / "checkpoints", ignore_errors=True)
    return Trained(task, prompt, wrap, choices, vectors, record)


def load_task(base: BaseModel, scaled: Mapping[str, Scaled], task: Task, choices: tuple[str, ...] | None, folder: Path) -> Trained:
    """A finished task from its work folder. Raises ConfigError when it is not there."""
    if not (folder / "record.json").is_file():
        raise ConfigError(f"task {task.name!r} is not trained yet: nothing in {folder}; run `qia3 train` first, or `qia3 build` for both")
    prompt, wrap = full_prompt(base, task)
    vectors = read_peft(folder / "adapter", [s.site for s in scaled.values()], base.fingerprint)
    return Trained(task, prompt, wrap, choices, vectors, read_record(folder / "record.json"))


def _key(base: BaseModel, prompt: str, settings: Train, seed: int, examples: Sequence[Example]) -> str:
    # checkpoint_every changes when the state is saved, not what is trained
    what = [base.fingerprint, prompt, settings.model_dump(exclude={"checkpoint_every"}), seed, [asdict(e) for e in examples]]
    return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()


def _is_done(folder: Path, key: str) -> bool:
    return (folder / "record.json").is_file() and (folder / "key").is_file() and (folder / "key").read_text().strip() == key


def _prepare(folder: Path, key: str) -> None:
    """Keeps checkpoints of the same plan, clears those of another."""
    same = (folder / "key").is_file() and (folder / "key").read_text().strip() == key
    if not same:
        shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "key").write_text(key + "\n")
