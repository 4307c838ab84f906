"""The site: the pages of this folder, by Sphinx and MyST. `make docs`."""

import re
from typing import Any

project = "QIA³"
author = "The QIA³ contributors"
extensions = ["myst_parser"]
exclude_patterns = ["_build"]
html_theme = "furo"
html_title = "QIA³"
myst_heading_anchors = 3


def _beyond(_: Any, __: str, text: list[str]) -> None:
    """Links to what is in the repository and not on the site, as words. (tests/test_docs.py follows all links.)"""
    text[0] = re.sub(r"(?<!!)\[([^\]]+)\]\(\.\./([^)]+)\)", r"\1 (`\2` in the repository)", text[0])


def setup(app: Any) -> None:
    app.connect("source-read", _beyond)
