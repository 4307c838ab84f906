"""The tokenizer of a GGUF file: cut as the model's own, or refused."""

from __future__ import annotations

import json

import pytest
from tiny_gguf import words, write
from tokenizers import AddedToken, Tokenizer, decoders, models, trainers
from tokenizers import pre_tokenizers as cuts
from transformers import PreTrainedTokenizerFast

from qia3.base.gguf_parts import open_gguf
from qia3.base.gguf_words import CUT_BY_NAME, DIGITS, GPT2, WHOLE_WORDS, read_gguf_tokenizer
from qia3.base.identity import identity
from qia3.errors import BaseModelError

ODD = [
    "in 2024, it's", "a  2024 b", "  x\n\n  y = 12345;\r\n", "IT'S camelCase HTTPServer", "½ ² 三 ٣٤ Ⅷ", "it’s — “no”", "\tif (a==b){ c }",
    "don't WE'LL 1,000.50", "e\u0301te\u0301 naïve", "日本語 テスト 42", "", " ", "   3", "a.b/c\\d", "end \n", "=  = 1 = 2",
]  # fmt: skip


def trained(pre):
    """A byte-level tokenizer as models' authors make it, with its own cut before the merges."""
    own = Tokenizer(models.BPE())
    own.pre_tokenizer, own.decoder = pre, decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=420, initial_alphabet=sorted(cuts.ByteLevel.alphabet()), show_progress=False
    )
    own.train_from_iterator(ODD * 9, trainer)
    own.add_special_tokens([AddedToken("<pad>", special=True), AddedToken("<|end|>", special=True)])
    return PreTrainedTokenizerFast(tokenizer_object=own, eos_token="<|end|>", pad_token="<pad>")


def read(path):
    return read_gguf_tokenizer(open_gguf(path))


def ids(tokenizer):
    return [tokenizer(text, add_special_tokens=False).input_ids for text in ODD]


def test_names_that_transformers_knows_are_cut_as_it_cuts():
    mapping = pytest.importorskip("transformers.integrations.gguf.gguf_tokenizer_mapping")
    for name, split in mapping.GGUF_PRE_TOKENIZER_SPLITS.items():
        assert CUT_BY_NAME[name] == split


def test_digits_one_by_one_as_the_models_own_tokenizer_has_them(tmp_path):
    """SmolLM2's tokenizer.json: Digits, then GPT-2's cut. transformers cuts "a  2" before the second space."""
    own = trained(cuts.Sequence([cuts.Digits(individual_digits=True), cuts.ByteLevel(add_prefix_space=False)]))
    write(tmp_path / "m.gguf", own=own, pre="smollm")
    assert ids(read(tmp_path / "m.gguf")) == ids(own)


def test_gpt2s_cut(tmp_path):
    own = trained(cuts.ByteLevel(add_prefix_space=False))
    write(tmp_path / "m.gguf", own=own, pre="gpt-2")
    assert ids(read(tmp_path / "m.gguf")) == ids(own)


@pytest.mark.parametrize("pre", sorted(name for name, cut in CUT_BY_NAME.items() if cut != GPT2))
def test_every_other_cut_is_a_pattern_of_its_own(pre, tmp_path):
    """The tokens of a tokenizer that was trained with the pattern by itself."""
    if CUT_BY_NAME[pre] == DIGITS:
        first = cuts.Sequence([cuts.Digits(individual_digits=True), cuts.ByteLevel(add_prefix_space=False)])
    else:
        from tokenizers import Regex

        split = cuts.Split(Regex(CUT_BY_NAME[pre]), behavior="isolated")
        first = cuts.Sequence([split, cuts.ByteLevel(add_prefix_space=False, use_regex=False)])
    own = trained(first)
    own.backend_tokenizer.model.ignore_merges = pre in WHOLE_WORDS
    write(tmp_path / "m.gguf", own=own, pre=pre)
    assert ids(read(tmp_path / "m.gguf")) == ids(own)


@pytest.mark.parametrize("pre", ["deepseek-coder", "default", "falcon", None])
def test_a_cut_that_is_not_known_is_refused_by_its_name(pre, tmp_path):
    write(tmp_path / "m.gguf", pre=pre)
    with pytest.raises(BaseModelError, match=f"{pre or 'does not say how'}.*tokenizer.json beside"):
        read(tmp_path / "m.gguf")


def test_the_models_own_tokenizer_beside_the_file_is_read_then(tmp_path):
    write(tmp_path / "m.gguf", pre="deepseek-coder")
    (tmp_path / "tokenizer.json").write_text(words().backend_tokenizer.to_str())
    found = read(tmp_path / "m.gguf")
    assert ids(found) == ids(words())
    assert (found.eos_token, found.pad_token, found.bos_token) == ("<|end|>", "<pad>", None)
    assert found.chat_template == words().chat_template
    assert "tokenizer.json" in [name for name, _ in identity([tmp_path / "m.gguf"], True, tmp_path / "digests")]


def test_a_tokenizer_of_another_model_beside_the_file_is_refused(tmp_path):
    write(tmp_path / "m.gguf", pre="deepseek-coder")
    state = json.loads(words().backend_tokenizer.to_str())
    vocabulary = state["model"]["vocab"]
    a, b = list(vocabulary)[40:42]
    vocabulary[a], vocabulary[b] = vocabulary[b], vocabulary[a]
    (tmp_path / "tokenizer.json").write_text(json.dumps(state))
    with pytest.raises(BaseModelError, match="belongs to another model: 2 of the"):
        read(tmp_path / "m.gguf")


def test_what_lies_beside_the_file_changes_nothing_where_the_file_is_understood(tmp_path):
    write(tmp_path / "m.gguf")
    wanted = read(tmp_path / "m.gguf").backend_tokenizer.to_str()
    (tmp_path / "tokenizer.json").write_text(trained(cuts.ByteLevel()).backend_tokenizer.to_str())
    (tmp_path / "tokenizer_config.json").write_text('{"eos_token": "a", "tokenizer_class": "LlamaTokenizer"}')
    (tmp_path / "special_tokens_map.json").write_text('{"eos_token": "a"}')
    found = read(tmp_path / "m.gguf")
    assert (found.backend_tokenizer.to_str(), found.eos_token) == (wanted, "<|end|>")


def test_without_an_end_token_there_is_none(tmp_path):
    write(tmp_path / "m.gguf", own=words(eos_token=None))
    found = read(tmp_path / "m.gguf")
    assert (found.eos_token, found.bos_token) == (None, None)


@pytest.mark.parametrize(("told", "fits"), [(None, True), (True, True), (False, False)])
def test_a_space_before_a_text_is_as_the_file_says_or_it_is_refused(told, fits, tmp_path):
    """transformers' sentencepiece tokenizer has it always."""
    import gguf

    writer = gguf.GGUFWriter(str(tmp_path / "s.gguf"), "llama")
    pieces = ["\u2581", "a", "b", "ab", "\u2581a", "\u2581ab"]
    writer.add_tokenizer_model("llama")
    writer.add_token_list(["<unk>", "<s>", "</s>", *(f"<0x{i:02X}>" for i in range(256)), *pieces])
    writer.add_token_scores([0.0] * 259 + [-5.0, -3.0, -4.0, -2.5, -2.0, -1.0])
    writer.add_token_types([2, 3, 3, *[6] * 256, *[1] * 6])
    writer.add_eos_token_id(2)
    if told is not None:
        writer.add_add_space_prefix(told)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    if fits:
        assert read(tmp_path / "s.gguf").tokenize("ab") == ["\u2581ab"]
    else:
        with pytest.raises(BaseModelError, match="add_space_prefix"):
            read(tmp_path / "s.gguf")
