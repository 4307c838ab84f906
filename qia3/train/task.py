"""A task's training in its work folder: skipped if it is done, resumed if it was interrupted, restarted if the plan
changed.

WORK/TASK/plan.json    what was asked for: base, data, prompts, settings and seed (qia3.batching.asked)
WORK/TASK/checkpoints  the Trainer's checkpoints
WORK/TASK/log.jsonl    one line per step
WORK/TASK/adapter      the vectors, a PEFT checkpoint with its task.json
WORK/TASK/record.json  what the run cost; written last, so its presence means done
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from torch import nn

from qia3.base.family import is_encoder
from qia3.base.frozen import BaseModel
from qia3.batching.asked import PLAN, Asked, asked_of, differences, read_asked, write_asked
from qia3.batching.data import Data
from qia3.batching.examples import Examples, Source, source_of
from qia3.batching.prompts import Wrapping
from qia3.bundle.adapter import Adapter
from qia3.bundle.head import Head
from qia3.bundle.peft import read_peft, write_peft
from qia3.bundle.records import Record
from qia3.bundle.sites import Vectors, digest
from qia3.bundle.task import TAGS
from qia3.bundle.task import Task as BundleTask
from qia3.config import Task
from qia3.errors import ConfigError
from qia3.ia3.vectors import Scaled, get_vectors
from qia3.progress import is_main, say
from qia3.recipe import Train
from qia3.storage import writing
from qia3.train import processes
from qia3.train.headed import new_head, trained_head
from qia3.train.prompts import wrapping
from qia3.train.run import CHECKPOINTS, Alone, read_record, steps_kept, train_vectors, write_record
from qia3.train.start import read_start


@dataclass(frozen=True)
class Job:
    """Everything that decides one adapter. `mixed`: other tasks whose examples it also trains on."""

    task: Task
    data: Data
    settings: Train
    seed: int
    ranking: Literal["sum", "mean"]
    mixed: tuple[tuple[Task, Data], ...] = ()


@dataclass(frozen=True)
class Trained:
    """A task's adapter and everything that a device needs to use it."""

    task: Task
    prompt: str
    wrapping: Wrapping
    choices: tuple[str, ...] | None
    ranking: Literal["sum", "mean"]
    vectors: Vectors
    record: Record
    head: Head | None = None  # of an encoder's task

    @property
    def shipped(self) -> BundleTask:
        """The task as stored in a bundle."""
        tokens, end = self.task.max_new_tokens, self.wrapping.end
        return BundleTask(self.task.name, self.task.kind, self.prompt, self.choices, tokens, end, self.ranking)

    def adapter(self, fingerprint: str) -> Adapter:
        return Adapter(self.vectors, fingerprint, self.shipped, self.head)


def train_task(
    base: BaseModel,
    scaled: Mapping[str, Scaled],
    job: Job,
    folder: Path,
    begins: Callable[[int], None] = lambda step: None,
    how: Alone | None = None,
) -> Trained:
    """Trains one adapter, or takes it from `folder` if the same plan was finished there. `begins` is called with the
    step that training starts from; not called if there is nothing to train.
    """
    name, settings, sources = job.task.name, job.settings, _sources(base, job)
    sites = [s.site for s in scaled.values()]
    start = None if settings.init_adapter is None else read_start(settings.init_adapter, sites, base.fingerprint)
    asked = _asked(base, job, digest(start))
    if _is_done(folder, asked):
        say(f"{name}: already trained with the same plan, kept ({folder})")
        return load_task(base, scaled, job, folder)
    head = _new_head(base, job)
    labels = None if head is None else job.data.choices
    examples, validation = (
        Examples(
            base.tokens,
            [s for s in given if s.examples],
            settings.max_length,
            settings.ranked,
            job.task.shots,
            settings.answers,
            labels,
        )
        for given in (sources, _sources(base, job, held_back=True))
    )
    with writing(folder):
        _prepare(folder, asked)
        begins(steps_kept(folder))
        record = train_vectors(
            base.model,
            scaled,
            examples,
            settings,
            job.seed,
            folder,
            name,
            validation if len(validation) else None,
            start,
            head,
            how,
        )
        trained = _trained(base, job, get_vectors(scaled), record, trained_head(head, job.task.kind))
        if is_main():
            adapter = trained.adapter(base.fingerprint)
            write_peft(folder / "adapter", adapter, sites, base.reference, head is not None)
            write_record(record, folder / "record.json")
            shutil.rmtree(folder / CHECKPOINTS, ignore_errors=True)
        processes.wait()
    return trained


def load_task(base: BaseModel, scaled: Mapping[str, Scaled], job: Job, folder: Path) -> Trained:
    """A finished task from its work folder.

    Raises ConfigError if it is missing or was trained for another plan.
    """
    name, sites = job.task.name, [s.site for s in scaled.values()]
    anew = "run `qia3 train` to train it again, or name the folder where this plan was trained (--work)"
    if not (folder / "record.json").is_file():
        raise ConfigError(
            f"task {name!r} is not trained yet: nothing in {folder}; "
            "run `qia3 train` first, or `qia3 build` for both, or name the folder where it was trained (--work)"
        )
    was = read_asked(folder)
    if was is None:
        raise ConfigError(f"{folder} has no {PLAN}, so it is from an earlier version; {anew}")
    if was.get("base") == base.fingerprint and job.settings.init_adapter is not None:
        start = digest(read_start(job.settings.init_adapter, sites, base.fingerprint))
    else:  # for another base: its adapter is not read
        start = None if job.settings.init_adapter is None else was.get("init_adapter")
    if changed := differences(was, _asked(base, job, start)):
        raise ConfigError(
            f"task {name!r} was trained for another plan: {'; '.join(changed)}; undo the changes to the build "
            f"file, {anew}"
        )
    adapter = read_peft(folder / "adapter", sites, base.fingerprint)
    head = None if adapter.head is None else replace(adapter.head, per_token=job.task.kind == TAGS)
    return _trained(base, job, adapter.vectors, read_record(folder / "record.json"), head)


def _new_head(base: BaseModel, job: Job) -> nn.Linear | None:
    """A head for an encoder; None for a model that generates text."""
    return new_head(base.model, job.data.choices or ()) if is_encoder(base.model.config) else None


def _trained(base: BaseModel, job: Job, vectors: Vectors, record: Record, head: Head | None) -> Trained:
    own = _source(base, job.task, job.data)
    prompt = own.on_device(job.task.shots, job.seed)
    return Trained(job.task, prompt, own.wrap, job.data.choices, job.ranking, vectors, record, head)


def _sources(base: BaseModel, job: Job, held_back: bool = False) -> list[Source]:
    """The task's own examples and those of its mixture, to train on or to validate on."""
    return [_source(base, task, data, held_back) for task, data in ((job.task, job.data), *job.mixed)]


def _source(base: BaseModel, task: Task, data: Data, held_back: bool = False) -> Source:
    start = base.start
    reads, made = is_encoder(base.model.config), base.model.generation_config
    wrap = wrapping(base.tokenizer, made, task.chat, task.end, start=start, reads=reads)
    return source_of(base.tokens, wrap, task, data.validation if held_back else data.train, data.choices)


def _asked(base: BaseModel, job: Job, start: str | None) -> Asked:
    """`start`: the digest of the vectors that training starts from."""
    pairs = ((job.task, job.data), *job.mixed)
    sources = [asked_of(_source(base, task, data), data.validation) for task, data in pairs]
    # Left out, since they cannot change the result: the checkpoint interval, unless the best checkpoint is kept, and
    # file names; the contents of the two files are compared
    held_back = any(data.validation for _, data in pairs)
    left_out = {"validation", "init_adapter"} | (set() if held_back else {"checkpoint_every"})
    return {
        "base": base.fingerprint,
        "sources": sources,
        "shots": job.task.shots,
        "training": job.settings.model_dump(mode="json", exclude=left_out),
        "seed": job.seed,
        "init_adapter": start,
    }


def plan_changes(base: BaseModel, scaled: Mapping[str, Scaled], job: Job, folder: Path) -> list[str]:
    """Differences between the plan and the one in `folder`; empty if there is none in it."""
    if (was := read_asked(folder)) is None:
        return []
    given, sites = job.settings.init_adapter, [s.site for s in scaled.values()]
    start = None if given is None else digest(read_start(given, sites, base.fingerprint))
    return differences(was, _asked(base, job, start))


def _is_done(folder: Path, asked: Asked) -> bool:
    done = (folder / "record.json").is_file() and _is_of(folder, asked)
    processes.wait()  # no process writes before all have looked
    return done


def _is_of(folder: Path, asked: Asked) -> bool:
    """Whether `folder` holds this plan."""
    return (was := read_asked(folder)) is not None and not differences(was, asked)


def _prepare(folder: Path, asked: Asked) -> None:
    """Keeps checkpoints of the same plan, and removes those of another."""
    if is_main():
        if not _is_of(folder, asked):
            shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True, exist_ok=True)
        write_asked(asked, folder)
    processes.wait()
