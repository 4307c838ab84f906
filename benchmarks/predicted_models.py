"""Bundles of random weights for benchmarks/predicted.py: memory and speed only.

    python benchmarks/predicted_models.py dist/predicted

smollm2-32, -64, -128    SmolLM2-135M's shapes at three sizes of blocks        llama1b-64    Llama-3.2-1B's
t5base-64                flan-t5-base's, `wo` in float32, the default

Each folder has `config.json`, which is all that a forecast may look at, and `bundle/`. What is there already is kept.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
from pathlib import Path

import scale
import seq2seq_models

MODELS = {
    "smollm2-32": ("135m", 32),
    "smollm2-64": ("135m", 64),
    "smollm2-128": ("135m", 128),
    "llama1b-64": ("1b", 64),
    "t5base-64": ("flan-t5-base", 64),
}


def write_decoder(shape: str, block: int, place: Path) -> None:
    scale.write_float(shape, place / "float", alike=False)
    scale.write_plan(place)
    plan = place / "qia3.toml"
    text = plan.read_text(encoding="utf-8").replace("[base]", f"[base]\nblock_size = {block}")
    plan.write_text(text.replace("steps = 2\nbatch_size = 4", "steps = 1\nbatch_size = 1"), encoding="utf-8")


def write_pair(kind: str, place: Path) -> None:
    seq2seq_models.write_float(kind, place / "float")
    (place / "few.jsonl").write_text("".join(f'{{"text": "w{i}", "label": "w{i % 2 + 50}"}}\n' for i in range(3, 19)))
    (place / "qia3.toml").write_text(seq2seq_models.BUILD.format(base=""), encoding="utf-8")


def make(name: str, place: Path) -> None:
    shape, block = MODELS[name]
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir(parents=True)
    if shape in scale.SHAPES:
        write_decoder(shape, block, place)
    else:
        write_pair(shape, place)
    environment = {**os.environ, "QIA3_CACHE": str(place / "cache")}  # random weights are nobody's base
    command = [sys.executable, "-m", "qia3", "build", str(place / "qia3.toml"), "--output", str(place / "bundle")]
    subprocess.run(command, env=environment, check=True, stdout=subprocess.DEVNULL)
    shutil.copy(place / "float" / "config.json", place / "config.json")
    for folder in ("float", "cache", "bundle.work"):
        shutil.rmtree(place / folder, ignore_errors=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--only", nargs="+", choices=MODELS, default=[*MODELS])
    asked = parser.parse_args()
    for name in asked.only:
        if not (asked.folder / name / "config.json").is_file():
            make(name, asked.folder / name)


if __name__ == "__main__":
    main()
