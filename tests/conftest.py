"""Fixtures that fetch the real model; torch on two threads at most."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def real_gguf() -> Path:
    """SmolLM2-135M-Instruct, Q4_1."""
    from qia3.base.sources import resolve

    source = resolve("smollm2-135m-instruct")
    assert source.gguf_file
    return Path(source.name) / source.gguf_file
