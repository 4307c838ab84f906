"""Devices and estimates as text tables. Formatting only."""

from __future__ import annotations

from collections.abc import Sequence

from qia3.footprint.devices import Device, Estimate
from qia3.footprint.table import mib, table

UNKNOWN = "unknown"


def devices_text(devices: Sequence[Device]) -> str:
    """One device a line."""
    rows = [
        [
            d.name,
            d.title,
            mib(d.ram_bytes.value),
            UNKNOWN if d.usable_ram_bytes is None else mib(d.usable_ram_bytes.value),
            UNKNOWN
            if d.bandwidth_peak_bytes_per_second is None
            else f"{d.bandwidth_peak_bytes_per_second.value / 1e9:,.1f} GB/s",
            ", ".join(d.isa.value),
        ]
        for d in devices
    ]
    return table(["device", "", "memory", "usable", "peak bandwidth", "instructions"], rows, left=(0, 1, 5))


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
