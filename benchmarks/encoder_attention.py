"""An encoder's attention on ONNX Runtime: MultiHeadAttention with a bias and a padding mask, beside the same in plain operators.

    python benchmarks/encoder_attention.py                       # 12 heads of 64, two threads, 16 to 512 tokens
    python benchmarks/encoder_attention.py --heads 6 --threads 1

Both graphs are opened once, agree on random inputs, and then take turns; each figure is a median.
"""

from __future__ import annotations

import argparse
import time

import numpy as np
import onnx_ir as ir
import onnxruntime as ort

ROUNDS, HIDDEN, OPSET = 30, -1e9, 21
FLOAT, INT = ir.DataType.FLOAT, ir.DataType.INT32


def graph(fused: bool, heads: int, size: int) -> bytes:
    """q, k, v [1, T, heads size], mask int32 [1, T], bias [1, heads, T, T] -> [1, T, heads size]."""
    shapes = {n: [1, "T", heads * size] for n in "qkv"} | {"mask": [1, "T"], "bias": [1, heads, "T", "T"]}
    types = {n: ir.TensorType(INT if n == "mask" else FLOAT) for n in shapes}
    given = {n: ir.Value(name=n, shape=ir.Shape(s), type=types[n]) for n, s in shapes.items()}
    nodes: list[ir.Node] = []
    constants: dict[str, ir.Value] = {}

    def op(kind: str, *inputs: ir.Value | None, domain: str = "", **attributes: object) -> ir.Value:
        nodes.append(ir.node(kind, inputs, attributes, domain=domain))
        return nodes[-1].outputs[0]

    def constant(value: np.ndarray) -> ir.Value:
        name = f"c{len(constants)}"
        constants[name] = ir.Value(name=name, const_value=ir.tensor(value, name=name))
        return constants[name]

    if fused:
        attributes = {"num_heads": heads, "scale": 1.0, "mask_filter_value": HIDDEN}
        inputs = (*(given[n] for n in "qkv"), None, given["mask"], given["bias"])
        out = op("MultiHeadAttention", *inputs, domain="com.microsoft", **attributes)
    else:
        apart = constant(np.array([0, 0, heads, size], np.int64))
        q, v = (op("Transpose", op("Reshape", given[n], apart), perm=[0, 2, 1, 3]) for n in "qv")
        k = op("Transpose", op("Reshape", given["k"], apart), perm=[0, 2, 3, 1])
        absent = op("Sub", constant(np.array(1, np.float32)), op("Cast", given["mask"], to=int(FLOAT)))
        padding = op("Unsqueeze", op("Mul", absent, constant(np.array(HIDDEN, np.float32))), constant(np.array([1, 2])))
        scores = op("Add", op("Add", op("MatMul", q, k), given["bias"]), padding)
        mixed = op("MatMul", op("Softmax", scores, axis=-1), v)
        together = constant(np.array([0, 0, heads * size], np.int64))
        out = op("Reshape", op("Transpose", mixed, perm=[0, 2, 1, 3]), together)
    out.name, out.type = "out", ir.TensorType(FLOAT)
    made = ir.Graph(list(given.values()), [out], nodes=nodes, initializers=list(constants.values()),
                    opset_imports={"": OPSET, "com.microsoft": 1}, name="attention")  # fmt: skip
    serialised: bytes = ir.to_proto(ir.Model(made, ir_version=10)).SerializeToString()
    return serialised


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--heads", type=int, default=12)
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--threads", type=int, default=2)
    asked = parser.parse_args()
    options = ort.SessionOptions()
    options.intra_op_num_threads = asked.threads
    sessions = [
        ort.InferenceSession(graph(fused, asked.heads, asked.size), options, providers=["CPUExecutionProvider"])
        for fused in (True, False)
    ]
    draw = np.random.default_rng(0)
    print("| tokens | MultiHeadAttention, ms | plain operators, ms | ratio |\n|---:|---:|---:|---:|")
    for tokens in (16, 64, 128, 256, 512):
        width = asked.heads * asked.size
        feeds = {n: draw.standard_normal((1, tokens, width)).astype(np.float32) / 8 for n in "qkv"}
        feeds["bias"] = draw.standard_normal((1, asked.heads, tokens, tokens)).astype(np.float32)
        feeds["mask"] = (np.arange(tokens)[None] < tokens - 3).astype(np.int32)
        np.testing.assert_allclose(*(s.run(None, feeds)[0] for s in sessions), atol=1e-4)
        seconds: list[list[float]] = [[], []]
        for turn in range(2 * ROUNDS):
            which = (turn + turn // 2) % 2  # either goes first every other time
            started = time.perf_counter()
            sessions[which].run(None, feeds)
            seconds[which].append(time.perf_counter() - started)
            time.sleep(0.01)  # threads of a session spin on after a run
        fused, plain = (1e3 * float(np.median(s)) for s in seconds)
        print(f"| {tokens} | {fused:.2f} | {plain:.2f} | {fused / plain:.2f} |")


if __name__ == "__main__":
    main()
