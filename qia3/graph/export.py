"""The exported graph: torch.onnx.export on the real model with lowered leaves, followed by onnx-ir passes.

torch.export traces with a batch of 2, a length of 3 and a past of 5, all dynamic. Vectors are graph inputs, so the
exporter cannot merge equal ones; a pass gives each its default of ones afterwards.
"""

from __future__ import annotations

import gc
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import onnx_ir as ir
import torch
from onnxscript.optimizer import fold_constants
from torch import nn
from torch.export import Dim
from torch.onnx import OnnxExporterError
from transformers import PreTrainedModel

from qia3.bundle.ports import ATTENTION_MASK, INPUT_IDS, LOGITS, PAST, PRESENT, Cache, cache_names
from qia3.errors import BaseModelError, first_line
from qia3.graph.decoder import Decoder, lowered
from qia3.graph.passes import run_passes

OPSET = 21


def export_decoder(
    model: PreTrainedModel, accuracy_level: int, positions: int, logits: str, required: bool = False
) -> ir.Model:
    """The graph of a decoder whose linear layers are 4-bit, with vectors unmerged, or merged (no Scaled module left).

    `required`: vectors are inputs without a default of ones.
    """
    with lowered(model, accuracy_level, positions, logits) as decoder, quiet():
        program = _trace(decoder)
        fold_constants(program.model)
        return run_passes(program.model, decoder.sizes, required)


def cache_of(graph: ir.Model) -> Cache | None:
    """The size of a decoder's cache, by its inputs; None if they leave it open (in an encoder-decoder)."""
    past = next(value for value in graph.graph.inputs if (value.name or "").startswith(PAST))
    assert past.shape is not None
    heads, size = past.shape[1], past.shape[3]
    return Cache(heads, size) if isinstance(heads, int) and isinstance(size, int) else None


def _trace(decoder: Decoder) -> torch.onnx.ONNXProgram:
    layers, any_layer = len(decoder.forms), next(iter(decoder.forms.values()))
    past = [torch.zeros(2, any_layer.kv_heads, 5, any_layer.size) for _ in range(2 * layers)]
    vectors = [torch.ones(2, 1, size) for size in decoder.sizes.values()]
    batch, sequence, total, before, rows = (Dim.DYNAMIC,) * 5
    shapes = (
        {0: batch, 1: sequence},
        {0: batch, 1: total},
        [{0: batch, 2: before}] * len(past),
        [{0: rows}] * len(vectors),
    )
    examples = (torch.zeros(2, 3, dtype=torch.long), torch.ones(2, 8, dtype=torch.long), past, vectors)
    inputs = [INPUT_IDS, ATTENTION_MASK, *cache_names(layers, PAST), *decoder.sizes]
    return trace(decoder, examples, shapes, inputs, [LOGITS, *cache_names(layers, PRESENT)])


def trace(
    module: nn.Module, examples: tuple[Any, ...], shapes: tuple[Any, ...], inputs: list[str], outputs: list[str]
) -> torch.onnx.ONNXProgram:
    """The module's program. `shapes` say which dimensions of each example are dynamic.

    Raises BaseModelError if torch cannot export it.
    """
    try:
        with _uncollected():
            program = torch.onnx.export(
                module,
                examples,
                dynamo=True,
                opset_version=OPSET,
                dynamic_shapes=shapes,
                input_names=inputs,
                output_names=outputs,
                verbose=False,
                # its rewrite rules take a third of the export's time; the passes here do what a decoder needs
                optimize=False,
            )
    except OnnxExporterError as error:  # a page of advice with the reason at the end
        reason = first_line(error.__cause__ or error)
        raise BaseModelError(
            f"{type(module.model).__name__} cannot be shipped: torch.onnx.export fails ({reason})"
        ) from error
    assert program is not None
    return program


@contextmanager
def _uncollected() -> Iterator[None]:
    """Keeps Python from searching for cycles: tracing makes millions of objects that stay, and a search looks at all of
    them. A tenth of the time of 30 layers.
    """
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()


@contextmanager
def quiet() -> Iterator[None]:
    """Silences the exporter's many warnings."""
    loggers = [logging.getLogger(n) for n in ("torch.onnx", "torch.export", "onnxscript", "onnx_ir")]
    levels = [log.level for log in loggers]
    try:
        for log in loggers:
            log.setLevel(logging.ERROR)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for log, level in zip(loggers, levels, strict=True):
            log.setLevel(level)
