"""The whole pipeline.

model reference -> 4-bit base -> IA³ trained on it -> side vectors or fold -> ONNX graph -> parity -> measured bundle
"""

from __future__ import annotations

import gc
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from qia3.base.family import is_encoder
from qia3.base.kind import check_kind
from qia3.base.load import LEAST_KEPT, Asked, load_base
from qia3.base.memory import give_back
from qia3.base.text import read_base_text
from qia3.batching.data import Data, read_task
from qia3.bundle.folder import check_place
from qia3.complaints import nearest
from qia3.config import Base, Build
from qia3.errors import ConfigError
from qia3.examples import listed
from qia3.ia3.adapted import AdaptedBase
from qia3.ia3.mix import Within, named
from qia3.many.executors import check_executor
from qia3.many.outcome import Outcome
from qia3.many.tasks import check_failures, new_token, train_here, train_spread
from qia3.many.work import Order
from qia3.progress import bar, is_main, say
from qia3.publish import Lines, exported, publish
from qia3.storage import locked
from qia3.targets import load_target
from qia3.tokens import SLOT
from qia3.train import processes
from qia3.train.fit import fitted
from qia3.train.headed import check_task, check_writes, settings_of
from qia3.train.prompts import check_end, wrapping
from qia3.train.start import check_start
from qia3.train.task import Job, load_task, plan_changes

TRIED = 64  # examples of each of a task's files that the chat template is tried with


@dataclass(frozen=True)
class How:
    """How the tasks of a build file are trained: only some, where (qia3.many.executors), and whether what was trained
    for another plan is refused (`resume`) or trained anew. `scored`: on their test lines, where there are several.
    `together`: so many share each pass of the base.
    """

    only: tuple[str, ...] = ()
    executor: str | None = None
    resume: bool = False
    scored: bool = True
    together: int = 1


def build(plan: Build, together: int = 1, executor: str | None = None) -> Path:
    """Everything: base, training, export, parity, measurement. Returns the bundle's folder. `together`, `executor`: as
    in How.
    """
    jobs = measured(plan, _publishable(plan, plan_jobs(plan)))
    if executor is not None:
        check_failures(train(plan, How(executor=executor, scored=False, together=together)), plan.work_folder)
        return export(plan)
    with _working(plan):
        adapted = load(plan)
        graph = exported(plan, adapted)
        outcomes, trained = train_here(adapted, jobs, plan.work_folder, False, together)
        check_failures(outcomes, plan.work_folder)
        return publish(plan, adapted, trained, Lines.of(jobs), graph)


def train(plan: Build, how: How) -> list[Outcome]:
    """Base and training alone, in the work folder, which `export` reads. How each task ended: one may have failed."""
    names = [task.name for task in plan.task]
    if unknown := [name for name in how.only if name not in names]:
        raise ConfigError(f"no task is called {unknown[0]!r}{nearest(unknown[0], names)}")
    _check_where(how)
    jobs = [job for job in measured(plan, plan_jobs(plan)) if not how.only or job.task.name in how.only]
    scored = how.scored and len(jobs) > 1 and processes.count() == 1
    with _working(plan):
        adapted = load(plan, how.executor is not None)
        if how.resume:
            _check_plans(plan, adapted, jobs)
        exported(plan, adapted)
        if how.executor is None:
            return train_here(adapted, jobs, plan.work_folder, scored, how.together)[0]
        orders = _orders(plan, adapted, jobs, scored, how.together)
        del adapted  # workers have their own
        gc.collect()
        give_back()
        return train_spread(how.executor, orders, plan.work_folder)


def _check_where(how: How) -> None:
    """Raises ConfigError."""
    if processes.count() > 1 and (how.executor or how.together > 1):
        raise ConfigError(
            "accelerate splits each task over processes: it does not go with --executor and --together, which are for many"
        )
    if how.executor is not None:
        check_executor(how.executor)


def _check_plans(plan: Build, adapted: AdaptedBase, jobs: Sequence[Job]) -> None:
    """Raises ConfigError that names each task whose folder is of another plan: training would begin it anew."""
    found = {
        job.task.name: plan_changes(adapted.base, adapted.scaled, job, plan.work_folder / job.task.name) for job in jobs
    }
    if changed := [f"{name} ({'; '.join(changes)})" for name, changes in found.items() if changes]:
        raise ConfigError(
            f"--resume goes on with the same plan, and these tasks in {plan.work_folder} are of another: {listed(changed)}; "
            "without --resume they are trained anew"
        )


def _orders(plan: Build, adapted: AdaptedBase, jobs: Sequence[Job], scored: bool, together: int = 1) -> list[Order]:
    """For workers, which may stand in another folder; so many tasks for each."""
    model, base, token = Path(plan.base.model), adapted.base, new_token()
    asked = replace(asked_of(plan.base), model=str(model.absolute()) if model.exists() else plan.base.model)
    if asked.calibration not in ("own", "none"):
        asked = replace(asked, calibration=str(Path(asked.calibration).absolute()))
    work = plan.work_folder.absolute()
    queries = plan.export.query_vectors
    parts = [tuple(jobs[i : i + together]) for i in range(0, len(jobs), together)]
    return [Order(asked, base.reference, queries, base.fingerprint, part, work, token, scored) for part in parts]


def export(plan: Build) -> Path:
    """The bundle from tasks that were trained before. Returns its folder."""
    jobs = measured(plan, _publishable(plan, plan_jobs(plan)))
    with _working(plan):
        adapted = load(plan)
        trained = [load_task(adapted.base, adapted.scaled, job, plan.work_folder / job.task.name) for job in jobs]
        return publish(plan, adapted, trained, Lines.of(jobs), exported(plan, adapted))


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
    _check_cache(plan, text.config)
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


def _check_cache(plan: Build, config: Any) -> None:
    """Raises ConfigError where the graph has no int8 cache, or nobody could open it."""
    if plan.export.cache == "float32":
        return
    if is_encoder(config) or config.is_encoder_decoder:
        raise ConfigError(
            f"cache = 'int8' in [export] is for decoders alone, and {config.model_type} is none; leave it out"
        )
    if load_target(plan.export.target).vectors == "required":
        raise ConfigError(
            f"cache = 'int8' in [export] does not go with target = '{plan.export.target}': browsers have no kernel for it"
        )


def _headed(plan: Build, job: Job) -> Job:
    """A task on an encoder, whose answers are the labels of a head. Raises ConfigError."""
    if plan.base.bits is not None:
        raise ConfigError(
            "bits chooses layers by the words that a base writes, and an encoder writes none; name layers with eight_bit or blocks"
        )
    examples = (*job.data.train, *job.data.test, *job.data.validation)
    check_task(job.task, job.settings, any(e.choices for e in examples) or not job.data.choices)
    return replace(job, settings=settings_of(job.settings), ranking="sum")


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


def load(plan: Build, for_workers: bool = False) -> AdaptedBase:
    """The 4-bit base with vectors of ones on it; `for_workers` it is kept, however small."""
    budget = f", at most {plan.base.bits:g} bits a weight" if plan.base.bits else ""
    say(f"loading {plan.base.model} on the {plan.base.grid} grid, block {plan.base.block_size}{budget}")
    base = load_base(asked_of(plan.base), bar, 0 if for_workers else LEAST_KEPT)
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
