"""Small devices, one TOML file each in devices/ (shipped as qia3.devices), and what a bundle may do on them.

    title = "Raspberry Pi 5 (8 GB)"
    family = "arm"                                             x64, arm or wasm: which kernels ONNX Runtime has there
    ram_bytes = { value = 8_589_934_592, source = "..." }      every figure has its source: a URL, a thread, "arithmetic: ..." or
    isa = { value = ["neon", "dotprod"], source = "..." }        "general knowledge, no document found". What is unknown is left out.

The estimate is a roofline. Decoding one token reads every packed weight once:

    seconds a token = streamed bytes / (efficiency * peak bandwidth) + nodes * seconds a node

with the bytes of the kernel that the device would run (kernels.py) and an efficiency taken from published llama.cpp
figures: one to three runs a device. So the answer is a range, 40 % around what the lowest and highest efficiency give,
and never a benchmark. Without a published efficiency there is only a ceiling, the speed at the full peak bandwidth.
Prompts are bound by arithmetic and are not predicted.
"""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from qia3.errors import ConfigError
from qia3.footprint.kernels import KernelBytes
from qia3.footprint.report import Report
from qia3.profiles import profile_names, profile_text

UNCERTAINTY = 0.4
NODE_SECONDS = {"x64": 1e-6, "arm": 4e-6}  # measured on x64 with onnxruntime 1.32; on ARM a guess of 3 to 5 times that


class Entry(BaseModel):
    """A part of a profile: unknown keys are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Figure(Entry):
    """A number and where it is from."""

    value: float = Field(gt=0)
    source: str = Field(min_length=8)


class Words(Entry):
    """Names and where they are from."""

    value: tuple[str, ...] = Field(min_length=1)
    source: str = Field(min_length=8)


class Device(Entry):
    """One device.

    None: unknown. `usable_ram_bytes` is what one application may take. Bandwidth: the peak of the memory; measured by
    memcpy, by memset, and sustained by a model. `efficiency_low` and `_high`: the share of the peak that published
    decoding reached.
    """

    name: str
    title: str
    family: Literal["x64", "arm", "wasm"]
    notes: str = ""
    ram_bytes: Figure
    usable_ram_bytes: Figure | None = None
    bandwidth_peak_bytes_per_second: Figure | None = None
    bandwidth_measured_copy_bytes_per_second: Figure | None = None
    bandwidth_measured_fill_bytes_per_second: Figure | None = None
    bandwidth_measured_sustained_bytes_per_second: Figure | None = None
    efficiency_low: Figure | None = None
    efficiency_high: Figure | None = None
    cores: Words | None = None
    isa: Words


@dataclass(frozen=True)
class Estimate:
    """What a bundle may do on a device: arithmetic, not a measurement.

    Speeds are None where no figure was published to reckon from.

    `needed_ram_bytes`: held and mapped weights, one row's cache at the full context, and, if the bundle was measured,
    what its process held beyond its weights. `fits` compares it with what an application may take, or, where that is
    unknown, with all the memory.
    """

    device: str
    kind: str
    fits: bool
    needed_ram_bytes: int
    usable_ram_bytes: int
    streamed_bytes_per_token: int
    decode_tokens_per_second_low: float | None
    decode_tokens_per_second_high: float | None
    decode_tokens_per_second_ceiling: float | None


def load_device(name: str) -> Device:
    """The profile called `name`. Raises ConfigError with the nearest name where there is none."""
    return parse_device(name, profile_text("qia3.devices", name, "device"))


def load_devices() -> list[Device]:
    """Every device, in order of name."""
    return [load_device(name) for name in profile_names("qia3.devices")]


def parse_device(name: str, text: str) -> Device:
    """A profile's text. Raises ConfigError on one that is malformed."""
    try:
        return Device.model_validate({**tomllib.loads(text), "name": name})
    except (tomllib.TOMLDecodeError, ValidationError) as error:
        raise ConfigError(f"the device profile {name}.toml is malformed: {error}") from error


def estimate(device: Device, report: Report) -> Estimate:
    """Does the bundle fit, and in what range may it decode, with one row and a short context."""
    kernel = _kernel(device, report)
    usable = int((device.usable_ram_bytes or device.ram_bytes).value)
    memory = report.memory
    caches = memory.kv_cache_bytes + memory.cross_cache_bytes
    needed = kernel.held_bytes + memory.mapped_bytes + caches + _process_bytes(report)
    low, high = ((None if share is None else share.value) for share in (device.efficiency_low, device.efficiency_high))
    return Estimate(
        device=device.name,
        kind="estimate",
        fits=needed <= usable,
        needed_ram_bytes=needed,
        usable_ram_bytes=usable,
        streamed_bytes_per_token=kernel.streamed_bytes,
        decode_tokens_per_second_low=_rounded(_tokens(device, report, kernel, low), 1 - UNCERTAINTY),
        decode_tokens_per_second_high=_rounded(_tokens(device, report, kernel, high), 1 + UNCERTAINTY),
        decode_tokens_per_second_ceiling=_rounded(_tokens(device, report, kernel, 1.0), 1.0),
    )


def _kernel(device: Device, report: Report) -> KernelBytes:
    """The kernel that ONNX Runtime would run there."""
    kernels = report.memory.kernels
    if device.family == "x64":
        return kernels[report.memory.kernel_here]
    packed = report.graph.accuracy_level == 4 and "dotprod" in device.isa.value and "kleidiai" in kernels
    return kernels["kleidiai" if packed else "float32"]


def _process_bytes(report: Report) -> int:
    """What the measured process held beyond its weights; 0 where it was not measured."""
    measured = report.measured.peak_resident_bytes if report.measured else None
    weights = report.memory.kernels[report.memory.kernel_here].held_bytes + report.memory.mapped_bytes
    return max(0, measured - weights) if measured else 0


def _tokens(device: Device, report: Report, kernel: KernelBytes, efficiency: float | None) -> float | None:
    """Tokens per second; None without a peak bandwidth or an efficiency."""
    peak = device.bandwidth_peak_bytes_per_second
    if peak is None or efficiency is None or device.family not in NODE_SECONDS:
        return None
    return 1 / (kernel.streamed_bytes / (efficiency * peak.value) + report.memory.nodes * NODE_SECONDS[device.family])


def _rounded(value: float | None, factor: float) -> float | None:
    return None if value is None else float(f"{value * factor:.2g}")
