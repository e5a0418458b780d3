"""Fixtures shared by all tests."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def zoo() -> Path:
    """The folder of real pretrained models; tests that need it skip where it is absent."""
    folder = Path(os.environ.get("CONVERTER_ZOO", ROOT.parent / "shared" / "zoo"))
    if not (folder / "manifest.json").is_file():
        pytest.skip(f"no model zoo at {folder} (set CONVERTER_ZOO)")
    return folder


@pytest.fixture(scope="session")
def fixtures() -> Path:
    """The models and data that the project ships."""
    return ROOT / "fixtures"
