"""Which layout a checkpoint's codes are in, from the `quantization_config` of its config.json: each has a file of its
own (words.py, bnb.py) that says what it looks like there and in the tensors.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from qia3.base.bnb import read_bitsandbytes
from qia3.base.layout import Layout, refused
from qia3.base.words import read_words


def read_layout(settings: Mapping[str, Any]) -> Layout:
    """Raises BaseModelError, naming what is read, for any other layout."""
    method = str(settings.get("quant_method", "gptq")).lower()
    if method == "bitsandbytes":
        return read_bitsandbytes(settings)
    if method in ("gptq", "awq"):
        return read_words(method, settings)
    raise refused(f"its weights are quantised by {method!r}")
