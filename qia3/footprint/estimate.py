"""What a bundle may do on a device: arithmetic on published figures, never a benchmark.

The estimate is a roofline. Decoding one token reads every packed weight once:

    seconds a token = streamed bytes / decode bandwidth + nodes * seconds a node

with the bytes of the kernel that the device would run (kernels.py). The decode bandwidth is what published decoding
read: tokens a second times the bytes of the model's file, one to three runs of llama.cpp or LiteRT-LM a device. So the
answer is a range, 40 % around what the lowest and the highest give. Without such a run there is only a ceiling, the
speed at the full peak bandwidth. Prompts are bound by arithmetic and are not predicted.
"""

from __future__ import annotations

from dataclasses import dataclass

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


def estimate(device: Device, report: Report) -> Estimate:
    """Does the bundle fit, and in what range may it decode, with one row and a short context."""
    kernel = _kernel(device, report)
    usable = int((device.usable_bytes or device.memory_bytes).value)
    memory = report.memory
    caches = memory.kv_cache_bytes + memory.cross_cache_bytes
    needed = kernel.held_bytes + memory.mapped_bytes + caches + _process_bytes(report)
    low, high = device.decode_bandwidth_low_bytes_per_second, device.decode_bandwidth_high_bytes_per_second
    return Estimate(
        device=device.name,
        kind="estimate",
        fits=needed <= usable,
        needed_ram_bytes=needed,
        usable_ram_bytes=usable,
        streamed_bytes_per_token=kernel.streamed_bytes,
        decode_tokens_per_second_low=_rounded(_tokens(device, report, kernel, low), 1 - UNCERTAINTY),
        decode_tokens_per_second_high=_rounded(_tokens(device, report, kernel, high), 1 + UNCERTAINTY),
        decode_tokens_per_second_ceiling=_rounded(
            _tokens(device, report, kernel, device.peak_bandwidth_bytes_per_second), 1.0
        ),
    )


def _kernel(device: Device, report: Report) -> KernelBytes:
    """The kernel that ONNX Runtime would run there."""
    kernels = report.memory.kernels
    if device.family == "x64":
        return kernels[report.memory.kernel_here]
    has = [isa for isa in ("i8mm", "dotprod") if isa in device.isa.value and report.graph.accuracy_level == 4]
    return kernels[f"arm-{has[0]}" if has else "float32"]


def _process_bytes(report: Report) -> int:
    """What the measured process held beyond its weights; 0 where it was not measured."""
    measured = report.measured.peak_resident_bytes if report.measured else None
    weights = report.memory.kernels[report.memory.kernel_here].held_bytes + report.memory.mapped_bytes
    return max(0, measured - weights) if measured else 0


def _tokens(device: Device, report: Report, kernel: KernelBytes, bandwidth: Figure | None) -> float | None:
    """Tokens per second; None without a bandwidth."""
    if bandwidth is None or device.family not in NODE_SECONDS:
        return None
    return 1 / (kernel.streamed_bytes / bandwidth.value + report.memory.nodes * NODE_SECONDS[device.family])


def _rounded(value: float | None, factor: float) -> float | None:
    return None if value is None else float(f"{value * factor:.2g}")
