"""Every family's graph is transformers' eager attention, or the family is refused with its own reason, before training.

The table in docs/families.md says so, row by row.
"""

from __future__ import annotations

import re

import pytest
from families import AGREES, FAMILIES, TABLE, Family, Works, label, outcome, random_model, table, told
from tiny import ALL

from qia3.base.quantise import Grid, quantise_model
from qia3.errors import BaseModelError
from qia3.graph.preflight import preflight
from qia3.graph.rotary import in_operator, lookups
from qia3.graph.watch import watch
from qia3.ia3.roles import find_roles
from qia3.ia3.vectors import attach, get_vectors


def named(text: str) -> Family:
    return next(f for f in FAMILIES if label(f) == text)


@pytest.mark.parametrize("family", [f for f in FAMILIES if ALL or not f.apart], ids=label)
def test_a_family_agrees_with_eager_or_is_refused_with_its_reason(family):
    found = outcome(family)
    if family.refused is None:
        assert isinstance(found, Works), found
        assert found.difference < AGREES
    else:
        assert isinstance(found, str), found
        assert re.search(family.refused, found)
        assert "\n" not in found
    assert any(row.startswith(told(family, found)) for row in TABLE.read_text(encoding="utf-8").splitlines())


def test_the_table_has_every_family_once():
    rows = [line for line in TABLE.read_text(encoding="utf-8").splitlines() if line.startswith("| ")][1:]
    assert sorted(row.split("|")[1:3] for row in rows) == sorted([f" {f.kind} ", f" {f.note} "] for f in FAMILIES)
    assert TABLE.read_text(encoding="utf-8") == table(rows)


def test_layers_that_are_not_rotated_are_found_and_the_others_keep_the_operators_rotation():
    model = random_model(named("smollm3, layers without rotation"))
    seen = watch(model)
    assert in_operator(model, seen, lookups(model, seen, 64)).layers == {0}
    model = random_model(named("llama"))
    seen = watch(model)
    assert in_operator(model, seen, lookups(model, seen, 64)).layers == {0, 1}


@pytest.mark.parametrize(
    "note", ["hunyuan_v1_dense, norms after the rotation", "gemma3_text, window in one layer, two rotations", "cohere"]
)
def test_a_rotation_that_is_not_the_operators_is_the_models_own(note):
    model = random_model(named(note))
    seen = watch(model)
    assert in_operator(model, seen, lookups(model, seen, 64)) is None


def test_dynamic_rotation_is_plain_within_its_length_and_leaves_no_state():
    model = random_model(named("llama, dynamic rope, within its length"))
    rotary = model.model.rotary_emb
    before = rotary.inv_freq.clone(), rotary.max_seq_len_cached
    seen = watch(model)
    assert in_operator(model, seen, lookups(model, seen, 64)) is not None
    with pytest.raises(BaseModelError, match=r"more than 64 tokens \(rope_type dynamic.*set context_length = 64"):
        lookups(model, seen, 100)
    assert rotary.inv_freq.equal(before[0])
    assert rotary.max_seq_len_cached == before[1]


def test_preflight_sees_a_graph_that_is_not_the_model(monkeypatch):
    """A scale that is off by a hundredth, which nothing about the model would tell."""
    from qia3.graph import leaves

    model = random_model(named("llama"))
    quantise_model(model, Grid(32, False))
    scaled = attach(model, find_roles(model).sites)
    original = leaves.RMSNorm.__init__
    monkeypatch.setattr(leaves.RMSNorm, "__init__", lambda self, w, e: original(self, w * 1.01, e))
    with pytest.raises(BaseModelError, match=r"its graph differs from torch by .* no reason was found"):
        preflight(model, scaled, 64, 4, "last", False, 1e-3)
    assert all((v == 1).all() for v in get_vectors(scaled).values())
