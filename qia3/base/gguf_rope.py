"""The rotary embedding that a GGUF file describes, in transformers' terms.

    rope.freq_base            rope_theta, 10000 if absent (as in llama.cpp)
    rope.dimension_count      how many entries of a head are rotated: partial_rotary_factor, if not all
    rope.scaling.*            linear, yarn or longrope, with their numbers
    rope_freqs.weight         [d/2] numbers that divide the frequencies: Llama 3.1's scaling, whose four parameters
                              the file does not hold. They are recovered from the tensor and must reproduce it:
                                  1 where the wavelength w = 2 pi / frequency is below old / high, factor where above old / low,
                                  and between them 1 / ((1 - s) / factor + s), s = (old / w - low) / (high - low)
    rope_factors_short.weight, rope_factors_long.weight    longrope's, for texts up to original_context_length and longer ones

Anything else is refused by name. Sources: convert_hf_to_gguf.py and llama-model.cpp of
github.com/ggml-org/llama.cpp, modeling_rope_utils.py of transformers.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qia3.base.gguf_file import Value
from qia3.base.gguf_parts import Entries, Gguf
from qia3.errors import BaseModelError

FREQS, SHORT, LONG = "rope_freqs.weight", "rope_factors_short.weight", "rope_factors_long.weight"
ROPE_TENSORS = (FREQS, SHORT, LONG)
PLAIN = ("rope.freq_base", "rope.freq_base_swa", "rope.dimension_count", "rope.scale_linear")
SCALING = (
    "type", "factor", "original_context_length", "attn_factor", "yarn_beta_fast", "yarn_beta_slow", "yarn_ext_factor", "yarn_attn_factor",
    "yarn_log_multiplier",
)  # fmt: skip
ROPE_ENTRIES = (*PLAIN, *(f"rope.scaling.{name}" for name in SCALING))
YARN_IDLE = {"yarn_ext_factor": 1.0, "yarn_attn_factor": 1.0, "attn_factor": 1.0, "yarn_log_multiplier": 0.0}
YARN_USUAL = {"beta_fast": 32.0, "beta_slow": 1.0}
BASE = 10000.0
EXACT = 1e-5  # relative: of factors that are float32 in the file


def rotations(file: Gguf, entries: Entries, default: Any, unread: list[str]) -> dict[str, Any]:
    """`rope_parameters` for a class with rotary embeddings. Adds to `unread` what cannot be used. Raises
    BaseModelError.
    """
    left = {name: entries[name] for name in ROPE_ENTRIES if name in entries}
    own = getattr(default, "rope_parameters", None)
    tensors = [name for name in ROPE_TENSORS if name in file.tensors]
    wanted: dict[str, Any] = {}
    if own:
        layered = "full_attention" in own
        rope: dict[str, Any] = {"rope_type": "default", "rope_theta": left.pop("rope.freq_base", BASE)}
        rope |= _width(entries, left, own["full_attention"] if layered else own)
        rope |= _scaling(left, entries)
        if FREQS in tensors and rope["rope_type"] == "default":
            rope |= _llama3(file, float(rope["rope_theta"]))
            tensors.remove(FREQS)
        if {SHORT, LONG} <= set(tensors) and hasattr(default, "original_max_position_embeddings"):
            rope |= _longrope(file, left)
            wanted["original_max_position_embeddings"] = rope["original_max_position_embeddings"]
            tensors = [name for name in tensors if name == FREQS]
        elif hasattr(default, "original_max_position_embeddings"):  # it matters to longrope alone
            wanted["original_max_position_embeddings"] = left.pop(
                "rope.scaling.original_context_length", entries["context_length"]
            )
        windowed = {
            "rope_type": "default",
            "rope_theta": left.pop("rope.freq_base_swa", BASE if layered else rope["rope_theta"]),
        }
        if not layered and windowed["rope_theta"] != rope["rope_theta"]:
            unread.append(f"rope.freq_base_swa = {windowed['rope_theta']}")
        wanted["rope_parameters"] = {"full_attention": rope, "sliding_attention": windowed} if layered else rope
    unread += [f"{name} = {value}" for name, value in left.items()] + tensors
    return wanted


def _width(entries: Entries, left: dict[str, Value], own: Mapping[str, Any]) -> dict[str, Any]:
    """How much of a head is rotated. An entry that the class does not support stays in `left`."""
    size = entries.head_size()
    rotated = entries.get("rope.dimension_count", size)
    if type(rotated) is not int or not 0 < rotated <= size:
        return {}
    if "partial_rotary_factor" in own and int(size * (rotated / size)) == rotated:
        left.pop("rope.dimension_count", None)
        return {"partial_rotary_factor": rotated / size}
    if rotated == size:
        left.pop("rope.dimension_count", None)
    return {}


def _scaling(left: dict[str, Value], entries: Entries) -> dict[str, Any]:
    """Scaling of type linear or yarn, taken out of `left`; entries that these types do not use stay in it.

    Without a type llama.cpp assumes linear.
    """
    factor = left.get("rope.scaling.factor") or left.get("rope.scale_linear")
    kind = left.get("rope.scaling.type", "linear" if factor else "none")
    old = left.get("rope.scaling.original_context_length")
    if kind == "none" or (kind == "linear" and factor in (None, 0.0, 1.0)):
        _drop(left, "rope.scaling.type", "rope.scaling.factor", "rope.scale_linear")
        if "rope.scaling.attn_factor" not in left and type(old) is int and old >= entries.whole("context_length"):
            _drop(left, "rope.scaling.original_context_length")  # the model's context was never extended
    elif kind == "linear" and isinstance(factor, float):
        _drop(
            left,
            "rope.scaling.type",
            "rope.scaling.factor",
            "rope.scale_linear",
            "rope.scaling.original_context_length",
        )
        return {"rope_type": "linear", "factor": factor}
    elif kind == "yarn" and isinstance(factor, float) and type(old) is int:
        _drop(left, "rope.scaling.type", "rope.scaling.factor", "rope.scaling.original_context_length")
        _drop(left, *(n for name, idle in YARN_IDLE.items() if left.get(n := f"rope.scaling.{name}") == idle))
        betas = {name: left.pop(f"rope.scaling.yarn_{name}", usual) for name, usual in YARN_USUAL.items()}
        return {"rope_type": "yarn", "factor": factor, "original_max_position_embeddings": old, **betas}
    return {}


def _drop(left: dict[str, Value], *names: str) -> None:
    for name in names:
        left.pop(name, None)


def _longrope(file: Gguf, left: dict[str, Value]) -> dict[str, Any]:
    """Both lists of factors, and the scale of attention scores."""
    if left.get("rope.scaling.type", "longrope") == "longrope":
        left.pop("rope.scaling.type", None)
    old, scale = left.pop("rope.scaling.original_context_length", None), left.pop("rope.scaling.attn_factor", None)
    if type(old) is not int or not isinstance(scale, float):
        raise BaseModelError(
            f"{file.path.name} has longrope factors but no rope.scaling.original_context_length "
            "or no rope.scaling.attn_factor; use another file"
        )
    factors = {"short_factor": file.read(SHORT).tolist(), "long_factor": file.read(LONG).tolist()}
    return {"rope_type": "longrope", "original_max_position_embeddings": old, "attention_factor": scale, **factors}


def _llama3(file: Gguf, base: float) -> dict[str, Any]:
    """The four parameters of Llama 3's scaling behind rope_freqs.weight."""
    factors = file.read(FREQS).astype(np.float64)
    if factors.ndim != 1 or not np.isfinite(factors).all():
        raise BaseModelError(f"{file.path.name}: rope_freqs.weight is not a list of factors; fetch it again")
    if np.array_equal(factors, np.ones_like(factors)):
        return {}
    wavelengths = 2 * math.pi * base ** (np.arange(len(factors)) / len(factors))
    for low, high, old in _guesses(factors, wavelengths):
        factor = float(factors.max())
        if np.allclose(_factors(wavelengths, factor, low, high, old), factors, rtol=EXACT, atol=0):
            numbers = {"factor": factor, "low_freq_factor": low, "high_freq_factor": high}
            return {"rope_type": "llama3", "original_max_position_embeddings": old, **numbers}
    raise BaseModelError(
        f"{file.path.name}: rope_freqs.weight does not scale the rotation as Llama 3 does, the only supported way; "
        "use the model's safetensors instead"
    )


def _guesses(factors: NDArray[np.float64], wavelengths: NDArray[np.float64]) -> Iterator[tuple[float, float, int]]:
    """(low, high, old): the values of Meta's models; then, with their 1 and 4, another `old`, which any factor between
    the ends bounds or determines; and, from two factors between the ends, where s is linear in 1 / w. Only old / low
    and old / high matter, so low is 1.
    """
    yield 1.0, 4.0, 8192
    factor = factors.max()
    between = (factors > 1 + EXACT) & (factors < factor * (1 - EXACT))
    smooth = (1 / factors[between] - 1 / factor) / (1 - 1 / factor)
    if between.any():
        yield 1.0, 4.0, round(float((wavelengths[between] * (3 * smooth + 1)).mean()))
    else:
        yield 1.0, 4.0, math.floor(4 * float(wavelengths[factors <= 1 + EXACT].max(initial=0))) + 1
    if between.sum() > 1:
        slope, offset = np.polyfit(1 / wavelengths[between], smooth, 1)
        high = 1 - 1 / offset
        yield 1.0, round(float(high), 4), round(float(slope * (high - 1)))


def _factors(wavelengths: NDArray[np.float64], factor: float, low: float, high: float, old: int) -> NDArray[np.float64]:
    """The number that each frequency is divided by."""
    smooth = np.clip((old / wavelengths - low) / (high - low), 0, 1)
    return 1 / ((1 - smooth) / factor + smooth)
