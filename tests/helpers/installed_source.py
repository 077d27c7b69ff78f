"""Source files of installed libraries, read without importing them."""

import importlib.util
from pathlib import Path

import pytest


def source(package: str, path: str) -> str:
    """The text of a file of a package; the test is skipped where the package is not installed."""
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        pytest.skip(f"{package} is not installed")
    return (Path(spec.origin).parent / path).read_text(encoding="utf-8")
