"""The manifest is read whole or refused in one line, whatever is in the file; and what was read is what is written."""

from __future__ import annotations

import json
import random
import re
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import onnx
import pytest
import tiny_bundle as tiny
from test_footprint_account import manifest_of, write_bundle

from qia3.bundle.checked import decode
from qia3.bundle.layout import DATA, GRAPH
from qia3.bundle.manifest import Manifest
from qia3.bundle.onnx_file import external_files
from qia3.bundle.opened import Bundle, read_manifest
from qia3.bundle.records import Agreement
from qia3.errors import BundleError, QIA3Error
from qia3.footprint.bundle_page import bundle_page
from qia3.footprint.devices import load_devices
from qia3.footprint.estimate import estimate
from qia3.footprint.report import build_report
from qia3.printers.documents import seal
from qia3.printers.markdown import markdown
from qia3.runtime.engine import Engine

WILD = [
    None, True, False, 0, -1, 1, 3, 2**31, 2**63, 10**400, 1.5, -0.0, 1e308, float("inf"), float("nan"), "", "none", "a" * 70_000,
    "\ud800", "\u0000", "../x", "/etc/passwd", "C:\\x", "con", [], {}, [[]], [None], ["a", "a"], [1, 2], {"a": 1}, {"": []},
]  # fmt: skip


def places(value):
    """Every (holder, key) of a tree of values."""
    for key in list(value) if isinstance(value, dict) else range(len(value)):
        yield value, key
        if isinstance(value[key], dict | list):
            yield from places(value[key])


def mutated(content, draw):
    """One change: a key gone, a value replaced, moved or added."""
    content = json.loads(json.dumps(content))
    everywhere = list(places(content))
    holder, key = draw.choice(everywhere)
    match draw.randrange(4):
        case 0 if isinstance(holder, dict):
            del holder[key]
        case 1 if isinstance(holder, dict):
            holder[draw.choice([*holder, "x", "later", "parity"])] = draw.choice(WILD)
        case 2:
            other, name = draw.choice(everywhere)
            holder[key] = json.loads(json.dumps(other[name]))
        case _:
            holder[key] = draw.choice(WILD)
    return content


@pytest.mark.parametrize("seed", range(4))
def test_a_mutated_manifest_gives_a_report_or_one_line(tmp_path, seed):
    sealed, devices, draw = seal(tmp_path, write_bundle(tmp_path)).to_json(), load_devices(), random.Random(seed)
    sealed["config"] = {"parity": {"prompts": 3}, "train": {"steps": 2}}
    ends: dict[bool, int] = {True: 0, False: 0}
    for _ in range(100):
        content = mutated(sealed, draw)
        (tmp_path / "manifest.json").write_bytes(json.dumps(content).encode("utf-8", "surrogatepass"))
        complaint = complaint_about(tmp_path, devices)
        assert len(complaint.splitlines()) <= 1
        assert len(complaint) < 8000
        ends[bool(complaint)] += 1
    assert min(ends.values()) > 5, ends


def complaint_about(folder, devices):
    """What reading, reporting and estimating ends in; empty where it was well."""
    try:
        report = build_report(folder, read_manifest(folder))
        markdown(bundle_page(report)).encode()
        json.dumps(report.to_dict(), allow_nan=False)
        for device in devices:
            estimate(device, report)
    except QIA3Error as error:
        return str(error)
    return ""


def test_what_is_read_is_what_is_written():
    manifest = manifest_of()
    assert Manifest.from_json(json.loads(json.dumps(manifest.to_json()))) == manifest


def test_keys_of_a_later_version_are_written_again():
    content = manifest_of().to_json() | {"since": [1]}
    content["base"]["grid"]["shape"] = "round"
    content["tasks"]["lamps"]["voice"] = {"a": None}
    assert Manifest.from_json(content).to_json() == content


def encoder_decoder():
    """The small manifest as an encoder-decoder's: the first layers' vectors are the encoder's."""
    manifest = manifest_of()
    decoder, layers = manifest.decoder, manifest.linears
    ours = [v for v in decoder.vectors if v.name.startswith("layers.0.")]
    encoder = replace(decoder, file="onnx/encoder.onnx", vectors=tuple(ours))
    return replace(
        manifest,
        architecture=replace(manifest.architecture, encoder_layers=1, layers=1, decoder_start=(0,)),
        linears=tuple(replace(layer, once=layer.name.startswith("layers.0.")) for layer in layers),
        graphs={
            "encoder": encoder,
            "decoder": replace(decoder, vectors=tuple(v for v in decoder.vectors if v not in ours)),
        },
    )


def test_an_adapter_has_the_vectors_of_all_graphs_and_each_graph_its_own():
    manifest = encoder_decoder()
    content = json.loads(json.dumps(manifest.to_json()))
    assert Manifest.from_json(content) == manifest
    assert content["format"] == 3
    assert set(manifest.sites) == set(manifest_of().sites)
    assert set(manifest.encoder.sites) | set(manifest.decoder.sites) == set(manifest.sites)
    assert not set(manifest.encoder.sites) & set(manifest.decoder.sites)
    shared = replace(manifest, graphs={**manifest.graphs, "train": manifest.decoder})  # the same places once more
    assert Manifest.from_json(shared.to_json()).sites == manifest.sites


def test_a_decoder_alone_is_written_as_it_was():
    content = manifest_of().to_json()
    assert not {"encoder_layers", "decoder_start"} & content["architecture"].keys()
    assert not any("once" in layer for layer in content["linears"])
    assert manifest_of().encoder is None


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda c: c["graphs"].pop("encoder"), "graphs.encoder is missing, which an encoder-decoder needs"),
        (lambda c: c["architecture"].pop("decoder_start"), "architecture.decoder_start is missing"),
        (lambda c: c["architecture"].pop("encoder_layers"), "architecture.encoder_layers is missing"),
        (lambda c: c["architecture"].update(decoder_start=[0, 10**6]), "decoder_start is past the vocabulary"),
        (
            lambda c: c["graphs"]["encoder"]["vectors"].append(
                c["graphs"]["decoder"]["vectors"][0] | {"role": "query"}
            ),
            r"graphs differ in the vector layers\.1\.",
        ),
    ],
)
def test_an_encoder_decoder_that_lacks_a_part_is_refused(change, told):
    content = encoder_decoder().to_json()
    change(content)
    with pytest.raises(ValueError, match=told):
        Manifest.from_json(content)


def test_a_prompt_takes_the_context_of_the_encoder_alone():
    shape = encoder_decoder().architecture
    assert (shape.positions(7, 3), shape.positions(3, 7), shape.positions(3, 3)) == (7, 8, 4)
    assert manifest_of().architecture.positions(7, 3) == 10


def test_every_fault_is_named_at_its_place():
    content = manifest_of().to_json()
    content["linears"][3]["inputs"] = 0
    content["graphs"]["decoder"]["vectors"][1]["size"] = "24"
    del content["base"]["grid"]["symmetric"]
    content["parity"]["none"]["exact"]["kl"] = float("nan")
    with pytest.raises(ValueError, match="linears") as refused:
        Manifest.from_json(content)
    for place in ("linears[3].inputs", "graphs.decoder.vectors[1].size", "base.grid.symmetric", "parity.none.exact.kl"):
        assert place in str(refused.value)


def test_whole_numbers_are_no_truth_values():
    with pytest.raises(ValueError, match="positions is not a whole number"):
        decode(Agreement, {"max_difference": 0, "kl": 0, "top1": 1, "positions": True})


def test_the_files_that_a_graph_reads_are_those_that_onnx_finds(tmp_path):
    folder = tiny.write_bundle(tmp_path)
    model = onnx.load(folder / GRAPH, load_external_data=False)
    entries = [e.value for t in model.graph.initializer for e in t.external_data if e.key == "location"]
    assert external_files(folder / GRAPH) == set(entries) == {Path(DATA).name}


def test_a_file_that_only_the_graph_names_is_refused(tmp_path):
    folder = tiny.write_bundle(tmp_path)
    model = onnx.load(folder / GRAPH, load_external_data=False)
    tensor = next(t for t in model.graph.initializer if t.external_data)
    next(e for e in tensor.external_data if e.key == "location").value = "other_data"
    shutil.copy(folder / DATA, folder / "onnx/other_data")
    (folder / GRAPH).write_bytes(model.SerializeToString())
    content = json.loads((folder / "manifest.json").read_text())
    (folder / "onnx/other_data").rename(folder.parent / "kept")
    tiny.seal(folder, {k: v for k, v in content.items() if k != "files"})
    (folder.parent / "kept").rename(folder / "onnx/other_data")
    with pytest.raises(BundleError, match="reads onnx/other_data, which is not in the manifest"):
        Bundle.open(folder)


def test_a_graph_that_is_cut_short_is_refused_in_one_line(tmp_path):
    data = (tiny.write_bundle(tmp_path / "b") / GRAPH).read_bytes()
    for end in (1, 7, len(data) // 2, len(data) - 1):
        (tmp_path / "cut.onnx").write_bytes(data[:end])
        with pytest.raises(BundleError, match=r"cut\.onnx is not an ONNX graph"):
            external_files(tmp_path / "cut.onnx")


@pytest.mark.skipif(sys.platform == "win32", reason="links")
def test_weights_behind_a_link_are_told_in_our_words_where_the_runtime_refuses_them(tmp_path):
    """A graph and its data as links into one folder, as a hub's cache has them, is what it takes."""
    folder = tiny.write_bundle(tmp_path / "b")
    (folder / DATA).rename(tmp_path / "data")
    (folder / DATA).symlink_to(tmp_path / "data")
    with pytest.raises(BundleError, match=r"is a link to another folder.*cp -rL"):
        Bundle.open(folder)
    (folder / GRAPH).rename(tmp_path / "graph")
    (folder / GRAPH).symlink_to(tmp_path / "graph")
    Engine(Bundle.open(folder)).prefill([[3, 4]], {})


def test_a_bundle_of_0_1_0_gives_its_own_report(tmp_path):
    """Manifest and report as 0.1.0 wrote them (format 2, its tiny build); the other files have only their sizes here."""
    old = Path(__file__).parent / "golden" / "bundle_2"
    for name, file in json.loads((old / "manifest.json").read_text(encoding="utf-8"))["files"].items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(bytes(file["bytes"]))
    shutil.copy(old / "manifest.json", tmp_path)
    manifest = read_manifest(tmp_path)
    then, now = (old / "report.md").read_text(encoding="utf-8"), markdown(bundle_page(build_report(tmp_path, manifest)))
    assert [*figures(then)] == [title for title in figures(now) if title in figures(then)]
    for title, found in figures(then).items():
        assert figures(now)[title] == found, title
    assert (manifest.adapters, manifest.decoder.file) == (("commands", "topics"), "onnx/model_q4.onnx")
    assert Manifest.from_json(manifest.to_json()) == manifest


def figures(text: str) -> dict[str, list[str]]:
    """Numbers in a report's sections, by their titles: words may become better. What is expected is of later reports."""
    sections = (part.split("\n", 1) for part in re.sub(r"(Expected|Limits): .*", "", text).split("\n## ")[1:])
    return {title: re.findall(r"\d[\d,.]*", body) for title, body in sections}
