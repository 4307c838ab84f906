"""How fast mixes of 4 and 8 bits and of blocks decode and read prompts: one model's shapes, random codes, vectors at
the side.

    python benchmarks/mixes.py smollm2-135m-instruct 64 64:value 64:query:key:value 32 --rounds 21

A mix is BLOCK:ROLE:ROLE@LAYERS/32: roles as in a build file's `eight_bit` or, with a block behind them, `blocks`; or
the folder of a kept base, for its mix. Quality plays no part, so nothing is quantised: codes are drawn. All graphs are
loaded in one process and asked in turn. Times are of the CPU, all threads together, so that other work on the machine
counts little; what counts is the median of each round's ratio to the first mix.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

from qia3.base.int8 import Int8Weight
from qia3.base.load import quiet
from qia3.base.modules import GridEmbedding, GridLinear
from qia3.base.quantise import Form, Grid
from qia3.base.sources import resolve
from qia3.base.weights import GridWeight, Int4Weight
from qia3.bundle.layout import GRAPH
from qia3.graph.export import export_decoder
from qia3.graph.external import write_graph
from qia3.grids import int4, int8
from qia3.ia3.mix import named
from qia3.ia3.roles import find_roles
from qia3.ia3.vectors import attach

PAST = 64


def drawn(outputs: int, inputs: int, form: Form) -> GridWeight:
    """A weight of this shape with random codes, in the block that the quantiser would give it."""
    random, bits = np.random.default_rng(outputs + inputs), form.bits
    block = (int4 if bits == 4 else int8).block_for(inputs, form.block_size)
    blocks = -(-inputs // block)
    codes = random.integers(0, 256, (outputs, blocks, block * bits // 8), np.uint8)
    scales = random.normal(size=(outputs, blocks)).astype(np.float32) / 2**bits / inputs**0.5
    zeros = random.integers(0, 256, (outputs, blocks if bits == 8 else -(-blocks // 2)), np.uint8)
    return (
        Int8Weight(int8.Int8(codes, scales, zeros, inputs))
        if bits == 8
        else Int4Weight(int4.Int4(codes, scales, zeros, inputs))
    )


def asked_for(mix: str) -> tuple[int, list[str], dict[int, list[str]]]:
    """The block, the roles at 8 bits, and those in other blocks."""
    if (kept := Path(mix) / "base.json").is_file():
        facts = json.loads(kept.read_text(encoding="utf-8"))
        return facts["block_size"], facts["eight_bit"], {int(b): roles for b, roles in facts["blocks"].items()}
    block, *words = mix.split(":")
    blocks: dict[int, list[str]] = {}
    for role, _, size in (word.partition("/") for word in words if "/" in word):
        blocks.setdefault(int(size), []).append(role)
    return int(block), [word for word in words if "/" not in word], blocks


def model_of(config: Any, mix: str) -> Any:
    """The model with layers on the mix's grids, and its vectors."""
    model = AutoModelForCausalLM.from_config(config).eval().requires_grad_(False)
    block, eight, blocks = asked_for(mix)
    own = named(eight, blocks.items()).find(model, Grid(block, False), None).own
    head = model.lm_head
    for name, layer in [(n, m) for n, m in model.named_modules() if isinstance(m, nn.Linear)]:
        grid = GridLinear(drawn(layer.out_features, layer.in_features, own.get(name, Form(4, block))))
        model.set_submodule(name, grid)
        if layer is head:
            model.set_input_embeddings(GridEmbedding(grid.store, torch.float32))
    attach(model, find_roles(model).sites)
    return model


class Graph:
    """A mix's session."""

    def __init__(self, config: Any, mix: str, folder: Path, threads: int) -> None:
        model = model_of(config, mix)
        stores = {id(m.store): m.store for m in model.modules() if isinstance(m, GridLinear)}.values()
        self.bits = 8 * sum(s.grid.nbytes for s in stores) / sum(s.outputs * s.inputs for s in stores)
        graph = export_decoder(model, 4, 2048, "last")
        self.nodes = len(list(graph.graph))
        folder.mkdir()
        write_graph(graph, folder, ["model.embed_tokens", "lm_head"])
        del model, graph, stores
        options = ort.SessionOptions()
        options.intra_op_num_threads, options.log_severity_level = threads, 3
        self.session = ort.InferenceSession(str(folder / GRAPH), options)
        self.pasts = [i.name for i in self.session.get_inputs() if i.name.startswith("past")]
        self.config = config

    def seconds(self, tokens: int, past: int) -> float:
        empty = np.zeros((1, self.config.num_key_value_heads, past, self.config.head_dim), np.float32)
        feeds = {
            "input_ids": np.full((1, tokens), 100),
            "attention_mask": np.ones((1, past + tokens), np.int64),
            **dict.fromkeys(self.pasts, empty),
        }
        start = time.process_time()
        self.session.run(["logits"], feeds)
        return time.process_time() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("model")
    parser.add_argument("mixes", nargs="+")
    parser.add_argument("--rounds", type=int, default=21)
    parser.add_argument("--threads", type=int, default=1)
    asked = parser.parse_args()
    source = resolve(asked.model)
    with quiet(), tempfile.TemporaryDirectory() as scratch:
        config = AutoConfig.from_pretrained(
            source.name, **({"gguf_file": source.gguf_file} if source.gguf_file else {})
        )
        graphs = {mix: Graph(config, mix, Path(scratch) / str(i), asked.threads) for i, mix in enumerate(asked.mixes)}
        found: dict[str, list[list[float]]] = {mix: [] for mix in graphs}
        for _ in range(asked.rounds + 1):
            for mix, graph in graphs.items():
                one = min(graph.seconds(1, PAST) for _ in range(8))
                found[mix].append([one, graph.seconds(128, 0)])
        print(
            f"onnxruntime {ort.__version__}, {asked.threads} threads, {asked.rounds} rounds; x: median of ratios of speed to {asked.mixes[0]}"
        )
        for mix, rounds in found.items():
            cells = [f"{statistics.median(r[i] for r in rounds[1:]) * 1e3:.2f} ms" for i in range(2)]
            ratios = [
                statistics.median(a[i] / b[i] for a, b in zip(found[asked.mixes[0]][1:], rounds[1:], strict=True))
                for i in range(2)
            ]
            facts = f"{graphs[mix].bits:.2f} bits, {graphs[mix].nodes} nodes"
            print(
                f"{mix:40} {facts}; a token {cells[0]}, x {ratios[0]:.2f}; prompt of 128 {cells[1]}, x {ratios[1]:.2f}"
            )


if __name__ == "__main__":
    main()
