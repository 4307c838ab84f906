"""build, train and export: from a build file to a bundle."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from qia3.cli.options import (
    FILE,
    as_json,
    example,
    export_options,
    many_at_once,
    training_options,
)
from qia3.console import progress_on_stderr
from qia3.errors import ConfigError

if TYPE_CHECKING:
    from qia3.config import Build


@click.command(
    epilog=example("qia3 build examples/home-intents/qia3.toml", "qia3 build my.toml --mode merged --task intents")
)
@click.argument("file", type=FILE)
@training_options
@many_at_once
@export_options
@as_json
def build(
    file: Path,
    output: Path | None,
    work: Path | None,
    seed: int | None,
    steps: int | None,
    init_adapter: Path | None,
    together: int,
    executor: str | None,
    mode: str | None,
    task: str | None,
    target: str | None,
    cache: str | None,
    prompts: str | None,
    evaluation: bool,
    as_json: bool,
) -> None:
    """Make a bundle from a build file.

    Quantises the base, trains each task, exports, checks parity and reports. FILE is TOML. An interrupted build
    resumes from its last checkpoint.
    """
    from qia3.reporting import Shape, print_report

    plan = plan_of(file, output, work, seed, steps, init_adapter, mode, task, target, cache, prompts)
    with progress_on_stderr():
        from qia3.build import build as make

        folder = make(plan, together, executor, evaluation)
    print_report(folder, Shape(as_json))


@click.command(
    epilog=example(
        "qia3 train examples/home-intents/qia3.toml --steps 60",
        "qia3 train my.toml --executor process:2",
        "qia3 train my.toml --executor dask://10.0.0.1:8786 --resume",
    )
)
@click.argument("file", type=FILE)
@training_options
@many_at_once
@click.option("--only", multiple=True, metavar="NAME", help="Train only this task; can be repeated.")
@click.option("--resume", is_flag=True, help="Refuse, rather than train again, tasks of another plan.")
@click.option("--scores/--no-scores", default=True, help="With several tasks: also evaluate each on its test file.")
@as_json
def train(
    file: Path,
    only: tuple[str, ...],
    executor: str | None,
    resume: bool,
    scores: bool,
    together: int,
    output: Path | None,
    work: Path | None,
    seed: int | None,
    steps: int | None,
    init_adapter: Path | None,
    as_json: bool,
) -> None:
    """Train the vectors only.

    Trains every task in FILE; `qia3 export` continues from there. Interrupted training resumes from its last
    checkpoint, and finished tasks are kept; a task whose data or settings changed is trained again, or refused with
    --resume. If one of several tasks fails, the others are still trained. `accelerate launch --multi_gpu -m qia3 train
    FILE` splits each task over several processes; --executor distributes tasks.
    """
    from qia3.progress import is_main
    from qia3.reporting import print_training

    plan = plan_of(file, output, work, seed, steps, init_adapter)
    with progress_on_stderr():
        from qia3.build import How
        from qia3.build import train as make

        outcomes = make(plan, How(only, executor, resume, scores, together))
    if is_main():
        print_training(outcomes, plan.work_folder, as_json)


@click.command(
    epilog=example(
        "qia3 export examples/home-intents/qia3.toml --target ort-exact --no-evaluation",
        "qia3 export my.toml --mode merged --task intents --work dist/my.work --output dist/intents",
    )
)
@click.argument("file", type=FILE)
@training_options
@export_options
@as_json
def export(
    file: Path,
    output: Path | None,
    work: Path | None,
    seed: int | None,
    steps: int | None,
    init_adapter: Path | None,
    mode: str | None,
    task: str | None,
    target: str | None,
    cache: str | None,
    prompts: str | None,
    evaluation: bool,
    as_json: bool,
) -> None:
    """Make a bundle from trained vectors.

    Takes the result of `qia3 train`, makes the graph, checks parity, reports and writes the bundle.
    """
    from qia3.reporting import Shape, print_report

    plan = plan_of(file, output, work, seed, steps, init_adapter, mode, task, target, cache, prompts)
    with progress_on_stderr():
        from qia3.build import export as make

        folder = make(plan, evaluation)
    print_report(folder, Shape(as_json))


def plan_of(
    file: Path,
    output: Path | None,
    work: Path | None,
    seed: int | None,
    steps: int | None,
    init_adapter: Path | None,
    mode: str | None = None,
    task: str | None = None,
    target: str | None = None,
    cache: str | None = None,
    prompts: str | None = None,
) -> Build:
    """The build file with the options applied; checks that its target exists."""
    from qia3.config import read_build
    from qia3.targets import load_target

    overrides = {
        "export.mode": mode,
        "export.merge_task": task,
        "export.target": target,
        "export.cache": cache,
        "export.prompts": prompts,
        "train.steps": steps,
        "seed": seed,
    }
    start = (
        None if init_adapter is None else str(init_adapter.absolute())
    )  # a path on the command line is relative to the current folder
    folders = {name: None if folder is None else str(folder) for name, folder in (("output", output), ("work", work))}
    plan = read_build(file, **overrides, **{"train.init_adapter": start}, **folders)
    if task is not None and plan.export.mode != "merged":
        raise ConfigError("--task names the task to merge: it needs --mode merged")
    load_target(plan.export.target)
    return plan
