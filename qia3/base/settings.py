"""Where a checkpoint says how it was quantised.

config.json            "quantization_config"                      most, with their "quant_method"
                       "quantization"                             MLX; since 2024 the same again as "quantization_config"
quantize_config.json   beside a config.json without these          older files of AutoGPTQ
quant_config.json      likewise                                   older files of AutoAWQ
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from qia3.base.layout import refused
from qia3.base.tensors import Tensors
from qia3.errors import BaseModelError
from qia3.parse import read_json_table

OLDER = {"quantize_config.json": "gptq", "quant_config.json": "awq"}


def take_settings(config: Any, folder: Path) -> dict[str, Any] | None:
    """The quantisation settings, removed from the config; None if it is not quantised. Raises BaseModelError."""
    settings, mlx = (config.__dict__.pop(key, None) for key in ("quantization_config", "quantization"))
    if mlx is not None:
        return _mlx(settings, mlx, config)
    for name, method in OLDER.items():
        if settings is None and (folder / name).is_file():
            settings = {"quant_method": method, **read_json_table(folder / name, BaseModelError, "fetch it again")}
    return None if settings is None else dict(settings if isinstance(settings, Mapping) else settings.to_dict())


def unsaid(tensors: Tensors) -> str:
    """The method of a checkpoint that does not name it, as with mlx-lm and old AutoGPTQ."""
    return "mlx" if any(name.endswith(".biases") for name in tensors.places) else "gptq"


def _mlx(settings: Any, mlx: Any, config: Any) -> dict[str, Any]:
    if not isinstance(mlx, Mapping) or settings not in (None, mlx):
        raise BaseModelError(
            "quantization and quantization_config of config.json disagree; remove the one that does not "
            "belong to these weights"
        )
    if config.__dict__.pop("quantize_activations", False):
        raise refused("its MLX layers also quantise their inputs (quantize_activations)")
    return {**mlx, "quant_method": "mlx"}
