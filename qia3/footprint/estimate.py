"""What a bundle may do on a device: arithmetic on published figures, never a benchmark.

The estimate is a roofline. Decoding one token reads every packed weight once:

    seconds a token = streamed bytes / decode bandwidth + nodes * seconds a node

with the bytes of the kernel that the device would run (kernels.py). The decode bandwidth is what published decoding
read: tokens a second times the bytes of the model's file, one to three runs of llama.cpp or LiteRT-LM a device. So the
answer is a range, 40 % around what the lowest and the highest give. Without such a run there is only a ceiling, the
speed at the full peak bandwidth. Prompts are bound by arithmetic and are not predicted.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

from qia3.errors import FitError
from qia3.footprint.device import Device, Figure
from qia3.footprint.kernels import KernelBytes
from qia3.footprint.report import Report

UNCERTAINTY = 0.4
NODE_SECONDS = {"x64": 1e-6, "arm": 4e-6}  # measured on x64 with onnxruntime 1.32; on ARM a guess of 3 to 5 times that


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


@dataclass(frozen=True)
class Load:
    """What a graph asks of a device: `kernels` as in kernels.py, and `nodes` that run for one token."""

    kernels: Mapping[str, KernelBytes]
    accuracy_level: int
    mapped_bytes: int
    cache_bytes: int
    process_bytes: int
    nodes: int
    writes: bool = True  # an encoder alone does not

    def on(self, device: Device) -> KernelBytes:
        """With the kernel that ONNX Runtime would run there."""
        if self.accuracy_level != 4:
            return self.kernels["float32"]
        if device.family == "x64":
            return self.kernels["x64-int8"]
        has = [isa for isa in ("i8mm", "dotprod") if isa in device.isa.value]
        return self.kernels[f"arm-{has[0]}" if has else "float32"]

    def seconds_per_token(self, device: Device, bandwidth: Figure | None) -> float | None:
        """None without a bandwidth, and where nothing is written."""
        if bandwidth is None or not self.writes or device.family not in NODE_SECONDS:
            return None
        return self.on(device).streamed_bytes / bandwidth.value + self.nodes * NODE_SECONDS[device.family]


def estimate(device: Device, report: Report) -> Estimate:
    """Does a bundle fit, and in what range may it decode, with one row and a short context."""
    memory = report.memory
    return fit(
        device,
        Load(
            kernels=memory.kernels,
            accuracy_level=report.graph.accuracy_level,
            mapped_bytes=memory.mapped_bytes,
            cache_bytes=memory.kv_cache_bytes + memory.cross_cache_bytes,
            process_bytes=_process_bytes(report),
            nodes=memory.nodes,
            writes=report.architecture.pooling is None,
        ),
    )


def fit(device: Device, load: Load) -> Estimate:
    """The same of what a graph asks, whether it was built or not."""
    kernel = load.on(device)
    usable = int((device.usable_bytes or device.memory_bytes).value)
    needed = kernel.held_bytes + load.mapped_bytes + load.cache_bytes + load.process_bytes
    low, high, peak = (
        load.seconds_per_token(device, bandwidth)
        for bandwidth in (
            device.decode_bandwidth_low_bytes_per_second,
            device.decode_bandwidth_high_bytes_per_second,
            device.peak_bandwidth_bytes_per_second,
        )
    )
    return Estimate(
        device=device.name,
        kind="estimate",
        fits=needed <= usable,
        needed_ram_bytes=needed,
        usable_ram_bytes=usable,
        streamed_bytes_per_token=kernel.streamed_bytes,
        decode_tokens_per_second_low=_speed(low, 1 - UNCERTAINTY),
        decode_tokens_per_second_high=_speed(high, 1 + UNCERTAINTY),
        decode_tokens_per_second_ceiling=_speed(peak, 1.0),
    )


def check_fits(found: Iterable[Estimate], wanted: Collection[str]) -> None:
    """Raises FitError, naming each device of `wanted` that does not hold it."""
    short = [e for e in found if e.device in wanted and not e.fits]
    if short:
        told = (f"{e.device} ({(e.needed_ram_bytes - e.usable_ram_bytes) / 2**20:,.0f} MiB too many)" for e in short)
        raise FitError(f"it does not fit {', '.join(told)}")


def _process_bytes(report: Report) -> int:
    """What the measured process held beyond its weights; 0 where it was not measured."""
    measured = report.measured.peak_resident_bytes if report.measured else None
    weights = report.memory.kernels[report.memory.kernel_here].held_bytes + report.memory.mapped_bytes
    return max(0, measured - weights) if measured else 0


def _speed(seconds: float | None, factor: float) -> float | None:
    """Tokens per second, to two digits."""
    return None if seconds is None else float(f"{factor / seconds:.2g}")
