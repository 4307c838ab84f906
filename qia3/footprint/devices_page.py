"""Devices and estimates as sections. Wording only."""

from __future__ import annotations

from collections.abc import Sequence

from qia3.footprint.cells import Cell
from qia3.footprint.device import Device, Figure, Words
from qia3.footprint.estimate import Estimate
from qia3.footprint.sections import Note, Row, Section, section, table
from qia3.footprint.table import mib
from qia3.targets import Target

UNKNOWN = "unknown"
# what only `qia3 bench --calibrate` measures
ONLY_HERE = (
    "node_seconds",
    "product_operations_per_second",
    "load_bytes_per_second",
    "process_held_bytes",
    "process_mapped_bytes",
)


def devices_section(devices: Sequence[Device]) -> Section:
    """One device per row."""
    head = ["device", "", "memory", "usable", "peak GB/s", "copy GB/s", "cores", "instructions", "target"]
    rows: list[Row] = [
        [
            d.name,
            d.title,
            Cell("mib", d.memory_bytes.value),
            _known("mib", d.usable_bytes),
            _known("gigabytes", d.peak_bandwidth_bytes_per_second),
            _known("gigabytes", d.copy_bandwidth_bytes_per_second),
            _known("plain", d.cores),
            ", ".join(d.isa.value),
            d.target,
        ]
        for d in devices
    ]
    return section("devices", "Devices", table(head, rows, left=(0, 1, 7, 8)))


def _known(form: str, entry: Figure | None) -> Cell:
    return Cell(form, None if entry is None else entry.value, UNKNOWN)


def device_text(device: Device, target: Target) -> str:
    """One device: each figure with its source, how it was found and how far to trust it."""
    told = [f"{device.name}: {device.title}", *([device.notes] if device.notes else [])]
    told += ["", f"export target: {target.name}", f"  {target.description}"]
    for key, entry in device.sourced.items():
        told += ["", f"{type(device).model_fields[key].description}: {_value(key, entry)}"]
        told += [f"  {entry.confidence}{': ' if entry.how else ''}{entry.how}", *(f"  {s}" for s in entry.source)]
    unknown = [f.description or k for k, f in type(device).model_fields.items() if _absent(device, k)]
    return "\n".join([*told, *(["", f"not known: {', '.join(unknown)}"] if unknown else [])])


def estimates_section(estimates: Sequence[Estimate]) -> Section:
    """One device per row, with notes on the figures."""
    rows: list[Row] = [
        [
            e.device,
            Cell("fits", e.fits),
            Cell("mib", e.needed_ram_bytes),
            Cell("mib", e.usable_ram_bytes),
            speed(e),
        ]
        for e in estimates
    ]
    note = (
        "Estimates, not measurements: arithmetic on published figures, given as a range. Needed memory "
        "includes one row's cache at the full "
        "context. 'Below' is the speed at the full peak bandwidth, if no published run says how much of it is reached."
    )
    head = ["device", "fits", "needs", "usable", "decoding, tokens/s (estimate)"]
    return section("devices", "Devices", note, table(head, rows), *remarks(estimates))


def remarks(estimates: Sequence[Estimate]) -> list[Note]:
    """Remarks on the verdicts, one line each; no note if there are none."""
    found = tuple(f"{e.device}: {remark}" for e in estimates for remark in e.remarks)
    return [Note(found, "list")] if found else []


def speed(found: Estimate) -> Cell:
    """The range, or the ceiling if there is no range, or "unknown"."""
    low, high = found.decode_tokens_per_second_low, found.decode_tokens_per_second_high
    if low is not None and high is not None:
        return Cell("range", (low, high))
    return Cell("below", found.decode_tokens_per_second_ceiling, UNKNOWN)


def _value(key: str, entry: Figure | Words) -> str:
    if isinstance(entry, Words):
        return ", ".join(entry.value)
    if key == "product_operations_per_second":
        return f"{entry.value / 1e9:,.0f} billion operations/s"
    if key == "node_seconds":
        return f"{entry.value * 1e6:,.2f} microseconds"
    if key.endswith("_per_second"):
        return f"{entry.value / 1e9:,.1f} GB/s"
    return f"{mib(entry.value)} ({entry.value:,.0f} bytes)" if key.endswith("_bytes") else f"{entry.value:g}"


def _absent(device: Device, key: str) -> bool:
    """Whether it is a figure that this kind of device could have but nobody publishes."""
    apple = device.entitled_bytes is not None
    elsewhere = {"entitled_bytes": not apple, "largest_file_bytes": device.family != "wasm"} | dict.fromkeys(
        ONLY_HERE, True
    )
    return getattr(device, key) is None and not elsewhere.get(key, False)
