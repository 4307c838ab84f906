"""What 4 bits cost in quality: perplexity, and KL divergence and top-1 agreement against the float model, beside the
peers' files.

    python benchmarks/perplexity.py smollm2-135m-instruct --grid own:32 own:64 own:128 none:64
    python benchmarks/perplexity.py smollm2-135m-instruct --gguf dist/bench/smollm2/q4_k_m.gguf --onnx dist/bench/smollm2/genai

Text: editorial articles (texts.py), cut into windows of 256 tokens; each window's first 32 tokens are context only. Our
grids and GGUF files are dequantised and computed by torch in float32, so it is the weights alone; what int8 activations
add is in each bundle's parity section. An ONNX folder of onnxruntime-genai's builder is measured with float
activations, and as it is. A grid is CALIBRATION:BLOCK, with ":symmetric" after it if asked, ":head8", ":down8@0-2,11"
and so on for layers that are kept at 8 bits, or ":bits5.0" for those that `[base] bits` takes, or ":trained" for
`train_scales`; a calibration is "own", "none", or "editorials" for articles of the same newspaper that are not scored.
"""

from __future__ import annotations

import argparse
import json
import math
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from texts import articles

from qia3.base.load import Asked, load_base, load_float
from qia3.base.weights import GridWeight
from qia3.footprint.bits import bits_each
from qia3.ia3.mix import Within, named
from qia3.progress import bar

WINDOW, CONTEXT = 256, 32


@torch.inference_mode()
def log_probabilities(model: torch.nn.Module, windows: list[list[int]]) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probabilities [positions, V] in float16 of every scored position, and the tokens [positions] that came."""
    rows, tokens = [], []
    for ids in windows:
        logits = model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, CONTEXT - 1 : -1]
        rows.append(logits.float().log_softmax(-1).half())
        tokens.append(torch.tensor(ids[CONTEXT:]))
    return torch.cat(rows), torch.cat(tokens)


def compared(found: torch.Tensor, reference: torch.Tensor, tokens: torch.Tensor) -> dict[str, float]:
    nll = -found.gather(1, tokens[:, None]).float().mean()
    kl, same = 0.0, 0
    for p, q in zip(reference.split(256), found.split(256), strict=True):
        kl += float((p.float().exp() * (p.float() - q.float())).sum())
        same += int((p.argmax(-1) == q.argmax(-1)).sum())
    return {"perplexity": math.exp(float(nll)), "kl_nats": kl / len(tokens), "same_top_token": same / len(tokens)}


def grid(model: str, asked: str, text: Path, windows: list[list[int]]) -> tuple[dict[str, Any], torch.Tensor]:
    calibration, block, *rest = asked.split(":")
    started = time.perf_counter()
    budget = next((float(word.removeprefix("bits")) for word in rest if word.startswith("bits")), None)
    roles = tuple(
        word.replace("8", "", 1) for word in rest if "8" in word and budget is None
    )  # down8@0-2,11 for down@0-2,11
    told = str(text) if calibration == "editorials" else calibration
    base = load_base(
        Asked(
            model,
            block_size=int(block),
            symmetric="symmetric" in rest,
            calibration=told,
            mix=named(roles) if budget is None else Within(budget, bar),
            train_scales="trained" in rest,
        )
    )
    stores = [m for m in base.model.modules() if isinstance(m, GridWeight)]
    facts = {
        "grid": f"int4 {asked}",
        "seconds": round(time.perf_counter() - started, 1),
        "bits_per_weight": bits_each(sum(s.grid.nbytes for s in stores), sum(s.inputs * s.outputs for s in stores)),
    }
    for store in stores:
        store.hold_dense(torch.float32)
    return facts, log_probabilities(base.model, windows)[0]


def gguf_file(path: Path, windows: list[list[int]]) -> tuple[dict[str, Any], torch.Tensor]:
    import gguf

    tensors = [t for t in gguf.GGUFReader(str(path)).tensors if len(t.shape) > 1]
    bits = bits_each(sum(int(t.n_bytes) for t in tensors), sum(int(t.n_elements) for t in tensors))
    model, _ = load_float(str(path))
    return {"grid": path.name, "bits_per_weight": bits}, log_probabilities(model.eval(), windows)[0]


def onnx_bits(model: Any) -> float:
    """Bits a weight of a graph's matrices: whatever MatMulNBits and the look-ups read, each tensor once."""
    from onnx.helper import tensor_dtype_to_np_dtype

    size = {i.name: math.prod(i.dims) * tensor_dtype_to_np_dtype(i.data_type).itemsize for i in model.graph.initializer}
    read, weights = dict[str, int](), dict[str, int]()
    for node in model.graph.node:
        attributes = {a.name: a.i for a in node.attribute}
        if node.op_type == "MatMulNBits":
            read |= {name: size[name] for name in node.input[1:] if name}
            weights[node.input[1]] = attributes["N"] * attributes["K"]
        elif (
            node.op_type in ("Gather", "GatherBlockQuantized")
            and size.get(node.input[0], 0) > 1 << 20
            and node.input[0] not in weights
        ):
            read |= {name: size[name] for name in (node.input[0], *node.input[2:]) if name in size}
            table = next(i for i in model.graph.initializer if i.name == node.input[0])
            bits = (
                attributes.get("bits", 4)
                if node.op_type == "GatherBlockQuantized"
                else 8 * size[table.name] // math.prod(table.dims)
            )
            weights[table.name] = 8 * size[table.name] // bits
    return bits_each(sum(read.values()), sum(weights.values()))


def onnx_folder(folder: Path, windows: list[list[int]], shipped: bool) -> tuple[dict[str, Any], torch.Tensor]:
    """As it is, or with float activations: the weights alone, as of the others."""
    import numpy as np
    import onnx
    import onnxruntime

    model = onnx.load(str(folder / "model.onnx"), load_external_data=False)
    for attribute in (
        a for node in model.graph.node for a in node.attribute if a.name == "accuracy_level" and not shipped
    ):
        attribute.i = 0
    file = folder / "measured.onnx"  # beside the weights that it names
    try:
        onnx.save(model, str(file))
        session = onnxruntime.InferenceSession(str(file))
    finally:
        file.unlink(missing_ok=True)
    shapes = {i.name: i.shape for i in session.get_inputs()}
    decoder = json.loads((folder / "genai_config.json").read_text())["model"]["decoder"]
    heads, size = decoder["num_key_value_heads"], decoder["head_size"]
    rows = []
    for ids in windows:
        feeds = {n: np.zeros((1, heads, 0, size), np.float32) for n in shapes if n.startswith("past_key_values")}
        whole = {
            "input_ids": np.array([ids]),
            "attention_mask": np.ones((1, len(ids)), np.int64),
            "position_ids": np.arange(len(ids))[None],
        }
        logits = session.run(["logits"], feeds | {n: v for n, v in whole.items() if n in shapes})[0]
        rows.append(torch.from_numpy(logits[0, CONTEXT - 1 : -1]).float().log_softmax(-1).half())
    how = "as shipped" if shipped else "accuracy level 0"
    return {"grid": f"{folder.name}, {how}", "bits_per_weight": onnx_bits(model)}, torch.cat(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("model")
    parser.add_argument("--tokens", type=int, default=10000)
    parser.add_argument("--grid", nargs="+", default=[])
    parser.add_argument("--gguf", nargs="+", default=[], type=Path)
    parser.add_argument("--onnx", nargs="+", default=[], type=Path)
    asked = parser.parse_args()
    model, tokenizer = load_float(asked.model)
    everything = tokenizer.encode("\n\n".join(articles()))
    ids = everything[: asked.tokens]
    windows = [ids[i : i + WINDOW] for i in range(0, len(ids) - WINDOW + 1, WINDOW)]
    reference, tokens = log_probabilities(model.eval(), windows)
    print(
        json.dumps({"grid": "float32", "positions": len(tokens), **compared(reference, reference, tokens)}), flush=True
    )
    del model
    with tempfile.TemporaryDirectory() as scratch:
        text = Path(scratch) / "editorials.txt"
        text.write_text(tokenizer.decode(everything[2 * asked.tokens :]), encoding="utf-8")
        for measure, places in (
            (lambda name: grid(asked.model, name, text, windows), asked.grid),
            (lambda path: gguf_file(path, windows), asked.gguf),
            (lambda path: onnx_folder(path, windows, shipped=False), asked.onnx),
            (lambda path: onnx_folder(path, windows, shipped=True), asked.onnx),
        ):
            for place in places:
                facts, found = measure(place)
                print(json.dumps({**facts, **compared(found, reference, tokens)}), flush=True)


if __name__ == "__main__":
    main()
