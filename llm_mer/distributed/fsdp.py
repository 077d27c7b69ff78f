"""Whether FSDP was requested."""

from __future__ import annotations

import os


def fsdp_requested() -> bool:
    """Whether accelerate was configured to shard with FSDP."""
    return os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true"
