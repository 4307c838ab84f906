"""Opens a new graph in ONNX Runtime from the memory of its tensors: no file is written, and the weights are not copied."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime as ort

from qia3.errors import BaseModelError, first_line

LARGE = 1024  # bytes; larger initializers are passed by reference instead of being serialised


def opened(graph: ir.Model, name: str) -> tuple[ort.InferenceSession, dict[str, Any]]:
    """A session, and the objects that must stay alive as long as it. Raises BaseModelError that mentions `name`."""
    options = ort.SessionOptions()
    options.log_severity_level = 3
    held = _handed_over(graph)
    proto = _without_bytes(graph, held)
    options.add_external_initializers(list(held), list(held.values()))
    try:
        return ort.InferenceSession(proto, options, providers=["CPUExecutionProvider"]), held
    except Exception as error:  # onnxruntime raises many types
        raise BaseModelError(f"ONNX Runtime cannot open the graph of {name}: {first_line(error)}") from error


def _handed_over(graph: ir.Model) -> dict[str, Any]:
    """The large initializers as OrtValues on the same memory, by name."""
    inputs = {v.name for v in graph.graph.inputs}
    return {
        name: ort.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(value.const_value.numpy()))
        for name, value in graph.graph.initializers.items()
        if value.const_value is not None and value.const_value.nbytes >= LARGE and name not in inputs
    }


def _without_bytes(graph: ir.Model, handed_over: Mapping[str, Any]) -> bytes:
    """The serialised graph, in which tensors passed by reference are only named."""
    tensors = {name: graph.graph.initializers[name].const_value for name in handed_over}
    try:
        for name, tensor in tensors.items():
            assert tensor is not None
            graph.graph.initializers[name].const_value = ir.ExternalTensor(
                "handed-over", 0, tensor.nbytes, tensor.dtype, shape=ir.Shape(tensor.shape.numpy()), name=name
            )
        serialised: bytes = ir.to_proto(graph).SerializeToString()
        return serialised
    finally:
        for name, tensor in tensors.items():
            graph.graph.initializers[name].const_value = tensor
