"""How one task of many ended, and the ledger of starts and ends.

WORK/runs.jsonl has a line per event, written by whoever trains. It shows that a task whose worker died was resumed
where it was, and that none was trained twice.

    {"at": "2026-11-29T00:41:07.201+00:00", "worker": "host:4711", "task": "films", "event": "begins", "step": 0}
    {"at": "2026-11-29T00:41:09.914+00:00", "worker": "host:4712", "task": "films", "event": "begins", "step": 25}
    {"at": "2026-11-29T00:41:31.508+00:00", "worker": "host:4712", "task": "films", "event": "ends", "step": 96}

`step` is the last finished step. Other events: "kept" (trained before), "fails", "stops".
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from socket import gethostname
from typing import Any

from qia3.bundle.checked import encode
from qia3.bundle.records import Record
from qia3.storage import writing
from qia3.train.scored import Scores

LEDGER = "runs.jsonl"


@dataclass(frozen=True)
class Outcome:
    """`record` None: it failed for the reason `failure`, or was `stopped` on request. `kept`: it was trained before.

    `files` are those of its work folder, by path, if the caller cannot see that folder.
    """

    task: str
    record: Record | None = None
    scores: Scores | None = None
    failure: str | None = None
    kept: bool = False
    stopped: bool = False
    files: Mapping[str, bytes] = field(default_factory=dict, repr=False)

    def to_json(self) -> dict[str, Any]:
        facts = {"task": self.task, "failure": self.failure, "kept": self.kept, "stopped": self.stopped}
        return facts | {"scores": encode(self.scores), "training": None if self.record is None else encode(self.record)}


def note(work: Path, task: str, event: str, step: int | None = None, reason: str | None = None) -> None:
    """Adds a line to the ledger in a single write, so lines of several processes do not mix. Raises StorageError."""
    line: dict[str, Any] = {"at": datetime.now(UTC).isoformat(timespec="milliseconds"), "worker": worker()}
    line |= {"task": task, "event": event}
    line |= {key: value for key, value in (("step", step), ("reason", reason)) if value is not None}
    with writing(work):
        file = os.open(work / LEDGER, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        try:
            os.write(file, (json.dumps(line, ensure_ascii=False) + "\n").encode())
        finally:
            os.close(file)


def read_ledger(work: Path) -> list[dict[str, Any]]:
    path = work / LEDGER
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.is_file() else []


def worker() -> str:
    return f"{gethostname()}:{os.getpid()}"
