"""Whether ONNX Runtime's int8 products are exact on this processor.

x64 without VNNI adds pairs of products in 16 bits: 2 x 255 x 127 does not fit, and the sum saturates without a word. A
bundle with int8 weights in place of 4-bit ones would answer wrongly there, so it is refused.
"""

from __future__ import annotations

from functools import cache

import numpy as np
import onnxruntime as ort

from qia3.bundle.opened import Bundle
from qia3.errors import BundleError
from qia3.runtime.onnx_bytes import Array, model, node

SIZE = 64  # inputs and outputs


@cache
def exact() -> bool:
    """By one product of the largest codes, as int8 graphs have it (qia3.graph.int8_products)."""
    constants: dict[str, Array] = {
        "codes": np.full((SIZE, SIZE), 127, np.int8),
        "step": np.array(1, np.float32),
        "scales": np.ones(SIZE, np.float32),
        "middle": np.array(128, np.uint8),
    }
    product = node("MatMulIntegerToFloat", ["x", "codes", "step", "scales", "middle"], ["y"], domain="com.microsoft")
    given = {"x": (np.dtype(np.uint8), ("rows", SIZE))}
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    graph = model([product], given, {"y": ("rows", SIZE)}, constants)
    session = ort.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    found = session.run(["y"], {"x": np.full((3, SIZE), 255, np.uint8)})[0]
    return bool((found == SIZE * 127 * 127).all())


def check_products(bundle: Bundle) -> None:
    """Raises BundleError if the bundle needs int8 products that are not exact here."""
    if any(layer.products == "int8" for layer in bundle.manifest.linears) and not exact():
        raise BundleError(
            f"{bundle.path} has int8 weights, whose products this processor adds up wrongly (it has no VNNI); "
            "export it again for the target ort-cpu without prompts = 'int8'"
        )
