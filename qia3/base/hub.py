"""A hub's model as a local folder, so that everything that is checked in a folder is checked in it. Other copies of the
weights, pickles and the hub's own pages stay where they are.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from qia3.errors import BaseModelError, first_line

WANTED = ["model*.safetensors", "*.json", "*.model", "*.txt", "*.jinja", "*.tiktoken"]


def fetch_hub(reference: str, aliases: Iterable[str]) -> Path:
    """The folder in the hub library's own cache. `aliases`: the names that would have needed no hub.

    Raises BaseModelError.
    """
    import huggingface_hub

    try:
        return Path(huggingface_hub.snapshot_download(reference, allow_patterns=WANTED))
    except Exception as error:  # of the network, of the hub, of the name
        raise not_fetched(reference, aliases, error) from error


def not_fetched(reference: str, aliases: Iterable[str], error: Exception) -> BaseModelError:
    """For what is looked for on the hub because it is nothing that is known here."""
    known = f"no folder here and no alias ({', '.join(aliases)})"
    return BaseModelError(f"cannot fetch {reference!r}, which is {known}, from the hub: {first_line(error)}")
