"""What kind of model a configuration describes: which of transformers' classes loads it, which stacks it has, where
token ids are looked up, and which layers stay in float.

    decoder            AutoModelForCausalLM     one stack: the model itself
    encoder-decoder    AutoModelForSeq2SeqLM    encoder, and a decoder that attends to the encoder's output as well
    encoder            AutoModel                one stack: the model itself, without the heads that it was trained with

An encoder-decoder has a token table per stack and a head. They may all be one table (T5, BART), or the head may be
separate (T5 v1.1, mT5), or each stack may have its own table (T5Gemma). The weight files tell which.

Layers that transformers itself keeps in float32 (`_keep_in_fp32_modules`) stay in float: in T5 and its relatives the
second layer of the feed-forward, `wo`, whose inputs reach the thousands. That is meant for half precision and int8; a
build file that names these layers (eight_bit = ["down"], blocks = { 64 = ["down"] }) quantises them.
"""

from __future__ import annotations

from inspect import signature
from typing import Any

from torch import nn
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoModelForMaskedLM, AutoModelForSeq2SeqLM

from qia3.base.modules import GridEmbedding, GridLinear
from qia3.base.pooling import longest_of


def auto_class(config: Any) -> Any:
    """transformers' class that loads and builds such a model."""
    if is_encoder(config):
        return Bodies
    return AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM


def is_encoder(config: Any) -> bool:
    """Whether each token also sees those after it: transformers has a masked-language-model head for it, and, where the
    family can also be a decoder (BERT), its configuration says that it is not one.
    """
    kind = type(config)
    if config.is_encoder_decoder or kind not in AutoModelForMaskedLM._model_mapping:
        return False
    return kind not in AutoModelForCausalLM._model_mapping or getattr(config, "is_decoder", None) is False


class Bodies:
    """AutoModel, without the pooling layer that BERT and its relatives put on the first token's state: it belongs to
    their pre-training and is not used.
    """

    @staticmethod
    def from_config(config: Any, **given: Any) -> Any:
        return AutoModel.from_config(config, **_without_pooler(config), **given)

    @staticmethod
    def from_pretrained(name: Any, **given: Any) -> Any:
        config = AutoConfig.from_pretrained(name, trust_remote_code=False)
        return AutoModel.from_pretrained(name, **_without_pooler(config), **given)


def _without_pooler(config: Any) -> dict[str, bool]:
    made = AutoModel._model_mapping[type(config)]
    return {"add_pooling_layer": False} if "add_pooling_layer" in signature(made.__init__).parameters else {}


def positions_of(model: Any) -> int | None:
    """Number of positions of a model, or the limit that sentence-transformers gives it; None if neither is set.

    RoBERTa and its relatives count from behind the id of the padding token, so a table of 514 serves 512 tokens.
    """
    stated = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    words = get_module(model, "get_input_embeddings")
    tables = [m for m in model.modules() if isinstance(m, nn.Embedding) and m is not words]
    skipped = [t.padding_idx + 1 for t in tables if t.num_embeddings == stated and t.padding_idx is not None]
    limits = [longest_of(model.config), None if stated is None else int(stated) - max(skipped, default=0)]
    return min((n for n in limits if n is not None), default=None)


def stacks(model: Any) -> dict[str, nn.Module]:
    """The model's stacks of layers by path, the encoder first; "" is the model itself."""
    if not model.config.is_encoder_decoder:
        return {"": model}
    parts = (model.get_encoder(), model.get_decoder())
    return {next(name for name, module in model.named_modules() if module is part): part for part in parts}


def embeddings(model: Any) -> list[nn.Module]:
    """The token tables, each once: the model's own, those of its stacks, and those that share their tensors (`shared`)."""
    found = [get_module(model, "get_input_embeddings")]
    if _is_encoder_decoder(model):
        found += [get_module(part, "get_input_embeddings") for part in stacks(model).values()]
        known = {id(weight_of(table)) for table in found if table is not None}
        tables = [module for module in model.modules() if isinstance(module, nn.Embedding | GridEmbedding)]
        found += [table for table in tables if id(weight_of(table)) in known]
    return list(dict.fromkeys(table for table in found if table is not None))


def weight_of(module: nn.Module) -> Any:
    """The object that holds a layer's weight; layers that share the weight share this object."""
    return module.store if isinstance(module, GridLinear | GridEmbedding) else module._parameters["weight"]


def stays_float(model: nn.Module) -> set[str]:
    """Names of the linear layers that are quantised only if the build file names them."""
    kept = set(getattr(model, "_keep_in_fp32_modules", None) or ()) if _is_encoder_decoder(model) else set()
    return {
        name for name, module in model.named_modules() if isinstance(module, nn.Linear) and kept & {*name.split(".")}
    }


def get_module(model: nn.Module, method: str) -> nn.Module | None:
    """The result of `get_input_embeddings` or `get_output_embeddings`, if it is a module."""
    found = getattr(model, method, lambda: None)()
    return found if isinstance(found, nn.Module) else None


def _is_encoder_decoder(model: nn.Module) -> bool:
    return bool(getattr(getattr(model, "config", None), "is_encoder_decoder", False))
