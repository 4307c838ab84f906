"""The whole pipeline.

model reference -> 4-bit base -> IA³ trained on it -> side vectors or fold -> ONNX graph -> parity -> measured bundle
"""

from __future__ import annotations

from pathlib import Path

from qia3.base.load import BaseModel, load_base
from qia3.config import Build, Task
from qia3.errors import BaseModelError
from qia3.ia3.roles import Roles, Site, find_roles
from qia3.ia3.vectors import Scaled, attach
from qia3.progress import bar, say
from qia3.publish import publish
from qia3.train.data import Data, read_task
from qia3.train.task import Trained, load_task, train_task


def build(plan: Build) -> Path:
    """Everything: base, training, export, parity, measurement. Returns the bundle's folder."""
    data = {task.name: read_task(task) for task in plan.task}
    base, roles, scaled = load(plan)
    trained = [_train(plan, task, data[task.name], base, scaled) for task in plan.task]
    return publish(plan, base, roles, scaled, trained, {name: d.test for name, d in data.items()})


def train(plan: Build) -> Path:
    """Base and training alone. Returns the work folder, which `export` reads."""
    data = {task.name: read_task(task) for task in plan.task}
    base, _, scaled = load(plan)
    for task in plan.task:
        _train(plan, task, data[task.name], base, scaled)
    return work_folder(plan)


def export(plan: Build) -> Path:
    """The bundle from tasks that were trained before. Returns its folder."""
    data = {task.name: read_task(task) for task in plan.task}
    base, roles, scaled = load(plan)
    trained = [load_task(base, scaled, task, data[task.name].choices, work_folder(plan) / task.name) for task in plan.task]
    return publish(plan, base, roles, scaled, trained, {name: d.test for name, d in data.items()})


def load(plan: Build) -> tuple[BaseModel, Roles, dict[str, Scaled]]:
    """The 4-bit base with vectors of ones on it."""
    say(f"loading {plan.base.model} on the int4 grid, block {plan.base.block_size}")
    base = load_base(plan.base.model, plan.base.block_size, plan.base.symmetric, lambda names: bar(names, "quantising"))
    if base.model.config.is_encoder_decoder:
        raise BaseModelError(f"{plan.base.model} is an encoder-decoder; this version exports decoders")
    roles = find_roles(base.model)
    return base, roles, attach(base.model, _sites(plan, roles))


def work_folder(plan: Build) -> Path:
    """Where checkpoints and trained adapters are kept: beside the bundle."""
    return plan.output_folder.with_name(plan.output_folder.name + ".work")


def _train(plan: Build, task: Task, data: Data, base: BaseModel, scaled: dict[str, Scaled]) -> Trained:
    folder = work_folder(plan) / task.name
    return train_task(base, scaled, task, plan.training_of(task), plan.seed, data.train, data.choices, folder)


def _sites(plan: Build, roles: Roles) -> tuple[Site, ...]:
    return (*roles.queries, *roles.sites) if plan.export.query_vectors else roles.sites
