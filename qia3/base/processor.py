"""Which types the processor multiplies matrices in at full speed."""

from __future__ import annotations

import torch


def has_fast(dtype: torch.dtype) -> bool:
    """Whether matrix products in `dtype` run natively on the device; float32 always does.

    bfloat16 does if the processor has instructions for it (AVX512-BF16 or AMX, any recent CUDA GPU). Without them
    torch emulates it, about 100 times slower than float32 (measured on AVX2).
    """
    if dtype == torch.float32:
        return True
    if dtype != torch.bfloat16:
        return torch.cuda.is_available()
    if torch.cuda.is_available():
        return bool(torch.cuda.is_bf16_supported())
    return bool(
        getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)()
        or getattr(torch.cpu, "_is_amx_tile_supported", lambda: False)()
    )
