"""log.jsonl: one line per step of a run. `loss` and its parts are means over the step's whole batch, `seconds` is the
step's own time:

    {"step": 12, "loss": 3.1, "lm": 1.2, "unlikelihood": 0.8, "length-normalised": 1.1, "learning_rate": 0.0006, "seconds": 1.7,
     "examples_per_second": 4.7}

A run that goes on from a checkpoint first cuts the lines after it, so the file reads as if nothing had happened.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

Entry = dict[str, float]


def read_log(path: Path) -> list[Entry]:
    """The lines of a log; a last one that was cut short is left out."""
    entries = []
    for line in path.read_text().splitlines() if path.is_file() else []:
        try:
            entries.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return entries


def entry_of(
    step: int, names: Sequence[str], parts: Sequence[float], learning_rate: float, seconds: float, batch: int
) -> Entry:
    """`parts` are the losses of `names`; `batch` counts the examples of a step."""
    entry = {"step": step, "loss": sum(parts), **dict(zip(names, parts, strict=True))}
    return entry | {
        "learning_rate": learning_rate,
        "seconds": round(seconds, 4),
        "examples_per_second": round(batch / seconds, 2),
    }


def cut_log(path: Path, step: int, writes: bool = True) -> list[Entry]:
    """The lines up to `step`, which are all that is left in the file."""
    entries = [entry for entry in read_log(path) if entry["step"] <= step]
    if writes:
        path.write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    return entries


def append_log(path: Path, entry: Entry) -> None:
    with path.open("a") as file:
        file.write(json.dumps(entry) + "\n")


def recent_loss(entries: Sequence[Entry], steps: int) -> float:
    """Mean loss of the last steps."""
    last = [entry["loss"] for entry in entries[-steps:]]
    return sum(last) / len(last)
