"""The tokenizer of a GGUF file. transformers builds it from the file's tokens and merges. How text is split into words
before that is not in the file, only the name of the rule, `tokenizer.ggml.pre`, and transformers uses GPT-2's rule for
every name that it does not know.

    "in 2024, it's"    gpt-2      in| 2024|,| it|'s
                       smollm     in| |2|0|2|4|,| it|'s      each digit by itself
                       llama-bpe  in| |202|4|,| it|'s        digits by threes from the left
                       qwen2      in| |2|0|2|4|,| it|'s      line ends stay with the punctuation before them

So the rule is set here by its name, and an unknown name is refused. The patterns are those of the models' own
tokenizer.json, as llama.cpp's llama-vocab.cpp quotes them beside its names. Where a word that is itself a token skips
the merges (`ignore_merges`), that is set as well.

A tokenizer.json beside the file is the model's own. It is used if the file's tokenizer is not supported, provided that
it has the file's tokens.
"""

from __future__ import annotations

from typing import Any

from tokenizers import Regex, Tokenizer
from tokenizers import pre_tokenizers as cuts
from transformers import PreTrainedTokenizerFast

from qia3.base.gguf_file import Array
from qia3.base.gguf_parts import Gguf
from qia3.errors import BaseModelError

BESIDE = "tokenizer.json"
UNUSED = 5  # tokenizer.ggml.token_type of rows that pad an embedding
ENDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
TAIL = r"\s*[\r\n]+|\s+(?!\S)|\s+"
WORD = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]"
CASED = (  # a word ends where lower case is followed by a capital
    WORD + r"*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+@|" + WORD + r"+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*@|"
)
LLAMA3 = ENDS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|" + TAIL
QWEN2 = LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")
QWEN35 = ENDS + r"|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|" + TAIL
TEKKEN = CASED.replace("@", "") + r"\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|" + TAIL
GPT4O = CASED.replace("@", ENDS + "?") + r"\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|" + TAIL
GPT2, DIGITS = "gpt-2", "gpt-2, digits one by one"
CUTS = {
    GPT2: "gpt-2 phi-2 gigachat a.x-4.0 mellum modern-bert mpt olmo jais trillion granite-docling exaone4",
    DIGITS: "smollm starcoder refact command-r codeshell exaone minerva-7b mellum2",
    LLAMA3: "llama3 llama-v3 llama-bpe falcon3 falcon-h1 pixtral midm-2.0 lfm2 jina-v5-nano dbrx smaug-bpe glm4 chatglm-bpe",
    QWEN2: "qwen2 deepseek-r1-qwen kormo f2llmv2 megrez stablelm2 hunyuan solar-open grok-2",
    QWEN35: "qwen35",
    TEKKEN: "tekken",
    GPT4O: "gpt-4o llama4 kanana2 talkie minimax-m2",
}
CUT_BY_NAME = {name: cut for cut, names in CUTS.items() for name in names.split()}
WHOLE_WORDS = [
    "llama3",
    "llama-v3",
    "llama-bpe",
    "falcon3",
    "falcon-h1",
    "pixtral",
    "midm-2.0",
    "lfm2",
    "jina-v5-nano",
    "glm4",
    "tekken",
]
IDS = {"bos_token_id": "bos_token_id", "eos_token_id": "eos_token_id", "pad_token_id": "padding_token_id"}


def read_gguf_tokenizer(file: Gguf) -> Any:
    """The file's tokenizer, or the tokenizer.json beside it. Raises BaseModelError if neither can be used."""
    kind, pre = (file.values.get(f"tokenizer.ggml.{name}") for name in ("model", "pre"))
    if kind == "gpt2" and pre not in CUT_BY_NAME:
        cut = (
            "does not say how text is split into words"
            if pre is None
            else (f"splits text into words by {str(pre)[:40]!r}")
        )
        return _beside(file, f"{cut} (tokenizer.ggml.pre), which is not supported")
    if kind == "t5":
        return _beside(file, "uses a Unigram tokenizer (tokenizer.ggml.model = t5), which is not supported as GGUF")
    _check_ids(file)
    words = PreTrainedTokenizerFast(name_or_path=str(file.path.parent), gguf_file=file.path.name)
    if kind == "gpt2":
        _cut(words.backend_tokenizer, str(pre))
    elif kind == "llama" and _spaced(words.backend_tokenizer) != file.values.get(
        "tokenizer.ggml.add_space_prefix", True
    ):
        return _beside(file, "differs from transformers in the space before a text (tokenizer.ggml.add_space_prefix)")
    other = [name for name, entry in IDS.items() if getattr(words, name) != file.values.get(f"tokenizer.ggml.{entry}")]
    if other:
        raise BaseModelError(
            f"{file.path.name}: transformers finds other tokens for {', '.join(other)} than the file names; "
            "do two tokens have the same spelling?"
        )
    return words


def _check_ids(file: Gguf) -> None:
    """Raises BaseModelError if an entry names a token that is not in the list."""
    listed = file.values.get("tokenizer.ggml.tokens")
    count = listed.count if isinstance(listed, Array) else 0
    for name, value in file.values.items():
        if (
            name.startswith("tokenizer.ggml.")
            and name.endswith("_token_id")
            and not (type(value) is int and 0 <= value < count)
        ):
            raise BaseModelError(
                f"{file.path.name} says {name} = {str(value)[:40]}, but has {count} tokens; fetch it again"
            )


def _cut(backend: Tokenizer, pre: str) -> None:
    cut = CUT_BY_NAME[pre]
    if cut == GPT2:
        backend.pre_tokenizer = cuts.ByteLevel(add_prefix_space=False, use_regex=True)
    elif cut == DIGITS:
        digits = cuts.Digits(individual_digits=True)
        backend.pre_tokenizer = cuts.Sequence([digits, cuts.ByteLevel(add_prefix_space=False, use_regex=True)])
    else:
        split = cuts.Split(Regex(cut), behavior="isolated")
        backend.pre_tokenizer = cuts.Sequence([split, cuts.ByteLevel(add_prefix_space=False, use_regex=False)])
    backend.model.ignore_merges = pre in WHOLE_WORDS


def _spaced(backend: Tokenizer) -> bool:
    """Whether a text's first letter gets a space before it."""
    return bool(backend.encode("a", add_special_tokens=False).tokens[0].startswith("\u2581"))


def _beside(file: Gguf, reason: str) -> Any:
    """The model's own tokenizer.json.

    Raises BaseModelError with the reason if there is none, or if it belongs to another model.
    """
    place = file.path.with_name(BESIDE)
    if not place.is_file():
        raise BaseModelError(f"{file.path.name} {reason}; put the model's own tokenizer.json beside it")
    words = PreTrainedTokenizerFast(tokenizer_file=str(place), chat_template=_template(file), **_special(file))
    known = words.get_vocab()
    tokens = [(i, token) for i, (token, kind) in enumerate(_tokens(file)) if kind != UNUSED]
    other = [token for i, token in tokens if known.get(token) != i]
    if other:
        raise BaseModelError(
            f"{place} belongs to another model: {len(other)} of the {len(tokens)} tokens of {file.path.name} "
            "have another id "
            f"in it or are missing, the first is {other[0]!r}"
        )
    return words


def _template(file: Gguf) -> str | None:
    found = file.values.get("tokenizer.chat_template")
    return found if isinstance(found, str) else None


def _special(file: Gguf) -> dict[str, str | None]:
    """Special tokens by their role; None if the file names none, so that no class default applies."""
    tokens = [token for token, _ in _tokens(file)]
    ids = {name.removesuffix("_id"): file.values.get(f"tokenizer.ggml.{entry}") for name, entry in IDS.items()}
    return {name: tokens[i] if type(i) is int and 0 <= i < len(tokens) else None for name, i in ids.items()}


def _tokens(file: Gguf) -> list[tuple[str, int]]:
    """The spelling of each token, and its kind."""
    import gguf

    fields = gguf.GGUFReader(str(file.path)).fields
    lists = [
        fields[name].contents() for name in ("tokenizer.ggml.tokens", "tokenizer.ggml.token_type") if name in fields
    ]
    return list(zip(*lists, strict=True)) if len(lists) == 2 else []
