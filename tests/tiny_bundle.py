"""A whole bundle in miniature: a real graph in the form that the exporter gives it, a real tokenizer, adapters, a
manifest. No torch.

`logits` is the same decoder once more in numpy, one position at a time with no cache, no padding and no batch: the
oracle of the engine. Dimensions are unequal everywhere: 2 layers, 6 heads on 2 kv heads of 16, hidden 96, feed-forward
160.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from qia3.bundle.layout import DATA, GRAPH
from qia3.bundle.manifest import Architecture, Base, Graph, Grid, Layer, Manifest, Prompt, Vector
from qia3.bundle.task import Task
from qia3.grids.int4 import Int4, dequantise, quantise

LAYERS, HEADS, KV_HEADS, SIZE, HIDDEN, FEED, CONTEXT = 2, 6, 2, 16, 96, 160, 48
FINGERPRINT = hashlib.sha256(b"tiny").hexdigest()
END = "<|end|>"
SHAPES = {
    "q_proj": (HEADS * SIZE, HIDDEN), "k_proj": (KV_HEADS * SIZE, HIDDEN), "v_proj": (KV_HEADS * SIZE, HIDDEN),
    "o_proj": (HIDDEN, HEADS * SIZE), "gate_proj": (FEED, HIDDEN), "up_proj": (FEED, HIDDEN), "down_proj": (HIDDEN, FEED),
}  # fmt: skip
SIZES = {f"layers.{i}.{n}.ia3_l": SHAPES[n][0] for i in range(LAYERS) for n in ("k_proj", "v_proj", "up_proj")}
CHOICES = ["lights", "lock", "lock the door", "music and more music"]  # one begins another, and all lengths differ
TASKS = {
    "lamps": {"kind": "classify", "prompt": "Topic of {text}?", "choices": CHOICES, "max_new_tokens": 8, "end": END},
    "echo": {"kind": "generate", "prompt": "Say: {text}\n", "choices": None, "max_new_tokens": 6, "end": END},
}
CORPUS = [
    "lock the door",
    "lights and music",
    "turn the lights off",
    "music and more music",
    "Topic of the day?",
    "Say: hello there",
] * 4


def tokenizer() -> Tokenizer:
    """Byte-level, so that any text has tokens and one character may take several."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer, made.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    made.train_from_iterator(
        CORPUS,
        trainers.BpeTrainer(
            vocab_size=300, special_tokens=["<pad>", END], initial_alphabet=alphabet, show_progress=False
        ),
    )
    return made


def weights(vocabulary: int, seed: int = 0) -> dict[str, np.ndarray | Int4]:
    """Random, large enough to matter. Linear layers are on the int4 grid."""
    rng = np.random.default_rng(seed)
    made: dict[str, np.ndarray | Int4] = {}
    for i in range(LAYERS):
        for name, shape in SHAPES.items():
            made[f"layers.{i}.{name}"] = quantise(rng.normal(0, 0.12, shape).astype(np.float32), 16)
        for name in ("in_norm", "ff_norm"):
            made[f"layers.{i}.{name}"] = rng.normal(1, 0.2, HIDDEN).astype(np.float32)
    made["norm"] = rng.normal(1, 0.2, HIDDEN).astype(np.float32)
    made["embed"] = rng.normal(0, 1, (vocabulary, HIDDEN)).astype(np.float32)
    made["head"] = rng.normal(0, 0.3, (HIDDEN, vocabulary)).astype(np.float32)
    angles = np.outer(np.arange(CONTEXT), 1 / 100 ** (np.arange(SIZE // 2) / (SIZE // 2)))
    made["cos"], made["sin"] = np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)
    return made


def random_vectors(seed: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {name: rng.normal(1, 0.4, (1, 1, size)).astype(np.float32) for name, size in SIZES.items()}


def logits(w: dict, tokens: list[int], vectors: dict | None = None) -> np.ndarray:
    """float64 [V] after the last of `tokens`, from the definition."""
    l = {name: np.ones(size) for name, size in SIZES.items()} | {n: v.reshape(-1) for n, v in (vectors or {}).items()}  # noqa: E741
    n = len(tokens)

    def linear(name: str, x: np.ndarray) -> np.ndarray:
        return x @ dequantise(w[name]).T.astype(np.float64) * l.get(f"{name}.ia3_l", 1)

    def norm(name: str, x: np.ndarray) -> np.ndarray:
        return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-5) * w[name]

    def rotate(x: np.ndarray) -> np.ndarray:  # [n, heads, size], halves
        cos, sin, (a, b) = w["cos"][:n, None], w["sin"][:n, None], np.split(x, 2, -1)
        return np.concatenate([a * cos - b * sin, b * cos + a * sin], -1)

    x = w["embed"][tokens].astype(np.float64)
    for i in range(LAYERS):
        at = f"layers.{i}"
        h = norm(f"{at}.in_norm", x)
        q = rotate(linear(f"{at}.q_proj", h).reshape(n, HEADS, SIZE))
        k = rotate(linear(f"{at}.k_proj", h).reshape(n, KV_HEADS, SIZE)).repeat(HEADS // KV_HEADS, 1)
        v = linear(f"{at}.v_proj", h).reshape(n, KV_HEADS, SIZE).repeat(HEADS // KV_HEADS, 1)
        scores = np.einsum("qhd,khd->hqk", q, k) / np.sqrt(SIZE) + np.triu(np.full((n, n), -np.inf), 1)
        shares = np.exp(scores - scores.max(-1, keepdims=True))
        mixed = np.einsum("hqk,khd->qhd", shares / shares.sum(-1, keepdims=True), v).reshape(n, -1)
        x = x + linear(f"{at}.o_proj", mixed)
        h = norm(f"{at}.ff_norm", x)
        gate = linear(f"{at}.gate_proj", h)
        x = x + linear(f"{at}.down_proj", gate / (1 + np.exp(-gate)) * linear(f"{at}.up_proj", h))
    return norm("norm", x[-1]) @ w["head"]


class Nodes:
    """Nodes and initializers as they are added."""

    def __init__(self) -> None:
        self.nodes: list = []
        self.initializers: dict[str, np.ndarray] = {}

    def op(
        self,
        kind: str,
        inputs: list[str],
        outputs: int = 1,
        domain: str = "",
        names: list[str] | None = None,
        **attributes,
    ) -> str:
        names = names or [f"{kind}_{len(self.nodes)}_{i}" for i in range(outputs)]
        self.nodes.append(helper.make_node(kind, inputs, names, domain=domain, **attributes))
        return names[0]

    def constant(self, name: str, value: np.ndarray) -> str:
        self.initializers[name] = np.ascontiguousarray(value)
        return name

    def linear(self, name: str, x: str, weight: Int4, level: int, vector: bool) -> str:
        inputs = [x, self.constant(f"{name}.codes", weight.codes), self.constant(f"{name}.scales", weight.scales)]
        inputs.append(self.constant(f"{name}.zero_points", weight.zero_points))
        sizes = {"K": weight.inputs, "N": weight.outputs, "bits": 4, "block_size": 16, "accuracy_level": level}
        y = self.op("MatMulNBits", inputs, domain="com.microsoft", **sizes)
        return self.op("Mul", [y, f"{name}.ia3_l"]) if vector else y

    def norm(self, name: str, x: str, weight: np.ndarray) -> str:
        return self.op(
            "SimplifiedLayerNormalization", [x, self.constant(name, weight)], axis=-1, epsilon=1e-5, stash_type=1
        )


def _decoder(w: dict, level: int, side: bool, all_logits: bool) -> Nodes:
    g = Nodes()
    one, zero, axis = (g.constant(n, np.array(v, np.int64)) for n, v in (("one", 1), ("zero", 0), ("axis", [1])))
    valid = g.op("ReduceSum", ["attention_mask", axis], keepdims=0)
    before = g.op("Sub", [valid, one])
    seqlens = g.op("Cast", [before], to=TensorProto.INT32)
    length, total = (g.op("Gather", [g.op("Shape", [x]), one]) for x in ("input_ids", "attention_mask"))
    total = g.op("Cast", [total], to=TensorProto.INT32)
    start = g.op("Max", [g.op("Sub", [valid, length]), zero])
    cos, sin = g.constant("cos", w["cos"]), g.constant("sin", w["sin"])
    x = g.op("Gather", [g.constant("embed", w["embed"]), "input_ids"])
    for i in range(LAYERS):
        at = f"layers.{i}"

        def linear(name: str, x: str, at: str = at) -> str:
            return g.linear(f"{at}.{name}", x, w[f"{at}.{name}"], level, side and f"{at}.{name}.ia3_l" in SIZES)

        h = g.norm(f"{at}.in_norm", x, w[f"{at}.in_norm"])
        past = [f"past_key_values.{i}.{part}" for part in ("key", "value")]
        names = [f"mixed_{i}", *(p.replace("past_key_values", "present") for p in past)]
        inputs = [*(linear(n, h) for n in ("q_proj", "k_proj", "v_proj")), *past, seqlens, total, cos, sin]
        heads = {"num_heads": HEADS, "kv_num_heads": KV_HEADS, "do_rotary": 1, "scale": float(SIZE**-0.5)}
        x = g.op(
            "Add",
            [x, linear("o_proj", g.op("GroupQueryAttention", inputs, domain="com.microsoft", names=names, **heads))],
        )
        h = g.norm(f"{at}.ff_norm", x, w[f"{at}.ff_norm"])
        gate = linear("gate_proj", h)
        silu = g.op("Mul", [gate, g.op("Sigmoid", [gate])])
        x = g.op("Add", [x, linear("down_proj", g.op("Mul", [silu, linear("up_proj", h)]))])
    if not all_logits:
        last = g.op("Unsqueeze", [g.op("Sub", [before, start]), g.constant("axes", np.array([1, 2], np.int64))])
        x = g.op("GatherND", [x, last], batch_dims=1)
    g.op("MatMul", [g.norm("norm", x, w["norm"]), g.constant("head", w["head"])], names=["logits"])
    return g


def write_graph(
    path: Path, w: dict, level: int = 0, side: bool = True, all_logits: bool = False, required: bool = False
) -> None:
    """A graph and its external data, the graph's own name and _data."""
    g = _decoder(w, level, side, all_logits)
    cache = [f"{{}}.{i}.{part}" for i in range(LAYERS) for part in ("key", "value")]

    def cached(prefix: str, length: str) -> list:
        dims = ["batch_size", KV_HEADS, length, SIZE]
        return [helper.make_tensor_value_info(n.format(prefix), TensorProto.FLOAT, dims) for n in cache]

    ids = [("input_ids", "sequence_length"), ("attention_mask", "total_sequence_length")]
    inputs = [helper.make_tensor_value_info(n, TensorProto.INT64, ["batch_size", d]) for n, d in ids]
    inputs += cached("past_key_values", "past_sequence_length")
    vectors = SIZES if side else {}
    inputs += [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["rows", 1, d]) for n, d in vectors.items()]
    dims = ["batch_size", "sequence_length" if all_logits else 1, len(w["embed"])]
    outputs = [
        helper.make_tensor_value_info("logits", TensorProto.FLOAT, dims),
        *cached("present", "total_sequence_length"),
    ]
    values = g.initializers | {n: np.ones((1, 1, d), np.float32) for n, d in vectors.items() if not required}
    initializers = [numpy_helper.from_array(v, n) for n, v in values.items()]
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    graph = helper.make_graph(g.nodes, "tiny", inputs, outputs, initializers)
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    onnx.save(model, path, save_as_external_data=True, location=f"{path.name}_data", size_threshold=1024)


def write_adapter(path: Path, vectors: dict[str, np.ndarray], model_version: int = int(FINGERPRINT[:7], 16)) -> None:
    adapter = ort.AdapterFormat()
    adapter.set_adapter_version(1)
    adapter.set_model_version(model_version)
    adapter.set_parameters({n: ort.OrtValue.ortvalue_from_numpy(v) for n, v in vectors.items()})
    path.parent.mkdir(parents=True, exist_ok=True)
    adapter.export_adapter(str(path))


def write_bundle(
    folder: Path,
    mode: str = "side",
    all_logits: bool = False,
    required: bool = False,
    level: int = 0,
    tasks: dict | None = None,
) -> Path:
    """A sealed bundle with the adapters lamps (seed 1) and echo (seed 2); merged: a graph that has no places for
    vectors.

    `required`: the graph has no default for its vectors.
    """
    (folder / GRAPH).parent.mkdir(parents=True)
    words = tokenizer()
    words.save(str(folder / "tokenizer.json"))
    write_graph(
        folder / GRAPH,
        weights(words.get_vocab_size()),
        level,
        side=mode == "side",
        all_logits=all_logits,
        required=required,
    )
    tasks = (tasks or TASKS) if mode == "side" else {"lamps": TASKS["lamps"]}
    if mode == "side":
        for seed, name in enumerate(tasks, 1):
            write_adapter(folder / "adapters" / f"{name}.onnx_adapter", random_vectors(seed))
    seal(folder, manifest_of(words, mode, tasks).to_json())
    return folder


def manifest_of(words: Tokenizer, mode: str, tasks: dict) -> Manifest:
    """Without its files, and with no regions: the footprint has bundles of its own."""
    roles = {"k_proj": "key", "v_proj": "value", "up_proj": "feed_forward"}
    layers = [Layer(f"layers.{i}.{n}", s[1], s[0], "other", 4, "int4", 16, False) for i in range(LAYERS) for n, s in SHAPES.items()]  # fmt: skip
    vectors = [Vector(n, d, roles[n.split(".")[2]], "output") for n, d in SIZES.items()] if mode == "side" else []
    return Manifest(
        qia3="0.1.0", name="tiny", mode=mode, merged_task=None if mode == "side" else "lamps", seed=0, versions={"python": "3.11"},
        base=Base("tiny", FINGERPRINT, "llama", 1000, Grid("int4", 16, False, "none", "own", None)),
        architecture=Architecture(LAYERS, HEADS, KV_HEADS, SIZE, HIDDEN, words.get_vocab_size(), CONTEXT, False),
        linears=tuple(layers), graphs={"decoder": Graph(GRAPH, DATA, "ort-exact", 0, "last", tuple(vectors))}, tensors=(),
        prompt=Prompt("Q: ", "\nA: "), stop_tokens=(words.token_to_id(END),),
        tasks={name: Task.from_json(name, task) for name, task in tasks.items()},
    )  # fmt: skip


def seal(folder: Path, manifest: dict) -> None:
    """The manifest, as JSON of any format, with every other file's size and SHA-256."""
    files = sorted(f for f in folder.rglob("*") if f.is_file() and f.name != "manifest.json")
    entries = {
        f.relative_to(folder).as_posix(): {
            "sha256": hashlib.sha256(f.read_bytes()).hexdigest(),
            "bytes": f.stat().st_size,
        }
        for f in files
    }
    (folder / "manifest.json").write_text(json.dumps(manifest | {"files": entries}), encoding="utf-8")
