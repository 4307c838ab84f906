"""A hub model as a local folder, so that it is checked like any other folder. Other copies of the weights, pickles and
the hub's own pages are not downloaded.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from qia3.errors import BaseModelError, first_line

WANTED = ["model*.safetensors", "*.json", "*.model", "*.txt", "*.jinja", "*.tiktoken"]


def fetch_hub(reference: str, aliases: Iterable[str]) -> Path:
    """Downloads a model; returns its folder in the hub library's cache. `aliases` are listed in the error.

    Raises BaseModelError.
    """
    import huggingface_hub

    try:
        return Path(huggingface_hub.snapshot_download(reference, allow_patterns=WANTED))
    except Exception as error:  # of the network, of the hub, of the name
        raise not_fetched(reference, aliases, error) from error


def not_fetched(reference: str, aliases: Iterable[str], error: Exception) -> BaseModelError:
    """The error for a reference that is not known locally and that the hub did not give, either."""
    return BaseModelError(
        f"{reference!r} is neither a local folder nor an alias ({', '.join(aliases)}), and cannot be fetched from the "
        f"hub: {first_line(error)}"
    )
