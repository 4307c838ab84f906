"""The forms of a model that is not built yet: `bits` is what a number takes on average, between 4 bits and 8."""

from __future__ import annotations

import pytest

from qia3.bundle.manifest import Architecture
from qia3.footprint.bits import grid_bytes, on_grid
from qia3.footprint.shapes import Form, Matrix, Shapes, Table
from qia3.footprint.weights import mixed, takes_bits, weights_of

SIZES = {"query": (192, 192), "key": (192, 64), "feed_forward": (192, 448), "feed_forward_down": (448, 192)}


def shapes(role: str = "value") -> Shapes:
    """Two layers, and a head of its own beside the embedding."""
    sizes = {**SIZES, role: (192, 64)}
    layers = [Matrix(f"{i}.{name}", name, *size) for i in range(2) for name, size in sizes.items()]
    shape = Architecture(2, 3, 1, 64, 192, 320, 128, False)
    return Shapes("x", "llama", shape, (*layers, Matrix("head", "head", 192, 320)), (Table(320, 192),), 960, ())


@pytest.mark.parametrize("bits", [5.1, 6.0, 7.25])
def test_a_number_takes_so_many_bits(bits):
    numbers = sum(m.numbers for m in shapes().matrices)
    floats, table = 4 * 960, grid_bytes(on_grid(320, 192, 64, False))
    expected = bits * numbers / 8 + floats + table
    assert mixed(shapes(), bits).disk_bytes == pytest.approx(expected, rel=1e-3)


def test_the_ends_are_the_forms_themselves():
    """But for an embedding that is no layer, which stays at 4 bits."""
    tables = [grid_bytes(on_grid(320, 192, 64, False, form)) for form in ("int4", "int8")]
    for bits, form, more in ((4.0, Form("int4", 64), 0), (9.0, Form("int8", 64), tables[1] - tables[0])):
        found, whole = mixed(shapes(), bits), weights_of(shapes(), form)
        assert found.disk_bytes + more == whole.disk_bytes
        assert found.mapped_bytes + more == whole.mapped_bytes
        assert found.kernels == whole.kernels


def test_an_encoder_and_experts_have_no_bits():
    assert takes_bits(shapes())
    assert not takes_bits(shapes("experts"))
