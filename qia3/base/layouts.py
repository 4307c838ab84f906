"""Which layout a checkpoint's codes are in, by the `quantization_config` of its config.json. Each layout has its own
file (words.py, bnb.py, compressed.py, mlx.py) that says how config.json and the tensors look. Other common quantisers
are refused by name, with the reason.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from qia3.base.bnb import read_bitsandbytes
from qia3.base.compressed import read_compressed
from qia3.base.layout import Layout, refused
from qia3.base.mlx import read_mlx
from qia3.base.words import read_auto_round, read_words

EIGHT, FOUR, BOOKS = "8-bit floats", "4-bit floats, unevenly spaced", "entries of codebooks"
OTHERS = {  # `quant_method` -> its name, and why none of our grids has its codes
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
    "metal": ("transformers' Metal quantiser", "offsets that are not a whole number of steps"),
    "sinq": ("SINQ", "a second scale per input"),
    "aqlm": ("AQLM", BOOKS),
    "vptq": ("VPTQ", BOOKS),
    "higgs": ("HIGGS", BOOKS),
    "exl2": ("ExLlamaV2", "several bit widths in one layer"),
    "exl3": ("ExLlamaV3", BOOKS),
    "spqr": ("SpQR", "separate float outliers"),
    "bitnet": ("BitNet", "three levels, and 8-bit inputs"),
    "eetq": ("EETQ", "8 bits"),
}


def read_layout(settings: Mapping[str, Any]) -> Layout:
    """The layout for these settings. Raises BaseModelError, listing what is supported, for any other."""
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
