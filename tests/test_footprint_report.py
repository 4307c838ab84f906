"""The report: a golden file, the printed column added up again, the seal, the measuring process."""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
from test_footprint_account import HIDDEN, du, write_bundle

from qia3.bundle import seal as sealing
from qia3.bundle.checked import encode
from qia3.bundle.manifest import Manifest, Pooling
from qia3.bundle.records import HeldOut, Label, Measured
from qia3.bundle.task import TAGS
from qia3.errors import BundleError
from qia3.footprint import measure as measuring
from qia3.footprint.bits import embedding_shape
from qia3.footprint.bundle_costs import PARTS, bytes_on_disk
from qia3.footprint.bundle_page import bundle_page
from qia3.footprint.compare import compare
from qia3.footprint.kernels import bundle_kernels
from qia3.footprint.measure import measure
from qia3.footprint.report import build_report
from qia3.footprint.table import table
from qia3.printers.data import page_data
from qia3.printers.documents import seal
from qia3.printers.html import html
from qia3.printers.markdown import markdown

GOLDEN = Path(__file__).parent / "golden" / "report.md"
OPTIONAL = ("training", "evaluation", "parity", "measured")


def test_the_golden_report(tmp_path):
    """QIA3_GOLDEN=1 writes it anew; read the difference before you commit it. Not sealed: what the report itself takes
    depends on the style sheet and on the library that draws.
    """
    text = markdown(bundle_page(build_report(tmp_path, write_bundle(tmp_path))))
    if os.environ.get("QIA3_GOLDEN"):
        GOLDEN.write_text(text, encoding="utf-8")
    assert text == GOLDEN.read_text(encoding="utf-8")


def test_the_printed_column_adds_up_to_the_disk(tmp_path):
    seal(tmp_path, write_bundle(tmp_path))
    section = (tmp_path / "report.md").read_text(encoding="utf-8").split("## Bytes on disk")[1].split("\n## ")[0]
    *parts, (name, total) = re.findall(r"^\| (\S.*?) +\| +([\d,]+) \|", section, re.MULTILINE)
    assert name == "total on disk"
    assert sum(int(n.replace(",", "")) for _, n in parts) == int(total.replace(",", "")) == du(tmp_path)
    assert {part for part, _ in parts} <= set(PARTS.values())


def test_the_seal_lists_every_file_and_is_the_same_again(tmp_path):
    manifest = seal(tmp_path, write_bundle(tmp_path))
    report = build_report(tmp_path, manifest)
    written = {f.relative_to(tmp_path).as_posix(): f.read_bytes() for f in tmp_path.rglob("*") if f.is_file()}
    assert report.account.total == du(tmp_path)
    page = bundle_page(report)
    assert json.loads(written["report.json"]) == json.loads(json.dumps(page_data(page, report.to_dict())))
    assert written["report.html"].decode() == html(page)
    assert json.loads(written["report.json"])["account"]["total"] == du(tmp_path)
    assert written["report.md"].decode() == markdown(bundle_page(report))
    kept = json.loads(written["manifest.json"])
    assert kept == json.loads(json.dumps(manifest.to_json()))
    entries = {n: {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)} for n, data in written.items()}
    assert kept["files"] == {n: e for n, e in entries.items() if n != "manifest.json"}
    again = Manifest.from_json(kept)
    assert again == manifest
    seal(tmp_path, again)
    assert written == {n: (tmp_path / n).read_bytes() for n in written}


def test_sealing_again_after_an_adapter_came(tmp_path):
    manifest = seal(tmp_path, write_bundle(tmp_path))
    (tmp_path / "adapters/garden.onnx_adapter").write_bytes(bytes(2500))
    with pytest.raises(BundleError, match=r"garden.onnx_adapter is not in the manifest"):
        build_report(tmp_path, manifest)
    manifest = seal(tmp_path, manifest)
    assert build_report(tmp_path, manifest).account.total == du(tmp_path)
    assert manifest.files["adapters/garden.onnx_adapter"].bytes == 2500


def test_a_file_is_hashed_once(tmp_path, monkeypatch):
    manifest = write_bundle(tmp_path)
    hashed: list[str] = []
    real = sealing._entry_of
    monkeypatch.setattr(sealing, "_entry_of", lambda path: hashed.append(path.name) or real(path))
    seal(tmp_path, manifest)
    assert hashed.count("model_q4.onnx_data") == 1


def test_a_report_that_does_not_settle_is_refused(tmp_path):
    lengths = iter(range(100))
    with pytest.raises(BundleError, match="does not settle"):
        seal(tmp_path, write_bundle(tmp_path), render=lambda _: "x" * next(lengths))
    assert not (tmp_path / "manifest.json").exists()


@pytest.mark.parametrize("left_out", [*((key,) for key in OPTIONAL), OPTIONAL])
def test_what_was_not_measured_says_so(tmp_path, left_out):
    content = {key: value for key, value in write_bundle(tmp_path).to_json().items() if key not in left_out}
    text = markdown(bundle_page(build_report(tmp_path, seal(tmp_path, Manifest.from_json(content)))))
    assert text.count("not measured") > 0
    assert "None" not in text
    assert "nan" not in text


def test_a_bundle_that_was_not_evaluated_says_so(tmp_path):
    manifest = write_bundle(tmp_path)
    told = markdown(bundle_page(build_report(tmp_path, manifest)))
    assert "--no-evaluation" not in told
    report = build_report(tmp_path, replace(manifest, evaluation=None))
    text = markdown(bundle_page(report))
    assert "Not evaluated: made with `--no-evaluation`." in text
    assert "| Right | not evaluated |" in re.sub(r" +", " ", text)
    assert "Held-out accuracy of this bundle" not in text
    assert report.to_dict()["evaluation"] is None


def test_parity_stands_beside_what_was_expected(tmp_path):
    content = write_bundle(tmp_path).to_json() | {"config": {"parity": {"max_difference": 0.002, "max_kl": 0.5}}}
    text = markdown(bundle_page(build_report(tmp_path, Manifest.from_json(content))))
    assert "Limits: for the exact graph a difference of 0.002" in text
    assert "a KL of 0.5 and the same top token in 90.0 %" in text


def test_what_exceeds_the_limits_is_put_down_to_what_is_rounded(tmp_path):
    manifest = replace(write_bundle(tmp_path), config={"parity": {"max_kl": 0.001}})
    said = "change these more than the build file allows: none: KL divergence 0.0072 nats"
    assert f"Int8 activations {said}" in markdown(bundle_page(build_report(tmp_path, manifest)))
    exact = {"decoder": replace(manifest.decoder, accuracy_level=0)}
    both = replace(manifest.parity["none"], float_cache=manifest.parity["none"].exact)
    cached = replace(manifest, graphs=exact, parity={"none": both})
    text = markdown(bundle_page(build_report(tmp_path, cached)))
    assert f"The int8 cache {said.replace('change', 'changes', 1)}" in text
    assert "Int8 activations" not in text


def test_memory_that_the_system_does_not_tell_is_not_measured(tmp_path):
    manifest = write_bundle(tmp_path)
    unknown = {"peak_resident_bytes": None, "peak_file_bytes": None, "peak_anonymous_bytes": None}
    manifest = replace(manifest, measured=replace(manifest.measured, **unknown))
    assert "| peak resident memory " in (text := markdown(bundle_page(build_report(tmp_path, manifest))))
    assert "None" not in text


def test_a_task_that_got_worse_is_named(tmp_path):
    manifest = write_bundle(tmp_path)
    assert "Worse" not in markdown(bundle_page(build_report(tmp_path, manifest)))
    held_out = manifest.evaluation["lamps"]
    worse = {"lamps": replace(held_out, after=replace(held_out.after, accuracy=0.1))}
    report = build_report(tmp_path, replace(manifest, evaluation=worse))
    assert "Worse with its adapter than without: lamps." in markdown(bundle_page(report))


def test_where_words_are_labelled_they_are_what_is_counted(tmp_path):
    manifest = write_bundle(tmp_path)
    right = [True] * 34 + [False] * 7
    labels = {"O": Label(30, sum(right[:30])), "B-LAMP": Label(11, sum(right[30:]))}
    old = manifest.evaluation["lamps"]
    after = replace(old.after, kind=TAGS, n=12, accuracy=sum(right) / len(right), labels=labels)
    tasks = {"lamps": replace(manifest.tasks["lamps"], kind=TAGS, choices=tuple(labels))}
    changed = replace(manifest, tasks=tasks, evaluation={"lamps": HeldOut(12, before=None, after=after)})
    text = re.sub(r" +", " ", markdown(bundle_page(build_report(tmp_path, changed))))
    assert f"| Right, lamps | 82.9 % | of {len(right)} words in 12 held-out examples |" in text
    assert f"| lamps | {TAGS} | {len(right)} words in 12 | not measured | 82.9 % |" in text
    assert old.after.words is None


def test_of_many_tasks_the_worst_stands_first(tmp_path, monkeypatch):
    manifest = write_bundle(tmp_path)
    good = manifest.evaluation["lamps"]
    both = {"lamps": good, "notes": replace(good, after=replace(good.after, accuracy=0.1))}
    report = build_report(tmp_path, replace(manifest, evaluation=both))
    assert [row[0].text for row in next(bundle_page(report).sections[1].tables).rows] == ["lamps", "notes"]
    monkeypatch.setattr("qia3.footprint.bundle_page.MANY", 1)
    assert [row[0].text for row in next(bundle_page(report).sections[1].tables).rows] == ["notes", "lamps"]


def test_a_merged_bundle_adds_nothing(tmp_path):
    manifest = write_bundle(tmp_path)
    graphs = {"decoder": replace(manifest.decoder, vectors=())}
    report = build_report(tmp_path, replace(manifest, mode="merged", merged_task="lamps", graphs=graphs))
    assert (
        report.adapters[0].parameters,
        report.adapters[0].runtime_bytes,
        report.adapters[0].operations_per_token,
    ) == (416, 0, 0)
    assert "merged with lamps" in markdown(bundle_page(report))


def test_another_task_of_a_merged_bundle_is_another_model(tmp_path):
    manifest = write_bundle(tmp_path)
    graphs = {"decoder": replace(manifest.decoder, vectors=())}
    report = build_report(tmp_path, replace(manifest, mode="merged", merged_task="lamps", graphs=graphs))
    model = sum((tmp_path / "onnx" / name).stat().st_size for name in ("model_q4.onnx", "model_q4.onnx_data"))
    assert report.adapters[0].disk_bytes == model
    side = build_report(tmp_path, manifest)
    both = compare([report, side], ["merged", "side"], [[], []])
    assert both.first.figures["many"] == 100 * model
    assert both.second.figures["many"] == model + 100 * 2111
    assert "a model of its own" in markdown(bundle_page(report))


def test_the_ratio_beside_the_size_on_disk_is_of_that_size(tmp_path):
    """The float base, the task's LoRA, and the same tokenizer and configurations, counted by hand."""
    manifest = write_bundle(tmp_path)
    report = build_report(tmp_path, manifest)
    lora = 4 * 8 * sum(x.inputs + x.outputs for x in manifest.linears if x.role != "head")
    beside = 2003 + 97 + 55 + 401 + 77 + 203
    theirs = 4 * manifest.base.parameters + lora * len(manifest.tasks) + beside
    assert f"LoRA: {theirs / du(tmp_path):.1f} times as much" in markdown(bundle_page(report))


def test_an_encoders_heads_count_for_both_methods_or_for_none(tmp_path):
    manifest = write_bundle(tmp_path)
    shape = replace(manifest.architecture, pooling=Pooling("mean", False))
    choices = manifest.tasks["lamps"].choices
    tasks = {name: replace(task, choices=choices) for name, task in manifest.tasks.items()}
    reads = replace(manifest, architecture=shape, tasks=tasks)
    head = 4 * len(choices) * (shape.hidden_size + 1)
    plain, report = build_report(tmp_path, manifest), build_report(tmp_path, reads)
    assert report.adapters[0].disk_bytes == 2111 - head
    assert report.systems[0].disk_bytes == plain.systems[0].disk_bytes + head * len(tasks)
    assert report.systems[3].disk_bytes == plain.systems[3].disk_bytes  # its files have the heads


def test_layers_are_called_by_the_bits_of_their_codes(tmp_path):
    report = build_report(tmp_path, write_bundle(tmp_path))
    assert report.account.code_bits == (4,)
    for widths, said in {(8,): "The 8-bit layers", (4, 8): "at 4 and at 8 bits"}.items():
        assert said in markdown(bundle_page(replace(report, account=replace(report.account, code_bits=widths))))


def test_a_graph_that_learns_is_no_part_of_a_system(tmp_path):
    manifest = write_bundle(tmp_path)
    (tmp_path / "onnx" / "train_q4.onnx").write_bytes(b"x" * 50_000)
    graph = replace(manifest.decoder, file="onnx/train_q4.onnx", accuracy_level=0)
    found = build_report(tmp_path, replace(manifest, graphs=manifest.graphs | {"train": graph}))
    (tmp_path / "onnx" / "train_q4.onnx").unlink()
    plain = build_report(tmp_path, manifest)
    assert found.account.parts["training_graph"] == 50_000
    assert found.account.total == plain.account.total + 50_000
    assert found.systems == plain.systems
    assert found.claim == plain.claim


def test_two_bundles_are_compared_by_the_kernels_of_their_levels(tmp_path):
    manifest = write_bundle(tmp_path)
    exact = replace(manifest, graphs={"decoder": replace(manifest.decoder, accuracy_level=0)})
    both = compare([build_report(tmp_path, m) for m in (manifest, exact)], ["4", "0"], [[], []])
    kernels = bundle_kernels(manifest, {})
    assert [s.figures["held_x64"] for s in (both.first, both.second)] == [
        kernels["x64-int8"].held_bytes,
        kernels["float32"].held_bytes,
    ]
    stored = (tmp_path / "onnx" / "model_q4.onnx_data").stat().st_size
    assert both.first.figures["bits"] == pytest.approx(8 * stored / manifest.base.parameters, abs=1e-4)


def test_a_table_narrower_than_the_states_has_its_own_width(tmp_path):
    manifest = write_bundle(tmp_path, tied=False)
    wider = replace(manifest, architecture=replace(manifest.architecture, hidden_size=2 * HIDDEN))
    assert embedding_shape(wider).inputs == HIDDEN


@pytest.mark.parametrize(("name", "said"), [("int4", "int4 grid, asymmetric, block"), ("nf4", "nf4 grid, block")])
def test_a_grid_without_zero_points_is_not_called_asymmetric(tmp_path, name, said):
    manifest = write_bundle(tmp_path)
    base = replace(manifest.base, grid=replace(manifest.base.grid, format=name))
    assert said in bundle_page(build_report(tmp_path, replace(manifest, base=base))).lead


def test_an_encoders_embedding_has_no_head_beside_it(tmp_path):
    report = build_report(tmp_path, write_bundle(tmp_path))
    parts = {"embedding_weights": 70 * 96 * 4} | report.account.parts
    report = replace(report, account=replace(report.account, parts=parts))
    encoder = replace(report, architecture=replace(report.architecture, pooling="mean"))
    for found, said in ((report, "embedding and head: float32"), (encoder, "embedding: float32")):
        names = [row[0].text for row in next(bytes_on_disk(found).tables).rows]
        assert names[0] == said
        assert any("and head" in name for name in names) == (found is report)


def test_a_fused_layer_is_said(tmp_path):
    manifest = write_bundle(tmp_path)
    first, *others = manifest.linears
    fused = replace(manifest, linears=(replace(first, role="qkv"), *others))
    assert "one fused layer" in markdown(bundle_page(build_report(tmp_path, fused)))


def test_a_bar_in_a_cell_does_not_break_the_table():
    assert table(["a", "b"], [["x|y", "1"]]).splitlines() == ["| a    |   b |", "| ---- | --: |", "| x\\|y |   1 |"]


def answer(monkeypatch, code: int, out: str, error: str = "") -> list[list[str]]:
    """A measuring process that answers so; returns the commands it was given."""
    commands: list[list[str]] = []

    def run(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        commands.append(command)
        return subprocess.CompletedProcess(command, code, out, error)

    monkeypatch.setattr(measuring.subprocess, "run", run)
    return commands


def test_figures_come_back_as_they_were_printed(tmp_path, monkeypatch):
    figures = Measured(0.25, 1, 2, 3, 700.5, 120.0, 128, 64, 2, "m")
    commands = answer(monkeypatch, 0, json.dumps(encode(figures)) + "\n")
    assert measure(tmp_path, "lamps", 2) == figures
    assert commands[0][1:] == [
        "-m",
        "qia3.runtime.bench",
        str(tmp_path),
        "--json",
        "--adapter",
        "lamps",
        "--threads",
        "2",
    ]


@pytest.mark.parametrize(
    ("code", "out", "error", "said"),
    [
        (2, "", "Traceback\n  line\nno such bundle\n", "failed: no such bundle"),
        (-9, "", "", "exit code -9 without a message"),
        (0, "warming up", "", "did not print JSON"),
        (0, "[1]", "", "the content is a list instead of an object"),
        (0, '{"load_seconds": 1}', "", "peak_anonymous_bytes is missing"),
    ],
)
def test_a_failed_measurement_is_one_line(tmp_path, monkeypatch, code, out, error, said):
    answer(monkeypatch, code, out, error)
    with pytest.raises(BundleError, match=said) as caught:
        measure(tmp_path)
    assert "\n" not in str(caught.value)


def test_the_real_process_refuses_a_folder_that_is_no_bundle(tmp_path):
    with pytest.raises(BundleError, match=r"measuring .* failed: .*"):
        measure(tmp_path)


def test_a_lora_as_small_as_ia3_is_said_and_no_other(tmp_path):
    report = build_report(tmp_path, write_bundle(tmp_path))
    said = "size does not distinguish"
    assert "LoRA r=1 on q, v has 1.50 times the parameters of IA³. " in (text := markdown(bundle_page(report)))
    assert said not in text
    ours, *lora = report.adapters
    equal = replace(report, adapters=[replace(ours, parameters=lora[0].parameters), *lora])
    assert "LoRA r=1 on q, v has 1.00 times" in (text := markdown(bundle_page(equal)))
    assert said in text
    assert (folds := "exact folding into 4-bit scales does") in text
    *others, merged = equal.systems
    left = replace(merged, operations_per_token=40)
    for stuck in (others, [*others, left]):
        assert said in (text := markdown(bundle_page(replace(equal, systems=stuck))))
        assert folds not in text
    assert "needs as much training memory" in text
