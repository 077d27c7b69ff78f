"""What accelerate was told of FSDP."""

from __future__ import annotations

import os


def fsdp_requested() -> bool:
    """Whether accelerate was told to shard by FSDP."""
    return os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true"
