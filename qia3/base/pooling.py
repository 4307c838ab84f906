"""How an encoder's states become one vector per text, as a sentence-transformers folder defines it.

    modules.json               the steps: Transformer, Pooling, Normalize
    1_Pooling/config.json      {"pooling_mode_mean_tokens": true, ...}: the mean over the tokens, or the state of the first

A plain transformers folder says nothing, and the mean is used. Any other step is refused, since it would give another
vector. The result is kept in the model's configuration, and so in a cached base and in a bundle's config.json.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from qia3.bundle.checked import decode, encode
from qia3.bundle.manifest import Pooling
from qia3.errors import BaseModelError
from qia3.parse import each_once, parse_json, read_json_table, read_text

Mode = Literal["mean", "cls"]
KEY, LONGEST = "qia3_pooling", "qia3_longest"
WORDS = "sentence_bert_config.json"
MODES: dict[str, Mode] = {
    "mean": "mean",
    "cls": "cls",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_cls_token": "cls",
}
STEPS = (["Transformer"], ["Transformer", "Pooling"], ["Transformer", "Pooling", "Normalize"])


def note_pooling(config: Any, folder: Path) -> None:
    """Writes the folder's pooling into the configuration. Raises BaseModelError if it is not supported."""
    if not hasattr(config, KEY):
        setattr(config, KEY, encode(_read(folder)))
        setattr(config, LONGEST, _longest(folder / WORDS))


def pooling_of(config: Any) -> Pooling:
    """The pooling in the configuration; by default the mean."""
    return decode(Pooling, getattr(config, KEY, {"mode": "mean", "normalize": False}))


def longest_of(config: Any) -> int | None:
    """The maximum number of tokens of a text, by the base's sentence-transformers folder."""
    found: int | None = getattr(config, LONGEST, None)
    return found


def _longest(file: Path) -> int | None:
    """max_seq_length of a file. Raises BaseModelError if it is not a number."""
    given = read_json_table(file, BaseModelError).get("max_seq_length") if file.is_file() else None
    if given is None or (isinstance(given, int) and given > 0):
        return given
    raise BaseModelError(f"{file}: max_seq_length must be a number of tokens or null, not {given!r}")


def pooled(states: Tensor, mask: Tensor, how: Pooling) -> Tensor:
    """States [B, S, d] and a mask [B, S], 1 at tokens -> [B, d]."""
    if how.mode == "cls":
        return states[:, 0]
    shown = mask.to(states.dtype)[:, :, None]
    return (states * shown).sum(1) / shown.sum(1).clamp_min(1e-9)


def embedded(vector: Tensor, how: Pooling) -> Tensor:
    """The sentence embedding [B, d] of a pooled vector: normalised if the model does so."""
    return torch.nn.functional.normalize(vector, dim=-1) if how.normalize else vector


def _read(folder: Path) -> Pooling:
    file = folder / "modules.json"
    if not file.is_file():
        return Pooling("mean", False)
    try:
        modules = parse_json(read_text(file, BaseModelError), each_once)
        steps = [str(module["type"]).rpartition(".")[2] for module in modules]
        paths = [str(module["path"]) for module in modules]
    except (ValueError, TypeError, KeyError) as error:
        raise BaseModelError(f"{file} does not list the steps of a sentence-transformers model ({error})") from error
    if steps not in STEPS:
        raise BaseModelError(
            f"{file} lists {', '.join(steps)}; supported are Transformer, Pooling and Normalize, in this order"
        )
    _check_words(folder)
    return Pooling(_mode(folder / paths[1] / "config.json") if len(steps) > 1 else "mean", len(steps) > 2)


def _mode(file: Path) -> Mode:
    table = read_json_table(file, BaseModelError)
    named = table.get("pooling_mode")
    chosen = [named] if isinstance(named, str) else named if isinstance(named, list) else []
    chosen += [key for key, value in table.items() if key.startswith("pooling_mode_") and value]
    if len(chosen) != 1 or chosen[0] not in MODES:
        raise BaseModelError(
            f"{file} pools by {' and '.join(map(str, chosen)) or 'nothing'}; supported are the mean over the "
            "tokens and the first token"
        )
    return MODES[chosen[0]]


def _check_words(folder: Path) -> None:
    """Raises BaseModelError if sentence-transformers would change a text first."""
    prompts, lower = folder / "config_sentence_transformers.json", folder / WORDS
    if prompts.is_file() and (name := read_json_table(prompts, BaseModelError).get("default_prompt_name")):
        raise BaseModelError(
            f"{prompts} puts the prompt {name!r} before every text; set default_prompt_name to null there, "
            "and write the prompt "
            "as the task's prompt"
        )
    if lower.is_file() and read_json_table(lower, BaseModelError).get("do_lower_case"):
        raise BaseModelError(
            f"{lower} lower-cases every text first (do_lower_case); set it to false there if the tokenizer "
            "does so itself"
        )
