"""Which layout a checkpoint's codes are in, from the `quantization_config` of its config.json: each has a file of its
own (words.py, bnb.py, compressed.py, mlx.py) that says what it looks like there and in the tensors. The others that
people have are refused by their names, with the reason.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from qia3.base.bnb import read_bitsandbytes
from qia3.base.compressed import read_compressed
from qia3.base.layout import Layout, refused
from qia3.base.mlx import read_mlx
from qia3.base.words import read_auto_round, read_words

EIGHT, FOUR, BOOKS = "8-bit floats", "4-bit floats, no even steps", "entries of codebooks"
OTHERS = {  # `quant_method` -> its name, and why its codes are on none of our grids
    "fp8": ("finegrained FP8", EIGHT),
    "fbgemm_fp8": ("FBGEMM FP8", EIGHT),
    "mxfp8": ("MXFP8", EIGHT),
    "mxfp4": ("MXFP4", FOUR),
    "nvfp4": ("NVFP4", FOUR),
    "fp_quant": ("FP-Quant", FOUR),
    "fouroversix": ("Four Over Six", FOUR),
    "modelopt": ("NVIDIA ModelOpt", "floats of 4 or 8 bits"),
    "torchao": ("torchao", "laid out for its own kernels"),
    "quanto": ("Quanto", "laid out for its own kernels"),
    "quark": ("AMD Quark", "laid out for its own kernels"),
    "hqq": ("HQQ", "zero points that are not whole numbers"),
    "metal": ("transformers' Metal quantiser", "offsets that are no whole number of steps"),
    "sinq": ("SINQ", "a second scale for each input"),
    "aqlm": ("AQLM", BOOKS),
    "vptq": ("VPTQ", BOOKS),
    "higgs": ("HIGGS", BOOKS),
    "exl2": ("ExLlamaV2", "several widths in one layer"),
    "exl3": ("ExLlamaV3", BOOKS),
    "spqr": ("SpQR", "outliers beside them in float"),
    "bitnet": ("BitNet", "three levels, and inputs at 8 bits"),
    "eetq": ("EETQ", "8 bits"),
}


def read_layout(settings: Mapping[str, Any]) -> Layout:
    """Raises BaseModelError, naming what is read, for any other layout."""
    method = str(settings.get("quant_method", "gptq")).lower()
    if method == "bitsandbytes":
        return read_bitsandbytes(settings)
    if method in ("gptq", "awq"):
        return read_words(method, settings)
    if method in ("auto-round", "intel/auto-round"):
        return read_auto_round(settings)
    if method == "compressed-tensors":
        return read_compressed(settings)
    if method == "mlx":
        return read_mlx(settings)
    if method in OTHERS:
        name, why = OTHERS[method]
        raise refused(f"its weights are quantised by {name} ({why})")
    raise refused(f"its weights are quantised by {method!r}")
