"""Law 6: the runtime needs no torch. And imports point one way."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ROOMS = [p for room in ("grids", "bundle", "footprint", "runtime") for p in (ROOT / "qia3" / room).rglob("*.py")]
LIGHT_MODULES = [
    *(
        "qia3",
        "qia3.adapters",
        "qia3.bounded",
        "qia3.cli",
        "qia3.complaints",
        "qia3.config",
        "qia3.console",
        "qia3.errors",
        "qia3.examples",
        "qia3.bundle.layout",
        "qia3.names",
        "qia3.parse",
        "qia3.profiles",
        "qia3.progress",
        "qia3.recipe",
    ),
    *("qia3.storage", "qia3.targets", "qia3.tokens"),
    *sorted(".".join(p.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__") for p in ROOMS),
]
BLOCK = """
    import sys

    ABSENT = {"torch", "transformers", "peft", "onnx", "onnx_ir", "onnxscript", "bitsandbytes", "accelerate", "gguf"}

    class Block:
        def find_spec(self, name, path=None, target=None):
            if name.split(".")[0] in ABSENT:
                raise ModuleNotFoundError(f"No module named {name!r}", name=name)

    sys.meta_path.insert(0, Block())
"""


def python(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), *arguments], capture_output=True, text=True, env=environment
    )


def test_light_modules_import_where_torch_and_transformers_cannot():
    """All in one process: what one of them needs is absent for each."""
    code = """
    import importlib, traceback

    for module in sys.argv[1:]:
        try:
            importlib.import_module(module)
        except Exception:
            print(module, traceback.format_exc())
    """
    run = python(BLOCK + code, *LIGHT_MODULES)
    assert (run.returncode, run.stdout) == (0, ""), run.stdout + run.stderr


def left_in_a_home(place: Path, module: str) -> list[str]:
    """Files that importing a module leaves in an empty home folder. What CI sets in the environment would hide some."""
    place.mkdir()
    kept = {name: value for name, value in os.environ.items() if name in ("PATH", "LD_LIBRARY_PATH", "SYSTEMROOT")}
    environment = {**kept, "PYTHONPATH": str(ROOT), "HOME": str(place)}
    subprocess.run([sys.executable, "-c", f"import {module}"], check=True, env=environment)
    return [file.name for file in place.rglob("*") if file.is_file()]


def test_onnx_runtime_reports_nothing_to_its_makers(tmp_path):
    """It would at its import, and leaves a device's identifier and a database of events behind (1.32)."""
    if "deviceid" not in left_in_a_home(tmp_path / "bare", "onnxruntime"):
        pytest.skip("this build of ONNX Runtime collects nothing")
    for module in ("qia3.bundle.adapter", "qia3.runtime.engine", "qia3.cli"):
        assert left_in_a_home(tmp_path / module, module) == []


def test_the_command_works_where_torch_cannot_be_imported():
    run = python(BLOCK + "\n    from qia3.cli import main\n    main(['targets', '--json'])")
    assert run.returncode == 0, run.stderr


def test_building_where_torch_cannot_be_imported_says_what_to_install(tmp_path):
    (tmp_path / "qia3.toml").write_text(
        'name = "n"\n[base]\nmodel = "m"\n[[task]]\nname = "t"\nkind = "generate"\ntrain = "a.jsonl"\ntest = "b.jsonl"\n'
    )
    for verb in ("build", "train", "export"):
        run = python(
            BLOCK + "\n    from qia3.cli import main\n    main(sys.argv[1:])", verb, str(tmp_path / "qia3.toml")
        )
        assert run.returncode == 2, run.stderr
        assert run.stderr.count("\n") == 1, run.stderr
        assert 'pip install "qia3[build]"' in run.stderr


def test_import_rules_hold():
    command = shutil.which("lint-imports", path=str(Path(sys.executable).parent))
    if command is None:
        pytest.skip("import-linter is not installed here")
    run = subprocess.run(
        [command, "--no-cache"], cwd=ROOT, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)}
    )
    assert run.returncode == 0, run.stdout + run.stderr
