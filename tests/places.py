"""Where else the tests run: headless Chromium (tests/browser), and 64-bit ARM under QEMU (tests/arm).

    python tests/places.py COMMAND...

Sets both places up if it can, and runs the command, `make test`'s pytest, with variables that name those that are there. It
never fails for want of one: a machine may have no network, no apt and another processor. Both together have `LIMIT`
seconds, and a line says which is skipped, and why. Of the tests that use a place this runs a short part; `make browser`
and `make arm` run them all, and fail if they cannot.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

LIMIT = 150.0  # seconds; it takes 30 to 40 on two cores
ROOT = Path(__file__).parents[1]
BROWSER, ARM = ROOT / ".browser", ROOT / ".arm"  # as the Makefile has them
READY = {
    "browser": {
        "QIA3_BROWSER": str(BROWSER / "node_modules"),
        "QIA3_WEB": str(BROWSER / "web" / "node_modules"),
        "PATH": f"{BROWSER / 'bin'}{os.pathsep}{os.environ['PATH']}",
    },
    "arm": {"QIA3_ARM": str(ARM)},
}
whole = pytest.mark.skipif(not os.environ.get("QIA3_WHOLE"), reason="of these make test runs a shorter part")


class Setup:
    """The Makefile's rule for a place, at work by itself; what it says is in the place's setup.log."""

    def __init__(self, place: str) -> None:
        self.place, self.log = place, ROOT / f".{place}" / "setup.log"
        self.log.parent.mkdir(exist_ok=True)
        told = ("MAKEFLAGS", "MFLAGS", "MAKELEVEL")  # of the make that this runs under, and not for another one
        environment = {name: value for name, value in os.environ.items() if name not in told}
        command = ["make", "--silent", f".{place}/ready"]
        with self.log.open("w") as log:
            self.running = subprocess.Popen(
                command,
                cwd=ROOT,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def wait(self, seconds: float) -> str:
        """Nothing, or why the place is not there, in a line."""
        try:
            status = self.running.wait(max(seconds, 0))
        except subprocess.TimeoutExpired:
            return f"what it needs was not installed within {LIMIT:.0f} s"
        said = [line.strip() for line in self.log.read_text().splitlines() if line.strip() and line[:4] != "make"]
        return "" if status == 0 else (said or ["it says no reason"])[-1]

    def stop(self) -> None:
        if self.running.poll() is None:
            os.killpg(self.running.pid, signal.SIGKILL)


def main(command: list[str]) -> int:
    environment, end = dict(os.environ), time.monotonic() + LIMIT
    begun = [Setup(place) for place in READY]
    try:
        for setup in begun:
            if reason := setup.wait(end - time.monotonic()):
                print(f"make {setup.place} is skipped: {reason}", flush=True)
            else:
                environment |= READY[setup.place]
    finally:
        for setup in begun:
            setup.stop()
    return subprocess.run(command, env=environment, check=False).returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
