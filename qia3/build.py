"""The whole pipeline.

model reference -> 4-bit base -> IA³ trained on it -> side vectors or fold -> ONNX graph -> parity -> measured bundle
"""

from __future__ import annotations

from collections.abc import Collection
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path

from qia3.base.family import is_encoder
from qia3.base.kind import check_kind
from qia3.base.load import Asked, load_base
from qia3.base.text import read_base_text
from qia3.bundle.folder import check_place
from qia3.complaints import nearest
from qia3.config import Base, Build
from qia3.errors import ConfigError
from qia3.examples import Example
from qia3.ia3.adapted import AdaptedBase
from qia3.ia3.mix import Within, named
from qia3.progress import bar, is_main, say
from qia3.publish import exported, publish
from qia3.storage import locked
from qia3.tokens import SLOT
from qia3.train import processes
from qia3.train.data import Data, read_task
from qia3.train.fit import fitted
from qia3.train.headed import check_task, check_writes, settings_of
from qia3.train.prompts import check_end, wrapping
from qia3.train.start import check_start
from qia3.train.task import Job, load_task, train_task

TRIED = 64  # examples of each of a task's files that the chat template is tried with


def build(plan: Build) -> Path:
    """Everything: base, training, export, parity, measurement. Returns the bundle's folder."""
    jobs = measured(plan, _publishable(plan, plan_jobs(plan)))
    with _working(plan):
        adapted = load(plan)
        graph = exported(plan, adapted)
        trained = [train_task(adapted.base, adapted.scaled, job, plan.work_folder / job.task.name) for job in jobs]
        return publish(plan, adapted, trained, _tests(jobs), graph)


def train(plan: Build, only: Collection[str] = ()) -> Path:
    """Base and training alone, of the tasks named or of all. Returns the work folder, which `export` reads."""
    names = [task.name for task in plan.task]
    if unknown := [name for name in only if name not in names]:
        raise ConfigError(f"no task is called {unknown[0]!r}{nearest(unknown[0], names)}")
    jobs = [job for job in measured(plan, plan_jobs(plan)) if not only or job.task.name in only]
    with _working(plan):
        adapted = load(plan)
        exported(plan, adapted)
        for job in jobs:
            train_task(adapted.base, adapted.scaled, job, plan.work_folder / job.task.name)
    return plan.work_folder


def export(plan: Build) -> Path:
    """The bundle from tasks that were trained before. Returns its folder."""
    jobs = measured(plan, _publishable(plan, plan_jobs(plan)))
    with _working(plan):
        adapted = load(plan)
        trained = [load_task(adapted.base, adapted.scaled, job, plan.work_folder / job.task.name) for job in jobs]
        return publish(plan, adapted, trained, _tests(jobs), exported(plan, adapted))


def plan_jobs(plan: Build) -> list[Job]:
    """One for each task, its examples read. Raises DataError, ConfigError and AdapterError, before anything is loaded."""
    for task in plan.task:
        processes.check_shares(plan.training_of(task).batch_size, plan.training_of(task).accumulate)
    for start in dict.fromkeys(plan.training_of(task).init_adapter for task in plan.task):
        if start is not None:
            check_start(start)
    data = {task.name: read_task(task, plan.training_of(task)) for task in plan.task}
    tasks = {task.name: task for task in plan.task}
    return [
        Job(
            task,
            data[task.name],
            plan.training_of(task),
            plan.seed,
            plan.ranking_of(task),
            tuple((tasks[name], data[name]) for name in task.mixture),
        )
        for task in plan.task
    ]


def measured(plan: Build, jobs: list[Job]) -> list[Job]:
    """The jobs, with lines that the tokenizer alone shows to fit, or cut where the task says so; the base's template
    and end token are tried as well.

    Raises ConfigError and DataError, before any weight is loaded.
    """
    text = read_base_text(plan.base.model)
    check_kind(text.config, plan.base.model)
    context, reads = (
        min(plan.export.context_length, text.positions or plan.export.context_length),
        is_encoder(text.config),
    )
    if reads:
        jobs = [_headed(plan, job) for job in jobs]
    else:
        for job in jobs:
            check_writes(job.task)
    warnings: dict[str, None] = {}
    fit: dict[str, Data] = {}
    for job in jobs:
        task = job.task
        asked = [
            prompt.replace(SLOT, e.text) for e in job.data.first(TRIED) for prompt in {*task.prompts, task.question}
        ]
        wrap = wrapping(text.tokenizer, text.generation_config, task.chat, task.end, asked, text.start, reads)
        if not reads:
            check_end(text.tokens, wrap.end, task.end is not None or text.names_end, task.name)
        warnings |= dict.fromkeys(wrap.warnings)
        users = [other.settings for other in jobs if task.name in (other.task.name, *other.task.mixture)]
        fit[task.name] = fitted(task, job.data, text.tokens, wrap, users, plan.seed, context)
    for warning in warnings:
        say(f"warning: {warning}")
    return [
        replace(job, data=fit[job.task.name], mixed=tuple((task, fit[task.name]) for task, _ in job.mixed))
        for job in jobs
    ]


def _headed(plan: Build, job: Job) -> Job:
    """A task on an encoder, whose answers are the labels of a head. Raises ConfigError."""
    if plan.base.bits is not None:
        raise ConfigError(
            "bits chooses layers by the words that a base writes, and an encoder writes none; name layers with eight_bit or blocks"
        )
    examples = (*job.data.train, *job.data.test, *job.data.validation)
    check_task(job.task, job.settings, any(e.choices for e in examples) or not job.data.choices)
    return replace(job, settings=settings_of(job.settings), ranking="sum")


def _tests(jobs: list[Job]) -> dict[str, tuple[Example, ...]]:
    return {job.task.name: job.data.test for job in jobs}


def _publishable(plan: Build, jobs: list[Job]) -> list[Job]:
    """Publishing is for one process, and takes the place of a bundle only. Raises ConfigError and StorageError."""
    check_place(plan.output_folder)
    if processes.count() > 1:
        raise ConfigError(
            "only `qia3 train` runs in several processes; run it with `accelerate launch`, then `qia3 export` by itself"
        )
    return jobs


def _working(plan: Build) -> AbstractContextManager[None]:
    """The work folder, for this run alone; the processes of one run share it."""
    if not is_main():
        return nullcontext()
    return locked(plan.work_folder, "wait for it, or name another folder with --work")


def load(plan: Build) -> AdaptedBase:
    """The 4-bit base with vectors of ones on it."""
    budget = f", at most {plan.base.bits:g} bits a weight" if plan.base.bits else ""
    say(f"loading {plan.base.model} on the {plan.base.grid} grid, block {plan.base.block_size}{budget}")
    base = load_base(asked_of(plan.base), bar)
    check_kind(base.model.config, plan.base.model)  # a GGUF file's
    return AdaptedBase.of(base, plan.export.query_vectors)


def asked_of(base: Base) -> Asked:
    """What a build file says of its base, as the loader takes it."""
    mix = Within(base.bits, bar) if base.bits else named(base.eight_bit, base.blocks.items())
    return Asked(
        base.model,
        block_size=base.block_size,
        symmetric=base.symmetric,
        calibration=base.calibration,
        mix=mix,
        grid=base.grid,
    )
