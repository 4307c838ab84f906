"""examples/notebook/qia3.ipynb, executed on a tiny random base, from its data to the report's pictures."""

from __future__ import annotations

import ast
import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import nbclient
import nbformat
import pytest
from tiny_build import write_base

import qia3
from qia3.bundle.opened import Bundle

EXAMPLES = Path(__file__).parents[1] / "examples"
NOTEBOOK = EXAMPLES / "notebook" / "qia3.ipynb"


def code(notebook) -> list:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def kinds(cell) -> list[str]:
    """What a cell shows: "stream", "image/png", "text/markdown"."""
    found = []
    for shown in cell.outputs:
        held = set(shown.get("data", {}))
        rich = next((kind for kind in ("image/png", "text/markdown") if kind in held), "text/plain")
        found.append(rich if held else shown.output_type)
    return found


def text(cell) -> str:
    """What it printed, or the value of its last line."""
    return "".join(shown.get("text") or shown.get("data", {}).get("text/plain", "") for shown in cell.outputs)


def cell_with(notebook, words: str):
    return next(cell for cell in code(notebook) if words in cell.source)


@pytest.fixture(scope="module")
def ran(tmp_path_factory) -> SimpleNamespace:
    """The notebook in a copy of its folder, after a run; `kept` is the file as it is."""
    place = tmp_path_factory.mktemp("examples")
    shutil.copytree(EXAMPLES / "many-tasks" / "tasks", place / "many-tasks" / "tasks")
    (place / "notebook").mkdir()
    base = write_base(place / "base")
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps(config | {"max_position_embeddings": 512}))  # no weight hangs on it
    kept, notebook = (nbformat.read(NOTEBOOK, as_version=4) for _ in range(2))
    (given,) = [cell for cell in code(notebook) if "parameters" in cell.metadata.get("tags", ())]
    given.source = f"base = {str(base)!r}\nsteps = 2\nplace = {str(place / 'made')!r}"
    client = nbclient.NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(place / "notebook")}})
    client.execute()
    return SimpleNamespace(kept=kept, notebook=notebook, bundle=place / "made" / "bundle")


def test_each_cell_shows_what_the_kept_file_shows(ran):
    assert [kinds(cell) for cell in code(ran.notebook)] == [kinds(cell) for cell in code(ran.kept)]
    pictures = [kind for cell in code(ran.notebook) for kind in kinds(cell) if kind == "image/png"]
    assert len(pictures) == 2
    data = "Counter("  # what rests on the files alone is the same to the letter
    assert text(cell_with(ran.notebook, data)) == text(cell_with(ran.kept, data)) != ""


def test_what_it_says_is_what_the_bundle_says(ran):
    model = qia3.open(ran.bundle)
    asked = cell_with(ran.notebook, "model.label(")
    questions = ast.literal_eval(asked.source.partition("questions = ")[2].partition("}")[0] + "}")
    assert ast.literal_eval(text(asked)) == {task: model.label(question, task) for task, question in questions.items()}
    told = text(cell_with(ran.notebook, "model.labels(")).splitlines()
    rows = [(line[:9].strip(), line[9:21].strip(), line[21:]) for line in told]
    assert [row[1] for row in rows] == [model.label(message, adapter) for adapter, _, message in rows]
    assert len({message for *_, message in rows}) < len(rows)  # the same words to two adapters
    manifest = Bundle.open(ran.bundle).manifest
    table = cell_with(ran.notebook, "Markdown(").outputs[0].data["text/markdown"]
    for name, found in manifest.evaluation.items():
        assert f"| {name} | 15 | {found.before.accuracy:.0%} | {found.after.accuracy:.0%} |" in table
    size = sum(path.stat().st_size for path in ran.bundle.rglob("*") if path.is_file())
    assert text(cell_with(ran.notebook, "bits_per_weight")).startswith(f"{size:,} bytes in all")


def test_the_kept_outputs_are_of_a_whole_run_of_the_real_base(ran):
    assert [cell.execution_count for cell in code(ran.kept)] == [*range(1, len(code(ran.kept)) + 1)]
    assert all(shown.output_type != "error" for cell in code(ran.kept) for shown in cell.outputs)
    assert 'base = "smollm2-135m-instruct"' in code(ran.kept)[0].source
    listed = {line.split()[1] for line in text(cell_with(ran.kept, '"build"')).splitlines()}
    assert listed == {path.relative_to(ran.bundle).as_posix() for path in ran.bundle.rglob("*") if path.is_file()}
    raw = NOTEBOOK.read_text(encoding="utf-8")
    assert len(raw) < 200_000
    assert not [place for place in ("/root", "/home", "/tmp", "/work") if place in raw]
