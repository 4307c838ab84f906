"""log.jsonl: one line per step of a run. `loss` and its parts are means over the step's whole batch, `seconds` is the
time of the step:

    {"step": 12, "loss": 3.1, "lm": 1.2, "unlikelihood": 0.8, "length-normalised": 1.1, "learning_rate": 0.0006, "seconds": 1.7,
     "examples_per_second": 4.7}

A resumed run first removes the lines after its checkpoint, so the file reads as if there had been no interruption.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

Entry = dict[str, float]


def read_log(path: Path) -> list[Entry]:
    """The lines of a log; an incomplete last line is left out."""
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
    """`parts` are the losses of `names`; `batch` is the number of examples per step."""
    entry = {"step": step, "loss": sum(parts), **dict(zip(names, parts, strict=True))}
    return entry | {
        "learning_rate": learning_rate,
        "seconds": round(seconds, 4),
        "examples_per_second": round(batch / seconds, 2),
    }


def cut_log(path: Path, step: int, writes: bool = True) -> list[Entry]:
    """The lines up to `step`; if `writes`, the file is cut to them."""
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
