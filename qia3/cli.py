"""The `qia3` command: one function per verb.

A verb reads its options, hands over to a room of the package and prints what comes back. Each imports what it needs
when it runs, so that `qia3 --help` is quick and the verbs of a device (run, eval, bench, report) never meet torch.

Results go to stdout, as text or, with --json, as JSON made from the same object; progress goes to stderr. What the user
can mend ends in one line on stderr, `qia3: ...`, and exit code 2; Ctrl-C in 130. QIA3_TRACEBACK=1 in the environment
shows the traceback instead.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from qia3 import __version__
from qia3.console import fact_lines, print_result, progress_on_stderr, run_command
from qia3.errors import ConfigError
from qia3.names import NONE

if TYPE_CHECKING:
    from qia3.bundle.task import Task
    from qia3.config import Build

Option = Callable[[Any], Any]

FILE = click.Path(path_type=Path)


def _example(*lines: str) -> str:
    """An epilog that shows how a verb is called."""
    return "\b\nExample:\n" + "\n".join(f"  {line}" for line in lines)


def _together(*options: Option) -> Option:
    """Several options as one decorator, in the order given."""

    def add(command: Any) -> Any:
        for option in reversed(options):
            command = option(command)
        return command

    return add


as_json = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
training_options = _together(
    click.option("--output", type=FILE, help="The bundle's folder (default: dist/NAME)."),
    click.option("--work", type=FILE, help="Where trained vectors and checkpoints are kept (default: OUTPUT.work)."),
    click.option("--seed", type=int, help="Instead of the build file's seed."),
    click.option(
        "--steps", type=click.IntRange(min=1), help="Optimiser updates, instead of the build file's [train] steps."
    ),
    click.option("--init-adapter", type=FILE, help="Start from this PEFT folder or .onnx_adapter, not from ones."),
)
many_at_once = _together(
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
export_options = _together(
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


decoding_options = _together(
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


@click.group(
    name="qia3",
    cls=Verbs,
    no_args_is_help=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog=_example("qia3 build examples/home-intents/qia3.toml"),
)
@click.version_option(__version__, prog_name="qia3")
def qia3() -> None:
    """4-bit language models, adapted to many tasks with IA³ vectors, shipped to small devices on ONNX Runtime."""


@qia3.command(
    epilog=_example("qia3 build examples/home-intents/qia3.toml", "qia3 build my.toml --mode merged --task intents")
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
    as_json: bool,
) -> None:
    """Make a bundle out of a build file.

    Quantises the base, trains each task, exports, checks parity and reports. FILE is TOML. A build that was stopped
    goes on from its last checkpoint.
    """
    from qia3.reporting import Shape, print_report

    plan = _plan(file, output, work, seed, steps, init_adapter, mode, task, target, cache)
    with progress_on_stderr():
        from qia3.build import build as make

        folder = make(plan, together, executor)
    print_report(folder, Shape(as_json))


@qia3.command(
    epilog=_example(
        "qia3 train examples/home-intents/qia3.toml --steps 60",
        "qia3 train my.toml --executor process:2",
        "qia3 train my.toml --executor dask://10.0.0.1:8786 --resume",
    )
)
@click.argument("file", type=FILE)
@training_options
@many_at_once
@click.option("--only", multiple=True, metavar="NAME", help="Train this task alone; may be given again.")
@click.option("--resume", is_flag=True, help="Refuse tasks that were begun for another plan, do not train them anew.")
@click.option("--scores/--no-scores", default=True, help="Of several tasks: try each on its test file, too.")
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

    Every task in FILE is trained; `qia3 export` goes on from there. Training that was stopped goes on from its last
    checkpoint, and what is done is kept; a task whose data or settings changed is trained anew, or refused with --resume.
    Where one of several tasks fails, the others are trained all the same. `accelerate launch --multi_gpu -m qia3 train
    FILE` splits each task over several processes; --executor spreads tasks.
    """
    from qia3.progress import is_main
    from qia3.reporting import print_training

    plan = _plan(file, output, work, seed, steps, init_adapter)
    with progress_on_stderr():
        from qia3.build import How
        from qia3.build import train as make

        outcomes = make(plan, How(only, executor, resume, scores, together))
    if is_main():
        print_training(outcomes, plan.work_folder, as_json)


@qia3.command(
    epilog=_example(
        "qia3 export examples/home-intents/qia3.toml --target ort-exact",
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
    as_json: bool,
) -> None:
    """Make a bundle of trained vectors.

    Takes what `qia3 train` left and makes the graph, checks parity, reports and writes the bundle.
    """
    from qia3.reporting import Shape, print_report

    plan = _plan(file, output, work, seed, steps, init_adapter, mode, task, target, cache)
    with progress_on_stderr():
        from qia3.build import export as make

        folder = make(plan)
    print_report(folder, Shape(as_json))


@qia3.command(epilog=_example('qia3 run dist/home-intents "could you dim the hall a bit"'))
@click.argument("bundle", type=FILE)
@click.argument("text")
@click.option(
    "--adapter",
    metavar="NAME",
    help="Which vectors to use; 'none' is the base model. The only one, where there is one.",
)
@click.option("--task", metavar="NAME", help="Whose prompt to use (default: the adapter's).")
@click.option("--max-new-tokens", type=click.IntRange(min=1), help="At most so many tokens (default: the task's).")
@click.option(
    "--choice",
    "choices",
    multiple=True,
    metavar="ANSWER",
    help="An answer to rank, given once for each (default: the task's).",
)
@click.option("--embed", is_flag=True, help="Print the text's embedding, as JSON (of an encoder).")
@click.option(
    "--packed",
    type=FILE,
    metavar="FOLDER",
    help="Keep the weights there as this processor wants them, and map them: less memory held.",
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

    Prints a label where the task classifies, each word and its label where it labels words, text as it comes where it
    generates, and an embedding where an encoder has no task.
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
        raise ConfigError(f"{bundle} is no encoder: --embed is for one")
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
    """Raises ConfigError for options that a task of this kind has no use for, and choices that are none. `generating`
    are those of a task that generates, by name; None: not given.
    """
    if task.kind == "embed" and choices:
        raise ConfigError("an embedding has no choices: --choice is for a task that classifies")
    if task.kind == "token-classification" and choices:
        raise ConfigError(f"task {task.name!r} labels words: --choice is for a task that classifies")
    if task.kind == "generate":
        if choices:
            raise ConfigError(f"task {task.name!r} generates text: --choice is for a task that classifies")
        return
    for name, value in generating.items():
        if value is not None:
            does = {"embed": "gives an embedding", "classify": "classifies"}.get(task.kind, "labels words")
            raise ConfigError(f"task {task.name!r} {does}: --{name} is for a task that generates")
    if not all(choice.strip() for choice in choices):
        raise ConfigError("--choice is an answer, and one of them is empty")
    if doubled := sorted({choice for choice in choices if choices.count(choice) > 1}):
        raise ConfigError(f"--choice {doubled[0]!r} is given twice; each answer is given once")
    if len(choices) == 1:
        raise ConfigError(f"--choice {choices[0]!r} is the only one: nothing to tell apart; give each answer")


@qia3.command(
    name="eval", epilog=_example("qia3 eval dist/home-intents examples/home-intents/test.jsonl --adapter home-intents")
)
@click.argument("bundle", type=FILE)
@click.argument("file", type=FILE)
@click.option("--adapter", metavar="NAME", required=True, help="Which vectors to use; 'none' is the base model.")
@click.option("--task", metavar="NAME", help="Whose prompt and choices to use (default: the adapter's).")
@click.option("--json", "one_line", is_flag=True, help="The JSON on one line.")
def evaluate(bundle: Path, file: Path, adapter: str, task: str | None, one_line: bool) -> None:
    """Measure accuracy on examples.

    FILE is JSON Lines as in the build. Prints one JSON object: accuracy, n and what belongs to the task.
    """
    from qia3.bundle.opened import Bundle
    from qia3.progress import bar
    from qia3.runtime.adapters import AdapterBank
    from qia3.runtime.evaluate import evaluate as work
    from qia3.runtime.load import open_engine

    opened = Bundle.open(bundle)
    bank = AdapterBank(opened)
    bank.vectors(adapter)  # a wrong name is told before the graph is loaded
    result = work(open_engine(opened), bank, file, adapter, task, partial(bar, title="evaluating")).to_dict()
    click.echo(json.dumps(result, indent=None if one_line else 2, ensure_ascii=False))


@qia3.command(epilog=_example("qia3 bench dist/home-intents", "qia3 bench --calibrate"))
@click.argument("bundle", type=FILE, required=False)
@click.option("--adapter", metavar="NAME", help="Which vectors to use (default: none).")
@click.option(
    "--calibrate", is_flag=True, help="Measure what this machine does with 4-bit graphs, for `--device here`."
)
@click.option("--output", type=FILE, metavar="FILE", help="With --calibrate: write the device profile there.")
@as_json
def bench(bundle: Path | None, adapter: str | None, calibrate: bool, output: Path | None, as_json: bool) -> None:
    """Measure load time, memory and speed, of a bundle or of this machine.

    BUNDLE runs in a process of its own, so that the figures are its own. With --calibrate small graphs run instead, for
    a minute, and what they give is kept as a device profile: `qia3 report MODEL --device here` estimates with it.
    """
    from qia3.bundle.checked import encode
    from qia3.bundle.opened import Bundle
    from qia3.footprint.measure import measure
    from qia3.runtime.adapters import AdapterBank

    if (bundle is None) is not calibrate:
        raise ConfigError("qia3 bench: name a bundle, or --calibrate this machine, one of the two")
    if bundle is None:
        from qia3.footprint.calibrated import calibrate as work
        from qia3.footprint.calibrated import calibration_text

        done = work(output)
        print_result(asdict(done) | {"device": done.device.model_dump(mode="json")}, calibration_text(done), as_json)
        return
    if output is not None:
        raise ConfigError("--output is for --calibrate")
    AdapterBank(Bundle.open(bundle)).vectors(adapter)  # mistakes are told here, not by the other process
    figures = encode(measure(bundle, adapter))
    print_result(figures, fact_lines(figures), as_json)


@qia3.command(
    epilog=_example(
        "qia3 report dist/home-intents",
        "qia3 report Qwen/Qwen3-0.6B --device raspberry-pi-5 --context 1024",
        "qia3 report my-model/config.json --must-fit ./my-board.toml",
        "qia3 report dist/home-intents --html home-intents.html",
        "qia3 report --compare dist/home-intents Qwen/Qwen3-0.6B",
    )
)
@click.argument("things", nargs=-1, required=True, metavar="BUNDLE | MODEL")
@click.option("--compare", "comparing", is_flag=True, help="Two of them, side by side.")
@click.option("--device", "names", multiple=True, metavar="NAME", help="Does it fit there; may be given again.")
@click.option("--must-fit", multiple=True, metavar="NAME", help="As --device, and exit 3 if it does not fit.")
@click.option(
    "--context", "contexts", multiple=True, type=click.IntRange(min=1), help="Of a MODEL: tokens; may be given again."
)
@click.option("--batch", type=click.IntRange(min=1), default=1, help="Of a MODEL: rows that run at once.")
@click.option("--html", type=FILE, metavar="FILE", help="Write it as one HTML file, with charts.")
@click.option("--markdown", is_flag=True, help="Print Markdown.")
@as_json
def report(
    things: tuple[str, ...],
    comparing: bool,
    names: tuple[str, ...],
    must_fit: tuple[str, ...],
    contexts: tuple[int, ...],
    batch: int,
    html: Path | None,
    markdown: bool,
    as_json: bool,
) -> None:
    """Say where the bytes are, of a bundle or of a model before it is built.

    BUNDLE: what was measured when it was built. MODEL: a folder, its config.json, a .gguf file or a hub's name, of which no
    weight is read: parameters, bytes in each form, memory, training, many tasks, and devices.
    """
    from qia3.bundle.folder import is_or_was_bundle
    from qia3.footprint.devices import load_device
    from qia3.reporting import Shape, print_comparison, print_model, print_report

    shape = Shape(as_json, html, markdown)
    known = {name: load_device(name) for name in (*names, *must_fit)}
    devices, wanted = list(known.values()), {known[name].name for name in must_fit}
    if len(things) != (2 if comparing else 1):
        raise ConfigError("qia3 report takes one bundle or model; with --compare two of them")
    if comparing:
        print_comparison(things, contexts, batch, devices, wanted, shape)
        return
    (what,) = things
    if is_or_was_bundle(Path(what)):
        if contexts or batch > 1:
            raise ConfigError("--context and --batch are for a model that is not built; a bundle has its own")
        print_report(Path(what), shape, devices, wanted)
        return
    print_model(what, contexts, batch, devices, wanted, shape)


@qia3.command(
    epilog=_example(
        "qia3 serve dist/home-intents",
        "qia3 serve dist/home-intents --adapters my-adapters --rows 16 --context 1024 --key-file keys.txt",
        "qia3 serve dist/home-intents dist/sentences",
    )
)
@click.argument("bundles", type=FILE, nargs=-1, required=True, metavar="BUNDLE...")
@click.option("--host", default="127.0.0.1", show_default=True, help="Where to listen.")
@click.option("--port", type=click.IntRange(0, 65535), default=8080, show_default=True)
@click.option("--rows", type=click.IntRange(1, 256), default=8, show_default=True, help="Requests that write at once.")
@click.option("--context", type=click.IntRange(min=1), help="Positions of a row (default: the bundle's context).")
@click.option("--queue", type=click.IntRange(1, 100_000), default=64, show_default=True, help="Requests that may wait.")
@click.option(
    "--adapters", help="A folder, or a store's URL, of adapters that come and go, as `adapter export` writes them."
)
@click.option(
    "--adapter-memory", type=click.FloatRange(min=0), default=256, show_default=True, help="MiB of adapters that stay."
)
@click.option("--deadline", type=click.FloatRange(min=0.1), default=120, show_default=True, help="Seconds per request.")
@click.option("--key-file", type=FILE, help="API keys, one on a line; one of them is asked for.")
@click.option("--threads", type=click.IntRange(min=1), help="Of the model (default: the physical cores).")
def serve(bundles: tuple[Path, ...], deadline: float, **options: Any) -> None:
    """Answer for all tasks at once, over HTTP, as OpenAI's API does.

    Each adapter is a model, and a bundle's name is its base; of several bundles, BUNDLE:ADAPTER says which. Requests of
    several tasks share every step.
    """
    try:
        from qia3.server.app import Limits
        from qia3.server.run import Options
        from qia3.server.run import serve as work
    except ModuleNotFoundError as error:
        if error.name not in ("starlette", "uvicorn", "prometheus_client"):
            raise
        raise ConfigError(f"qia3 serve needs {error.name}: pip install 'qia3[serve]'") from error

    work(bundles, Options(**options, limits=Limits(deadline=deadline)))


@qia3.group(cls=Verbs, no_args_is_help=False, epilog=_example("qia3 adapter info dist/home-intents:home-intents"))
def adapter() -> None:
    """Describe, import and export adapters."""


@adapter.command(
    name="info", epilog=_example("qia3 adapter info dist/home-intents:home-intents", "qia3 adapter info my-peft-ia3")
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
    "; it came without a task.json, so its task here is to generate, with the base's plain prompt "
    "(`qia3 adapter export` shows what a task.json looks like)"
)


@adapter.command(name="import", epilog=_example("qia3 adapter import dist/home-intents my-peft-ia3 --name garden"))
@click.argument("bundle", type=FILE)
@click.argument("peft_folder", type=FILE)
@click.option("--name", required=True, help="What to call it in the bundle.")
@as_json
def adapter_import(bundle: Path, peft_folder: Path, name: str, as_json: bool) -> None:
    """Add a PEFT IA³ adapter to a bundle."""
    from qia3.adapters import import_adapter as work

    done = work(bundle, peft_folder, name)
    facts = {"adapter": name, "path": str(done.bundle), "task": done.task.to_json(), "own_task": done.has_own_task}
    print_result(facts, f"{name} is in {done.bundle}{'' if done.has_own_task else PLAIN_TASK}", as_json)


@adapter.command(name="export", epilog=_example("qia3 adapter export dist/home-intents home-intents my-peft-ia3"))
@click.argument("bundle", type=FILE)
@click.argument("name")
@click.argument("folder", type=FILE)
@as_json
def adapter_export(bundle: Path, name: str, folder: Path, as_json: bool) -> None:
    """Write an adapter as a PEFT folder."""
    from qia3.adapters import export_adapter as work

    path = work(bundle, name, folder)
    print_result({"adapter": name, "path": str(path)}, f"{name} is in {path}", as_json)


@qia3.command(epilog=_example("qia3 targets"))
@as_json
def targets(as_json: bool) -> None:
    """List what a graph can be written for."""
    from qia3.targets import all_targets

    found = all_targets()
    tested = {t.name: ", ".join(t.tested_on) or "nothing yet" for t in found}
    kinds = {
        t.name: f"accuracy_level {t.accuracy_level}; vectors {t.vectors}; tested on {tested[t.name]}" for t in found
    }
    lines = [(f"{t.name:<12}{t.description}", t.note, kinds[t.name]) for t in found]
    print_result(
        [t.model_dump(mode="json") for t in found], "\n".join(f"\n{'':12}".join(entry) for entry in lines), as_json
    )


@qia3.command(
    epilog=_example(
        "qia3 devices",
        "qia3 devices show raspberry-pi-5",
        "qia3 devices dist/home-intents --device here --device ./my.toml --json",
    )
)
@click.argument("words", nargs=-1, metavar="[BUNDLE | show NAME...]")
@click.option("--device", "names", multiple=True, metavar="NAME", help="Only this one; may be given again.")
@as_json
def devices(words: tuple[str, ...], names: tuple[str, ...], as_json: bool) -> None:
    """List devices, explain one, and whether a bundle fits.

    With BUNDLE: does it fit each device, and in what range may its speed be. With `show`: each figure with its source
    and how far to trust it. A NAME is one that is listed, `here` (this machine, probed) or a TOML file by its path.
    """
    from qia3.footprint.devices import load_device, load_devices
    from qia3.footprint.devices_page import device_text, devices_section, estimates_section
    from qia3.footprint.estimate import estimate
    from qia3.footprint.here import HERE
    from qia3.printers.terminal import section_text
    from qia3.reporting import report_of
    from qia3.targets import load_target

    showing = words[:1] == ("show",)
    if not showing and len(words) > 1:
        raise ConfigError("qia3 devices takes one bundle; to explain devices, qia3 devices show NAME...")
    asked = (*words[1:], *names) if showing else names
    if showing and not asked:
        raise ConfigError("qia3 devices show: name a device; `qia3 devices` lists them")
    report = report_of(Path(words[0])) if words and not showing else None
    known = [load_device(name) for name in asked] if asked else [load_device(HERE), *load_devices()]
    if report is not None:
        found = [estimate(device, report) for device in known]
        print_result([asdict(e) for e in found], section_text(estimates_section(found)), as_json)
        return
    text = (
        "\n\n".join(device_text(d, load_target(d.target)) for d in known)
        if showing
        else section_text(devices_section(known))
    )
    print_result([d.model_dump(mode="json") for d in known], text, as_json)


def _plan(
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
) -> Build:
    """The build file with the options laid over it, its target known to exist."""
    from qia3.config import read_build
    from qia3.targets import load_target

    overrides = {
        "export.mode": mode,
        "export.merge_task": task,
        "export.target": target,
        "export.cache": cache,
        "train.steps": steps,
        "seed": seed,
    }
    start = (
        None if init_adapter is None else str(init_adapter.absolute())
    )  # a path on the command line is relative to where one stands
    folders = {name: None if folder is None else str(folder) for name, folder in (("output", output), ("work", work))}
    plan = read_build(file, **overrides, **{"train.init_adapter": start}, **folders)
    if task is not None and plan.export.mode != "merged":
        raise ConfigError("--task names the task to merge: it needs --mode merged")
    load_target(plan.export.target)
    return plan


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point of the command: never returns."""
    sys.exit(run_command(qia3, sys.argv[1:] if arguments is None else arguments))
