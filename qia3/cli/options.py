"""Options shared by several verbs, and the format of their examples."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

from qia3.errors import ConfigError

Option = Callable[[Any], Any]


FILE = click.Path(path_type=Path)


def example(*lines: str) -> str:
    """An epilog that shows how a verb is called."""
    return "\b\nExample:\n" + "\n".join(f"  {line}" for line in lines)


def together(*options: Option) -> Option:
    """Several options as one decorator, in the order given."""

    def add(command: Any) -> Any:
        for option in reversed(options):
            command = option(command)
        return command

    return add


as_json = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


training_options = together(
    click.option("--output", type=FILE, help="The bundle's folder (default: dist/NAME)."),
    click.option("--work", type=FILE, help="Where trained vectors and checkpoints are kept (default: OUTPUT.work)."),
    click.option("--seed", type=int, help="Overrides the build file's seed."),
    click.option("--steps", type=click.IntRange(min=1), help="Optimiser updates; overrides `steps` under [train]."),
    click.option("--init-adapter", type=FILE, help="Start from this PEFT folder or .onnx_adapter, not from ones."),
)


many_at_once = together(
    click.option(
        "--together",
        type=click.IntRange(1, 256),
        default=1,
        show_default=True,
        metavar="TASKS",
        help="Number of tasks that share each pass of the base: same vectors, faster if batches are small.",
    ),
    click.option(
        "--executor",
        metavar="WHERE",
        help="Distribute tasks over process:2, dask://HOST:PORT or submitit[:FOLDER] (default: one after the other).",
    ),
)


export_options = together(
    click.option(
        "--mode",
        type=click.Choice(["side", "merged"]),
        help="side: vectors are inputs; merged: one task's vectors are folded into the scales.",
    ),
    click.option("--task", metavar="NAME", help="The task to merge (with --mode merged)."),
    click.option("--target", metavar="NAME", help="Export target; `qia3 targets` lists them."),
    click.option(
        "--cache",
        type=click.Choice(["float32", "int8"]),
        help=("Type of cached keys and values (int8: a quarter of the memory)."),
    ),
    click.option(
        "--prompts",
        type=click.Choice(["q4", "int8"]),
        help="int8: prompts run faster on processors with int8 dot products, for more memory.",
    ),
    click.option(
        "--evaluation/--no-evaluation",
        default=True,
        help="Score the bundle on the tasks' test files; without, its report says that it was not evaluated.",
    ),
)


decoding_options = together(
    click.option("--beams", type=click.IntRange(min=1), help="Beam search with this many beams."),
    click.option("--length-penalty", type=float, help="With --beams: above 1 favours long texts, below 1 short ones."),
    click.option(
        "--temperature", type=float, help="Sample tokens at this temperature, instead of taking the most likely."
    ),
    click.option(
        "--top-k", type=click.IntRange(min=1), help="With --temperature: sample from the K most likely tokens."
    ),
    click.option(
        "--top-p",
        type=float,
        help="With --temperature: sample from the most likely tokens that make up this probability.",
    ),
    click.option("--seed", type=int, help="With --temperature: the same seed gives the same text."),
)


@contextmanager
def serving(verb: str) -> Iterator[None]:
    """Around the import of what serves. Raises ConfigError if the extra `serve` is not installed."""
    try:
        yield
    except ModuleNotFoundError as error:
        if error.name not in ("starlette", "uvicorn", "prometheus_client"):
            raise
        raise ConfigError(f"qia3 {verb} needs {error.name}: pip install 'qia3[serve]'") from error


class Verbs(click.Group):
    """A group whose help lists the verbs in the order of this file, which is the order of use."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands)
