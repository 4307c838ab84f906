"""What is in the wheel, and what it asks for."""

from __future__ import annotations

import email
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from importlib.metadata import distribution, files, requires, version
from pathlib import Path

import pytest
import tiny_bundle
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from tiny_build import write_build

ROOT = Path(__file__).parents[1]
LIGHT = {"click", "numpy", "onnxruntime", "platformdirs", "pydantic", "rich", "safetensors", "tokenizers"}


ASK = """
import sys
from qia3.runtime.adapters import AdapterBank
from qia3.runtime.answer import answer
from qia3.bundle.opened import Bundle
from qia3.runtime.engine import Engine
print(answer(Engine(Bundle.open(sys.argv[1])), "lamps", "the hall").label)
"""


SDIST = "import sys; from setuptools import build_meta; print(build_meta.build_sdist(sys.argv[1]))"


@pytest.fixture(scope="module")
def sdist(tmp_path_factory) -> Path:
    """The source archive of a copy of the tree, so that no build folder is left in this one."""
    copy, out = tmp_path_factory.mktemp("copy"), tmp_path_factory.mktemp("sdist")
    for folder in ("qia3", "export", "devices", "web", "tests"):
        shutil.copytree(ROOT / folder, copy / folder, ignore=shutil.ignore_patterns("__pycache__"))
    for file in ("pyproject.toml", "MANIFEST.in", "README.md", "CHANGELOG.md", "LICENSE", "constraints.txt"):
        shutil.copy(ROOT / file, copy)
    run = subprocess.run([sys.executable, "-c", SDIST, str(out)], cwd=copy, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    return out / run.stdout.splitlines()[-1]


@pytest.fixture(scope="module")
def wheel(sdist, tmp_path_factory) -> zipfile.ZipFile:
    """The wheel, built from the source archive: what that leaves out is missed here."""
    out = tmp_path_factory.mktemp("wheel")
    options = ["--quiet", "--no-deps", "--no-build-isolation", "--no-index", "-w", str(out)]
    run = subprocess.run([sys.executable, "-m", "pip", "wheel", *options, str(sdist)], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    return zipfile.ZipFile(next(out.glob("qia3-*.whl")))


def test_the_source_archive_has_no_half_of_the_tests(sdist):
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert {"LICENSE", "README.md", "CHANGELOG.md", "constraints.txt", "pyproject.toml", "qia3/py.typed"} <= names
    assert not [name for name in names if name.startswith("tests/")]


def test_the_wheel_holds_every_source_and_every_data_file(wheel):
    held = {name for name in wheel.namelist() if ".dist-info/" not in name}
    sources = {str(p.relative_to(ROOT)) for p in (ROOT / "qia3").rglob("*.py")}
    files = [p for folder in ("export", "devices") for p in (ROOT / folder).iterdir() if p.suffix in (".toml", ".py")]
    data = {f"qia3/{p.parent.name}/{p.name}" for p in files}
    web = [p for p in (ROOT / "web").rglob("*") if p.suffix in (".mjs", ".py", ".json", ".js", ".html", ".css")]
    data |= {f"qia3/{p.relative_to(ROOT)}" for p in web}
    assert held == sources | data | {"qia3/py.typed", "qia3/server/page.html", "qia3/printers/page.css"}
    assert {"qia3/export/ort-cpu.toml", "qia3/export/ort-exact.toml", "qia3/export/ort-arm.toml"} <= held
    assert any(name.startswith("qia3/devices/") and name.endswith(".toml") for name in held)


def test_the_wheel_has_its_licence_and_its_command(wheel):
    info = next(name.split("/")[0] for name in wheel.namelist() if ".dist-info/" in name)
    assert wheel.read(f"{info}/licenses/LICENSE").decode() == (ROOT / "LICENSE").read_text()
    assert "qia3 = qia3.cli:main" in wheel.read(f"{info}/entry_points.txt").decode()


def test_without_extras_nothing_heavy_is_asked_for(wheel):
    info = next(name.split("/")[0] for name in wheel.namelist() if ".dist-info/" in name)
    metadata = email.message_from_bytes(wheel.read(f"{info}/METADATA"))
    asked = {re.split(r"[><=;\[ ]", r)[0] for r in metadata.get_all("Requires-Dist") if "extra ==" not in r}
    assert asked == LIGHT


def test_a_bundle_runs_in_an_environment_of_onnxruntime_numpy_and_tokenizers(wheel, tmp_path):
    """Law 6 with nothing else installed, not even what the command line needs."""
    bundle = tiny_bundle.write_bundle(tmp_path)
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(tmp_path / "fresh")], check=True)
    python = str(tmp_path / "fresh" / "bin" / "python")
    install = [sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--disable-pip-version-check"]
    three = [f"{name}=={version(name)}" for name in ("onnxruntime", "numpy", "tokenizers")]
    subprocess.run([*install, *three], check=True, capture_output=True)
    subprocess.run([*install, "--no-deps", wheel.filename], check=True, capture_output=True)
    found = subprocess.run([python, "-c", ASK, str(bundle)], capture_output=True, text=True, cwd=tmp_path)
    assert found.returncode == 0, found.stderr
    assert found.stdout.strip() in tiny_bundle.CHOICES


def test_every_package_of_the_tree_is_declared():
    declared = set(tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"])
    found = {".".join(p.parent.relative_to(ROOT).parts) for p in (ROOT / "qia3").rglob("__init__.py")}
    assert declared == found | {"qia3.export", "qia3.devices", "qia3.web", "qia3.web.page"}


def test_every_direct_requirement_is_pinned():
    file = tomllib.loads((ROOT / "pyproject.toml").read_text())
    project = file["project"]
    extras = [r for extra in project["optional-dependencies"].values() for r in extra]
    asked = [*project["dependencies"], *extras, *file["dependency-groups"]["dev"]]
    names = {re.split(r"[><=;\[ ]", r)[0].lower().replace("-", "_") for r in asked}
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if line and not line.startswith("#")]
    assert all(re.fullmatch(r"[A-Za-z0-9._-]+==[0-9][A-Za-z0-9.]*", line) for line in lines)
    assert names <= {line.partition("==")[0].lower().replace("-", "_") for line in lines}


def test_the_version_is_said_once():
    import qia3

    assert (
        tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
        == qia3.__version__
        == version("qia3")
    )


def demanded(extra: str) -> set[str]:
    """Names of the installed distributions that qia3 with an extra asks for, and those that they ask for in turn."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    left = [(Requirement(line), {""}) for line in (*project["dependencies"], *project["optional-dependencies"][extra])]
    found: dict[str, set[str]] = {}
    while left:
        wanted, extras = left.pop()
        name, more = canonicalize_name(wanted.name), {"", *wanted.extras}
        if not (wanted.marker is None or any(wanted.marker.evaluate({"extra": e}) for e in extras)):
            continue
        if name in found and more <= found[name]:
            continue
        found[name] = found.get(name, set()) | more
        left += [(Requirement(line), found[name]) for line in requires(name) or ()]
    return set(found)


def test_the_extra_asks_for_all_that_a_build_needs(wheel, tmp_path):
    """From the wheel, where nothing else is installed: neither peft nor bitsandbytes, whose files are read and written without them."""
    names = demanded("build")
    assert not names & {"peft", "bitsandbytes", "qia3"}
    here = tmp_path / "packages"
    wheel.extractall(here)
    for name in names:
        for top in {file.parts[0] for file in files(name) or () if file.parts[0] not in ("..", "__pycache__")}:
            if not (here / top).exists():
                (here / top).symlink_to(Path(distribution(name).locate_file(top)))
    file = write_build(tmp_path, steps=2)
    command = f"import sys; sys.path[:0] = {[str(here)]}; from qia3.cli import main; main(sys.argv[1:])"
    run = subprocess.run(
        [sys.executable, "-I", "-S", "-c", command, "build", str(file), "--output", str(tmp_path / "bundle")],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert run.returncode == 0, run.stderr
    assert (tmp_path / "bundle" / "adapters" / "topics" / "adapter_config.json").is_file()
