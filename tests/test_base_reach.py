"""Tokens beyond the embedding's rows are refused at load where prompts bring them, and told where only their names do."""

from __future__ import annotations

import pytest
from tiny_build import write_base
from tiny_bundle import END
from transformers import AutoModelForCausalLM, AutoTokenizer

from qia3.base.load import Asked, load_base
from qia3.errors import BaseModelError

MARKS = "{% for m in messages %}<|go|>{{ m['content'] }}<|stop|>{% endfor %}a:"


def words_beyond(folder, change) -> str:
    """A base whose tokenizer was changed and whose embedding was not."""
    write_base(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    change(tokenizer)
    tokenizer.save_pretrained(folder)
    return str(folder)


def special(*tokens):
    return lambda tokenizer: tokenizer.add_special_tokens({"additional_special_tokens": list(tokens)})


def templated(tokenizer):
    special("<|go|>", "<|stop|>")(tokenizer)
    tokenizer.chat_template = MARKS


def ended(tokenizer):
    tokenizer.add_special_tokens({"eos_token": "<|stop|>"})


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (templated, ["'<|go|>', '<|stop|>'", "its chat template, start or end uses them"]),
        (ended, ["'<|stop|>'", "its chat template, start or end uses them"]),
        (lambda tokenizer: tokenizer.add_tokens(["zzzz", "yyyy"]), ["'zzzz', 'yyyy'", "ordinary text contains them"]),
        (lambda tokenizer: tokenizer.add_tokens([f"z{i}z" for i in range(20)]), ["and 12 more"]),
    ],
)
@pytest.mark.parametrize("calibration", ["none", "own"])
def test_tokens_that_prompts_bring_and_that_have_no_row_are_refused(change, words, calibration, tmp_path):
    with pytest.raises(BaseModelError) as caught:
        load_base(Asked(words_beyond(tmp_path, change), block_size=32, calibration=calibration))
    assert "\n" not in str(caught.value)
    assert all(word in str(caught.value) for word in (*words, "resized")), str(caught.value)


def test_a_token_that_only_its_own_name_brings_is_told_and_refused_when_a_text_has_it(tmp_path, capsys):
    from qia3.errors import DataError

    base = load_base(Asked(words_beyond(tmp_path, special("<tool>")), block_size=32))
    assert "1 tokens are beyond the embedding's" in (said := capsys.readouterr().err)
    assert "'<tool>'" in said
    base.tokens.encode("the <tool> as words")
    with pytest.raises(DataError, match="<tool>"):
        base.tokens.prompt("<tool>{text}", "a")


def test_more_rows_than_tokens_are_no_fault(tmp_path, capsys):
    write_base(tmp_path)
    model = AutoModelForCausalLM.from_pretrained(tmp_path)
    model.resize_token_embeddings(model.config.vocab_size + 21)
    model.save_pretrained(tmp_path)
    base = load_base(Asked(str(tmp_path), block_size=32))
    assert base.model.get_input_embeddings().num_embeddings == model.config.vocab_size
    assert base.tokens.encode(f"a{END}")
    assert "beyond" not in capsys.readouterr().err
