"""What a bundle may do on a device: arithmetic on published figures, not a benchmark.

The estimate is a roofline. Decoding one token reads every packed weight once:

    seconds per token = streamed bytes / decode bandwidth + nodes * seconds per node

with the bytes of the kernel that the device would run (kernels.py, speed.py). The decode bandwidth is inferred from
published decoding speeds: tokens per second times the bytes of the model's file, from one to three runs of llama.cpp or
LiteRT-LM per device. So the answer is a range, 40 % around what the lowest and the highest give. For a calibrated
device (`qia3 bench --calibrate`, calibrated.py) both terms are measured, and the range is 30 %. Without any run there
is only a ceiling, the speed at the full peak bandwidth. Prompts are bound by arithmetic, and predicted for calibrated
devices (predicted.py).
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass

from qia3.errors import FitError
from qia3.footprint.account import PROMPTS, TENSORS
from qia3.footprint.device import Device, Figure
from qia3.footprint.kernels import KernelBytes, kernel_for
from qia3.footprint.report import Report
from qia3.footprint.speed import token_seconds
from qia3.footprint.table import mib

UNCERTAINTY, CALIBRATED = 0.4, 0.3
# Per node, if a device was not calibrated. x64: two tables of docs/results.md for one Xeon (onnxruntime 1.32) give its
# bandwidth from Llama-3.2-1B's shapes and leave SmolLM2-135M's 411 nodes at most a microsecond (at 2, blocks of 32 fall
# out of the range); its EPYC, 305 tokens/s, at most 8 if bytes cost nothing. A shared virtual machine took 7 to 14
# (benchmarks/LOG.md): calibrate such a machine. ARM: nobody has published any; a guess of 3 to 5 times x64's.
NODE_SECONDS = {"x64": 1e-6, "arm": 4e-6}


@dataclass(frozen=True)
class Estimate:
    """What a bundle may do on a device: arithmetic, not a measurement.

    Speeds are None if no published figure allows an estimate.

    `needed_ram_bytes`: held and mapped weights, one row's cache at the full context, and, if the bundle was measured,
    what its process held beyond its weights. `fits` compares it with what an application may use or, if that is
    unknown, with all memory; and the weight file with the largest that can be read there. `remarks` are sentences.
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
    remarks: tuple[str, ...] = ()


@dataclass(frozen=True)
class Load:
    """What a graph needs from a device: `kernels` as in kernels.py, and `nodes` that run per token: None for int8
    products, for which no device has figures. `file_bytes` is the largest weight file.
    """

    kernels: Mapping[str, KernelBytes]
    accuracy_level: int
    mapped_bytes: int
    cache_bytes: int
    process_bytes: int
    nodes: int | None
    writes: bool = True  # False for an encoder alone
    file_bytes: int = 0
    eight_bit: bool = False  # whether some layers are at 8 bits

    def kernel(self, device: Device) -> str:
        """The name of the kernel that ONNX Runtime would run there."""
        return kernel_for(device.family, device.isa.value, self.accuracy_level)

    def on(self, device: Device) -> KernelBytes:
        return self.kernels[self.kernel(device)]

    def seconds_per_token(self, device: Device, bandwidth: Figure | None) -> float | None:
        """None without a bandwidth, for int8 products, and if nothing is generated."""
        if bandwidth is None or not self.writes or self.nodes is None or device.family not in NODE_SECONDS:
            return None
        node = device.node_seconds.value if device.node_seconds else NODE_SECONDS[device.family]
        return token_seconds(self.on(device), self.nodes, bandwidth.value, node, device)


def estimate(device: Device, report: Report) -> Estimate:
    """Whether a bundle fits, and the likely range of its decoding speed, with one row and a short context."""
    memory = report.memory
    return fit(
        device,
        Load(
            kernels=memory.kernels,
            accuracy_level=report.graph.accuracy_level,
            mapped_bytes=memory.mapped_bytes,
            cache_bytes=memory.kv_cache_bytes + memory.cross_cache_bytes,
            process_bytes=process_bytes(report),
            nodes=memory.nodes,
            writes=report.architecture.pooling is None,
            file_bytes=sum(report.account.parts.get(part, 0) for part in TENSORS if part != PROMPTS),
            eight_bit=8 in report.account.code_bits,
        ),
    )


def fit(device: Device, load: Load) -> Estimate:
    """The same, from what a graph needs, whether it was built or not."""
    kernel = load.on(device)
    usable = int((device.usable_bytes or device.memory_bytes).value)
    needed = kernel.held_bytes + kernel.unpacked_bytes + load.mapped_bytes + load.cache_bytes + load.process_bytes
    low, high, peak = (
        load.seconds_per_token(device, bandwidth)
        for bandwidth in (
            device.decode_bandwidth_low_bytes_per_second,
            device.decode_bandwidth_high_bytes_per_second,
            device.peak_bandwidth_bytes_per_second,
        )
    )
    too_large = device.largest_file_bytes is not None and load.file_bytes > device.largest_file_bytes.value
    apart = CALIBRATED if device.node_seconds else UNCERTAINTY
    return Estimate(
        device=device.name,
        kind="estimate",
        fits=needed <= usable and not too_large,
        needed_ram_bytes=needed,
        usable_ram_bytes=usable,
        streamed_bytes_per_token=kernel.streamed_bytes,
        decode_tokens_per_second_low=_speed(low, 1 - apart),
        decode_tokens_per_second_high=_speed(high, 1 + apart),
        decode_tokens_per_second_ceiling=_speed(peak, 1.0),
        remarks=tuple(_remarks(device, load, needed, too_large)),
    )


def _remarks(device: Device, load: Load, needed: int, too_large: bool) -> Iterator[str]:
    """Remarks on the verdict."""
    usable, entitled, largest = device.usable_bytes, device.entitled_bytes, device.largest_file_bytes
    if too_large and largest is not None:
        yield f"its weights are one file of {mib(load.file_bytes)}, but at most {mib(largest.value)} can be read there"
    if usable is not None and entitled is not None and usable.value < needed <= entitled.value:
        yield "it fits with the increased-memory-limit entitlement"
    if device.family == "arm" and load.eight_bit and load.kernel(device) == "float32":
        yield (
            "it has no kernel for layers at 8 bits, which are dequantised for every token; build with 4 bits throughout"
        )


def check_fits(found: Iterable[Estimate], wanted: Collection[str]) -> None:
    """Raises FitError that names each device in `wanted` that it does not fit."""
    short = [e for e in found if e.device in wanted and not e.fits]
    if short:
        raise FitError(f"it does not fit {', '.join(f'{e.device} ({_why(e)})' for e in short)}")


def _why(found: Estimate) -> str:
    over = found.needed_ram_bytes - found.usable_ram_bytes
    return f"{over / 2**20:,.0f} MiB too large" if over > 0 else found.remarks[0]


def process_bytes(report: Report) -> int:
    """What the measured process held beyond its weights; 0 if it was not measured."""
    measured = report.measured.peak_resident_bytes if report.measured else None
    return max(0, measured - report.memory.weights_bytes) if measured else 0


def _speed(seconds: float | None, factor: float) -> float | None:
    """Tokens per second, to two digits."""
    return None if seconds is None else float(f"{factor / seconds:.2g}")
