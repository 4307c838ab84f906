"""Memory and speed of a bundle in a fresh process, so that nothing of the build is counted."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from qia3.bundle.checked import decode
from qia3.bundle.records import Measured
from qia3.errors import BundleError
from qia3.parse import parse_json


def measure(folder: Path, adapter: str | None = None, threads: int | None = None) -> Measured:
    """The figures of `python -m qia3.runtime.bench FOLDER --json`. Memory is None if the system does not report it.

    Raises BundleError with the process's last line if it fails, or with what is wrong with its output.
    """
    asked = {"--adapter": adapter, "--threads": None if threads is None else str(threads)}
    options = [word for option, value in asked.items() if value is not None for word in (option, value)]
    command = [sys.executable, "-m", "qia3.runtime.bench", str(folder), "--json", *options]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    if run.returncode:
        reason = (run.stderr.strip().splitlines() or [f"exit code {run.returncode} without a message"])[-1]
        raise BundleError(f"measuring {folder} failed: {reason}")
    return read_figures(folder, run.stdout)


def read_figures(folder: Path, text: str) -> Measured:
    """The one JSON object that the process printed."""
    try:
        figures = parse_json(text)
    except ValueError as error:
        raise BundleError(f"measuring {folder} did not print JSON ({error}): {text.strip()[:80]!r}") from error
    try:
        return decode(Measured, figures)
    except ValueError as error:
        raise BundleError(f"measuring {folder} printed unexpected figures ({error}); reinstall qia3") from error
