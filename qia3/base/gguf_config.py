"""What a GGUF file says about its network, as a transformers configuration. Every entry of the file is used, or is
known not to matter for a stated reason, or is an error that names it.

transformers has a reader of its own, but it drops entries that it does not know and fills gaps from the defaults of the
configuration class (RoPE scaling and partial width, soft caps, biases, the end token). So entries are matched with the
class's own field names, and the result is read back.

    qwen3.attention.key_length = 128    ->  Qwen3Config.head_dim
    gemma2.final_logit_softcapping = 30 ->  Gemma2Config.final_logit_softcapping
    llama.attention.sliding_window = 64 ->  LlamaConfig has no window: refused

Some of a configuration is only in the tensors: whether there is a separate head, whether layers have biases, how many
rows the embedding has. And some is in neither and follows llama.cpp, which decides by the architecture's name: the
activation, and Gemma's scale of attention scores. The names are those of docs/gguf.md of github.com/ggml-org/ggml and
of gguf-py's constants.py.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from transformers import AutoConfig

from qia3.base.gguf_file import Array, Value
from qia3.base.gguf_ids import embedding_rows, token_ids
from qia3.base.gguf_parts import Entries, Gguf
from qia3.base.gguf_rope import ROPE_ENTRIES, rotations
from qia3.base.gguf_t5 import T5, read_t5_config
from qia3.errors import BaseModelError

NAMES: dict[str, tuple[str, ...]] = {  # entry -> its name in the configuration: the first that the class has
    "context_length": ("max_position_embeddings",),
    "embedding_length": ("hidden_size",),
    "block_count": ("num_hidden_layers",),
    "feed_forward_length": ("intermediate_size", "ffn_hidden_size", "n_inner"),
    "vocab_size": ("vocab_size",),
    "attention.head_count": ("num_attention_heads",),
    "attention.head_count_kv": ("num_key_value_heads", "num_kv_heads"),
    "attention.layer_norm_rms_epsilon": ("rms_norm_eps", "norm_eps"),
    "attention.layer_norm_epsilon": ("layer_norm_eps", "layer_norm_epsilon", "norm_epsilon", "norm_eps"),
    "attention.sliding_window": ("sliding_window",),
    "attention.scale": ("attention_multiplier",),
    "attn_logit_softcapping": ("attn_logit_softcapping",),
    "final_logit_softcapping": ("final_logit_softcapping",),
    "use_parallel_residual": ("use_parallel_residual",),
    "embedding_scale": ("embedding_multiplier",),
    "residual_scale": ("residual_multiplier",),
    "logit_scale": ("logit_scale", "logits_scaling"),
}
REQUIRED = ("embedding_length", "block_count", "attention.head_count")
EPSILONS = ("attention.layer_norm_rms_epsilon", "attention.layer_norm_epsilon")
ZERO_IS_NONE = (  # llama.cpp reads 0 in these as "none"
    "attention.sliding_window", "attention.scale", "attention.clamp_kqv", "attention.max_alibi_bias", "expert_count", "expert_used_count",
    "leading_dense_block_count", "attn_logit_softcapping", "final_logit_softcapping", "embedding_scale", "residual_scale", "logit_scale",
)  # fmt: skip
IDLE = {  # entries that change nothing here, with the reason
    "tensor_data_layout": "a note on row order, which is the same for all files of an architecture",
    "pooling_type": "how llama.cpp makes one vector of a text; a language model's own output is not pooled",
    "rope.scaling.finetuned": "a note: whether the model was fine-tuned with its scaling",
}
FLAGS = {  # optional features of the class -> suffixes of the tensors that exist only with the feature
    "attention_bias": ("attn_q.bias", "attn_k.bias", "attn_v.bias", "attn_qkv.bias", "attn_output.bias"),
    "use_qkv_bias": ("attn_q.bias", "attn_k.bias", "attn_v.bias"),
    "mlp_bias": ("ffn_up.bias", "ffn_gate.bias", "ffn_down.bias"),
    "use_bias": ("attn_q.bias", "attn_output.bias", "ffn_up.bias", "ffn_down.bias"),
    "bias": ("attn_qkv.bias", "attn_output.bias", "ffn_up.bias", "ffn_down.bias"),
    "qk_layernorm": ("attn_q_norm.weight", "attn_k_norm.weight"),
    "use_qk_norm": ("attn_q_norm.weight", "attn_k_norm.weight"),
}
GIVEN: dict[str, Callable[[Entries], Value | None]] = {  # values for entries that the class has no name for
    "context_length": lambda entries: None,  # relative positions: classes of this kind have no limit
    "attention.head_count_kv": lambda entries: entries["attention.head_count"],
    "feed_forward_length": lambda entries: 4 * entries.whole("embedding_length"),
}
MODEL_TYPES = {  # architecture of the file -> transformers' name; only those that a test compares with the model itself
    "llama": "llama", "qwen2": "qwen2", "qwen3": "qwen3", "gemma": "gemma", "gemma2": "gemma2", "gemma3": "gemma3_text",
    "phi2": "phi", "phi3": "phi3", "gpt2": "gpt2", "falcon": "falcon", "stablelm": "stablelm", "starcoder2": "starcoder2",
    "bloom": "bloom", "nemotron": "nemotron", "granite": "granite", "olmo2": "olmo2", "smollm3": "smollm3",
    "command-r": "cohere",
}  # fmt: skip


def read_gguf_config(file: Gguf) -> Any:
    """The configuration that the file describes. Raises BaseModelError that names every entry that cannot be used."""
    if file.architecture == T5:
        return read_t5_config(file)
    if file.architecture not in MODEL_TYPES:
        raise BaseModelError(
            f"{file.path.name} holds a model of the architecture {file.architecture[:40]!r}, which is not "
            "supported as GGUF "
            f"(supported: {', '.join(sorted([*MODEL_TYPES, T5]))}); take the model's safetensors instead"
        )
    model_type = MODEL_TYPES[file.architecture]
    default = AutoConfig.for_model(model_type)
    said = {name: _one(value) for name, value in file.of_architecture().items()}
    entries = Entries({n: v for n, v in said.items() if n not in IDLE and not (n in ZERO_IS_NONE and not v)})
    _check_required(file, entries, default)
    wanted, unread = _matched(entries, default)
    wanted |= _heads(entries, default, unread)
    wanted |= _from_tensors(file, default)
    wanted |= token_ids(file, int(wanted["vocab_size"]), entries.get("vocab_size"))
    if file.architecture in GAPS:
        wanted |= GAPS[file.architecture](entries)
    wanted |= rotations(file, entries, default, unread)
    if unread:
        raise BaseModelError(
            f"{file.path.name} has settings that transformers' {type(default).__name__} cannot express: "
            f"{', '.join(sorted(unread))}; "
            "take the model's safetensors instead"
        )
    config = AutoConfig.for_model(model_type, **wanted)
    other = [n for n, value in wanted.items() if not _is(config, n, value)]
    if other:
        told = ", ".join(next((e for e in entries if n in NAMES.get(e, ())), n) + f" = {wanted[n]}" for n in other)
        raise BaseModelError(
            f"{file.path.name} has settings that transformers' {type(config).__name__} does not accept: {told}; "
            "take the model's safetensors instead"
        )
    return config


def _matched(entries: Entries, default: Any) -> tuple[dict[str, Any], list[str]]:
    """Settings of the configuration class, and the entries that it has no name for."""
    wanted: dict[str, Any] = {}
    unread = []
    for entry, value in entries.items():
        if entry in ROPE_ENTRIES or entry in HEADS:
            continue
        name = next((n for n in NAMES.get(entry, ()) if _has(default, n)), None)
        if name is None and entry in GIVEN and GIVEN[entry](entries) in (None, value):
            continue
        if name is None or wanted.setdefault(name, value) != value:
            unread.append(f"{entry} = {value}")
    return wanted, unread


HEADS = ("attention.key_length", "attention.value_length", "attention.causal", "attention.sliding_window_pattern")


def _heads(entries: Entries, default: Any, unread: list[str]) -> dict[str, Any]:
    """Head size and number of key/value heads (as many as queries by default); adds to `unread` what the class cannot
    be.
    """
    wanted: dict[str, Any] = {}
    heads = entries.whole("attention.head_count")
    size = entries.head_size()
    if _has(default, "head_dim"):
        wanted["head_dim"] = size
    elif size * heads != entries["embedding_length"]:
        unread.append(f"attention.key_length = {size}")
    if entries.get("attention.value_length", size) != size:
        unread.append(f"attention.value_length = {entries['attention.value_length']}")
    if not entries.get("attention.causal", True):
        unread.append("attention.causal = False")
    if "attention.head_count_kv" not in entries:
        wanted |= {n: heads for n in NAMES["attention.head_count_kv"] if _has(default, n)}
    if "attention.sliding_window_pattern" in entries and not _has(default, "layer_types"):
        unread.append(f"attention.sliding_window_pattern = {entries['attention.sliding_window_pattern']}")
    return wanted


def _from_tensors(file: Gguf, default: Any) -> dict[str, Any]:
    """Settings that follow from the tensors in the file."""
    ends = tuple(file.tensors)
    has = {
        flag: any(name.endswith(end) for name in ends for end in FLAGS[flag]) for flag in FLAGS if _has(default, flag)
    }
    return {**has, "tie_word_embeddings": "output.weight" not in file.tensors, "vocab_size": embedding_rows(file)}


def _check_required(file: Gguf, entries: Entries, default: Any) -> None:
    """Refuses missing entries that the class would fill with some default model's numbers."""
    context = ["context_length"] if _has(default, "max_position_embeddings") else []
    missing = [name for name in (*REQUIRED, *context) if type(entries.get(name)) is not int or not entries[name]]
    if not any(isinstance(entries.get(name), float) for name in EPSILONS):
        missing.append(EPSILONS[0])
    if missing:
        raise BaseModelError(
            f"{file.path.name} is incomplete: {file.architecture}.{', '.join(missing)} is missing or not a number; "
            "fetch it again, or use another file"
        )


def _gemma(twenty_seven: int) -> Callable[[Entries], dict[str, Any]]:
    """Gemma divides attention scores by the root of a number that no entry holds: the head size, or in the 27B models,
    which llama.cpp recognises by their number of layers, hidden_size / num_attention_heads.
    """

    def gaps(entries: Entries) -> dict[str, Any]:
        layers = entries.whole("block_count")
        scalar = entries.share() if layers == twenty_seven else entries.head_size()
        return {"query_pre_attn_scalar": scalar} | _windows(entries, layers, 2 if twenty_seven == 46 else 6)

    return gaps


def _windows(entries: Entries, layers: int, every: int) -> dict[str, Any]:
    """Which layers use a sliding window: all but every second (Gemma 2) or sixth (Gemma 3), or as newer files say."""
    pattern = entries.get("attention.sliding_window_pattern", every)
    if isinstance(pattern, Array):
        windowed = [bool(w) for w in pattern.elements or ()]
    else:
        every = every if isinstance(pattern, str) else int(pattern)
        windowed = [not every or i % every < every - 1 for i in range(layers)]
    if "attention.sliding_window" not in entries:
        windowed = [False] * layers
    return {"layer_types": ["sliding_attention" if w else "full_attention" for w in windowed]}


def _falcon(entries: Entries) -> dict[str, Any]:
    """Falcon-7B has one key/value head, Falcon-40B and 180B have groups; there are no others in this format."""
    groups = entries.whole("attention.head_count_kv") if "attention.head_count_kv" in entries else 1
    return {"new_decoder_architecture": groups > 1, "multi_query": groups == 1, "alibi": False, "parallel_attn": True}


GAPS = {"gemma2": _gemma(46), "gemma3": _gemma(62), "falcon": _falcon}


def _one(value: Value) -> Value:
    """A list with one number per layer becomes that number if all are the same."""
    if isinstance(value, Array) and value.elements and len(set(value.elements)) == 1 and type(value.elements[0]) is int:
        return value.elements[0]
    return value


def _has(default: Any, name: str) -> bool:
    return name in default.attribute_map or name in default.to_dict()


def _is(config: Any, name: str, value: Any) -> bool:
    found: Any = getattr(config, name, None)
    if name == "rope_parameters":
        return all(found.get(k) == v for k, v in value.items())
    return bool(found == value) and type(found) is type(value)
