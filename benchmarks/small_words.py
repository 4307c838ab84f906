"""The tokenizer of benchmarks/small_t5.py: Unigram, as T5's, of generated pairs and real sentences. Digits stand alone,
so that numbers can be worked on.

    ids    0 <pad>, also what a decoder starts from    1 </s>, after each text    2 <unk>    3... pieces    the last: <extra_id_N>
"""

from __future__ import annotations

from random import Random

from text_tasks import FAMILIES, real_sentences, seen, vocabulary
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

PAD, END = 0, 1
PIECES = 2016  # and SENTINELS make a whole number of blocks
SENTINELS = 32
GENERATED = 400  # pairs of each family


def tokenizer() -> PreTrainedTokenizerFast:
    """Trained; a few seconds."""
    made = Tokenizer(models.Unigram())
    made.normalizer = normalizers.NFKC()
    made.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Metaspace(), pre_tokenizers.Digits(individual_digits=True)]
    )
    made.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=PIECES, special_tokens=["<pad>", "</s>", "<unk>"], unk_token="<unk>", show_progress=False
    )
    made.train_from_iterator(_texts(), trainer)
    made.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", END)])
    sentinels = [f"<extra_id_{n}>" for n in range(SENTINELS)]
    made.add_special_tokens(sentinels)
    return PreTrainedTokenizerFast(
        tokenizer_object=made,
        pad_token="<pad>",
        eos_token="</s>",
        unk_token="<unk>",
        additional_special_tokens=sentinels,
        model_max_length=512,
    )


def _texts() -> list[str]:
    """Generated pairs without those that cut sentences up, real sentences, and every printable character once."""
    draw = Random("words")
    pairs = [seen(draw, family) for family in FAMILIES if family != "fill" for _ in range(GENERATED)]
    characters = " ".join(chr(code) for code in range(33, 127))
    return [text for pair in pairs for text in pair] + [*real_sentences(), " ".join(vocabulary())] + [characters] * 20
