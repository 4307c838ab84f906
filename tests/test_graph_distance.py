"""Scores that depend on distances: taken apart from numbers, and put together again in the form that the graph has."""

from __future__ import annotations

import onnx_ir as ir
import pytest
import torch
from tiny_encoders import tiny_encoder
from torch import nn

from qia3.graph.distance import BUFFERS, Distances, added, constants, in_graph, table_numbers, taken_apart
from qia3.graph.external import PROMPT_WEIGHTS, _part
from qia3.graph.stacks import attentions, reaching
from qia3.graph.watch import watch
from qia3.ia3.by_hand import Made

H, N, D, P = 3, 9, 4, 7


def drawn(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


def made(extra: torch.Tensor | float = 0.0) -> tuple[Made, torch.Tensor, torch.Tensor]:
    """DeBERTa's formula, written as its paper has it (equation 4): content, content to position, position to content."""
    q, k, keys, queries = drawn(1, H, N, D), drawn(2, H, N, D)[:1], drawn(1, H, P, D), drawn(2, H, P, D)[1:]
    places = (torch.arange(N)[:, None] - torch.arange(N)[None] + P // 2).clamp(0, P - 1)[None, None]
    right = [(q, keys.transpose(2, 3), places), (k * 2, queries.transpose(2, 3), places)]
    taken = [(left @ table).gather(-1, index.expand(1, H, N, N)) for left, table, index in right]
    scores = 0.5 * q @ k.transpose(2, 3) + 0.25 * taken[0] + 0.125 * taken[1].transpose(2, 3)
    return Made(scores + extra, q, tuple(right)), q, k


def test_factors_are_read_from_numbers():
    whole, q, k = made()
    found = taken_apart(whole, q, k)
    assert found is not None
    assert found.scale == pytest.approx(0.5, abs=1e-5)
    assert [table.side for table in found.tables] == ["query", "key"]
    assert found.bias is None
    torch.testing.assert_close(found.scale * q @ k.transpose(2, 3) + added(found, q, k), whole.scores)


def test_what_is_left_may_depend_on_the_distance_and_on_nothing_else():
    line = drawn(H, 2 * N - 1)
    spread = line[:, torch.arange(N)[:, None] - torch.arange(N)[None] + N - 1]
    whole, q, k = made(spread)
    found = taken_apart(whole, q, k)
    assert found is not None
    assert found.bias is not None
    torch.testing.assert_close(found.scale * q @ k.transpose(2, 3) + added(found, q, k), whole.scores)
    assert taken_apart(made(drawn(1, H, N, N))[0], q, k) is None


@pytest.mark.parametrize("length", [1, 2, 5, 9])
def test_the_graph_slices_what_a_gather_would_take(length):
    whole, q, k = made(0.0)
    found = taken_apart(whole, q, k)
    assert found is not None
    found = Distances(found.scale, found.tables, drawn(H, 2 * N - 1))
    module = nn.Module()
    few = [t[:, :, :length] for t in (q, k)]
    with constants({module: found}):
        ours = in_graph(module, found, *few, {})
        assert [name for name, _ in module.named_buffers()]
    assert not list(module.buffers())
    torch.testing.assert_close(ours, added(found, q, k)[:, :, :length, :length])


def test_a_table_of_other_factors_is_refused():
    whole, q, k = made()
    strange = (drawn(3, H, N, D)[2:], *whole.lookups[0][1:])
    assert taken_apart(Made(whole.scores, q, (strange,)), q, k) is None


def test_tables_are_counted_as_what_they_are():
    names = [f"encoder.layer.0.attention.self.{name}_0" for name in BUFFERS]
    assert {_part(ir.Value(name=name), [], PROMPT_WEIGHTS) for name in names} == {"positions"}


@pytest.mark.parametrize(
    ("op", "shape", "module", "part"),
    [
        ("Gather", (160, 96), "wpe", "positions"),
        ("Slice", (160, 96), "embed_positions", "positions"),
        ("Gather", (160, 96), "wte", "embedding_weights"),
        ("Transpose", (4, 96), "mlp.gate", "other"),
        ("Mul", (96,), "norm", "norms_and_biases"),
    ],
)
def test_a_weight_is_counted_by_its_use(op, shape, module, part):
    value = ir.Value(name=f"{module}.weight", shape=ir.Shape(shape))
    ir.Node("", op, [value])
    assert _part(value, ["wte"], PROMPT_WEIGHTS) == part


@pytest.mark.parametrize(("name", "numbers"), [("deberta-v2", 2 * 2 * 12 * 96), ("mpnet", 0), ("bert", 0)])
def test_tables_are_counted_before_there_are_weights(name, numbers):
    model = tiny_encoder(name)
    places = reaching(model, attentions(model, watch(model)), 40)
    assert sum(t.rows.numel() for p in places.values() if p.distances for t in p.distances.tables) == numbers
    assert table_numbers(model.to("meta")) == numbers
