"""A small T5 (v1.1: gated GELU, a head of its own) that somebody trained: this script, from nothing, in minutes.

    python benchmarks/small_t5.py --output dist/small-t5      # one thread; goes on where it was stopped
    python benchmarks/small_t5.py --check                     # exact match on each family of tasks that it was trained on

No registry ships an encoder-decoder whole in a format that transformers reads, so this is what stands in for flan-t5 in
examples and benchmarks: small, but trained, with words of its own. It learns the families of text_tasks.py, 13 kinds of
pairs that code generates and T5's own objective on real sentences. Step n draws its examples from a generator seeded
with n, so a run that was stopped goes on to what it would have been.

The result is kept in the cache folder (qia3.base.sources) under a key of everything that it depends on.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shutil
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from random import Random
from typing import Any

import text_tasks
import torch
from small_words import END, PAD, tokenizer
from torch import nn
from transformers import AutoConfig, AutoModelForSeq2SeqLM, PreTrainedTokenizerFast
from transformers.activations import NewGELUActivation

from qia3.base.load import quiet
from qia3.progress import counting, say
from qia3.storage import cache_folder

SAVE_EVERY = 60.0  # seconds
Batch = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Settings:
    """All that the weights depend on, besides what the tasks draw."""

    width: int = 192
    head_size: int = 32
    heads: int = 6
    inner: int = 512
    layers: int = 3
    decoder_layers: int = 3
    steps: int = 2200
    batch: int = 32
    rate: float = 1.5e-3
    warmup: int = 100
    seed: int = 0

    @property
    def key(self) -> str:
        """Of the settings and of the first pairs of each family."""
        draw = Random("key")
        pairs = [text_tasks.seen(draw, family) for family in text_tasks.FAMILIES for _ in range(100)]
        return hashlib.sha256(json.dumps([asdict(self), pairs], sort_keys=True).encode()).hexdigest()[:12]


def trained(settings: Settings = Settings(), seconds: float | None = None) -> Path | None:
    """The folder of the trained model; None where it is not done after `seconds`."""
    folder = cache_folder() / "small-t5" / settings.key
    if (folder / "model" / "config.json").is_file():
        return folder / "model"
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "words").is_dir():  # kept, since another number of threads may give another tokenizer
        tokenizer().save_pretrained(folder / "words")
    words = PreTrainedTokenizerFast.from_pretrained(folder / "words")
    model = _model(settings, len(words))
    if not _train(model, words, settings, folder / "state.pt", seconds):
        return None
    scratch = folder / "writing"
    with quiet():
        model.save_pretrained(scratch)
        words.save_pretrained(scratch)
    scratch.rename(folder / "model")
    (folder / "state.pt").unlink()
    return folder / "model"


def _model(settings: Settings, vocabulary: int) -> Any:
    """Random weights, as T5 starts; the head starts from the embeddings, so that a word that was read is soon said."""
    config = AutoConfig.for_model(
        "t5",
        vocab_size=vocabulary,
        d_model=settings.width,
        d_kv=settings.head_size,
        num_heads=settings.heads,
        d_ff=settings.inner,
        num_layers=settings.layers,
        num_decoder_layers=settings.decoder_layers,
        feed_forward_proj="gated-gelu",
        dropout_rate=0.0,
        tie_word_embeddings=False,
        pad_token_id=PAD,
        eos_token_id=END,
        decoder_start_token_id=PAD,
    )
    torch.manual_seed(settings.seed)
    model = AutoModelForSeq2SeqLM.from_config(config, attn_implementation="eager")
    for module in model.modules():
        if isinstance(getattr(module, "act", None), NewGELUActivation):
            module.act = nn.GELU("tanh")  # the same function in one pass instead of eight
    _look_around(model)
    model.lm_head.weight = nn.Parameter(model.shared.weight.detach() * settings.width**-0.5)
    return model


@torch.no_grad()
def _look_around(model: Any) -> None:
    """Some heads start out looking at one neighbour each. Without, a model of this size learns no order and copies nothing
    in twice the steps (benchmarks/LOG.md).
    """
    for stack, distances in ((model.encoder, (1, 17, 0, 2, 18)), (model.decoder, (1, 0, 2, 3))):  # 16 + n: n ahead
        table = stack.block[0].layer[0].SelfAttention.relative_attention_bias.weight  # [buckets, heads]
        for head, bucket in enumerate(distances):
            table[bucket, head] += 5.0


def _train(model: Any, words: Any, settings: Settings, state: Path, seconds: float | None) -> bool:
    """Whether it is done."""
    optimiser = torch.optim.AdamW(model.parameters(), settings.rate, betas=(0.9, 0.98), weight_decay=0.01)
    first, spent = _restored(model, optimiser, state)
    begun = saved = time.monotonic()
    recent = 0.0
    with counting("training a small T5", settings.steps, "steps") as tell:
        for step in range(first, settings.steps):
            for group in optimiser.param_groups:
                group["lr"] = settings.rate * _slope(step, settings)
            loss = _step(model, optimiser, _batch(words, settings, step))
            recent = loss if step == first else 0.98 * recent + 0.02 * loss
            now = time.monotonic()
            tell(step + 1, f"loss {recent:.3f}, {spent + now - begun:,.0f} s")
            out_of_time = seconds is not None and now - begun > seconds
            if now - saved > SAVE_EVERY or out_of_time or step + 1 == settings.steps:
                _save(model, optimiser, state, step + 1, spent + now - begun)
                saved = now
            if out_of_time and step + 1 < settings.steps:
                say(f"stopped after step {step + 1} of {settings.steps}, loss {recent:.3f}; the same command goes on")
                return False
    model.eval()
    return True


def _slope(step: int, settings: Settings) -> float:
    """Up over the warm-up, then down to zero in a straight line."""
    return min((step + 1) / settings.warmup, (settings.steps - step) / (settings.steps - settings.warmup))


def _step(model: Any, optimiser: torch.optim.Optimizer, batch: Batch) -> float:
    model.train()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = model(**batch).loss
    loss.backward()
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimiser.step()
    optimiser.zero_grad(set_to_none=True)
    return float(loss.detach())


def _batch(words: Any, settings: Settings, step: int) -> Batch:
    """Examples of like length: eight batches are drawn together and sorted."""
    draw = Random(f"{settings.seed}/{step // 8}")
    pairs = [text_tasks.seen(draw) for _ in range(8 * settings.batch)]
    pairs.sort(key=lambda pair: len(pair[0]) + 2 * len(pair[1]))
    order = list(range(8))
    draw.shuffle(order)
    start = order[step % 8] * settings.batch
    return laid_out(words, pairs[start : start + settings.batch])


def laid_out(words: Any, pairs: list[text_tasks.Pair]) -> Batch:
    """Padded on the right; what is padded in the answers counts for nothing."""
    given = words([p[0] for p in pairs], padding=True, return_tensors="pt")
    answers = words([p[1] for p in pairs], padding=True, return_tensors="pt")
    labels = answers.input_ids.masked_fill(answers.attention_mask == 0, -100)
    return {"input_ids": given.input_ids, "attention_mask": given.attention_mask, "labels": labels}


def _restored(model: Any, optimiser: torch.optim.Optimizer, state: Path) -> tuple[int, float]:
    if not state.is_file():
        return 0, 0.0
    found = torch.load(state, weights_only=True)
    model.load_state_dict(found["model"])
    optimiser.load_state_dict(found["optimiser"])
    return found["step"], found["seconds"]


def _save(model: Any, optimiser: torch.optim.Optimizer, state: Path, step: int, seconds: float) -> None:
    scratch = state.with_suffix(".writing")
    found = {"model": model.state_dict(), "optimiser": optimiser.state_dict(), "step": step, "seconds": seconds}
    torch.save(found, scratch)
    scratch.replace(state)


@torch.inference_mode()
def check(folder: Path, n: int = 100) -> dict[str, float]:
    """Exact match of greedy answers on new pairs of each family."""
    with quiet():
        model = AutoModelForSeq2SeqLM.from_pretrained(folder, dtype=torch.float32).eval()
    words = PreTrainedTokenizerFast.from_pretrained(folder)
    found = {}
    for family in text_tasks.FAMILIES:
        draw = Random(f"check/{family}")
        pairs = [text_tasks.seen(draw, family) for _ in range(n)]
        given = words([p[0] for p in pairs], padding=True, return_tensors="pt")
        out = model.generate(given.input_ids, attention_mask=given.attention_mask, max_new_tokens=48, do_sample=False)
        answers = words.batch_decode(out, skip_special_tokens=family != "fill")
        found[family] = sum(a.strip() == p[1] for a, p in zip(answers, pairs, strict=True)) / n
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--output", type=Path, help="where a copy of the model goes")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seconds", type=float, help="stop after so long, to go on another time")
    parser.add_argument("--check", action="store_true", help="ask it new pairs of each family")
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    folder = trained(seconds=asked.seconds)
    if folder is None:
        raise SystemExit(3)
    if asked.output:
        shutil.copytree(folder, asked.output, dirs_exist_ok=True)
    if asked.check:
        print(json.dumps(check(folder), indent=1))
    say(f"the model is in {asked.output or folder}")


if __name__ == "__main__":
    main()
