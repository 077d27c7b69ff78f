"""How languages may share LoRA's ranks, by name (see :mod:`llm_mer.backbones.language_lora`)."""

from __future__ import annotations

SHARED, PER_LANGUAGE, BOTH = "shared", "per_language", "shared_and_per_language"
LORA_SHARING: tuple[str, ...] = (SHARED, PER_LANGUAGE, BOTH)
