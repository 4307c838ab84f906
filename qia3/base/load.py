"""A base model, loaded and quantised: the model, its tokenizer, and the fingerprint that adapters are bound to."""

from __future__ import annotations

import hashlib
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging as transformers_logging

from qia3.base.quantise import Track, quantise_model
from qia3.base.sources import Source, resolve
from qia3.errors import BaseModelError


@dataclass(frozen=True)
class BaseModel:
    """A frozen 4-bit model. `fingerprint` is the SHA-256 over the name, type, shape and bytes of each of its tensors."""

    reference: str
    model: Any
    tokenizer: Any
    fingerprint: str
    block_size: int
    symmetric: bool
    parameters: int


def load_base(reference: str, block_size: int, symmetric: bool, track: Track = lambda names: names) -> BaseModel:
    """Finds, loads and quantises a causal language model. Raises BaseModelError with one clear line."""
    source = resolve(reference)
    with _quiet():
        model, tokenizer = _open(source)
    parameters = sum(p.numel() for p in model.parameters())
    model.eval()
    quantise_model(model, block_size, symmetric, track)
    return BaseModel(reference, model, tokenizer, fingerprint(model), block_size, symmetric, parameters)


def fingerprint(model: nn.Module) -> str:
    """SHA-256 (64 hex digits) of every tensor of the frozen base. Taken before vectors are added."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        data = tensor.detach().cpu().contiguous()
        digest.update(f"{name}|{data.dtype}|{tuple(data.shape)}|".encode())
        digest.update(data.reshape(-1).view(torch.uint8).numpy().tobytes() if data.dim() else repr(data.item()).encode())
    return digest.hexdigest()


def _open(source: Source) -> tuple[Any, Any]:
    """The float model and its tokenizer, weights as safetensors or GGUF only."""
    extra = {} if source.gguf_file is None else {"gguf_file": source.gguf_file}
    try:
        tokenizer = AutoTokenizer.from_pretrained(source.name, **extra)
        # a GGUF file is dequantised to float32; other weights are read in the type they are stored in
        dtype = torch.float32 if source.gguf_file else "auto"
        model = AutoModelForCausalLM.from_pretrained(source.name, dtype=dtype, use_safetensors=True if not extra else None, **extra)
    except Exception as error:  # transformers raises many types; the user needs one line
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise BaseModelError(f"cannot load the base model {source.reference!r}: {reason}") from error
    if not getattr(tokenizer, "is_fast", False):
        raise BaseModelError(f"the tokenizer of {source.reference!r} has no tokenizer.json form, which the device runtime needs")
    return model, tokenizer


@contextmanager
def _quiet() -> Iterator[None]:
    """Keeps transformers' own bars and notices off the screen while a model loads."""
    level = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    logging.getLogger("gguf").setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        transformers_logging.set_verbosity(level)
        transformers_logging.enable_progress_bar()
