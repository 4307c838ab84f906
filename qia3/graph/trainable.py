r"""A graph that learns: from a batch of trees and the vectors, the three losses and the gradients of all vectors.

    inputs   input_ids, position_ids, tree, branch int64 [R, L]    rows of trees (qia3.batching.rows); a model that does not
                                                                   pack trees has input_ids alone, one answer in a row
             places int64 [P]                   what the head runs on: r L + slot
             read, targets int64 [T]            of each predicted token its index into places, and the token
             mean float32 [A, T]                1 / (tokens of answer a) where token t is of it
             right, wrong float32 [T]           1 / (right tokens), 1 / (wrong tokens) of the batch, or 0
             member float32 [E, A]              1 where answer a is one of example e's, else 0
             chosen float32 [E, A]              1 / (examples with a choice) at the right answer of such an example, or 0
             NAME [1, 1, d]                     every vector
    outputs  losses float32 [3]                 language modelling, unlikelihood, length-normalised (qia3.train.losses)
             NAME.gradient [1, 1, d]            of their sum

The sums of the losses are products with these tables: a loss that is not wanted has zeros in its own. So one graph
serves any choice of losses and any cut of a batch in parts, and no shape in it depends on data.

torch makes the graph: make_fx traces the model's own forward pass and autograd's backward pass as one program. Products by
weights on a grid are operators on the bytes that ship. Frozen weights get no gradient, so there are two of a kind:

    forward     y = x W^T + b     MatMulNBits at accuracy_level 0
    backward    grad_x = grad_y W     DequantizeLinear of the same bytes (uint4 in blocks, as ONNX packs it), and MatMul

W is float32 within one product only: ONNX Runtime frees it behind the MatMul. Were the forward pass made of
DequantizeLinear too, the two would be one (common subexpressions), and alive from one pass to the other: all weights.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import onnx_ir as ir
import torch
from onnx_ir.passes.common import ClearMetadataAndDocStringPass
from onnxscript.optimizer import fold_constants
from torch import Tensor, nn
from torch._decomp import core_aten_decompositions
from torch._dynamo import config
from torch.export import Dim
from torch.fx.experimental.proxy_tensor import make_fx
from torch.onnx.ops import symbolic
from transformers import PreTrainedModel

from qia3.base.experts import GridExperts
from qia3.base.family import is_encoder
from qia3.base.int8 import Int8Weight
from qia3.base.modules import GridEmbedding, GridLinear
from qia3.base.weights import Int4Weight
from qia3.bundle.ports import GRADIENT, LOSSES, TABLES, TOKENS, TREES
from qia3.errors import BaseModelError, first_line
from qia3.graph.backward import BACKWARD, BackwardProducts
from qia3.graph.decoder import Undo, put
from qia3.graph.export import quiet, trace
from qia3.graph.leaves import MatMulNBits, lookup
from qia3.ia3.roles import attention
from qia3.ia3.vectors import Scaled

EPSILON = 2.0**-23  # as in qia3.train.losses
# logits [P, V] of a model at `places`, of rows input_ids[, position_ids, tree, branch]
ReadLogits = Callable[[PreTrainedModel, Sequence[Tensor], Tensor], Tensor]


def export_trainable(
    model: PreTrainedModel, scaled: Mapping[str, Scaled], read_logits: ReadLogits, packed: bool
) -> ir.Model:
    """The graph of a decoder on an int4 or int8 grid. `packed`: whether its rows hold trees.

    Raises BaseModelError where there is none.
    """
    check_trainable(model)
    examples = _examples(scaled, model.config.get_text_config().vocab_size, packed)
    # torch's cache of operators' shapes costs a fifth of the time here: with so many free dimensions few are found in it
    with learning(model, scaled), attention(model, "eager"), quiet(), config.patch(fake_tensor_cache_enabled=False):
        try:
            step = make_fx(
                _step(Learner(model, scaled, read_logits), len(examples[0])),
                tracing_mode="symbolic",
                decomposition_table=dict(core_aten_decompositions()),
                _allow_non_fake_inputs=True,
            )(*(tensor for group in examples for tensor in group))
        except Exception as error:  # tracing raises many types
            raise BaseModelError(
                f"{type(model).__name__} cannot learn on a device: torch does not trace its gradients "
                f"({first_line(error)}); leave out trainable in [export]"
            ) from error
        program = trace(_Traced(step, model), examples, _dynamic(examples), _inputs(scaled, packed), _outputs(scaled))
    fold_constants(program.model)
    BackwardProducts()(program.model)
    ClearMetadataAndDocStringPass()(program.model)  # where in torch each node came from: most of the file
    return program.model


def check_trainable(model: PreTrainedModel) -> None:
    """Raises BaseModelError, one line, for a model that has no such graph."""
    name = f"{type(model).__name__} cannot learn on a device"
    if model.config.is_encoder_decoder or is_encoder(model.config):
        raise BaseModelError(f"{name}: graphs that learn are of decoders alone; leave out trainable in [export]")
    if any(isinstance(m, GridExperts) for m in model.modules()):
        raise BaseModelError(f"{name}: its experts have no product with a gradient; leave out trainable in [export]")
    others = {m.store.kind for m in model.modules() if isinstance(m, GridLinear) and not _plain(m)}
    if others:
        raise BaseModelError(
            f"{name}: no operator dequantises {', '.join(sorted(others))}; leave out trainable in [export]"
        )


def _plain(linear: GridLinear) -> bool:
    return isinstance(linear.store, Int4Weight | Int8Weight)


class TrainedProduct(nn.Module):
    """A layer on a grid: MatMulNBits, whose gradient is a product by the same bytes."""

    def __init__(self, linear: GridLinear) -> None:
        super().__init__()
        assert isinstance(linear.store, Int4Weight | Int8Weight)
        self.lowered = MatMulNBits(linear.store, linear.bias, 0)
        self.in_features, self.out_features = linear.in_features, linear.out_features

    @property
    def weight(self) -> None:
        """Nothing: code that asks for a layer's weight wants its type."""

    def forward(self, x: Tensor) -> Tensor:
        # x [..., K] -> [..., N]
        out: Tensor = _Product.apply(x, self.lowered)  # type: ignore[no-untyped-call]
        return out


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, leaf: MatMulNBits) -> Tensor:
        ctx.leaf = leaf
        out: Tensor = leaf(x)
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        leaf: MatMulNBits = ctx.leaf
        inputs = [grad, leaf.codes, leaf.scales, *(() if leaf.zero_points is None else (leaf.zero_points,))]
        shape = (*grad.shape[:-1], leaf.attributes["K"])
        found: Tensor = symbolic(BACKWARD, inputs, leaf.attributes, dtype=grad.dtype, shape=shape, version=1)
        return found, None


@contextmanager
def learning(model: PreTrainedModel, scaled: Mapping[str, Scaled]) -> Iterator[None]:
    """The model with products that have gradients by name of an operator; it is itself again afterwards."""
    leaves: dict[str, nn.Module] = {}
    for name, module in model.named_modules():
        if isinstance(module, GridLinear):
            leaves[name] = TrainedProduct(module)
        elif isinstance(module, GridEmbedding):
            leaves[name] = lookup(module)
    undo: Undo = []
    frozen = [p for p in model.parameters() if p.requires_grad]
    try:
        put(model, leaves, undo)
        for parameter in frozen:
            parameter.requires_grad_(False)
        yield
    finally:
        for parameter in frozen:
            parameter.requires_grad_(True)
        for module, name, original in reversed(undo):
            setattr(module, name, original)
        for layer in scaled.values():
            layer.chosen = None


class Learner(nn.Module):
    """forward(rows, tokens, tables, vectors) -> the losses [3]; to be traced, not run."""

    def __init__(self, model: PreTrainedModel, scaled: Mapping[str, Scaled], read_logits: ReadLogits) -> None:
        super().__init__()
        self.model, self.layers, self.read_logits = model, dict(scaled), read_logits

    def forward(
        self, rows: Sequence[Tensor], tokens: Sequence[Tensor], tables: Sequence[Tensor], vectors: Sequence[Tensor]
    ) -> Tensor:
        for layer, vector in zip(self.layers.values(), vectors, strict=True):
            layer.chosen = lambda vector=vector: vector
        places, read, targets = tokens
        return losses(log_probabilities(self.read_logits(self.model, rows, places), read, targets), *tables)


def log_probabilities(logits: Tensor, read: Tensor, targets: Tensor) -> Tensor:
    """log p of each target [T] from logits [P, V]: one normaliser for each slot."""
    return logits[read, targets] - logits.logsumexp(-1)[read]


def losses(log_p: Tensor, mean: Tensor, right: Tensor, wrong: Tensor, member: Tensor, chosen: Tensor) -> Tensor:
    """The three losses of log p [T], as sums over the tables in the header."""
    beta = mean @ log_p  # [A]
    outside = (1 - member) * -1e9  # [E, A], an answer of another example
    return torch.stack(
        (
            -(right * log_p).sum(),
            -(wrong * torch.log1p(EPSILON - log_p.exp())).sum(),
            (chosen * (torch.logsumexp(beta + outside, dim=1)[:, None] - beta)).sum(),
        )
    )


def _step(learner: Learner, rows: int) -> Callable[..., tuple[Tensor, ...]]:
    """Losses and gradients as one function of tensors side by side."""

    def step(*given: Tensor) -> tuple[Tensor, ...]:
        row, token = given[:rows], given[rows : rows + len(TOKENS)]
        table, vector = given[rows + len(TOKENS) :][: len(TABLES)], given[rows + len(TOKENS) + len(TABLES) :]
        leaves = [v.detach().requires_grad_() for v in vector]
        found = learner(row, token, table, leaves)
        return (found.detach(), *torch.autograd.grad(found.sum(), leaves))

    return step


class _Traced(nn.Module):
    """The traced program as a module with inputs in groups."""

    def __init__(self, step: nn.Module, model: nn.Module) -> None:
        super().__init__()
        self.step, self.model = step, [model]

    def forward(self, *groups: Sequence[Tensor]) -> tuple[Tensor, ...]:
        return tuple(self.step(*(tensor for group in groups for tensor in group)))


Groups = tuple[list[Tensor], ...]


def _examples(scaled: Mapping[str, Scaled], vocabulary: int, packed: bool) -> Groups:
    """A batch that no dimension of is one or another's: 2 rows of 9 slots, 5 places, 7 tokens, 4 answers, 3 examples."""
    ids = torch.arange(18).reshape(2, 9) % vocabulary
    rows = [ids, torch.arange(9).expand(2, 9).clone(), torch.zeros_like(ids), torch.zeros_like(ids)]
    tokens = [torch.tensor([1, 2, 4, 10, 13]), torch.tensor([0, 1, 2, 3, 4, 4, 1]), torch.arange(7) % vocabulary]
    tables = [torch.full(s, 0.2) for s in ((4, 7), (7,), (7,), (3, 4), (3, 4))]
    return rows if packed else rows[:1], tokens, tables, [torch.ones(1, 1, s.site.size) for s in scaled.values()]


def _dynamic(examples: Groups) -> tuple[Any, ...]:
    free = Dim.DYNAMIC
    rows, tokens, tables, vectors = examples
    whole = tuple([dict.fromkeys(range(t.dim()), free) for t in group] for group in (rows, tokens, tables))
    return ((*whole, [{} for _ in vectors]),)


def _inputs(scaled: Mapping[str, Scaled], packed: bool) -> list[str]:
    return [*(TREES if packed else TREES[:1]), *TOKENS, *TABLES, *scaled]


def _outputs(scaled: Mapping[str, Scaled]) -> list[str]:
    return [LOSSES, *(f"{name}{GRADIENT}" for name in scaled)]
