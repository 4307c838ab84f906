"""adapter: describe one, import one into a bundle, export one."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from qia3.cli.options import (
    FILE,
    Verbs,
    as_json,
    example,
)
from qia3.console import fact_lines, print_result

if TYPE_CHECKING:
    pass


@click.group(cls=Verbs, no_args_is_help=False, epilog=example("qia3 adapter info dist/home-intents:home-intents"))
def adapter() -> None:
    """Describe, import and export adapters."""


@adapter.command(
    name="info", epilog=example("qia3 adapter info dist/home-intents:home-intents", "qia3 adapter info my-peft-ia3")
)
@click.argument("path")
@as_json
def adapter_info(path: str, as_json: bool) -> None:
    """Describe an adapter.

    PATH is a .onnx_adapter file, a PEFT folder or BUNDLE:NAME.
    """
    from qia3.adapters import adapter_info as work

    facts = work(path)
    print_result(facts, fact_lines(facts), as_json)


PLAIN_TASK = (
    "; it has no task.json, so its task in the bundle is to generate with the base's plain prompt "
    "(`qia3 adapter export` shows what a task.json looks like)"
)


@adapter.command(name="import", epilog=example("qia3 adapter import dist/home-intents my-peft-ia3 --name garden"))
@click.argument("bundle", type=FILE)
@click.argument("peft_folder", type=FILE)
@click.option("--name", required=True, help="Its name in the bundle.")
@as_json
def adapter_import(bundle: Path, peft_folder: Path, name: str, as_json: bool) -> None:
    """Add a PEFT IA³ adapter to a bundle."""
    from qia3.adapters import import_adapter as work

    done = work(bundle, peft_folder, name)
    facts = {"adapter": name, "path": str(done.bundle), "task": done.task.to_json(), "own_task": done.has_own_task}
    print_result(facts, f"{name} is in {done.bundle}{'' if done.has_own_task else PLAIN_TASK}", as_json)


@adapter.command(name="export", epilog=example("qia3 adapter export dist/home-intents home-intents my-peft-ia3"))
@click.argument("bundle", type=FILE)
@click.argument("name")
@click.argument("folder", type=FILE)
@as_json
def adapter_export(bundle: Path, name: str, folder: Path, as_json: bool) -> None:
    """Write an adapter as a PEFT folder."""
    from qia3.adapters import export_adapter as work

    path = work(bundle, name, folder)
    print_result({"adapter": name, "path": str(path)}, f"{name} is in {path}", as_json)
