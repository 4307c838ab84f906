"""Devices and estimates as text. Formatting only."""

from __future__ import annotations

from collections.abc import Sequence

from qia3.footprint.device import Device, Figure, Words
from qia3.footprint.estimate import Estimate
from qia3.footprint.table import mib, table
from qia3.targets import Target

UNKNOWN = "unknown"


def devices_text(devices: Sequence[Device]) -> str:
    """One device a line."""
    head = ["device", "", "memory", "usable", "peak GB/s", "copy GB/s", "cores", "instructions", "target"]
    rows = [
        [
            d.name,
            d.title,
            mib(d.memory_bytes.value),
            UNKNOWN if d.usable_bytes is None else mib(d.usable_bytes.value),
            *(_gigabytes(f) for f in (d.peak_bandwidth_bytes_per_second, d.copy_bandwidth_bytes_per_second)),
            UNKNOWN if d.cores is None else f"{d.cores.value:g}",
            ", ".join(d.isa.value),
            d.target,
        ]
        for d in devices
    ]
    return table(head, rows, left=(0, 1, 7, 8))


def device_text(device: Device, target: Target) -> str:
    """One device: each figure with its source, how it came about and how far to trust it."""
    told = [f"{device.name}: {device.title}", *([device.notes] if device.notes else [])]
    told += ["", f"export target: {target.name}", f"  {target.description}"]
    for key, entry in device.sourced.items():
        told += ["", f"{type(device).model_fields[key].description}: {_value(key, entry)}"]
        told += [f"  {entry.confidence}{': ' if entry.how else ''}{entry.how}", *(f"  {s}" for s in entry.source)]
    unknown = [f.description or k for k, f in type(device).model_fields.items() if _absent(device, k)]
    return "\n".join([*told, *(["", f"not known: {', '.join(unknown)}"] if unknown else [])])


def estimates_text(estimates: Sequence[Estimate]) -> str:
    """One device a line, and what the figures are."""
    rows = [
        [e.device, "yes" if e.fits else "no", mib(e.needed_ram_bytes), mib(e.usable_ram_bytes), speed(e)]
        for e in estimates
    ]
    note = (
        "Estimates, not measurements: arithmetic on published figures, given as a range. Needed memory has one row's cache at the full context "
        "in it. 'Below' is the speed at the full peak bandwidth, where no published run says how much of it is reached."
    )
    return f"{note}\n\n" + table(["device", "fits", "needs", "usable", "decoding, tokens/s (estimate)"], rows)


def speed(found: Estimate) -> str:
    """The range, the ceiling where there is no range, or "unknown"."""
    if found.decode_tokens_per_second_low is not None and found.decode_tokens_per_second_high is not None:
        return f"{found.decode_tokens_per_second_low:g} to {found.decode_tokens_per_second_high:g}"
    if found.decode_tokens_per_second_ceiling is not None:
        return f"below {found.decode_tokens_per_second_ceiling:g}"
    return UNKNOWN


def _value(key: str, entry: Figure | Words) -> str:
    if isinstance(entry, Words):
        return ", ".join(entry.value)
    if key.endswith("_per_second"):
        return f"{_gigabytes(entry)} GB/s"
    return f"{mib(entry.value)} ({entry.value:,.0f} bytes)" if key.endswith("_bytes") else f"{entry.value:g}"


def _gigabytes(rate: Figure | None) -> str:
    return UNKNOWN if rate is None else f"{rate.value / 1e9:,.1f}"


def _absent(device: Device, key: str) -> bool:
    """Something that this kind of device could have and nobody publishes."""
    apple = device.entitled_bytes is not None
    elsewhere = {"entitled_bytes": not apple, "largest_file_bytes": device.family != "wasm"}
    return getattr(device, key) is None and not elsewhere.get(key, False)
