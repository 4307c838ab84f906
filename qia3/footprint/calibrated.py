"""This machine as measured: the terms that an estimate needs, fitted to graphs that were run (qia3.runtime.calibrate).

    seconds per token  = streamed bytes / bandwidth + nodes x seconds per node
    seconds per prompt = operations / operations per second + outputs x seconds per output + nodes x seconds per node

Two graphs give two equations each: the narrow one has few bytes and many nodes, the wide one many bytes and few nodes.
The fit is checked on a third graph, and the error is stored in the profile. Floats are a separate chain of products.
Loading is packing: bytes held divided by seconds.

The profile is a device profile like those that ship (device.py). It is stored in the user's data folder, and `--device
here` takes its figures from there if it belongs to this processor; memory is probed each time.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import platformdirs

from qia3 import machine
from qia3.bundle.manifest import Layer
from qia3.bundle.records import Measured
from qia3.errors import ConfigError
from qia3.footprint.device import Device, Figure, Words, parse_device
from qia3.footprint.here import probe
from qia3.footprint.kernels import KernelBytes, kernel_bytes, kernel_for
from qia3.parse import parse_json, read_text
from qia3.storage import writing

COMMAND = "qia3 bench --calibrate"
LARGEST = 2**20
LEAST = 1e-12  # seconds per output, if it is too small to measure
APART = 0.3  # a larger error on the third graph means that the machine was busy
TAKEN = (
    *("decode_bandwidth_low_bytes_per_second", "decode_bandwidth_high_bytes_per_second", "node_seconds"),
    *("float_bandwidth_bytes_per_second", "product_operations_per_second", "output_seconds"),
    *("load_bytes_per_second", "process_held_bytes", "process_mapped_bytes"),
)


@dataclass(frozen=True)
class Terms:
    """The fitted terms. Errors: for the third graph's token and prompt, predicted / measured - 1."""

    bandwidth_bytes_per_second: float
    float_bandwidth_bytes_per_second: float
    node_seconds: float
    operations_per_second: float
    output_seconds: float
    load_bytes_per_second: float
    error: float
    prompt_error: float


@dataclass(frozen=True)
class Calibration:
    """`device` is the profile; `stacks` what was run, by name: bytes, nodes and seconds."""

    device: Device
    terms: Terms
    stacks: Sequence[Mapping[str, Any]]
    threads: int
    path: Path


def stored_path() -> Path:
    return Path(platformdirs.user_data_path("qia3", appauthor=False)) / "here.toml"


def calibrate(output: Path | None = None, threads: int | None = None) -> Calibration:
    """Runs for about a minute, writes the profile and returns it. Raises ConfigError if that fails."""
    command = [sys.executable, "-m", "qia3.runtime.calibrate", "--json"]
    command += [] if threads is None else ["--threads", str(threads)]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    if run.returncode:
        reason = (run.stderr.strip().splitlines() or [f"exit code {run.returncode} without a message"])[-1]
        raise ConfigError(f"calibrating failed: {reason.removeprefix('qia3: ')}")
    figures = parse_json(run.stdout)
    here = probe()
    terms = fitted(figures, kernel_for(here.family, here.isa.value))
    device = profile(here, figures, terms)
    path = output or stored_path()
    with writing(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(to_toml(device), encoding="utf-8")
    return Calibration(device, terms, figures["stacks"], figures["threads"], path)


def fitted(figures: Mapping[str, Any], kernel: str) -> Terms:
    """The fitted terms. Raises ConfigError if they cannot be separated, as on a busy machine."""
    found = {stack["name"]: (stack, _bytes(stack, figures["block"], kernel)) for stack in figures["stacks"]}
    (narrow, few), (wide, many), (third, some) = (found[name] for name in ("narrow", "wide", "between"))
    rate, node = _solved(
        (few.streamed_bytes, narrow["nodes"], narrow["token_seconds"]),
        (many.streamed_bytes, wide["nodes"], wide["token_seconds"]),
    )
    speed, output = _prompt_terms(*(_prompt(stack, node, figures["prompt_tokens"]) for stack in (narrow, wide)))
    operations, outputs, rest = _prompt(third, node, figures["prompt_tokens"])
    floats = figures["floats"]
    return Terms(
        bandwidth_bytes_per_second=rate,
        float_bandwidth_bytes_per_second=floats["bytes"] / max(floats["token_seconds"] - floats["nodes"] * node, 1e-9),
        node_seconds=node,
        operations_per_second=speed,
        output_seconds=output,
        load_bytes_per_second=many.held_bytes / wide["load_seconds"],
        error=(some.streamed_bytes / rate + third["nodes"] * node) / third["token_seconds"] - 1,
        prompt_error=(operations / speed + outputs * output) / rest - 1,
    )


def _prompt(stack: Mapping[str, Any], node: float, tokens: int) -> tuple[float, float, float]:
    """Operations and outputs of a prompt's products, and its seconds without the nodes' share."""
    numbers, outputs = (sum(each) for each in zip(*((k * n, n) for k, n in stack["linears"]), strict=True))
    (inputs, words), rows = stack["head"], tokens * stack["layers"]  # the head runs once
    return (
        2 * (rows * numbers + inputs * words),
        rows * outputs + words,
        stack["prompt_seconds"] - stack["nodes"] * node,
    )


def _solved(narrow: tuple[float, float, float], wide: tuple[float, float, float]) -> tuple[float, float]:
    """Bytes per second and seconds per node (or operations and outputs), from two equations (Cramer's rule)."""
    (b, n, t), (c, m, u) = narrow, wide
    below = b * m - c * n
    per_byte, per_node = (t * m - u * n) / below, (b * u - c * t) / below
    if per_byte <= 0 or per_node <= 0:
        raise ConfigError(
            "the figures contradict each other, as on a busy machine; close other programs and calibrate again"
        )
    return 1 / per_byte, per_node


def _prompt_terms(narrow: tuple[float, float, float], wide: tuple[float, float, float]) -> tuple[float, float]:
    """Operations per second and seconds per output; if small products run as fast as large ones, an output costs
    nothing.
    """
    try:
        return _solved(narrow, wide)
    except ConfigError:
        return wide[0] / max(wide[2], 1e-9), LEAST


def _bytes(stack: Mapping[str, Any], block: int, kernel: str) -> KernelBytes:
    linears = [
        Layer("", inputs, outputs, "", 4, "int4", block, False)
        for _ in range(stack["layers"])
        for inputs, outputs in stack["linears"]
    ]
    width, words = stack["head"]
    linears.append(Layer("", width, words, "", 4, "int4", block, False))
    return kernel_bytes(linears)[kernel]


def profile(here: Device, figures: Mapping[str, Any], terms: Terms) -> Device:
    """The profile: what was probed, and what was fitted."""
    told = f"{figures['threads']} threads, onnxruntime {version('onnxruntime')}"
    source = (f"{COMMAND}, {datetime.now(UTC):%Y-%m-%d}",)

    def figure(value: float, how: str) -> Figure:
        return Figure(value=float(f"{value:.4g}"), confidence="measured", source=source, how=f"{how}; {told}")

    rate = figure(terms.bandwidth_bytes_per_second, "two stacks of layers, one token at a time: bytes and nodes fitted")
    values = {
        "decode_bandwidth_low_bytes_per_second": rate,
        "decode_bandwidth_high_bytes_per_second": rate,
        "node_seconds": figure(terms.node_seconds, f"the same fit; error on a third stack: {terms.error:+.0%}"),
        "float_bandwidth_bytes_per_second": figure(
            terms.float_bandwidth_bytes_per_second, "float32 products, one token at a time, minus their nodes"
        ),
        "product_operations_per_second": figure(
            terms.operations_per_second,
            f"{figures['prompt_tokens']} rows of the same stacks, blocks of {figures['block']}: operations and outputs fitted",
        ),
        "output_seconds": figure(
            terms.output_seconds, f"the same fit; error on the third stack: {terms.prompt_error:+.0%}"
        ),
        "load_bytes_per_second": figure(terms.load_bytes_per_second, "bytes held over seconds of loading"),
    }
    held = {key: figures[key] for key in ("process_held_bytes", "process_mapped_bytes") if figures[key]}
    values |= {key: figure(size, "a tiny graph, run once") for key, size in held.items()}
    return here.model_copy(update={"title": machine.processor(), "name": "here", "notes": told, **values})


def with_calibration(here: Device) -> Device:
    """What was probed, with the figures of the stored profile if it belongs to this processor. Raises ConfigError."""
    path = stored_path()
    if not path.is_file():
        return here
    known = parse_device(path.stem, read_text(path, ConfigError, largest=LARGEST), str(path))
    if known.title != machine.processor() or known.isa.value != here.isa.value:
        return here.model_copy(
            update={"notes": f"{here.notes} {path} is for another processor ({known.title}) and was not used."}
        )
    return here.model_copy(update={key: getattr(known, key) for key in TAKEN})


def calibrated_for(measured: Measured) -> Device | None:
    """The stored profile, if it is for the machine of this measurement, with as many threads. Raises ConfigError."""
    path = stored_path()
    if not path.is_file():
        return None
    known = parse_device(path.stem, read_text(path, ConfigError, largest=LARGEST), str(path))
    same = measured.machine.startswith(f"{known.title}, ") and known.notes.startswith(f"{measured.threads} threads")
    return known if same else None


def to_toml(device: Device) -> str:
    """The profile as TOML text. JSON's strings, numbers and lists are valid TOML."""
    lines = [f"{key} = {json.dumps(getattr(device, key), ensure_ascii=False)}" for key in ("title", "family", "target")]
    lines += [f"notes = {json.dumps(device.notes, ensure_ascii=False)}"] if device.notes else []
    for key, entry in device.sourced.items():
        lines += ["", f"[{key}]", *_entry(entry)]
    return "\n".join(lines) + "\n"


def calibration_text(done: Calibration) -> str:
    """The result in words, and the path of the profile."""
    terms = done.terms
    busy = "\nThat is a large error: the machine was busy. Calibrate again." if abs(terms.error) > APART else ""
    return (
        f"4-bit weights are read at {terms.bandwidth_bytes_per_second / 1e9:.1f} GB/s and floats at "
        f"{terms.float_bandwidth_bytes_per_second / 1e9:.1f}, an operator takes {terms.node_seconds * 1e6:.1f} microseconds, "
        f"a prompt's products run at {terms.operations_per_second / 1e9:.0f} billion operations/s and "
        f"{terms.output_seconds * 1e9:.1f} nanoseconds per output ({done.threads} threads)\n"
        f"error on a graph that was not fitted: {terms.error:+.0%} per token, {terms.prompt_error:+.0%} for a "
        f"prompt{busy}\n"
        f"stored in {done.path}"
    )


def _entry(entry: Figure | Words) -> list[str]:
    return [
        f"{key} = {json.dumps(value, ensure_ascii=False)}"
        for key, value in entry.model_dump(mode="json").items()
        if value
    ]
