"""kill -9 at random moments of real commands: no bundle is lost, and the next run leaves nothing of the killed one
behind.

    python benchmarks/kills.py                     # 50 kills, some 15 minutes of a core
    python benchmarks/kills.py --kills 10 --seed 1

Three commands on a tiny random base: a build where nothing is, a build over an older bundle, and an adapter's import.
Each is run once undisturbed; then it is killed, with its whole process group, at a moment that is drawn from the time
that took. Afterwards the place holds the older bundle or the new one, whole (every hash, the graph, each adapter read),
or nothing where nothing was. Then the same command is run again and must end as the undisturbed one did, by SHA-256 of
adapters, graph and weights, with nothing else left in the folder. The exit code is 1 where any of that fails.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests"))
SHARES = {"build": 0.3, "build over a bundle": 0.2, "adapter import": 0.5}


@dataclass(frozen=True)
class Scene:
    """A folder before the command, the command in it, and what the bundle is afterwards."""

    name: str
    lay_out: Callable[[Path], None]
    command: tuple[str, ...]
    after: dict[str, str]
    before: dict[str, str] | None
    seconds: float


def run(command: tuple[str, ...], folder: Path, kill_after: float | None = None) -> int:
    """The exit code of the real command; killed with all its processes after so many seconds."""
    environment = {**os.environ, "QIA3_CACHE": str(folder / "cache"), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    started = subprocess.Popen(
        [sys.executable, "-m", "qia3", *command],
        cwd=folder,
        env=environment,
        start_new_session=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        return started.wait(kill_after)
    except subprocess.TimeoutExpired:
        os.killpg(started.pid, signal.SIGKILL)
        return started.wait()


def content(folder: Path) -> dict[str, str]:
    """SHA-256 of what a device reads of the bundle: adapters, graph, weights. Raises where it is not whole."""
    from qia3.runtime.readback import read_back

    read_back(folder)
    files = [*folder.glob("adapters/**/*"), *folder.glob("onnx/*")]
    return {str(f.relative_to(folder)): hashlib.sha256(f.read_bytes()).hexdigest() for f in files if f.is_file()}


def strays(folder: Path) -> list[str]:
    """Names in the folder that no undisturbed run leaves there."""
    known = {"base", "cache", "bundle", "bundle.work", "peft", "qia3.toml"}
    names = {p.name for p in folder.iterdir()} - known
    return sorted(n for n in names if not n.endswith(".jsonl")) + sorted(
        str(p) for p in folder.glob("bundle.work/.lock")
    )


def scene(name: str, lay_out: Callable[[Path], None], command: tuple[str, ...], work: Path) -> Scene:
    """Runs the command undisturbed."""
    place = work / "undisturbed"
    lay_out(place)
    before = content(place / "bundle") if (place / "bundle").exists() else None
    started = time.monotonic()
    if run(command, place) != 0:
        sys.exit(f"{name}: the undisturbed command fails in {place}")
    seconds = time.monotonic() - started
    found = Scene(name, lay_out, command, content(place / "bundle"), before, seconds)
    if left := strays(place):
        sys.exit(f"{name}: the undisturbed command leaves {left}")
    shutil.rmtree(place)
    return found


def kill(scene: Scene, draw: random.Random, work: Path) -> tuple[str, str]:
    """What was there after the kill, and what is wrong, if anything."""
    place = work / "killed"
    scene.lay_out(place)
    code = run(scene.command, place, draw.uniform(0.02, 1) * scene.seconds)
    there = "nothing"
    if (place / "bundle").exists():
        try:
            found = content(place / "bundle")
        except Exception as error:
            return "a broken bundle", f"after the kill: {error}"
        there = "the new bundle" if found == scene.after else "the older bundle" if found == scene.before else "another"
    if there == "another" or (there == "nothing" and scene.before is not None):
        return there, f"after the kill there is {there}"
    if there == "the new bundle" and code != 0 and scene.command[0] == "adapter":
        # it is in already, and a second import of the name is refused
        run(("adapter", "import", "bundle", "peft", "--name", "another"), place)  # a next run all the same
        shutil.rmtree(place / "bundle" / "adapters" / "another", ignore_errors=True)
        left = strays(place)
        shutil.rmtree(place)
        return there, f"left behind: {left}" if left else ""
    again = 0 if code == 0 else run(scene.command, place)
    wrong = f"the same command ends with {again}" if again else ""
    if not wrong and content(place / "bundle") != scene.after:
        wrong = "the next run's bundle is another one"
    if not wrong and (left := strays(place)):
        wrong = f"left behind: {left}"
    if not wrong:
        shutil.rmtree(place)
    return there, wrong


def scenes(work: Path) -> list[Scene]:
    from tiny_build import write_build

    template = work / "template"
    template.mkdir()
    build = ("build", "qia3.toml", "--output", "bundle")

    def bare(place: Path) -> None:
        shutil.copytree(template, place)

    write_build(template, steps=6)
    (template / "qia3.toml").write_text((template / "qia3.toml").read_text() + "min_top1 = 0\nmax_kl = 9\n")
    fresh = scene("build", bare, build, work)
    older = work / "older"
    bare(older)
    if run(build, older) or run(("adapter", "export", "bundle", "topics", "peft"), older):
        sys.exit(f"the older bundle cannot be made in {older}")

    def over(place: Path) -> None:
        shutil.copytree(older, place)

    other = (*build, "--seed", "5")
    replaced = scene("build over a bundle", over, other, work)
    imported = scene("adapter import", over, ("adapter", "import", "bundle", "peft", "--name", "again"), work)
    return [fresh, replaced, imported]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    work = Path(tempfile.mkdtemp(prefix="kills-"))
    bad: list[str] = []
    print("| command | kills | nothing there | older bundle | new bundle | bad |\n|---|---:|---:|---:|---:|---:|")
    for found in scenes(work):
        ends: Counter[str] = Counter()
        rounds = max(1, round(asked.kills * SHARES[found.name]))
        wrongs = 0
        for i in range(rounds):
            there, wrong = kill(found, random.Random(f"{asked.seed}/{found.name}/{i}"), work)
            ends[there] += 1
            if wrong:
                wrongs += 1
                bad.append(f"{found.name} #{i}: {wrong}")
                shutil.rmtree(work / "killed", ignore_errors=True)
        row = (rounds, ends["nothing"], ends["the older bundle"], ends["the new bundle"], wrongs)
        print(f"| {found.name} | " + " | ".join(map(str, row)) + " |", flush=True)
    print("\n".join(bad))
    shutil.rmtree(work, ignore_errors=True)
    sys.exit(1 if bad else 0)


if __name__ == "__main__":
    main()
