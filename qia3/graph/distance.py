"""Attention scores that depend on the distance of two tokens, in encoders that compute attention themselves
(ia3/by_hand.py).

    scores[h, i, j] = a q_i . k_j + t[h, i - j] + q_i . P[h, x(i - j)] + k_j . R[h, y(j - i)]

MPNet has t, with buckets of distances. DeBERTa has P and R, "content to position" and "position to content" (He et al.
2021, arXiv:2006.03654): keys and queries made from a table of distances, in most checkpoints by the same projections as
those of the text (`share_att_key`), so l_k scales P as well. x and y are buckets, too.

What a module does is inferred numerically. Its products before the softmax are watched, and the entries that it takes
from them (torch.gather); the factors a, and those of P and R, are the ones that explain the scores, and the remainder
must depend on the distance only. P and R are the results of projections without text, so the graph has them as
constants, 512 rows per head in DeBERTa-v3: computing them per text, as transformers does, costs as much as 85 more
tokens. Their vectors are moved to the other factor, which has rows: (q l) . P = q . (l P).

In the graph each row takes the S columns for its distances, by padding and slicing instead of a gather:

    c      0   1   2   3   4        d = S - 1 - c = 2 .. -2         S = 3
    x[0]   .   .   a   b   c        x [S, 2S - 1], with one more column, flattened from S - 1 on,
    x[1]   .   d   e   f   .        is again [S, 2S - 1] with a b c, d e f, g h i in front
    x[2]   g   h   i   .   .
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.onnx.ops import symbolic
from transformers import AttentionInterface, PreTrainedModel

from qia3.base.family import is_encoder
from qia3.errors import BaseModelError
from qia3.graph.scores import too_long
from qia3.ia3.by_hand import Made, by_hand
from qia3.ia3.roles import attention, device_of
from qia3.ia3.vectors import Scaled

PROBE = "qia3_distances"
NOISE = 1e-4
ROWS, PLACES, BIAS = BUFFERS = ("position_rows", "position_places", "position_bias")

Side = Literal["query", "key"]


@dataclass(frozen=True)
class Table:
    """P or R of a module: `rows` [P, H, d] including their factor, `line` [2n - 1] the row of distance d at n - 1 + d,
    the distance being the token's own position minus the other's. `vector`: the name of the site whose vector scales
    the rows.
    """

    side: Side
    rows: Tensor
    line: Tensor
    vector: str | None = None


@dataclass(frozen=True)
class Distances:
    """All that a module adds to a q k^T. `bias` [H, 2n - 1], of i - j."""

    scale: float
    tables: tuple[Table, ...] = ()
    bias: Tensor | None = None


class _Enough(Exception):
    """Ends a run when the first layer's scores are there."""


def taken_apart(made: Made, q: Tensor, k: Tensor) -> Distances | None:
    """Of one text, q and k [1, H, n, d]; None where the scores are something else."""
    tables = [_table(q, k, *lookup) for lookup in made.lookups]
    if any(table is None for table in tables):
        return None
    known = [table for table in tables if table is not None]
    wide = [t.double() for t in (q, k)]
    parts = [(wide[0] @ wide[1].transpose(2, 3))[0], *(_looked_up(t, *wide) for t in known)]
    apart = torch.stack([_centred(p).flatten() for p in parts], 1)
    scores = made.scores[0].double()
    factors = torch.linalg.lstsq(apart, _centred(scores).flatten()[:, None]).solution[:, 0]
    rest = scores - sum(f * p for f, p in zip(factors, parts, strict=True))
    if not bool((_centred(rest).abs() <= NOISE * max(1.0, float(scores.abs().max()))).all()):
        return None
    bias = _line(rest).float()
    found = [replace(t, rows=t.rows * float(f)) for t, f in zip(known, factors[1:], strict=True)]
    return Distances(float(factors[0]), tuple(found), bias if bool((bias.abs() > NOISE).any()) else None)


def added(found: Distances, q: Tensor, k: Tensor) -> Tensor:
    """What `found` adds to the products of these queries and keys: [1, H, n, n]."""
    parts = [_looked_up(t, q.double(), k.double()) for t in found.tables]
    bias = [] if found.bias is None else [_spread(found.bias.double())]
    return sum([*parts, *bias], torch.zeros((), dtype=torch.float64)).float()[None]


def _table(q: Tensor, k: Tensor, left: Tensor, right: Tensor, places: Tensor) -> Table | None:
    """Whose product with what, and which entries of it: left [1, H, n, d], right [1, H, d, P], places [.., n, n]."""
    n = places.shape[-1]
    line = torch.cat([places[0, 0, 0].flip(0), places[0, 0, 1:, 0]])  # row 0: distances 1 - n to 0
    columns = torch.arange(n)[:, None] - torch.arange(n)[None] + n - 1
    if not bool((places == line[columns]).all()):
        return None
    for side, own in (("query", q), ("key", k)):
        factor = float((left * own).sum() / own.square().sum())
        if torch.allclose(left, factor * own, rtol=1e-3, atol=1e-5 * float(left.abs().max())):
            rows = right[0].permute(2, 0, 1) * factor
            return Table(side, rows.float(), line)  # type: ignore[arg-type]
    return None


def _looked_up(table: Table, q: Tensor, k: Tensor) -> Tensor:
    """The scores [H, n, n] that the table adds for q and k [1, H, n, d]."""
    own = (q if table.side == "query" else k)[0]
    n = own.shape[1]
    products = own @ table.rows.to(own).permute(1, 2, 0)
    distance = torch.arange(n)[:, None] - torch.arange(n)[None]
    places = table.line[distance + table.line.numel() // 2]
    taken = products.gather(-1, places.expand(len(own), n, n))
    return taken if table.side == "query" else taken.transpose(1, 2)


def _line(x: Tensor) -> Tensor:
    """[H, 2n - 1]: means of x [H, n, n] over entries with the same distance i - j."""
    n = x.shape[-1]
    places = (torch.arange(n)[:, None] - torch.arange(n)[None] + n - 1).flatten()
    sums = torch.zeros(len(x), 2 * n - 1, dtype=x.dtype).index_add(1, places, x.flatten(1))
    return sums / torch.zeros(2 * n - 1, dtype=x.dtype).index_add(0, places, torch.ones(n * n, dtype=x.dtype))


def _spread(line: Tensor) -> Tensor:
    """[H, n, n] of [H, 2n - 1]."""
    n = line.shape[-1] // 2 + 1
    return line[:, torch.arange(n)[:, None] - torch.arange(n)[None] + n - 1]


def _centred(x: Tensor) -> Tensor:
    """The part of x [H, n, n] that does not depend on the distance alone."""
    return x - _spread(_line(x))


def distances(
    model: PreTrainedModel, found: Mapping[nn.Module, Distances], positions: int
) -> dict[nn.Module, Distances]:
    """Distance terms for up to `positions`, and the vectors that scale their tables. Raises BaseModelError."""
    if not any(d.tables or d.bias is not None for d in found.values()):
        return dict(found)
    long = _of_first_layer(model, positions)
    if long is None:
        raise BaseModelError(
            f"{type(model).__name__} cannot be shipped: what it adds to its attention scores depends on more "
            "than the distance of two tokens"
        )
    vectors = _vectors(model)
    return {module: _reaching(model, d, long, vectors.get(module, [])) for module, d in found.items()}


def _reaching(model: PreTrainedModel, short: Distances, long: Distances, vectors: list[str | None]) -> Distances:
    same = len(short.tables) == len(long.tables) == len(vectors) and (short.bias is None) == (long.bias is None)
    ends = [(s.line, lo.line) for s, lo in zip(short.tables, long.tables, strict=False)]
    ends += [(short.bias, long.bias)] if short.bias is not None and long.bias is not None else []
    if not same or not all(torch.allclose(_middle(lo, s).float(), s.float(), atol=1e-3) for s, lo in ends):
        raise BaseModelError(
            f"{type(model).__name__} cannot be shipped: what it adds to its attention scores differs between "
            "layers or for longer texts"
        )
    tables = zip(short.tables, long.tables, vectors, strict=True)
    return replace(short, tables=tuple(replace(s, line=lo.line, vector=v) for s, lo, v in tables), bias=long.bias)


def _middle(line: Tensor, like: Tensor) -> Tensor:
    """As many entries as `like` has, around distance zero."""
    count = like.shape[-1]
    return line.narrow(-1, (line.shape[-1] - count) // 2, count)


def _of_first_layer(model: PreTrainedModel, length: int) -> Distances | None:
    """The terms of the first layer, from a text of `length` tokens. Raises BaseModelError."""
    found: list[Distances | None] = []

    def attend(_: nn.Module, q: Tensor, k: Tensor, *__: Any, made: Made, **___: Any) -> Any:
        found.append(taken_apart(made, q, k))
        raise _Enough

    try:
        _pass(model, attend, length)
    except _Enough:
        return found[0]
    except (ValueError, RuntimeError, IndexError) as error:
        raise too_long(model, length, error) from error
    return None


def _vectors(model: PreTrainedModel) -> dict[nn.Module, list[str | None]]:
    """Which vector scales each of a module's tables, found by trying random vectors. Raises BaseModelError."""
    layers = {m.site.name: m for m in model.modules() if isinstance(m, Scaled)}
    with _worn(layers, 0):
        plain = _tables(model)
    with _worn(layers, 1):
        scaled = _tables(model)
        own = {n: m.vector() for n, m in layers.items() if m.site.placement == "output"}
    return {
        module: [_vector_in(model, before, after, own) for before, after in zip(tables, scaled[module], strict=True)]
        for module, tables in plain.items()
    }


def _vector_in(model: PreTrainedModel, before: Tensor, after: Tensor, vectors: Mapping[str, Tensor]) -> str | None:
    """The vector that explains the change of a table [H, d, P]."""
    factors = (before * after).sum(-1) / before.square().sum(-1)
    if torch.allclose(after, before, atol=1e-6):
        return None
    flat = factors.flatten()
    for name, vector in vectors.items():
        if vector.shape == flat.shape and torch.allclose(vector, flat, rtol=1e-4):
            return name
    raise BaseModelError(
        f"{type(model).__name__} cannot be shipped: vectors change its position tables in an unknown way"
    )


def _tables(model: PreTrainedModel) -> dict[nn.Module, list[Tensor]]:
    """The tables [H, d, P] by which each module multiplies queries or keys to look up positions."""
    found: dict[nn.Module, list[Tensor]] = {}

    def attend(module: nn.Module, *_: Any, made: Made, **__: Any) -> Any:
        found[module] = [right[0].float() for _, right, _ in made.lookups]
        return made.answer, None

    _pass(model, attend, 4)
    return found


def table_numbers(model: PreTrainedModel) -> int:
    """How many numbers such tables have in a graph; the model may be on torch's meta device."""
    if not is_encoder(model.config) or not by_hand(model):
        return 0
    return sum(table.numel() for tables in _tables(model).values() for table in tables)


@torch.no_grad()
def _pass(model: PreTrainedModel, attend: Any, length: int) -> None:
    AttentionInterface.register(PROBE, attend)
    vocabulary = int(model.config.get_text_config().vocab_size)
    ids = (torch.arange(length, device=device_of(model)) * 41 + 3)[None] % vocabulary
    with attention(model, PROBE):
        try:
            model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False)
        except RuntimeError:
            if ids.device.type != "meta":
                raise
            model(input_ids=ids, use_cache=False)  # MPNet inspects a mask's values, which do not exist there


@contextmanager
def _worn(layers: Mapping[str, Scaled], spread: float) -> Iterator[None]:
    """Applies random vectors around one, exact in float32; restores the previous ones afterwards."""
    before = [(m, m.delta.detach().clone(), m.precision) for m in layers.values()]
    draw = torch.Generator().manual_seed(0)
    try:
        for m, delta, _ in before:
            m.precision = torch.float32
            m.delta.data = (torch.rand(delta.shape, generator=draw) * spread / 2).to(delta.device)
        yield
    finally:
        for m, delta, precision in before:
            m.delta.data, m.precision = delta, precision


@contextmanager
def constants(found: Mapping[nn.Module, Distances]) -> Iterator[None]:
    """Tables as buffers of their modules, so that the graph's initializers get their names."""
    try:
        for module, d in found.items():
            for i, table in enumerate(d.tables):
                module.register_buffer(f"{ROWS}_{i}", table.rows.contiguous(), persistent=False)
                module.register_buffer(f"{PLACES}_{i}", table.line.flip(0).contiguous(), persistent=False)
            if d.bias is not None:
                module.register_buffer(BIAS, d.bias.flip(1).contiguous(), persistent=False)
        yield
    finally:
        for module in found:
            for name in [n for n, _ in module.named_buffers(recurse=False) if n.startswith(BUFFERS)]:
                delattr(module, name)


def in_graph(module: nn.Module, found: Distances, q: Tensor, k: Tensor, vectors: Mapping[str, Tensor]) -> Tensor:
    """The term added to the scores, [B, H, S, S] or [1, H, S, S], for export. q and k [B, H, S, d]."""
    length = q.shape[2]
    columns = torch.arange(2 * length - 1)
    total: Tensor | None = None
    for i, table in enumerate(found.tables):
        rows, places = getattr(module, f"{ROWS}_{i}"), getattr(module, f"{PLACES}_{i}")
        # index_select becomes Gather and keeps the table's name; rows[...] does neither
        here = places.index_select(0, columns + (places.shape[0] // 2 + 1 - length))
        taken = rows.index_select(0, here)  # [2S - 1, H, d]
        own = q if table.side == "query" else k
        own = own if table.vector is None else _times(own, vectors[table.vector])
        part = _skewed(own @ taken.permute(1, 2, 0), length)
        part = part if table.side == "query" else part.transpose(2, 3)
        total = part if total is None else total + part
    if found.bias is not None:
        line = getattr(module, BIAS)
        taken = line.index_select(1, columns + (line.shape[1] // 2 + 1 - length))
        part = _skewed(taken[None, :, None].expand(1, line.shape[0], length, 2 * length - 1), length)
        total = part if total is None else total + part
    assert total is not None
    return total


def _times(x: Tensor, vector: Tensor) -> Tensor:
    """x [B, H, S, d] by a vector [rows, 1, H d], by name: rows are 1 or B."""
    batch, heads, length, size = x.shape
    flat = x.transpose(1, 2).reshape(batch, length, heads * size)
    out: Tensor = symbolic("Mul", (flat, vector), {}, dtype=x.dtype, shape=flat.shape, version=14)
    return out.view(batch, length, heads, size).transpose(1, 2)


def _skewed(x: Tensor, length: Any) -> Tensor:
    """[B, H, S, 2S - 1] by distance -> [B, H, S, S] by token."""
    line = F.pad(x, (0, 1)).flatten(2)[..., length - 1 : -1]
    return line.reshape(*x.shape[:3], 2 * length - 1)[..., :length]
