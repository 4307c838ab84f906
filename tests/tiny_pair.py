"""An encoder and its decoder in miniature, in the form that the exporter gives them. No torch.

`logits` is the same model once more in numpy, without cache, padding and batch: the oracle of the engine. Dimensions are
unequal everywhere: 1 layer and 2, 3 heads of 16, hidden 64, feed-forward 96.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import tiny_bundle as tiny
from onnx import TensorProto, helper, numpy_helper

from qia3.bundle.layout import DECODER_GRAPH, ENCODER_GRAPH, SHARED_DATA
from qia3.bundle.manifest import Architecture, Graph, Layer, Vector
from qia3.grids.int4 import Int4, dequantise, quantise

ENCODER_LAYERS, LAYERS, HEADS, SIZE, HIDDEN, FEED, CONTEXT, START = 1, 2, 3, 16, 64, 96, 40, (0,)
WIDE = HEADS * SIZE
ATTENTION = {"q": (WIDE, HIDDEN), "k": (WIDE, HIDDEN), "v": (WIDE, HIDDEN), "o": (HIDDEN, WIDE)}
FORWARD = {"up": (FEED, HIDDEN), "down": (HIDDEN, FEED)}


def parts(stack: str) -> list[tuple[str, dict[str, tuple[int, int]]]]:
    """What a stack's layers are made of, in order: the name of each part and its linear layers' shapes."""
    kinds = ("self", "ff") if stack == "encoder" else ("self", "cross", "ff")
    count = ENCODER_LAYERS if stack == "encoder" else LAYERS
    return [(f"{stack}.{i}.{kind}", FORWARD if kind == "ff" else ATTENTION) for i in range(count) for kind in kinds]


LINEARS = {f"{at}.{n}": shape for stack in ("encoder", "decoder") for at, each in parts(stack) for n, shape in each.items()}  # fmt: skip
SIZES = {f"{name}.ia3_l": shape[0] for name, shape in LINEARS.items() if name.rpartition(".")[2] in ("k", "v", "up")}


def weights(vocabulary: int) -> dict[str, np.ndarray | Int4]:
    """Random, large enough to matter."""
    rng = np.random.default_rng(0)
    made: dict[str, np.ndarray | Int4] = {
        name: quantise(rng.normal(0, 0.15, shape).astype(np.float32), 16) for name, shape in LINEARS.items()
    }
    for at, _ in [*parts("encoder"), *parts("decoder"), ("encoder.end", {}), ("decoder.end", {})]:
        made[f"{at}.norm"] = rng.normal(1, 0.2, HIDDEN).astype(np.float32)
    made["embed"] = rng.normal(0, 1, (vocabulary, HIDDEN)).astype(np.float32)
    made["places"] = rng.normal(0, 0.5, (CONTEXT, HIDDEN)).astype(np.float32)
    made["head"] = rng.normal(0, 0.3, (HIDDEN, vocabulary)).astype(np.float32)
    return made


def random_vectors(seed: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {name: rng.normal(1, 0.4, (1, 1, size)).astype(np.float32) for name, size in SIZES.items()}


def logits(
    w: dict, prompt: list[int], answer: list[int], vectors: dict | None = None, start: tuple[int, ...] = START
) -> np.ndarray:
    """float64 [V] after the start and `answer`, from the definition."""
    l = {name: np.ones(size) for name, size in SIZES.items()} | {n: v.reshape(-1) for n, v in (vectors or {}).items()}  # noqa: E741

    def linear(name: str, x: np.ndarray) -> np.ndarray:
        return x @ dequantise(w[name]).T.astype(np.float64) * l.get(f"{name}.ia3_l", 1)

    def attend(at: str, x: np.ndarray, seen: np.ndarray, causal: bool) -> np.ndarray:
        q, k, v = (linear(f"{at}.{n}", y).reshape(-1, HEADS, SIZE) for n, y in (("q", x), ("k", seen), ("v", seen)))
        scores = np.einsum("qhd,khd->hqk", q, k) / np.sqrt(SIZE)
        if causal:
            scores = scores + np.triu(np.full(scores.shape[1:], -np.inf), 1)
        shares = np.exp(scores - scores.max(-1, keepdims=True))
        return linear(
            f"{at}.o", np.einsum("hqk,khd->qhd", shares / shares.sum(-1, keepdims=True), v).reshape(len(x), -1)
        )

    def stack(name: str, tokens: list[int], states: np.ndarray | None) -> np.ndarray:
        x = w["embed"][tokens].astype(np.float64) + w["places"][: len(tokens)]
        for at, _ in parts(name):
            h = norm(at, x)
            kind = at.rpartition(".")[2]
            if kind == "ff":
                x = x + linear(f"{at}.down", np.maximum(linear(f"{at}.up", h), 0))
            else:
                x = x + attend(at, h, h if kind == "self" else states, kind == "self" and name == "decoder")
        return norm(f"{name}.end", x)

    def norm(at: str, x: np.ndarray) -> np.ndarray:
        return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-5) * w[f"{at}.norm"]

    return stack("decoder", [*start, *answer], stack("encoder", prompt, None))[-1] @ w["head"]


class Stack(tiny.Nodes):
    """The nodes of one stack."""

    def __init__(self, w: dict, name: str, side: bool) -> None:
        super().__init__()
        self.w, self.name, self.side = w, name, side

    def constant(self, name: str, value: np.ndarray) -> str:
        self.initializers[name] = value.copy()  # a scalar stays one
        return name

    def heads(self, x: str) -> str:
        """[B, S, heads * size] -> [B, heads, S, size]"""
        shape = self.constant("heads", np.array([0, 0, HEADS, SIZE], np.int64))
        return self.op("Transpose", [self.op("Reshape", [x, shape])], perm=[0, 2, 1, 3])

    def flat(self, x: str) -> str:
        shape = self.constant("flat", np.array([0, 0, WIDE], np.int64))
        return self.op("Reshape", [self.op("Transpose", [x], perm=[0, 2, 1, 3]), shape])

    def put(self, name: str, x: str) -> str:
        return self.linear(name, x, self.w[name], 0, self.side and f"{name}.ia3_l" in SIZES)

    def normed(self, at: str, x: str) -> str:
        return self.norm(f"{at}.norm", x, self.w[f"{at}.norm"])

    def scores(self, q: str, k: str) -> str:
        return self.op("MatMul", [q, self.op("Transpose", [k], perm=[0, 1, 3, 2])])

    def shares(self, scores: str, mask: str) -> str:
        """Softmax over the valid positions of [B, heads, S, T]; `mask` int64 [B, T]."""
        wide = self.op("Unsqueeze", [mask, self.constant("between", np.array([1, 2], np.int64))])
        valid = self.op("Cast", [wide], to=TensorProto.BOOL)
        scaled = self.op("Mul", [scores, self.constant("scale", np.array(SIZE**-0.5, np.float32))])
        far = self.constant("far", np.array(-1e9, np.float32))
        return self.op("Softmax", [self.op("Where", [valid, scaled, far])], axis=-1)

    def forward(self, at: str, x: str) -> str:
        return self.put(f"{at}.down", self.op("Relu", [self.put(f"{at}.up", x)]))

    def embedded(self, start: str) -> str:
        length = self.op("Gather", [self.op("Shape", ["input_ids"]), self.constant("one", np.array(1, np.int64))])
        end = self.op("Add", [start, length])
        places = self.op("Range", [start, end, "one"])
        table = self.constant("places", self.w["places"])
        tokens = self.op("Gather", [self.constant("embed", self.w["embed"]), "input_ids"])
        return self.op("Add", [tokens, self.op("Gather", [table, places])])


def _encoder(w: dict, side: bool) -> Stack:
    g = Stack(w, "encoder", side)
    x = g.embedded(g.constant("zero", np.array(0, np.int64)))
    for at, _ in parts("encoder"):
        h = g.normed(at, x)
        if at.endswith("ff"):
            x = g.op("Add", [x, g.forward(at, h)])
            continue
        q, k, v = (g.heads(g.put(f"{at}.{n}", h)) for n in ("q", "k", "v"))
        mixed = g.op("MatMul", [g.shares(g.scores(q, k), "attention_mask"), v])
        x = g.op("Add", [x, g.put(f"{at}.o", g.flat(mixed))])
    g.op("Identity", [g.normed("encoder.end", x)], names=["last_hidden_state"])
    return g


def _decoder(w: dict, side: bool) -> Stack:
    """The keys and values of the states are those of the past and those of the states after it, attended to apart."""
    g = Stack(w, "decoder", side)
    one, two, zero = (g.constant(n, np.array(v, np.int64)) for n, v in (("one", 1), ("two", 2), ("zero", 0)))
    shapes = [g.op("Shape", [f"past_key_values.0.{whose}.key"]) for whose in ("decoder", "encoder")]
    own, known = (g.op("Gather", [shape, two]) for shape in shapes)
    before = g.op("Where", [g.op("Less", ["past_length", zero]), own, "past_length"])
    batch, length = (g.op("Gather", [g.op("Shape", ["input_ids"]), i]) for i in (zero, one))
    total = g.op("Add", [before, length])
    last = g.op("Cast", [g.op("Sub", [total, one])], to=TensorProto.INT32)
    axis = g.constant("axis", np.array([0], np.int64))
    seqlens = g.op("Expand", [last, g.op("Unsqueeze", [batch, axis])])
    total = g.op("Cast", [total], to=TensorProto.INT32)
    bounds = [g.op("Unsqueeze", [known, axis]), g.constant("all", np.array([2**62], np.int64))]
    states = g.op("Slice", ["encoder_hidden_states", *bounds, g.constant("along", np.array([1], np.int64))])
    x = g.embedded(before)
    for at, _ in parts("decoder"):
        h, i = g.normed(at, x), at.split(".")[1]
        if at.endswith("ff"):
            x = g.op("Add", [x, g.forward(at, h)])
            continue
        whose = "decoder" if at.endswith("self") else "encoder"
        past = [f"past_key_values.{i}.{whose}.{part}" for part in ("key", "value")]
        present = [name.replace("past_key_values", "present") for name in past]
        if whose == "decoder":
            inputs = [*(g.put(f"{at}.{n}", h) for n in ("q", "k", "v")), *past, seqlens, total]
            heads = {"num_heads": HEADS, "kv_num_heads": HEADS, "scale": float(SIZE**-0.5)}
            mixed = g.op("GroupQueryAttention", inputs, domain="com.microsoft", names=[f"mixed_{i}", *present], **heads)
        else:
            q = g.heads(g.put(f"{at}.q", h))
            new = [g.heads(g.put(f"{at}.{n}", states)) for n in ("k", "v")]
            shares = g.shares(
                g.op("Concat", [g.scores(q, past[0]), g.scores(q, new[0])], axis=-1), "encoder_attention_mask"
            )
            rest = g.op("Sub", [g.op("Gather", [g.op("Shape", ["encoder_attention_mask"]), one]), known])
            cut = g.op("Concat", [bounds[0], g.op("Unsqueeze", [rest, axis])], axis=0)
            halves = [f"{at}.{part}" for part in ("past", "new")]
            g.op("Split", [shares, cut], names=halves, axis=-1)
            mixed = g.op("Add", [g.op("MatMul", [a, b]) for a, b in zip(halves, (past[1], new[1]), strict=True)])
            for old, made, name in zip(past, new, present, strict=True):
                g.op("Concat", [old, made], axis=2, names=[name])
            mixed = g.flat(mixed)
        x = g.op("Add", [x, g.put(f"{at}.o", mixed)])
    x = g.op("Gather", [x, g.constant("end", np.array([-1], np.int64))], axis=1)
    g.op("MatMul", [g.normed("decoder.end", x), g.constant("head", w["head"])], names=["logits"])
    return g


def _save(path: Path, g: Stack, inputs: list, outputs: list, required: bool) -> None:
    """Over the data file of both."""
    vectors = {name: size for name, size in SIZES.items() if g.side and name.startswith(g.name)}
    inputs += [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["rows", 1, d]) for n, d in vectors.items()]
    values = g.initializers | {n: np.ones((1, 1, d), np.float32) for n, d in vectors.items() if not required}
    if g.name == "decoder":
        values["past_length"] = np.array(-1, np.int64)
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    initializers = [numpy_helper.from_array(v, n) for n, v in values.items()]
    graph = helper.make_graph(g.nodes, g.name, inputs, outputs, initializers)
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    onnx.save(model, path, save_as_external_data=True, location=Path(SHARED_DATA).name, size_threshold=1024)


def write_graphs(folder: Path, w: dict, side: bool = True, required: bool = False, prompts: str = "prompts") -> None:
    """Both graphs, with their external data appended to one file. `prompts`: what the number of rows of the states' keys
    and values is called.
    """

    def ids(*names: tuple[str, str]) -> list:
        rows = {"encoder_attention_mask": prompts}
        return [helper.make_tensor_value_info(n, TensorProto.INT64, [rows.get(n, "batch_size"), d]) for n, d in names]

    def cached(prefix: str, own: str, theirs: str) -> list:
        dims = {"decoder": ["batch_size", HEADS, own, "size"], "encoder": [prompts, HEADS, theirs, "size"]}
        return [
            helper.make_tensor_value_info(f"{prefix}.{i}.{whose}.{part}", TensorProto.FLOAT, dims[whose])
            for i in range(LAYERS)
            for whose in ("decoder", "encoder")
            for part in ("key", "value")
        ]

    there, hidden = "encoder_sequence_length", ["batch_size", "encoder_sequence_length", HIDDEN]
    states = {n: helper.make_tensor_value_info(n, TensorProto.FLOAT, hidden) for n in ("encoder_hidden_states", "last_hidden_state")}  # fmt: skip
    _save(
        folder / ENCODER_GRAPH,
        _encoder(w, side),
        ids(("input_ids", there), ("attention_mask", there)),
        [states["last_hidden_state"]],
        required,
    )
    inputs = [
        *ids(("input_ids", "sequence_length"), ("encoder_attention_mask", there)),
        states["encoder_hidden_states"],
        *cached("past_key_values", "past_decoder_sequence_length", "past_encoder_sequence_length"),
        helper.make_tensor_value_info("past_length", TensorProto.INT64, []),
    ]
    found = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch_size", 1, len(w["embed"])])
    outputs = [found, *cached("present", "total_decoder_sequence_length", there)]
    _save(folder / DECODER_GRAPH, _decoder(w, side), inputs, outputs, required)


def write_bundle(folder: Path, mode: str = "side", required: bool = False, prompts: str = "prompts") -> Path:
    """A sealed bundle with the adapters lamps (seed 1) and echo (seed 2); merged: graphs without places for vectors."""
    (folder / ENCODER_GRAPH).parent.mkdir(parents=True)
    words = tiny.tokenizer()
    words.save(str(folder / "tokenizer.json"))
    side = mode == "side"
    write_graphs(folder, weights(words.get_vocab_size()), side, required, prompts)
    tasks = tiny.TASKS if side else {"lamps": tiny.TASKS["lamps"]}
    for seed, name in enumerate(tasks if side else (), 1):
        tiny.write_adapter(folder / "adapters" / f"{name}.onnx_adapter", random_vectors(seed))
    tiny.seal(folder, manifest_of(words, mode, tasks).to_json())
    return folder


def manifest_of(words: tiny.Tokenizer, mode: str, tasks: dict) -> tiny.Manifest:
    roles = {"k": "key", "v": "value", "up": "feed_forward"}
    vectors = [Vector(n, d, roles[n.split(".")[3]], "output") for n, d in SIZES.items()] if mode == "side" else []

    def graph(file: str, name: str) -> Graph:
        return Graph(file, SHARED_DATA, "ort-exact", 0, "last", tuple(v for v in vectors if v.name.startswith(name)))

    return replace(
        tiny.manifest_of(words, mode, tasks),
        architecture=Architecture(
            LAYERS, HEADS, HEADS, SIZE, HIDDEN, words.get_vocab_size(), CONTEXT, False, ENCODER_LAYERS, START
        ),
        linears=tuple(
            Layer(n, s[1], s[0], "other", 4, "int4", 16, False, n.startswith("encoder") or n.endswith(("cross.k", "cross.v")))
            for n, s in LINEARS.items()
        ),
        graphs={"encoder": graph(ENCODER_GRAPH, "encoder"), "decoder": graph(DECODER_GRAPH, "decoder")},
    )  # fmt: skip
