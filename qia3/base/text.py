"""What is known about a base's text handling from its small files, before any weight is loaded: tokenizer, end tokens,
sizes.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from transformers import AutoConfig, GenerationConfig

from qia3.base.complete import empty_model
from qia3.base.family import is_encoder, positions_of
from qia3.base.gguf_config import read_gguf_config
from qia3.base.gguf_parts import open_gguf
from qia3.base.kind import check_kind
from qia3.base.load import quiet, read_tokenizer, told
from qia3.base.pooling import note_pooling
from qia3.base.sources import Source, read_config, resolve
from qia3.base.start import decoder_start
from qia3.errors import BaseModelError
from qia3.parse import read_json_table
from qia3.tokens import Tokens

NAMING = ("tokenizer_config.json", "special_tokens_map.json")


@dataclass(frozen=True)
class BaseText:
    """A base's tokenizer and the text settings of its configuration; `positions` None means no limit."""

    tokenizer: Any
    generation_config: Any
    rows: int
    positions: int | None
    names_end: bool  # whether one of its files names the token that ends a text
    config: Any

    @cached_property
    def tokens(self) -> Tokens:
        """The tokenizer, limited to the embedding's rows."""
        return Tokens.of(self.tokenizer, self.rows)

    @property
    def start(self) -> tuple[int, ...]:
        """The tokens that an encoder-decoder's decoder starts with. Raises BaseModelError if its files do not say."""
        return decoder_start(self.config, self.generation_config)


def read_base_text(reference: str) -> BaseText:
    """Reads a base's small files. Raises BaseModelError if they are missing or not supported."""
    source = resolve(reference)
    folder = Path(source.name)
    if source.gguf_file is None:
        read_config(folder)  # refuses a model with code of its own, naming the file
    with quiet():
        with told(source):
            if source.gguf_file is not None:
                config, own = read_gguf_config(open_gguf(folder / source.gguf_file)), False
            else:
                config = AutoConfig.from_pretrained(source.name, trust_remote_code=False)
                own = (folder / "generation_config.json").is_file()
            made = GenerationConfig.from_pretrained(source.name) if own else GenerationConfig.from_model_config(config)
        check_kind(config, reference)
        tokenizer = read_tokenizer(source)
    text = config.get_text_config()
    positions = getattr(text, "max_position_embeddings", None)
    if is_encoder(config):
        model = empty_model(folder)
        note_pooling(model.config, folder)
        positions = positions_of(model)
    return BaseText(tokenizer, made, text.vocab_size, positions, _names_end(source, tokenizer, made), config)


def _names_end(source: Source, tokenizer: Any, generation: Any) -> bool:
    """Whether a file says which token ends a text, rather than a default of transformers' class."""
    configured = generation.eos_token_id
    if tokenizer.eos_token_id in (configured if isinstance(configured, list) else [configured]):
        return True
    found = (Path(source.name) / name for name in NAMING)
    return any(read_json_table(file, BaseModelError).get("eos_token") for file in found if file.is_file())
