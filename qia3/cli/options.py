"""Options that verbs share, and how their examples look."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

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
    click.option("--seed", type=int, help="Instead of the build file's seed."),
    click.option(
        "--steps", type=click.IntRange(min=1), help="Optimiser updates, instead of the build file's [train] steps."
    ),
    click.option("--init-adapter", type=FILE, help="Start from this PEFT folder or .onnx_adapter, not from ones."),
)


many_at_once = together(
    click.option(
        "--together",
        type=click.IntRange(1, 256),
        default=1,
        show_default=True,
        metavar="TASKS",
        help="So many tasks share each pass of the base: the same vectors, sooner where batches are small.",
    ),
    click.option(
        "--executor",
        metavar="WHERE",
        help="Spread tasks over process:2, dask://HOST:PORT or submitit[:FOLDER] (default: one after the other).",
    ),
)


export_options = together(
    click.option(
        "--mode",
        type=click.Choice(["side", "merged"]),
        help="side: vectors are inputs; merged: one task's are in the scales.",
    ),
    click.option("--task", metavar="NAME", help="The task to merge (with --mode merged)."),
    click.option("--target", metavar="NAME", help="An export target; `qia3 targets` lists them."),
    click.option(
        "--cache", type=click.Choice(["float32", "int8"]), help="What keys and values are kept in (int8: a quarter)."
    ),
)


decoding_options = together(
    click.option("--beams", type=click.IntRange(min=1), help="Try so many texts side by side, and print the best."),
    click.option("--length-penalty", type=float, help="With --beams: above 1 favours long texts, below 1 short ones."),
    click.option(
        "--temperature", type=float, help="Draw tokens, not the likeliest; above 1 more evenly than they are."
    ),
    click.option("--top-k", type=click.IntRange(min=1), help="With --temperature: of the so many likeliest."),
    click.option("--top-p", type=float, help="With --temperature: of the likeliest that have this share together."),
    click.option("--seed", type=int, help="With --temperature: the same seed draws the same text."),
)


class Verbs(click.Group):
    """A group whose help lists the verbs in the order of this file, which is the order of use."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands)
