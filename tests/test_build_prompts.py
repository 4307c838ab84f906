"""`prompts = "int8"` on the whole road, with a tiny base: built, run, batched, reported, and left alone where int8
products saturate.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from test_build import complaint, qia3
from tiny_build import write_build

from qia3 import cli
from qia3.bundle.layout import PROMPT_DATA, PROMPT_GRAPH
from qia3.bundle.opened import Bundle
from qia3.footprint.report import build_report
from qia3.runtime import engine as engines
from qia3.runtime.adapters import AdapterBank
from qia3.runtime.engine import SHORTEST, Engine
from qia3.runtime.slots import Slots


@pytest.fixture(scope="module")
def place(tmp_path_factory, kept_graphs) -> Path:
    """Bundles of one training: `plain`, `int8`, and `both`, with an int8 cache as well."""
    folder = tmp_path_factory.mktemp("prompts")
    file = write_build(folder)
    file.write_text(file.read_text().replace("ort-exact", "ort-cpu").replace("[parity]", "[parity]\nmax_kl = 0.05"))
    eight = ["--prompts", "int8"]
    for words in (["build", "plain"], ["export", "int8", *eight], ["export", "both", *eight, "--cache", "int8"]):
        with pytest.raises(SystemExit) as ended:
            cli.main(
                [words[0], str(file), "--output", str(folder / words[1]), "--work", str(folder / "work"), *words[2:]]
            )
        assert ended.value.code == 0
    return folder


@pytest.fixture
def int8_products(monkeypatch):
    """Whatever this processor has."""
    monkeypatch.setattr(engines, "int8_dot_products", lambda: True)


def distance(found, expected):
    """Root mean square of the difference over that of what is expected."""
    return np.sqrt(np.square(found - expected).mean() / np.square(expected).mean())


def test_a_report_and_a_manifest_say_so(place):
    plain, eight, both = (json.loads((place / n / "manifest.json").read_text()) for n in ("plain", "int8", "both"))
    assert "prompt" not in plain["graphs"]
    assert (eight["graphs"]["prompt"]["file"], eight["graphs"]["prompt"]["data"]) == (PROMPT_GRAPH, PROMPT_DATA)
    for name, agreements in eight["parity"].items():
        assert agreements["prompts_like_steps"] == plain["parity"][name]["shipped"]
        assert agreements["exact"] == plain["parity"][name]["exact"]
        assert agreements["shipped"]["max_difference"] != agreements["prompts_like_steps"]["max_difference"]
    assert all({"float_cache", "prompts_like_steps"} < both["parity"][name].keys() for name in both["parity"])
    reports = [build_report(place / n, Bundle.open(place / n).manifest) for n in ("plain", "int8")]
    new = (place / "int8" / PROMPT_DATA).stat().st_size
    assert reports[1].account.parts["prompt_weights"] <= new <= reports[1].account.parts["prompt_weights"] + 4096
    assert "prompt_weights" not in reports[0].account.parts
    assert sum(reports[1].account.parts.values()) == reports[1].account.total
    text = (place / "int8" / "report.md").read_text(encoding="utf-8")
    assert "int8 weights for prompts" in text
    assert "prompts like steps" in text


@pytest.mark.parametrize("name", ["int8", "both"])
def test_long_prompts_take_the_other_graph_and_short_ones_do_not(place, name, int8_products):
    bundle, plain = Bundle.open(place / name), Bundle.open(place / ("plain" if name == "int8" else name))
    engine, vectors = Engine(bundle, threads=1), AdapterBank(bundle).vectors("topics")
    other = Engine(plain, threads=1)
    other.prompts = None
    long, short = list(range(3, 3 + SHORTEST)), list(range(3, 2 + SHORTEST))
    one, same = (e.prefill([short], vectors)[0] for e in (engine, other))
    np.testing.assert_array_equal(one, same)
    one, apart = (e.prefill([long], vectors)[0] for e in (engine, other))
    assert 0 < distance(one, apart) < 0.1


def test_rows_beside_others_and_pieces_are_what_one_row_gives(place, int8_products):
    """A batch of unequal prompts, a prompt in pieces, and rows that join others: all within rounding of one alone."""
    bundle = Bundle.open(place / "both")
    engine, bank = Engine(bundle, threads=1), AdapterBank(bundle)
    prompts = [list(range(3, 3 + n)) for n in (40, 17, 29)]
    worn = [bank.vectors(name) for name in ("topics", None, "commands")]
    slots, alone = Slots(engine, 3), []
    for prompt, vectors in zip(prompts, worn, strict=True):
        logits, cache = engine.prefill([prompt], vectors, room=0)
        slots.join(cache, vectors)
        alone.append(np.concatenate([logits, engine.step([7], cache, vectors)[0]]))
    together = slots.step([7] * 3)
    for row in range(3):
        assert distance(together[row], alone[row][1]) < 0.1
    batch, _ = engine.prefill(prompts, worn[0])
    assert distance(batch[0], alone[0][0]) < 0.1
    in_pieces = slots.prompt(prompts[0], worn[0], piece=18)
    found = None
    while found is None:
        found = in_pieces.advance()
    assert distance(found[0], alone[0][0]) < 0.1


def test_a_common_beginning_is_kept_and_continued(place, int8_products):
    bundle = Bundle.open(place / "int8")
    engine, vectors = Engine(bundle, threads=1), AdapterBank(bundle).vectors("topics")
    row = list(range(3, 43))
    whole, _ = engine.prefill([row], vectors)
    engine.begin(row[:20], vectors)
    continued, _ = engine.prefill([row], vectors)
    assert distance(continued, whole) < 0.1


def test_a_processor_whose_products_saturate_leaves_it_alone(place, monkeypatch):
    for sets, kind, right in (
        (("avx2",), "x64", False),
        (("avx2", "avx_vnni"), "x64", True),
        (("neon",), "arm", False),
    ):
        monkeypatch.setattr("qia3.machine.instruction_sets", lambda sets=sets: sets)
        monkeypatch.setattr("qia3.machine.family", lambda kind=kind: kind)
        assert (Engine(Bundle.open(place / "int8"), threads=1).prompts is not None) is right


def test_it_answers(place, capsys, int8_products):
    for name in ("int8", "both"):
        code, out, _ = qia3(capsys, "run", place / name, "turn the lights off in the hall", "--adapter", "topics")
        assert (code, out.strip() in ("lights", "music", "lock")) == (0, True)
        assert qia3(capsys, "run", place / name, "lights on", "--adapter", "commands")[0] == 0


@pytest.mark.parametrize(
    ("target", "told"),
    [
        ("browser", "WebGPU as well"),
        ("browser-wasm", "all of its products"),
        ("ort-exact", "rounds activations to int8"),
    ],
)
def test_where_there_is_none_it_is_told_before_anything_is_loaded(place, capsys, monkeypatch, target, told):
    monkeypatch.setattr("qia3.build.load_base", None)
    words = ["--output", place / "x", "--prompts", "int8", "--target", target]
    assert told in complaint(capsys, "build", place / "qia3.toml", *words)
