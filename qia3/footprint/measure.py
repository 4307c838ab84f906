"""Memory and speed of a bundle in a fresh process, so that nothing of the build is counted."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from qia3.errors import BundleError


def measure(folder: Path, adapter: str | None = None) -> dict[str, Any]:
    """The figures of `python -m qia3.runtime.bench FOLDER`. Raises BundleError with its last line if that fails."""
    command = [sys.executable, "-m", "qia3.runtime.bench", str(folder), "--json", *(["--adapter", adapter] if adapter else [])]
    run = subprocess.run(command, capture_output=True, text=True)
    if run.returncode:
        reason = (run.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise BundleError(f"measuring {folder} failed: {reason}")
    figures: dict[str, Any] = json.loads(run.stdout)
    return figures
