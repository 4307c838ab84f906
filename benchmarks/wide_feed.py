"""What a T5's `wo` loses on the grid where some of its inputs are large, as they are in trained T5s (where float16
overflows, which is why transformers keeps the layer in float32).

    python benchmarks/wide_feed.py

One layer of flan-t5-base's shape, random weights: `outliers` of its 2048 inputs are `times` as large as the rest. The
figure is the root mean square of what the product is off by, over that of the product: of all outputs, in percent.
Level 4 rounds inputs to int8, a block of them at a time, so an outlier costs its own block; the whole row at once, as
CTranslate2 does it, is beside it (numpy).
"""

from __future__ import annotations

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from qia3.grids import int4, int8

WIDE, NARROW, TOKENS = 2048, 768, 64
FORMS = [("8 bits, block 64", 8, 64), ("8 bits, block 128", 8, 128), ("4 bits, block 64", 4, 64), ("4 bits, block 128", 4, 128)]  # fmt: skip


def product(
    weight: NDArray[np.float32], bits: int, block: int, level: int, x: NDArray[np.float32]
) -> NDArray[np.float32]:
    """x W^T by ONNX Runtime's MatMulNBits."""
    made = (int4 if bits == 4 else int8).quantise(weight, block)
    names = {"codes": made.codes, "scales": made.scales, "zeros": made.zero_points}
    node = helper.make_node(
        "MatMulNBits", ["x", *names], ["y"], domain="com.microsoft",
        K=WIDE, N=NARROW, bits=bits, block_size=block, accuracy_level=level,
    )  # fmt: skip
    graph = helper.make_graph(
        [node],
        "wo",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [TOKENS, WIDE])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [TOKENS, NARROW])],
        [numpy_helper.from_array(np.ascontiguousarray(a), n) for n, a in names.items()],
    )
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    result: NDArray[np.float32] = session.run(None, {"x": x})[0]
    return result


def rowwise(weight: NDArray[np.float32], x: NDArray[np.float32]) -> NDArray[np.float32]:
    """Weights and inputs rounded to int8, a scale a row."""

    def rounded(a: NDArray[np.float32]) -> NDArray[np.float32]:
        scale = np.abs(a).max(1, keepdims=True) / 127
        result: NDArray[np.float32] = np.rint(a / scale) * scale
        return result

    return rounded(x) @ rounded(weight).T


def main() -> None:
    rng = np.random.default_rng(0)
    weight = rng.normal(0, WIDE**-0.5, (NARROW, WIDE)).astype(np.float32)
    print("| outliers | times | " + " | ".join(f"{n}, level {4}" for n, *_ in FORMS) + " | int8, a scale a row |")
    print("|---:|---:|" + "---:|" * (len(FORMS) + 1))
    for outliers, times in ((0, 1), (4, 30), (4, 300), (4, 3000), (32, 300)):
        x = rng.normal(0, 1, (TOKENS, WIDE)).astype(np.float32) * rng.normal(0, 1, (TOKENS, WIDE)).astype(np.float32)
        x[:, rng.choice(WIDE, outliers, replace=False)] *= times
        exact = x.astype(np.float64) @ weight.T.astype(np.float64)

        def off(y: NDArray[np.float32], exact: NDArray[np.float64] = exact) -> str:
            return f"{np.sqrt(((y - exact) ** 2).mean() / (exact**2).mean()):.2%}"

        cells = [off(product(weight, bits, block, 4, x)) for _, bits, block in FORMS]
        print(f"| {outliers} | {times} | " + " | ".join([*cells, off(rowwise(weight, x))]) + " |")


if __name__ == "__main__":
    main()
