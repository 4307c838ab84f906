"""The whole pipeline.

model reference -> 4-bit base -> IA³ trained on it -> vectors unmerged or merged -> ONNX graph -> parity -> measured
bundle
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

TRIED = 64  # examples per file of a task that the chat template is tried on


@dataclass(frozen=True)
class How:
    """How the tasks of a build file are trained: which ones, where (qia3.many.executors), and whether tasks that were
    trained for another plan are refused (`resume`) or trained again. `scored`: also evaluate several tasks on their
    test files. `together`: number of tasks that share each pass of the base.
    """

    only: tuple[str, ...] = ()
    executor: str | None = None
    resume: bool = False
    scored: bool = True
    together: int = 1


def build(plan: Build, together: int = 1, executor: str | None = None, evaluated: bool = True) -> Path:
    """Runs everything: base, training, export, parity, measurement. Returns the bundle's folder. `together`,
    `executor`: as in How; `evaluated`: as in publish.
    """
    jobs = measured(plan, _publishable(plan, plan_jobs(plan)))
    if executor is not None:
        check_failures(train(plan, How(executor=executor, scored=False, together=together)), plan.work_folder)
        return export(plan, evaluated)
    with _working(plan):
        adapted = load(plan)
        graph = exported(plan, adapted)
        outcomes, trained = train_here(adapted, jobs, plan.work_folder, False, together)
        check_failures(outcomes, plan.work_folder)
        return publish(plan, adapted, trained, Lines.of(jobs), graph, evaluated)


def train(plan: Build, how: How) -> list[Outcome]:
    """Trains only, into the work folder, which `export` reads. Returns how each task ended: some may have failed."""
    names = [task.name for task in plan.task]
    if unknown := [name for name in how.only if name not in names]:
        raise ConfigError(f"there is no task called {unknown[0]!r}{nearest(unknown[0], names)}")
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
        del adapted  # workers load their own
        gc.collect()
        give_back()
        return train_spread(how.executor, orders, plan.work_folder)


def _check_where(how: How) -> None:
    """Raises ConfigError for --executor or --together under `accelerate launch`."""
    if processes.count() > 1 and (how.executor or how.together > 1):
        raise ConfigError(
            "`accelerate launch` splits each task over processes and cannot be combined with --executor or --together"
        )
    if how.executor is not None:
        check_executor(how.executor)


def _check_plans(plan: Build, adapted: AdaptedBase, jobs: Sequence[Job]) -> None:
    """Raises ConfigError that names each task whose folder belongs to another plan and would be trained again."""
    found = {
        job.task.name: plan_changes(adapted.base, adapted.scaled, job, plan.work_folder / job.task.name) for job in jobs
    }
    if changed := [f"{name} ({'; '.join(changes)})" for name, changes in found.items() if changes]:
        raise ConfigError(
            f"--resume needs the same plan, but these tasks in {plan.work_folder} were trained with another: "
            f"{listed(changed)}; "
            "without --resume they are trained again"
        )


def _orders(plan: Build, adapted: AdaptedBase, jobs: Sequence[Job], scored: bool, together: int = 1) -> list[Order]:
    """Orders for workers, which may run in another folder; `together` tasks per order."""
    model, base, token = Path(plan.base.model), adapted.base, new_token()
    asked = replace(asked_of(plan.base), model=str(model.absolute()) if model.exists() else plan.base.model)
    if asked.calibration not in ("own", "none"):
        asked = replace(asked, calibration=str(Path(asked.calibration).absolute()))
    work = plan.work_folder.absolute()
    queries = plan.export.query_vectors
    parts = [tuple(jobs[i : i + together]) for i in range(0, len(jobs), together)]
    return [Order(asked, base.reference, queries, base.fingerprint, part, work, token, scored) for part in parts]


def export(plan: Build, evaluated: bool = True) -> Path:
    """Makes the bundle from tasks that were trained before. Returns its folder. `evaluated`: as in publish."""
    jobs = measured(plan, _publishable(plan, plan_jobs(plan)))
    with _working(plan):
        adapted = load(plan)
        trained = [load_task(adapted.base, adapted.scaled, job, plan.work_folder / job.task.name) for job in jobs]
        return publish(plan, adapted, trained, Lines.of(jobs), exported(plan, adapted), evaluated)


def plan_jobs(plan: Build) -> list[Job]:
    """One job per task, with its examples. Raises DataError, ConfigError and AdapterError before anything is loaded."""
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
    """The jobs, with examples that fit the context according to the tokenizer, or cut if the task says so. The base's
    chat template and end token are tried as well.

    Raises ConfigError and DataError before any weight is loaded.
    """
    text = read_base_text(plan.base.model)
    check_kind(text.config, plan.base.model)
    _check_int8(plan, text.config)
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


def _check_int8(plan: Build, config: Any) -> None:
    """Raises ConfigError if the base or the target does not support an int8 cache, int8 prompts or training."""
    target, export = load_target(plan.export.target), plan.export
    decodes = not (is_encoder(config) or config.is_encoder_decoder)
    if export.cache == "int8" and not decodes:
        raise ConfigError(
            f"cache = 'int8' in [export] is only for decoders, and {config.model_type} is not one; remove it"
        )
    why = {}
    if export.cache == "int8" and target.vectors == "required":
        why["cache = 'int8'"] = "browsers have no kernel for it"
    if export.prompts == "int8" and target.products == "int8":
        why["prompts = 'int8'"] = "all of its products are in int8"
    elif export.prompts == "int8" and target.vectors == "required":
        why["prompts = 'int8'"] = "it is for WebGPU as well, which has no kernel for it"
    elif export.prompts == "int8" and target.accuracy_level != 4:
        why["prompts = 'int8'"] = "it rounds activations to int8, which that target avoids"
    if export.trainable and target.products == "int8":
        why["trainable = true"] = "gradients need the 4-bit weights, which it does not ship"
    for setting, reason in why.items():
        raise ConfigError(
            f"{setting} in [export] cannot be combined with target = '{target.name}': {reason}; remove it"
        )


def _headed(plan: Build, job: Job) -> Job:
    """A task on an encoder, answered by a head. Raises ConfigError if an encoder cannot do it."""
    if plan.base.bits is not None:
        raise ConfigError(
            "bits in [base] needs a base that generates text, and this one is an encoder; name layers with "
            "eight_bit or blocks"
        )
    examples = (*job.data.train, *job.data.test, *job.data.validation)
    check_task(job.task, job.settings, any(e.choices for e in examples) or not job.data.choices)
    return replace(job, settings=settings_of(job.settings), ranking="sum")


def _publishable(plan: Build, jobs: list[Job]) -> list[Job]:
    """Checks that one process publishes, and that only a bundle is replaced. Raises ConfigError and StorageError."""
    check_place(plan.output_folder)
    if processes.count() > 1:
        raise ConfigError(
            "only `qia3 train` can run in several processes; use `accelerate launch` for it, then run `qia3 "
            "export` without"
        )
    return jobs


def _working(plan: Build) -> AbstractContextManager[None]:
    """Locks the work folder for this run; the processes of one run share it."""
    if not is_main():
        return nullcontext()
    return locked(plan.work_folder, "wait for it, or choose another folder with --work")


def load(plan: Build, for_workers: bool = False) -> AdaptedBase:
    """The 4-bit base with vectors of ones; `for_workers` it is cached, however small."""
    budget = f", at most {plan.base.bits:g} bits per weight" if plan.base.bits else ""
    say(f"loading {plan.base.model} on the {plan.base.grid} grid, block {plan.base.block_size}{budget}")
    base = load_base(asked_of(plan.base), bar, 0 if for_workers else LEAST_KEPT)
    check_kind(base.model.config, plan.base.model)  # for GGUF files, which load_base does not check
    return AdaptedBase.of(base, plan.export.query_vectors)


def asked_of(base: Base) -> Asked:
    """The [base] table as the loader's settings."""
    mix = Within(base.bits, bar) if base.bits else named(base.eight_bit, base.blocks.items())
    return Asked(
        base.model,
        block_size=base.block_size,
        symmetric=base.symmetric,
        calibration=base.calibration,
        mix=mix,
        grid=base.grid,
        train_scales=base.train_scales,
    )
