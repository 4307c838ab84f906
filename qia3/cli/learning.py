"""learn: an adapter from examples, on the device where the bundle is."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from qia3.cli.options import FILE, as_json, example
from qia3.console import print_result, progress_on_stderr
from qia3.errors import ConfigError


@click.command(
    epilog=example(
        'qia3 learn dist/home-intents mine.jsonl --name mine --prompt "Which room? {text}"',
        "qia3 learn dist/home-intents more.jsonl --name my-intents --after home-intents --steps 40",
        "qia3 learn dist/home-intents --forget mine",
    )
)
@click.argument("bundle", type=FILE)
@click.argument("file", type=FILE, required=False)
@click.option("--name", help="What to call the new adapter.")
@click.option(
    "--kind", type=click.Choice(["classify", "generate"]), help="Default: as --after, or as the first example says."
)
@click.option("--prompt", help="The question, holding {text} once (default: that of --after, or the text alone).")
@click.option(
    "--choice",
    "choices",
    multiple=True,
    metavar="ANSWER",
    help="All answers (default: those of --after, or those in FILE).",
)
@click.option("--after", metavar="ADAPTER", help="Go on from this adapter: its question, answers and vectors.")
@click.option("--test", type=FILE, help="Examples to score the adapter on afterwards.")
@click.option("--validation", help="A share of the examples to hold back (0.2), or a file: the best state is kept.")
@click.option("--steps", type=click.IntRange(min=1), help="Updates (default: 96).")
@click.option("--batch-size", type=click.IntRange(min=1), help="Examples per update (default: 8).")
@click.option("--learning-rate", type=float, help="The highest (default: 0.02).")
@click.option("--patience", type=click.IntRange(min=1), help="Validations without a better one before it stops.")
@click.option("--max-length", type=click.IntRange(min=8), help="Tokens of prompt and answer (default: 256).")
@click.option("--max-new-tokens", type=click.IntRange(min=1), help="Of an answer, where the task generates.")
@click.option("--seed", type=int, default=0, show_default=True)
@click.option("--slots", type=click.IntRange(min=1), help="Tokens computed at once: fewer take less memory.")
@click.option("--threads", type=click.IntRange(min=1), help="Default: the physical cores.")
@click.option("--forget", metavar="NAME", help="Remove an adapter that was learned here, and all that was kept of it.")
@as_json
def learn(
    bundle: Path,
    file: Path | None,
    name: str | None,
    kind: Any,
    prompt: str | None,
    choices: tuple[str, ...],
    after: str | None,
    test: Path | None,
    validation: str | None,
    max_new_tokens: int | None,
    seed: int,
    slots: int | None,
    threads: int | None,
    forget: str | None,
    as_json: bool,
    **train: Any,
) -> None:
    """Learn an adapter from examples, on this device.

    FILE is JSON Lines as in a build file. The bundle needs a graph that learns (trainable = true in [export]). No torch,
    no network; the adapter is in the bundle afterwards. What was stopped goes on with the same command.
    """
    from qia3.learn import learn as work
    from qia3.learn.gradients import SLOTS
    from qia3.learn.lesson import Lesson

    if forget is not None:
        if file is not None or name is not None:
            raise ConfigError("--forget takes an adapter away: no FILE and no --name beside it")
        work.forget(bundle, forget)
        print_result({"forgotten": forget, "bundle": str(bundle)}, f"{forget} is gone from {bundle}", as_json)
        return
    if file is None or name is None:
        raise ConfigError("what to learn: a FILE of examples, and --name for the adapter")
    lesson = Lesson(
        name, file, kind, prompt, after, choices or None, max_new_tokens, seed, _settings(train, validation)
    )
    with progress_on_stderr():
        done = work.learn(bundle, lesson, test, slots or SLOTS, threads)
    facts = {"adapter": done.name, "bundle": str(done.bundle), "training": asdict(done.record)}
    told = f"{done.name} is in {done.bundle}: {done.record.steps} steps, {done.record.seconds:.0f} s"
    if done.score is not None:
        facts["score"] = done.score.to_dict()
        told += f"; {done.score.accuracy:.1%} of {done.score.n} right"
    print_result(facts, told, as_json)


def _settings(train: dict[str, Any], validation: str | None) -> Any:
    """A build file's [train] of what was given, over the preset for few examples."""
    from pydantic import ValidationError

    from qia3.recipe import Train

    given = {key: value for key, value in train.items() if value is not None}
    if validation is not None:
        share = validation.replace(".", "", 1).isdigit()
        given["validation"] = float(validation) if share else Path(validation)
    try:
        return Train(preset="short", **given)
    except ValidationError as error:
        first = error.errors()[0]
        place = "-".join(str(part) for part in first["loc"][:1]).replace("_", "-")
        raise ConfigError(f"--{place}: {first['msg'].removeprefix('Value error, ')}") from error
