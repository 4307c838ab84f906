"""bench, report, targets and devices: facts about a model or a machine, and what things cost."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from qia3.cli.options import (
    FILE,
    as_json,
    example,
)
from qia3.console import fact_lines, print_result
from qia3.errors import ConfigError

if TYPE_CHECKING:
    pass


@click.command(epilog=example("qia3 bench dist/home-intents", "qia3 bench --calibrate"))
@click.argument("bundle", type=FILE, required=False)
@click.option("--adapter", metavar="NAME", help="Which vectors to use (default: none).")
@click.option("--calibrate", is_flag=True, help="Measure this machine with small 4-bit graphs, for `--device here`.")
@click.option("--output", type=FILE, metavar="FILE", help="With --calibrate: write the device profile there.")
@as_json
def bench(bundle: Path | None, adapter: str | None, calibrate: bool, output: Path | None, as_json: bool) -> None:
    """Measure load time, memory and speed, of a bundle or of this machine.

    BUNDLE runs in a separate process, so that the figures are its own. With --calibrate, small graphs run for a minute
    instead, and the result is stored as a device profile: `qia3 report MODEL --device here` uses it.
    """
    from qia3.bundle.checked import encode
    from qia3.bundle.opened import Bundle
    from qia3.footprint.measure import measure
    from qia3.runtime.adapters import AdapterBank

    if (bundle is None) is not calibrate:
        raise ConfigError("qia3 bench needs either a bundle or --calibrate")
    if bundle is None:
        from qia3.footprint.calibrated import calibrate as work
        from qia3.footprint.calibrated import calibration_text

        done = work(output)
        print_result(asdict(done) | {"device": done.device.model_dump(mode="json")}, calibration_text(done), as_json)
        return
    if output is not None:
        raise ConfigError("--output needs --calibrate")
    AdapterBank(Bundle.open(bundle)).vectors(adapter)  # report errors here, not in the other process
    figures = encode(measure(bundle, adapter))
    print_result(figures, fact_lines(figures), as_json)


@click.command(
    epilog=example(
        "qia3 report dist/home-intents",
        "qia3 report Qwen/Qwen3-0.6B --device raspberry-pi-5 --context 1024",
        "qia3 report my-model/config.json --must-fit ./my-board.toml",
        "qia3 report dist/home-intents --html home-intents.html",
        "qia3 report --compare dist/home-intents Qwen/Qwen3-0.6B",
    )
)
@click.argument("things", nargs=-1, required=True, metavar="BUNDLE | MODEL")
@click.option("--compare", "comparing", is_flag=True, help="Compare two, side by side.")
@click.option("--device", "names", multiple=True, metavar="NAME", help="Device to check; can be repeated.")
@click.option("--must-fit", multiple=True, metavar="NAME", help="Like --device, but exit with 3 if it does not fit.")
@click.option(
    "--context",
    "contexts",
    multiple=True,
    type=click.IntRange(min=1),
    help=("For a MODEL: context length in tokens; can be repeated."),
)
@click.option("--batch", type=click.IntRange(min=1), default=1, help="For a MODEL: rows that run at once.")
@click.option("--html", type=FILE, metavar="FILE", help="Write one HTML file, with charts.")
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
    """Show where the bytes go, for a bundle or for a model before it is built.

    BUNDLE: what was measured when it was built. MODEL: a folder, its config.json, a .gguf file or a hub id; no weights
    are read: parameters, bytes in each form, memory, training, many tasks, and devices.
    """
    from qia3.bundle.folder import is_or_was_bundle
    from qia3.footprint.devices import load_device
    from qia3.reporting import Shape, print_comparison, print_model, print_report

    shape = Shape(as_json, html, markdown)
    known = {name: load_device(name) for name in (*names, *must_fit)}
    devices, wanted = list(known.values()), {known[name].name for name in must_fit}
    if len(things) != (2 if comparing else 1):
        raise ConfigError("qia3 report takes one bundle or model, or two with --compare")
    if comparing:
        print_comparison(things, contexts, batch, devices, wanted, shape)
        return
    (what,) = things
    if is_or_was_bundle(Path(what)):
        if contexts or batch > 1:
            raise ConfigError("--context and --batch are for a model that is not built; a bundle has fixed values")
        print_report(Path(what), shape, devices, wanted)
        return
    print_model(what, contexts, batch, devices, wanted, shape)


@click.command(epilog=example("qia3 targets"))
@as_json
def targets(as_json: bool) -> None:
    """List the export targets."""
    from qia3.targets import all_targets

    found = all_targets()
    tested = {t.name: ", ".join(t.tested_on) or "nothing yet" for t in found}
    kinds = {
        t.name: f"accuracy_level {t.accuracy_level}; vectors {t.vectors}; tested on {tested[t.name]}" for t in found
    }
    lines = [(f"{t.name:<13}{t.description}", t.note, kinds[t.name]) for t in found]
    print_result(
        [t.model_dump(mode="json") for t in found], "\n".join(f"\n{'':13}".join(entry) for entry in lines), as_json
    )


@click.command(
    epilog=example(
        "qia3 devices",
        "qia3 devices show raspberry-pi-5",
        "qia3 devices dist/home-intents --device here --device ./my.toml --json",
    )
)
@click.argument("words", nargs=-1, metavar="[BUNDLE | show NAME...]")
@click.option("--device", "names", multiple=True, metavar="NAME", help="Only this device; can be repeated.")
@as_json
def devices(words: tuple[str, ...], names: tuple[str, ...], as_json: bool) -> None:
    """List devices, explain one, or check whether a bundle fits.

    With BUNDLE: whether it fits each device, and the likely range of its speed. With `show`: each figure with its source
    and how far to trust it. A NAME is a listed device, `here` (this machine, probed) or the path of a TOML file.
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
        raise ConfigError("qia3 devices takes one bundle; to explain devices, use qia3 devices show NAME...")
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
