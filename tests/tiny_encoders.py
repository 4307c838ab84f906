"""Tiny random encoders of the real families, in the forms that people have them in. Unequal dimensions everywhere.

base = load_base(Asked(str(write_encoder(folder, "bert")), block_size=16))
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
import transformers
from tiny import ALL
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
from transformers import AutoConfig, AutoModel, PreTrainedModel, PreTrainedTokenizerFast

WORDS = ["turn the lights off", "lights on", "play a song", "stop the music", "lock the door", "open the door, please"]
SHAPE = {"hidden_size": 96, "intermediate_size": 160, "num_hidden_layers": 3, "num_attention_heads": 6,
         "max_position_embeddings": 160, "type_vocab_size": 2, "pad_token_id": 0}  # fmt: skip

# transformers' name of the family and its configuration
ENCODERS: dict[str, tuple[str, dict[str, Any]]] = {
    "bert": ("bert", SHAPE),
    "roberta": ("roberta", SHAPE | {"type_vocab_size": 1, "pad_token_id": 1}),
    "distilbert": ("distilbert", {"dim": 96, "hidden_dim": 160, "n_layers": 3, "n_heads": 6, "max_position_embeddings": 160}),
    "modernbert": ("modernbert", SHAPE | {"local_attention": 10, "global_attn_every_n_layers": 2, "cls_token_id": 1, "sep_token_id": 2,
                                          "bos_token_id": 1, "eos_token_id": 2}),
    "electra": ("electra", SHAPE | {"embedding_size": 64}),
    "camembert": ("camembert", SHAPE | {"type_vocab_size": 1, "pad_token_id": 1}),
    "xlm-roberta": ("xlm-roberta", SHAPE | {"type_vocab_size": 1, "pad_token_id": 1}),
    "nomic_bert": ("nomic_bert", SHAPE),
    "eurobert": ("eurobert", SHAPE | {"num_key_value_heads": 2}),
    # as DeBERTa-v3: both kinds of positions by the text's own projections, buckets that grow, no second text
    "deberta-v2": ("deberta-v2", SHAPE | {"relative_attention": True, "pos_att_type": ["p2c", "c2p"], "share_att_key": True, "type_vocab_size": 0,
                                          "position_buckets": 6, "norm_rel_ebd": "layer_norm", "position_biased_input": False,
                                          "num_hidden_layers": 2}),
    "mpnet": ("mpnet", SHAPE | {"pad_token_id": 1}),
}  # fmt: skip
EXPORTED = [*ENCODERS] if ALL else ["modernbert", "deberta-v2"]  # whose graphs `make test` makes; it builds a BERT


def words() -> PreTrainedTokenizerFast:
    """BERT's kind: [CLS] text [SEP]."""
    made = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    made.normalizer, made.pre_tokenizer = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
    special = ["[PAD]", "[CLS]", "[SEP]", "[UNK]", "[MASK]"]
    made.train_from_iterator(
        WORDS, trainers.WordPieceTrainer(vocab_size=120, special_tokens=special, show_progress=False)
    )
    made.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
    )
    names = {f"{name}_token": f"[{name.upper()}]" for name in ("pad", "cls", "sep", "unk", "mask")}
    return PreTrainedTokenizerFast(tokenizer_object=made, **names)


def tiny_encoder(
    name: str, vocabulary: int = 101, form: str | None = None, seed: int = 0, **changed: Any
) -> PreTrainedModel:
    """A float model with random weights that are large enough to matter. `form`: a class of transformers with a head."""
    family, settings = ENCODERS[name]
    config = AutoConfig.for_model(family, **{"vocab_size": vocabulary, **settings, **changed})
    torch.manual_seed(seed)
    if form is None:
        model = AutoModel.from_config(config, attn_implementation="eager").eval()
    else:
        model = getattr(transformers, form)._from_config(config, attn_implementation="eager").eval()
    with torch.no_grad():
        for p in model.parameters():
            if p.dim() == 1:  # norms and biases of exactly one and zero hide mistakes
                p.add_(torch.randn_like(p) * 0.2)
            else:
                p.copy_(torch.randn_like(p) * 0.1)
    return model


def write_encoder(
    folder: Path, name: str = "bert", form: str | None = None, pooling: dict[str, Any] | None = None, **changed: Any
) -> Path:
    """A model folder as people have them; with `pooling`, as sentence-transformers saves one."""
    tokenizer = words()
    tiny_encoder(name, len(tokenizer), form, **changed).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    if pooling is not None:
        parts = ["Transformer", "Pooling", *(["Normalize"] if pooling.pop("normalize", False) else [])]
        paths = ["", *(f"{i}_{part}" for i, part in enumerate(parts[1:], 1))]
        listed = [{"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{part}"}
                  for i, (part, path) in enumerate(zip(parts, paths, strict=True))]  # fmt: skip
        (folder / "modules.json").write_text(json.dumps(listed))
        (folder / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": 40, "do_lower_case": False}))
        (folder / "1_Pooling").mkdir()
        (folder / "1_Pooling" / "config.json").write_text(json.dumps({"word_embedding_dimension": 96, **pooling}))
    return folder
