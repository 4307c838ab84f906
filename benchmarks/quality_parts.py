"""What quality_methods.py is made of: layers that train, a bundle with other vectors in its scales, examples in a
prompt, a peak of memory.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import json
import resource
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from qia3.batching.trees import Tree
from qia3.examples import Example
from qia3.grids import nf4

WARMUP = 10


class BlockScaled(nn.Module):
    """A layer on the int4 grid whose scales s[n, b] become (1 + delta[n, b]) s[n, b]."""

    def __init__(self, base: Any) -> None:
        super().__init__()
        self.base, self.weight = base, base.weight
        self.delta = nn.Parameter(torch.zeros(base.store.scales.shape))
        assert base.bias is None
        assert base.in_features == self.delta.shape[1] * base.store.block_size

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return _BlockScaled.apply(
            x,
            self.weight,
            self.delta.bfloat16().float(),
            x.dtype if not torch.is_autocast_enabled("cpu") else torch.bfloat16,
        )


class _BlockScaled(torch.autograd.Function):
    """x [..., K], weight [N, K], delta [N, B]: the weight is scaled in float32 and multiplied in `dtype`; it is scaled
    again on the way back.
    """

    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, weight: torch.Tensor, delta: torch.Tensor, dtype: torch.dtype
    ) -> torch.Tensor:
        x = x.to(dtype)
        ctx.weight, ctx.dtype = weight, dtype
        ctx.save_for_backward(x, delta)
        return x @ _BlockScaled.scaled(weight, delta).to(dtype).T

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, None, torch.Tensor, None]:
        x, delta = ctx.saved_tensors
        grad = grad.to(ctx.dtype)
        of_weight = (grad.flatten(0, -2).T @ x.flatten(0, -2)).float() * ctx.weight
        return (
            grad @ _BlockScaled.scaled(ctx.weight, delta).to(ctx.dtype),
            None,
            of_weight.unflatten(1, (delta.shape[1], -1)).sum(-1),
            None,
        )

    @staticmethod
    def scaled(weight: torch.Tensor, delta: torch.Tensor) -> torch.Tensor:
        return (weight.unflatten(1, (delta.shape[1], -1)) * (1 + delta)[..., None]).flatten(1)


class InFloat32(nn.Module):
    """A head that autocast leaves alone, so that losses are float32's."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, hidden: torch.Tensor) -> Any:
        with torch.autocast("cpu", enabled=False):
            return self.inner(hidden.float())


def slope(step: int, steps: int) -> float:
    """Up over WARMUP steps, then down to zero, as transformers' linear schedule."""
    warmup = min(WARMUP, steps // 2)
    return (step + 1) / warmup if step + 1 < warmup else max(0.0, (steps - step) / max(1, steps - warmup))


def share_right(scores: Sequence[np.ndarray], trees: Sequence[Tree]) -> float:
    return float(np.mean([s.argmax() == tree.right for s, tree in zip(scores, trees, strict=True)]))


def on_nf4(weight: torch.Tensor) -> torch.Tensor:
    return torch.from_numpy(nf4.dequantise(nf4.quantise(weight.float().numpy())))


def saved_bytes(peft: Any) -> int:
    """Of the adapter's file."""
    with tempfile.TemporaryDirectory() as folder:
        peft.save_pretrained(folder)
        return (Path(folder) / "adapter_model.safetensors").stat().st_size


@contextlib.contextmanager
def merged_bundle(bundle: Path, scales: dict[str, np.ndarray], vectors: dict[str, np.ndarray]) -> Iterator[Path]:
    """The merged bundle with other vectors in its scales.

    Folding touches scales only (law 2), so no export is needed for it.
    """
    manifest = json.loads((bundle / "manifest.json").read_text())
    graphs = manifest["graphs"].values()
    with tempfile.TemporaryDirectory(dir=bundle.parent) as scratch:
        folder = Path(scratch) / "merged"
        folder.mkdir()
        for file in bundle.iterdir():
            if file.name != "onnx":
                (folder / file.name).symlink_to(file.resolve())
        (folder / "onnx").mkdir()
        for graph in graphs:
            (folder / graph["file"]).write_bytes((bundle / graph["file"]).read_bytes())
        (shared,) = {graph["data"] for graph in graphs}
        data = bytearray((bundle / shared).read_bytes())
        where = places(manifest)
        for name, vector in vectors.items():
            folded = (scales[name] * vector[:, None]).astype(np.float32).tobytes()
            start, size = where[name.removesuffix(".ia3_l") + ".scales"]
            assert size == len(folded), name
            data[start : start + size] = folded
        (folder / shared).write_bytes(data)
        yield folder


def places(manifest: dict[str, Any]) -> dict[str, tuple[int, int]]:
    """Offset and bytes of every tensor in the weight file, by its own name where several are packed into one."""
    found = {}
    for region in manifest["tensors"]:
        start = region["offset"]
        for name, size in region.get("packed") or [(region["name"], region["bytes"])]:
            found[name] = (start, size)
            start += size
    return found


@torch.inference_mode()
def in_context_right(model: Any, tokenizer: Any, wrap: Any, shown: str, prompt: str, asked: Sequence[Example]) -> float:
    """Accuracy with `shown` before every question; its keys and values are computed once and cut back to after each."""

    def encode(text: str) -> list[int]:
        return tokenizer.encode(text, add_special_tokens=False)

    start = encode(wrap.prefix + shown)
    cache = model(input_ids=torch.tensor([start]), use_cache=True).past_key_values
    right = 0
    for example in asked:
        question = encode(prompt.replace("{text}", example.text) + wrap.suffix)
        first = (
            model(input_ids=torch.tensor([question]), past_key_values=cache, use_cache=True)
            .logits[0, -1]
            .log_softmax(-1)
        )
        scores = {}
        for choice in example.choices or ():
            tokens = encode(choice + wrap.end)
            score = float(first[tokens[0]])
            if len(tokens) > 1:
                rest = (
                    model(input_ids=torch.tensor([tokens[:-1]]), past_key_values=cache, use_cache=True)
                    .logits[0]
                    .log_softmax(-1)
                )
                score += sum(float(rest[i, token]) for i, token in enumerate(tokens[1:]))
                cache.crop(1 - len(tokens))  # what the answer added
            scores[choice] = score
        cache.crop(-len(question))
        right += max(scores, key=scores.get) == example.answer
    return right / len(asked)


@contextlib.contextmanager
def peak() -> Iterator[list[int]]:
    """Peak resident MiB of the process within; Linux lets the mark be taken back."""
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")
    reached = [0]
    yield reached
    status = Path("/proc/self/status")
    line = (
        next((row for row in status.read_text().splitlines() if row.startswith("VmHWM")), "") if status.exists() else ""
    )
    reached[0] = int(line.split()[1]) // 1024 if line else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
