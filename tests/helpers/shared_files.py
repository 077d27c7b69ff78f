"""Where the real data lies."""

import os
from pathlib import Path

import pytest

SHARED = Path(os.environ.get("LLM_MER_SHARED_DATA") or Path(__file__).parents[3] / "shared" / "data")


def shared_data(name: str) -> Path:
    """A folder of the real data, or the test is skipped with the reason."""
    if not (SHARED / name).is_dir():
        pytest.skip(f"{SHARED / name} is absent; LLM_MER_SHARED_DATA names the folder that holds {name}")
    return SHARED / name
