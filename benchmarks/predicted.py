"""What a forecast says of five models from their configurations alone, beside what fresh processes take and do.

    python benchmarks/predicted_models.py dist/predicted        # bundles of random weights: memory and speed only
    python benchmarks/predicted.py dist/predicted --rounds 3 --json benchmarks/results/predicted.jsonl

This machine is calibrated first (`qia3 bench --calibrate`, which sees none of these models), or a profile is given. Each
bundle is measured a few times with an unmerged adapter (`qia3 bench`), with a pause before each; memory is the median,
times are the best, as in the calibration: what else the machine does can only add to them. Lines are added to the JSON file.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path

from predicted_models import MODELS

from qia3.bundle.opened import Bundle
from qia3.bundle.records import Measured
from qia3.footprint.calibrated import calibrate
from qia3.footprint.device import Device, parse_device
from qia3.footprint.measure import measure
from qia3.footprint.predicted import Compared, compared, of_shapes
from qia3.footprint.shapes import Form
from qia3.footprint.table import table
from qia3.footprint.weights import weights_of
from qia3.ia3.shapes import read_shapes

PAUSE = 2.0
MEMORY = ("peak_anonymous_bytes", "peak_file_bytes", "peak_resident_bytes")
SPEEDS = ("prompt_tokens_per_second", "decode_tokens_per_second")


def together(runs: list[Measured]) -> Measured:
    """The median of memory, the best of times and speeds."""
    rows = [asdict(run) for run in runs]
    found: dict[str, float] = {k: int(statistics.median(row[k] for row in rows)) for k in MEMORY}
    found["load_seconds"] = min(row["load_seconds"] for row in rows)
    found |= {k: max(row[k] for row in rows) for k in SPEEDS}
    return replace(runs[0], **found)


def rows_of(name: str, place: Path, device: Device, measured: Measured) -> list[Compared]:
    shapes, form = read_shapes(str(place / "config.json")), Form("int4", MODELS[name][1] if "t5" not in name else 64)
    manifest = Bundle.open(place / "bundle", verify=False).manifest
    stored = (place / "bundle" / manifest.main.data).stat().st_size
    disk = Compared.of("weights on disk", "bytes", weights_of(shapes, form).disk_bytes, stored)
    return [disk, *compared(of_shapes(shapes, form, device), measured, device)]


def shown(one: Compared, value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value / 2**20:,.1f} MiB" if one.unit == "bytes" else f"{value:,.3g} {one.unit}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--only", nargs="+", choices=MODELS, default=[*MODELS])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, help="one, on a shared machine: two wait for each other")
    parser.add_argument("--profile", type=Path, help="calibrated before")
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    profile = asked.profile or calibrate(asked.folder / "here.toml", asked.threads).path
    device = parse_device("here", profile.read_text(encoding="utf-8"))
    lines = []
    for name in asked.only:
        runs = []
        for _ in range(asked.rounds):
            time.sleep(PAUSE)
            runs.append(measure(asked.folder / name / "bundle", "first", asked.threads))
        found = rows_of(name, asked.folder / name, device, together(runs))
        for one in found:
            error = "-" if one.error is None else f"{100 * one.error:+.1f} %"
            lines.append([name, one.name, shown(one, one.predicted), shown(one, one.measured), error])
        if asked.json:
            keep(asked.json, name, device, runs[0].machine, found)
    print(table(["model", "", "predicted", "measured", "error"], lines, left=(0, 1)))


def keep(file: Path, name: str, device: Device, machine: str, found: list[Compared]) -> None:
    """A line for each model that was measured."""
    keys = ("decode_bandwidth_low_bytes_per_second", "node_seconds", "product_operations_per_second")
    terms = {key: figure.value for key in keys if (figure := getattr(device, key))}
    facts = {"model": name, "date": f"{datetime.now(UTC):%Y-%m-%d}", "machine": machine, **terms}
    with file.open("a", encoding="utf-8") as out:
        out.write(json.dumps(facts | {"compared": [asdict(one) for one in found]}) + "\n")


if __name__ == "__main__":
    main()
