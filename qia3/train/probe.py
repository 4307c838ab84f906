"""Does this model compute the same with trees packed in one row? Found out once by running both ways.

A model's code may ignore a 4-D mask, add its own window to it, reject positions that restart, count positions by slot
(BART's decoder), or mix slots by other means than attention (convolutions, recurrences). A table of families would go
out of date; two forward passes do not. They are as long as the longest example, since a sliding window only shows
beyond its length.
"""

from __future__ import annotations

import torch
from transformers import PreTrainedModel

from qia3.batching.trees import Tree
from qia3.train.batches import packed, padded
from qia3.train.model import read_logits
from qia3.train.pairs import beside

TOLERANCE = 1e-3  # of the largest logit; float32 rounding gives about 1e-6, a slot that sees too much 1e-1


@torch.no_grad()
def packs(model: PreTrainedModel, longest_path: int, start: tuple[int, ...] = ()) -> bool:
    """Whether packed and padded logits agree for trees whose paths have up to `longest_path` tokens.

    `start`: the tokens before an encoder-decoder's answers; its paths are those of the decoder only.
    """
    trees = _trees(model.config.get_text_config().vocab_size, longest_path, start)
    training = model.training
    model.eval()
    try:
        if start:
            plain, tree = (read_logits(model, beside(trees, start, limit, 10**9)) for limit in (1, 10**9))
        else:
            plain, tree = read_logits(model, padded(trees)), read_logits(model, packed(trees, 10**9, 10**9))
    except Exception:  # a model that cannot take such a batch can raise anything
        return False
    finally:
        model.train(training)
    return bool((plain - tree).abs().max() <= TOLERANCE * plain.abs().max())


def _trees(vocabulary: int, longest_path: int, start: tuple[int, ...]) -> list[Tree]:
    """A long and a short tree with the same first token, each with answers of two lengths. In an encoder-decoder the
    long part is an answer.
    """
    random = torch.Generator().manual_seed(0)

    def tokens(count: int) -> tuple[int, ...]:
        return tuple(torch.randint(vocabulary, (count,), generator=random).tolist())

    if start:
        return [Tree(tokens(n), (tokens(max(4, longest_path - len(start))), tokens(3))) for n in (5, 3)]
    long = tokens(max(1, longest_path - 4))
    return [Tree(prompt, (tokens(3), tokens(4))) for prompt in (long, (*long[:1], *tokens(2)))]
