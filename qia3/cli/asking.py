"""run, eval and serve: a bundle's answers."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from qia3.cli.options import (
    FILE,
    as_json,
    decoding_options,
    example,
    serving,
)
from qia3.console import print_result
from qia3.errors import ConfigError
from qia3.names import NONE

if TYPE_CHECKING:
    from qia3.bundle.task import Task


@click.command(epilog=example('qia3 run dist/home-intents "could you dim the hall a bit"'))
@click.argument("bundle", type=FILE)
@click.argument("text")
@click.option(
    "--adapter",
    metavar="NAME",
    help="Which vectors to use; 'none' is the base model. Default: the only adapter, if there is just one.",
)
@click.option("--task", metavar="NAME", help="The task whose prompt to use (default: the adapter's).")
@click.option(
    "--max-new-tokens", type=click.IntRange(min=1), help="Maximum number of new tokens (default: the task's)."
)
@click.option(
    "--choice",
    "choices",
    multiple=True,
    metavar="ANSWER",
    help="Answer to rank; repeat the option for each (default: the task's choices).",
)
@click.option("--embed", is_flag=True, help="Print the text's embedding as JSON (encoders only).")
@click.option(
    "--packed",
    type=FILE,
    metavar="FOLDER",
    help="Cache the weights there, packed for this processor and memory-mapped: needs less memory.",
)
@decoding_options
@as_json
def run(
    bundle: Path,
    text: str,
    adapter: str | None,
    task: str | None,
    max_new_tokens: int | None,
    choices: tuple[str, ...],
    embed: bool,
    packed: Path | None,
    beams: int | None,
    length_penalty: float | None,
    temperature: float | None,
    top_k: int | None,
    top_p: float | None,
    seed: int | None,
    as_json: bool,
) -> None:
    """Ask a bundle one thing.

    Prints a label if the task classifies, each word with its label if it labels words, text as it is generated, or an
    embedding if an encoder has no task.
    """
    from qia3.bundle.opened import Bundle
    from qia3.bundle.task import TAGS
    from qia3.runtime.adapters import AdapterBank
    from qia3.runtime.answer import classify, label, reply, tag, task_of
    from qia3.runtime.decoding import Decoding
    from qia3.runtime.encoder import Encoder
    from qia3.runtime.load import open_engine
    from qia3.runtime.model import only_adapter
    from qia3.runtime.texts import embed_texts

    decoding = Decoding(
        beams or 1,
        1.0 if length_penalty is None else length_penalty,
        temperature=temperature,
        top_k=top_k or 0,
        top_p=1.0 if top_p is None else top_p,
        seed=seed,
    )
    opened = Bundle.open(bundle)
    name = adapter or (NONE if embed else only_adapter(opened))
    vectors = AdapterBank(opened).vectors(name)
    engine = open_engine(opened, packed=packed)
    if embed and not isinstance(engine, Encoder):
        raise ConfigError(f"--embed needs an encoder, and {bundle} is not one")
    job = task_of(engine, name, task)
    if isinstance(engine, Encoder) and (embed or job.kind == "embed"):
        _check_asked(
            replace(job, kind="embed"),
            choices,
            {"max-new-tokens": max_new_tokens, "beams": beams, "temperature": temperature},
        )
        click.echo(json.dumps([round(float(x), 6) for x in embed_texts(engine, [text], name)[0]]))
        return
    _check_asked(job, choices, {"max-new-tokens": max_new_tokens, "beams": beams, "temperature": temperature})
    facts: dict[str, Any] = {"adapter": name, "task": job.name}
    if job.kind == "classify":
        if not as_json:
            click.echo(label(engine, job, vectors, text, choices))
            return
        answer = classify(engine, job, vectors, text, choices)
        print_result(facts | {"label": answer.label, "scores": answer.scores}, answer.label, as_json)
        return
    if job.kind == TAGS:
        found = tag(engine, job, vectors, text)
        lines = "\n".join(f"{word}\t{tag_}" for word, tag_ in zip(found.words, found.labels, strict=True))
        print_result(facts | asdict(found), lines, as_json)
        return
    pieces = reply(engine, job, vectors, text, max_new_tokens, decoding)
    if as_json:
        print_result(facts | {"text": "".join(pieces)}, "", as_json)
        return
    for piece in pieces:
        click.echo(piece, nl=False)
    click.echo()


def _check_asked(task: Task, choices: Sequence[str], generating: Mapping[str, object]) -> None:
    """Raises ConfigError for options that do not apply to this kind of task, and for invalid choices. `generating` are
    the options for generation, by name; None: not given.
    """
    if task.kind == "embed" and choices:
        raise ConfigError("--choice needs a task that classifies; this one gives an embedding")
    if task.kind == "token-classification" and choices:
        raise ConfigError(f"--choice needs a task that classifies; {task.name!r} labels words")
    if task.kind == "generate":
        if choices:
            raise ConfigError(f"--choice needs a task that classifies; {task.name!r} generates text")
        return
    for name, value in generating.items():
        if value is not None:
            does = {"embed": "gives an embedding", "classify": "classifies"}.get(task.kind, "labels words")
            raise ConfigError(f"--{name} needs a task that generates; {task.name!r} {does}")
    if not all(choice.strip() for choice in choices):
        raise ConfigError("a --choice is empty; give an answer")
    if doubled := sorted({choice for choice in choices if choices.count(choice) > 1}):
        raise ConfigError(f"--choice {doubled[0]!r} is given twice; give each answer once")
    if len(choices) == 1:
        raise ConfigError(f"--choice {choices[0]!r} is the only one; give at least two")


@click.command(
    name="eval", epilog=example("qia3 eval dist/home-intents examples/home-intents/test.jsonl --adapter home-intents")
)
@click.argument("bundle", type=FILE)
@click.argument("file", type=FILE)
@click.option("--adapter", metavar="NAME", required=True, help="Which vectors to use; 'none' is the base model.")
@click.option("--task", metavar="NAME", help="The task whose prompt and choices to use (default: the adapter's).")
@click.option("--json", "one_line", is_flag=True, help="Print the JSON on one line.")
def evaluate(bundle: Path, file: Path, adapter: str, task: str | None, one_line: bool) -> None:
    """Measure accuracy on examples.

    FILE is JSON Lines as in the build. Prints one JSON object: accuracy, n, and the task's other scores.
    """
    from qia3.bundle.opened import Bundle
    from qia3.progress import bar
    from qia3.runtime.adapters import AdapterBank
    from qia3.runtime.evaluate import evaluate as work
    from qia3.runtime.load import open_engine

    opened = Bundle.open(bundle)
    bank = AdapterBank(opened)
    bank.vectors(adapter)  # reports a wrong name before the graph is loaded
    result = work(open_engine(opened), bank, file, adapter, task, partial(bar, title="evaluating")).to_dict()
    click.echo(json.dumps(result, indent=None if one_line else 2, ensure_ascii=False))


@click.command(
    epilog=example(
        "qia3 serve dist/home-intents",
        "qia3 serve dist/home-intents --adapters my-adapters --rows 16 --context 1024 --key-file keys.txt",
        "qia3 serve dist/home-intents dist/sentences",
    )
)
@click.argument("bundles", type=FILE, nargs=-1, required=True, metavar="BUNDLE...")
@click.option("--host", default="127.0.0.1", show_default=True, help="Where to listen.")
@click.option("--port", type=click.IntRange(0, 65535), default=8080, show_default=True)
@click.option(
    "--rows", type=click.IntRange(1, 256), default=8, show_default=True, help="Requests that generate at once."
)
@click.option("--context", type=click.IntRange(min=1), help="Positions per request (default: the bundle's context).")
@click.option("--queue", type=click.IntRange(1, 100_000), default=64, show_default=True, help="Requests that may wait.")
@click.option("--adapters", help="Folder or URL of adapters that may come and go, as written by `adapter export`.")
@click.option(
    "--adapter-memory",
    type=click.FloatRange(min=0),
    default=256,
    show_default=True,
    help="MiB of adapters to keep in memory.",
)
@click.option("--deadline", type=click.FloatRange(min=0.1), default=120, show_default=True, help="Seconds per request.")
@click.option("--key-file", type=FILE, help="File of API keys, one per line; requests must carry one.")
@click.option("--threads", type=click.IntRange(min=1), help="Threads of the model (default: the physical cores).")
def serve(bundles: tuple[Path, ...], deadline: float, **options: Any) -> None:
    """Serve all tasks at once over HTTP, with OpenAI's API.

    Each adapter is a model, and the bundle's name is the base model; with several bundles, use BUNDLE:ADAPTER. Requests
    for several tasks share every step.
    """
    with serving("serve"):
        from qia3.server.app import Limits
        from qia3.server.run import Options
        from qia3.server.run import serve as work

    work(bundles, Options(**options, limits=Limits(deadline=deadline)))
