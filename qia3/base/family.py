"""What a model is by its configuration: which of transformers' classes loads it, which stacks it is made of, where token
ids are looked up, and what of it stays in float.

    decoder            AutoModelForCausalLM     one stack: the model itself
    encoder-decoder    AutoModelForSeq2SeqLM    encoder, and a decoder that attends to the encoder's output as well
    encoder            AutoModel                one stack: the model itself, without the heads that it was trained with

An encoder-decoder has a table of tokens in each stack and a head, which may all be one table (T5, BART), or a head of its
own beside one table (T5 v1.1, mT5), or one table in each stack (T5Gemma). Which it is, the weights' files say.

Float stays what transformers itself keeps in float32 (`_keep_in_fp32_modules`): in T5 and its kin the feed-forward's
second layer, `wo`, whose inputs reach the thousands. That is for half precision and int8; a build file that names these
layers (eight_bit = ["down"], blocks = { 64 = ["down"] }) puts them on the grid.
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
    """Whether each token sees those after it, too: transformers has the model with a head for hidden words, and where it
    can be a decoder as well (BERT), its configuration says that it is none.
    """
    kind = type(config)
    if config.is_encoder_decoder or kind not in AutoModelForMaskedLM._model_mapping:
        return False
    return kind not in AutoModelForCausalLM._model_mapping or getattr(config, "is_decoder", None) is False


class Bodies:
    """AutoModel, without the layer that BERT and its kin put on the first token's state: it is a head of their training,
    and nobody reads it.
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
    """Tokens that a model has positions for, or that sentence-transformers gives it; None where nothing says.

    RoBERTa and its kin count from behind the id of their padding token, so that a table of 514 serves 512.
    """
    stated = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    words = get_module(model, "get_input_embeddings")
    tables = [m for m in model.modules() if isinstance(m, nn.Embedding) and m is not words]
    skipped = [t.padding_idx + 1 for t in tables if t.num_embeddings == stated and t.padding_idx is not None]
    limits = [longest_of(model.config), None if stated is None else int(stated) - max(skipped, default=0)]
    return min((n for n in limits if n is not None), default=None)


def stacks(model: Any) -> dict[str, nn.Module]:
    """The model's stacks of layers by the path that they have in it, the encoder first; "" is the model itself."""
    if not model.config.is_encoder_decoder:
        return {"": model}
    parts = (model.get_encoder(), model.get_decoder())
    return {next(name for name, module in model.named_modules() if module is part): part for part in parts}


def embeddings(model: Any) -> list[nn.Module]:
    """The tables that token ids are looked up in, each once: the model's own, those of its stacks, and what shares their
    tensors (`shared`).
    """
    found = [get_module(model, "get_input_embeddings")]
    if _is_encoder_decoder(model):
        found += [get_module(part, "get_input_embeddings") for part in stacks(model).values()]
        known = {id(weight_of(table)) for table in found if table is not None}
        tables = [module for module in model.modules() if isinstance(module, nn.Embedding | GridEmbedding)]
        found += [table for table in tables if id(weight_of(table)) in known]
    return list(dict.fromkeys(table for table in found if table is not None))


def weight_of(module: nn.Module) -> Any:
    """What a layer's weight is held by: the same object in layers that share it."""
    return module.store if isinstance(module, GridLinear | GridEmbedding) else module._parameters["weight"]


def stays_float(model: nn.Module) -> set[str]:
    """Names of the linear layers that are not quantised unless they are named."""
    kept = set(getattr(model, "_keep_in_fp32_modules", None) or ()) if _is_encoder_decoder(model) else set()
    return {
        name for name, module in model.named_modules() if isinstance(module, nn.Linear) and kept & {*name.split(".")}
    }


def get_module(model: nn.Module, method: str) -> nn.Module | None:
    """What `get_input_embeddings` or `get_output_embeddings` gives, if it is a module."""
    found = getattr(model, method, lambda: None)()
    return found if isinstance(found, nn.Module) else None


def _is_encoder_decoder(model: nn.Module) -> bool:
    return bool(getattr(getattr(model, "config", None), "is_encoder_decoder", False))
