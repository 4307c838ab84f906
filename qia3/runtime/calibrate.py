"""Measures how fast this machine runs 4-bit graphs, meant to run in a separate process:

    python -m qia3.runtime.calibrate --json

The graphs are decoders like those in a bundle, without the embedding: norms, q|k|v in one product, attention with a
cache, unmerged vectors, a gated feed-forward, and a head over a vocabulary for the last position. Weights are random
and different in each layer: ONNX Runtime caches packed weights by content, so identical layers would share one copy,
which stays in the processor's cache (a token of the wide graph took 12 ms that way, and really takes 27). There are
three graphs: two separate the costs of bytes and nodes, and the third checks the prediction
(qia3.footprint.calibrated):

    narrow    few bytes, many nodes        wide    many bytes, few nodes        between    neither

A fourth graph is a chain of float32 products, for layers that stay in float32 (T5's `wo`): different code, with faster
reads. Each runs one token at a time, and the first three also run prompts of PROMPT tokens; a round runs all of them in
turn. The fastest round counts, since other load can only add time.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from qia3.errors import ConfigError, QIA3Error
from qia3.machine import available_memory_bytes, physical_cores, processor
from qia3.runtime.bench import machine, resident
from qia3.runtime.load import open_engine  # noqa: F401 (a bundle's process has it loaded, too)
from qia3.runtime.onnx_bytes import model, node
from qia3.runtime.session import options

MICROSOFT = "com.microsoft"
HEAD, CAPACITY, BLOCK, VOCABULARY = 64, 192, 64, 32768
PROMPT, TOKENS, ROUNDS = 128, 16, 12
SHARE = 6  # a graph may use 1/SHARE of the free memory
HELD_BITS = 11  # per weight, stored and packed, with a margin


@dataclass(frozen=True)
class Plan:
    """A stack of layers with `heads` query heads, a third or fourth as many key/value heads, and feed-forward size
    `inner`.
    """

    name: str
    layers: int
    heads: int
    kv_heads: int
    inner: int
    vocabulary: int = VOCABULARY

    @property
    def hidden(self) -> int:
        return HEAD * self.heads

    def linears(self) -> list[tuple[int, int]]:
        """Inputs and outputs of a layer's products: q|k|v, output, gate, up, down."""
        hidden, kv = self.hidden, HEAD * self.kv_heads
        return [(hidden, hidden + 2 * kv), (hidden, hidden), *[(hidden, self.inner)] * 2, (self.inner, hidden)]

    def within(self, room: int) -> Plan:
        """The plan with as many layers as fit in `room` bytes, at half the width if none does. Raises ConfigError."""
        each = sum(k * n for k, n in self.linears()) * HELD_BITS // 8
        head = self.hidden * self.vocabulary * HELD_BITS // 8
        if each + head <= room:
            return replace(self, layers=min(self.layers, (room - head) // each))
        if self.heads % 2 or self.kv_heads % 2:
            raise ConfigError(
                f"{room / 2**20:,.0f} MiB of free memory are not enough to calibrate; close other programs first"
            )
        return replace(self, heads=self.heads // 2, kv_heads=self.kv_heads // 2, inner=self.inner // 2).within(room)


@dataclass(frozen=True)
class FloatPlan:
    """A number of products, back and forth between two widths."""

    products: int
    inputs: int
    outputs: int

    def within(self, room: int) -> FloatPlan:
        """The plan with as many products as fit in `room` bytes, at least two."""
        each = 4 * self.inputs * self.outputs
        return replace(self, products=max(2, min(self.products, room // each)))


TINY = Plan("tiny", 1, 1, 1, 64, 64)
FLOATS = FloatPlan(16, 768, 2048)
PLANS = (Plan("narrow", 24, 6, 2, 1024), Plan("between", 16, 12, 4, 2048), Plan("wide", 8, 32, 8, 8192))


class Floats:
    """A chain of float32 products, one token at a time. `bytes` are those of their weights."""

    def __init__(self, plan: FloatPlan, threads: int) -> None:
        self.plan, (self.nodes, content) = plan, float_graph(plan)
        self.bytes = 4 * plan.inputs * plan.outputs * plan.products
        self.session = ort.InferenceSession(content, options(threads), providers=["CPUExecutionProvider"])

    def seconds(self, times: int = TOKENS) -> float:
        """Seconds per run, over `times` runs in a row."""
        given = {"x": np.ones((1, 1, self.plan.inputs), np.float32)}
        started = time.perf_counter()
        for _ in range(times):
            self.session.run(None, given)
        return (time.perf_counter() - started) / times


class Stack:
    """A plan's graph, loaded, with its cache bound in place as in an engine."""

    def __init__(self, plan: Plan, threads: int) -> None:
        self.plan = plan
        self.nodes, content = graph(plan)
        started = time.perf_counter()
        self.session = ort.InferenceSession(content, options(threads), providers=["CPUExecutionProvider"])
        self.load_seconds = time.perf_counter() - started
        names = [f"{x}{i}" for i in range(plan.layers) for x in "kv"]
        shape = (1, plan.kv_heads, CAPACITY, HEAD)
        self.binding = self.session.io_binding()
        self.cache = {n: ort.OrtValue.ortvalue_from_numpy(np.zeros(shape, np.float32)) for n in names}
        for name, value in self.cache.items():
            self.binding.bind_ortvalue_input(name, value)
            self.binding.bind_ortvalue_output(f"present_{name}", value)

    def run(self, tokens: int, before: int) -> NDArray[np.float32]:
        """Runs `tokens` after `before` cached positions: logits after the last, [1, 1, vocabulary]."""
        out = np.empty((1, 1, self.plan.vocabulary), np.float32)
        given = {
            "x": np.ones((1, tokens, self.plan.hidden), np.float32),
            "last": np.full((1, 1), before + tokens - 1, np.int32),
            "total": np.array(before + tokens, np.int32),
            "y": out,
        }
        held = {name: ort.OrtValue.ortvalue_from_numpy(array) for name, array in given.items()}
        self.binding.bind_ortvalue_output("y", held.pop("y"))
        for name, value in held.items():
            self.binding.bind_ortvalue_input(name, value)
        self.session.run_with_iobinding(self.binding)
        return out

    def seconds(self, tokens: int, before: int, times: int) -> float:
        """Seconds per run with greedy choice, over `times` runs in a row."""
        started = time.perf_counter()
        for i in range(times):
            int(self.run(tokens, before + i).argmax())
        return (time.perf_counter() - started) / times

    def round(self) -> tuple[float, float]:
        """Seconds per token, and per prompt."""
        return self.seconds(1, PROMPT, TOKENS), self.seconds(PROMPT, 0, 1)

    def figures(self, rounds: Sequence[tuple[float, float]]) -> dict[str, Any]:
        token, prompt = (min(times) for times in zip(*rounds, strict=True))
        return {
            "name": self.plan.name,
            "layers": self.plan.layers,
            "linears": self.plan.linears(),
            "head": (self.plan.hidden, self.plan.vocabulary),
            "nodes": self.nodes,
            "load_seconds": self.load_seconds,
            "token_seconds": token,
            "prompt_seconds": prompt,
        }


def calibrate(threads: int | None = None) -> dict[str, Any]:
    """Runs the calibration. Raises ConfigError if there is too little memory."""
    threads = threads or physical_cores()
    tiny = Stack(TINY, threads)
    tiny.run(1, 0)
    taken = resident()
    room = (available_memory_bytes() or 2**30) // SHARE
    stacks = [Stack(plan.within(room), threads) for plan in PLANS]
    floats = Floats(FLOATS.within(room), threads)
    rounds = [[*(stack.round() for stack in stacks), (floats.seconds(), 0.0)] for _ in range(ROUNDS + 1)]
    rounds = rounds[1:]  # the first one is warm-up
    return {
        "machine": machine(),
        "processor": processor(),
        "threads": threads,
        "block": BLOCK,
        "prompt_tokens": PROMPT,
        "process_held_bytes": taken.get("RssAnon"),
        "process_mapped_bytes": taken.get("RssFile"),
        "stacks": [stack.figures([round_[i] for round_ in rounds]) for i, stack in enumerate(stacks)],
        "floats": {
            "bytes": floats.bytes,
            "nodes": floats.nodes,
            "token_seconds": min(round_[-1][0] for round_ in rounds),
        },
    }


def graph(plan: Plan) -> tuple[int, bytes]:
    """The number of nodes, and the graph."""
    constants = _constants(plan)
    inputs: dict[str, Any] = {"x": (np.dtype(np.float32), (1, "S", plan.hidden))}
    inputs |= {"last": (np.dtype(np.int32), (1, 1)), "total": (np.dtype(np.int32), ())}
    nodes: list[bytes] = []
    outputs: dict[str, Any] = {"y": (1, 1, plan.vocabulary)}
    sum_, delta = "x", "x"
    for i in range(plan.layers):
        for x in "kv":
            inputs[f"{x}{i}"] = (np.dtype(np.float32), (1, plan.kv_heads, CAPACITY, HEAD))
            outputs[f"present_{x}{i}"] = inputs[f"{x}{i}"][1]
        for name, size in ((f"l_kv{i}", plan.linears()[0][1]), (f"l_ff{i}", plan.inner)):
            inputs[name] = (np.dtype(np.float32), ("rows", 1, size))
            constants[name] = np.ones((1, 1, size), np.float32)  # a default, as unmerged vectors have one
        nodes += _layer(plan, i, sum_, delta)
        sum_, delta = f"mid{i}", f"down{i}"
    nodes += [_norm(sum_, delta, "states", ""), node("Gather", ["states", "end"], ["state"], {"axis": 1})]
    nodes.append(_product((plan.hidden, plan.vocabulary), ["wh", "sh", "zh"])("state", "y"))
    return len(nodes), model(nodes, inputs, outputs, constants)


def _constants(plan: Plan) -> dict[str, NDArray[Any]]:
    random, angles = np.random.default_rng(0), np.arange(CAPACITY)[:, None] * np.ones(HEAD // 2)
    found: dict[str, NDArray[Any]] = {"norm": np.ones(plan.hidden, np.float32)}
    found |= {"cos": np.cos(angles).astype(np.float32), "sin": np.sin(angles).astype(np.float32)}
    found["end"] = np.array([-1], np.int64)
    for which, (inputs, outputs) in enumerate([*plan.linears(), (plan.hidden, plan.vocabulary)]):
        blocks, size = inputs // BLOCK, outputs * inputs // 2
        head = which == len(plan.linears())
        codes = random.integers(0, 256, size + plan.layers, np.uint8)
        for i in range(1 if head else plan.layers):  # shifted by a byte per layer, so that they differ
            name = "wh" if head else f"w{which}_{i}"
            found[name] = codes[i : i + size].reshape(outputs, blocks, BLOCK // 2)
        found["sh" if head else f"s{which}"] = np.full((outputs, blocks), 1 / inputs, np.float32)
        found["zh" if head else f"z{which}"] = np.full((outputs, -(-blocks // 2)), 0x88, np.uint8)
    return found


def _layer(plan: Plan, i: int, sum_: str, delta: str) -> list[bytes]:
    """x + attention, then x + feed-forward; each sum is computed by the norm that follows."""
    heads = {"num_heads": plan.heads, "kv_num_heads": plan.kv_heads, "do_rotary": 1}
    keys = [f"k{i}", f"v{i}"]
    attended = [f"scaled{i}", "", "", *keys, "last", "total", "cos", "sin"]
    qkv, output, gate, up, down = (
        _product(sizes, [f"w{which}_{i}", f"s{which}", f"z{which}"]) for which, sizes in enumerate(plan.linears())
    )
    return [
        _norm(sum_, delta, f"normed{i}", f"sum{i}"),
        qkv(f"normed{i}", f"qkv{i}"),
        node("Mul", [f"qkv{i}", f"l_kv{i}"], [f"scaled{i}"]),
        node("GroupQueryAttention", attended, [f"seen{i}", *(f"present_{k}" for k in keys)], heads, MICROSOFT),
        output(f"seen{i}", f"out{i}"),
        _norm(f"sum{i}", f"out{i}", f"again{i}", f"mid{i}"),
        gate(f"again{i}", f"gate{i}"),
        node("QuickGelu", [f"gate{i}"], [f"open{i}"], {"alpha": 1.0}, MICROSOFT),
        up(f"again{i}", f"up{i}"),
        node("Mul", [f"up{i}", f"l_ff{i}"], [f"scaled_up{i}"]),
        node("Mul", [f"open{i}", f"scaled_up{i}"], [f"inner{i}"]),
        down(f"inner{i}", f"down{i}"),
    ]


def _norm(sum_: str, delta: str, out: str, total: str) -> bytes:
    """A norm of sum_ + delta, which is output as `total`."""
    outputs = [out, "", "", total] if total else [out]
    return node("SkipSimplifiedLayerNormalization", [sum_, delta, "norm"], outputs, {"epsilon": 1e-5}, MICROSOFT)


def float_graph(plan: FloatPlan) -> tuple[int, bytes]:
    """The number of nodes, and the graph."""
    numbers = np.random.default_rng(0).standard_normal(plan.inputs * plan.outputs + plan.products, np.float32)
    sizes = (plan.inputs, plan.outputs)
    nodes, constants, last = [], {}, "x"
    for i in range(plan.products):
        inputs, outputs = sizes[:: 1 if i % 2 == 0 else -1]
        values = numbers[i : i + inputs * outputs] / np.float32(inputs**0.5)
        constants[f"w{i}"] = values.reshape(inputs, outputs)
        made = f"y{i}" if i < plan.products - 1 else "y"
        nodes.append(node("MatMul", [last, f"w{i}"], [made]))
        last = made
    given: dict[str, Any] = {"x": (np.dtype(np.float32), (1, "S", plan.inputs))}
    return len(nodes), model(nodes, given, {"y": (1, "S", sizes[plan.products % 2])}, constants)


def _product(sizes: tuple[int, int], weights: list[str]) -> Callable[[str, str], bytes]:
    """A function that makes the product's node, from its inputs and outputs, with these sizes and weights."""
    inputs, outputs = sizes
    attributes = {"K": inputs, "N": outputs, "bits": 4, "block_size": BLOCK, "accuracy_level": 4}
    return lambda x, y: node("MatMulNBits", [x, *weights], [y], attributes, MICROSOFT)


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line of `python -m qia3.runtime.calibrate`."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--threads", type=int)
    parser.add_argument("--json", action="store_true", help="print JSON on one line")
    asked = parser.parse_args(arguments)
    try:
        figures = calibrate(asked.threads)
    except QIA3Error as error:
        print(f"qia3: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    print(json.dumps(figures, indent=None if asked.json else 1))


if __name__ == "__main__":
    main()
