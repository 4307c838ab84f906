"""A hub's model as a local folder, so that everything that is checked in a folder is checked in it. Other copies of the
weights, pickles and the hub's own pages stay where they are.
"""

from __future__ import annotations

from pathlib import Path

from qia3.errors import BaseModelError, first_line

WANTED = ["model*.safetensors", "*.json", "*.model", "*.txt", "*.jinja", "*.tiktoken"]


def fetch_hub(reference: str) -> Path:
    """The folder in the hub library's own cache. Raises BaseModelError."""
    import huggingface_hub

    try:
        return Path(huggingface_hub.snapshot_download(reference, allow_patterns=WANTED))
    except Exception as error:  # of the network, of the hub, of the name
        raise BaseModelError(
            f"cannot fetch {reference!r}, which is no folder here and no alias, from the hub: {first_line(error)}"
        ) from error
