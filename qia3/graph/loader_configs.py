"""Files of a bundle for other loaders: tokenizer and configurations."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForSequenceClassification, AutoModelForTokenClassification

from qia3.base.family import embeddings, is_encoder, weight_of
from qia3.base.start import start_of
from qia3.bundle.layout import DTYPE, GRAPH, INT8_DTYPE, int8_name, transformers_js_config
from qia3.bundle.ports import Cache
from qia3.ia3.roles import device_of


def write_tokenizer(tokenizer: Any, folder: Path) -> None:
    """tokenizer.json and its configuration, as transformers saves them, but with the chat template inside, the only
    place where transformers.js looks.
    """
    tokenizer.save_pretrained(str(folder), save_jinja_files=False)
    _for_others(folder / "tokenizer_config.json")


def write_configs(
    model: Any,
    folder: Path,
    context_length: int,
    stop_tokens: tuple[int, ...],
    cache: Cache,
    labels: Sequence[str] | None = None,
    tags: bool = False,
    int8: bool = False,
) -> None:
    """config.json, generation_config.json and, for a decoder, genai_config.json (onnxruntime-genai's generic "decoder"
    type, which does not support encoders).

    config.json's max_position_embeddings is the graph's context length, which may be less than the base's:
    transformers.js stops generating there. An encoder's config.json has the `labels` of a merged head, which loaders
    display; `tags`: they are labels of tokens. `int8`: the graphs have int8 products throughout, and so other names.
    """
    pair = bool(model.config.is_encoder_decoder)
    config = model.config.to_dict() | {
        "max_position_embeddings": context_length,
        "transformers.js_config": transformers_js_config(pair, INT8_DTYPE if int8 else DTYPE),
    }
    if pair:
        config["tie_word_embeddings"] = tied_for_others(model)
    for key in ("quantization_config", "_name_or_path", "_attn_implementation"):
        config.pop(key, None)
    if is_encoder(model.config):
        config |= {"max_position_embeddings": model.config.max_position_embeddings, **_labels(model, labels, tags)}
        _write_json(folder / "config.json", config)
        return
    if config.get(
        "multi_query"
    ):  # true by default where it is known, but transformers.js reads it as its own kind of cache
        config.pop("multi_query")
    _write_json(folder / "config.json", config)
    # transformers 4 rejects what transformers 5 writes as null, and has its own defaults
    known = {name: value for name, value in model.generation_config.to_dict().items() if value is not None}
    generation = known | {"eos_token_id": list(stop_tokens)}
    if pair:
        generation["decoder_start_token_id"] = start_of(model)[0]
    _write_json(folder / "generation_config.json", generation)
    if not pair:
        graph = int8_name(GRAPH) if int8 else GRAPH
        genai = genai_config(model.config.get_text_config(), context_length, stop_tokens, cache, graph)
        _write_json(folder / "genai_config.json", genai)


def _labels(model: Any, labels: Sequence[str] | None, tags: bool) -> dict[str, Any]:
    """What loaders should take the graph for: the name of transformers' class, and the names of its logits."""
    if labels is None:
        return {"architectures": [type(model).__name__]}
    auto = AutoModelForTokenClassification if tags else AutoModelForSequenceClassification
    made = auto._model_mapping.get(type(model.config), None)
    name = type(model).__name__ if made is None else made.__name__
    numbered = dict(enumerate(labels))
    return {"architectures": [name], "id2label": numbered, "label2id": {label: i for i, label in numbered.items()}}


def tied_for_others(model: Any) -> bool:
    """tie_word_embeddings of an encoder-decoder as transformers 4.57 and CTranslate2 read it.

    T5's code there uses it to decide whether the decoder's output is scaled by d_model ** -0.5 before the head, and
    transformers 5 writes true for all T5s (findings/t5-config-of-transformers-5-scales-logits-in-4.sh). So the value
    says what this model does, as observed in one pass; if nothing is scaled, it says whether the head is the embedding.
    """
    seen: dict[str, Any] = {}
    head, stack = model.get_output_embeddings(), model.get_decoder()
    hooks = [
        head.register_forward_pre_hook(lambda _, inputs: seen.update(head=inputs[0])),
        stack.register_forward_hook(lambda _, inputs, out: seen.update(states=out[0])),
    ]
    ids = torch.arange(3, device=device_of(model))[None]
    try:
        with torch.no_grad():
            model(input_ids=ids, decoder_input_ids=ids, use_cache=False)
    finally:
        for hook in hooks:
            hook.remove()
    scaled = seen["states"] * seen["states"].shape[-1] ** -0.5
    if torch.allclose(seen["head"], scaled, rtol=1e-3):
        return True
    tied = any(weight_of(table) is weight_of(head) for table in embeddings(model))
    return tied and getattr(model.config, "scale_decoder_outputs", True)


def genai_config(
    config: Any, context_length: int, stop_tokens: tuple[int, ...], cache: Cache, graph: str = GRAPH
) -> dict[str, Any]:
    """The configuration for stock onnxruntime-genai."""
    # not every configuration in transformers 5 has these (CodeGen's has no padding token)
    pad, begin = getattr(config, "pad_token_id", None), getattr(config, "bos_token_id", None)
    pad = pad if pad is not None else (stop_tokens[0] if stop_tokens else 0)
    decoder = {
        "session_options": {"log_id": "onnxruntime-genai", "provider_options": []},
        "filename": graph,
        "head_size": cache.size,
        "hidden_size": config.hidden_size,
        "num_attention_heads": config.num_attention_heads,
        "num_hidden_layers": config.num_hidden_layers,
        "num_key_value_heads": cache.heads,
        "inputs": {
            "input_ids": "input_ids",
            "attention_mask": "attention_mask",
            "past_key_names": "past_key_values.%d.key",
            "past_value_names": "past_key_values.%d.value",
        },
        "outputs": {
            "logits": "logits",
            "present_key_names": "present.%d.key",
            "present_value_names": "present.%d.value",
        },
    }
    model = {
        "type": "decoder",
        "bos_token_id": begin if isinstance(begin, int) else pad,
        "eos_token_id": list(stop_tokens),
        "pad_token_id": pad,
        "context_length": context_length,
        "vocab_size": config.vocab_size,
        "decoder": decoder,
    }
    search = {"do_sample": False, "max_length": context_length, "num_beams": 1, "past_present_share_buffer": True}
    return {"model": model, "search": search}


def _for_others(path: Path) -> None:
    """Removes paths of the build machine from a file that transformers wrote, and gives the plain fast tokenizer the
    name that transformers 4 also knows (findings/tokenizer-class-of-transformers-5-unknown-to-4.sh).
    """
    with contextlib.suppress(FileNotFoundError):
        content = json.loads(path.read_text(encoding="utf-8"))
        if content.get("tokenizer_class") == "TokenizersBackend":
            content["tokenizer_class"] = "PreTrainedTokenizerFast"
        _write_json(path, {k: v for k, v in content.items() if not (isinstance(v, str) and _is_path(v))})


def _is_path(text: str) -> bool:
    try:
        return os.sep in text and Path(text).exists()
    except OSError:  # too long for a path, such as a chat template
        return False


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=1, ensure_ascii=False, default=str) + "\n", encoding="utf-8")
