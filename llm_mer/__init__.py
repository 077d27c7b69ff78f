"""LLM-centric instruction tuning for multimodal emotion recognition and sentiment analysis.

The public names are imported when they are first used, so that ``import llm_mer`` is light.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from llm_mer.adapters.base import FusionAdapter
    from llm_mer.checkpoints.auto_classes import register_auto_classes
    from llm_mer.checkpoints.loading import load_checkpoint
    from llm_mer.data.reading import load_dataset
    from llm_mer.data.schema import Utterance
    from llm_mer.errors import UserError
    from llm_mer.inference.pipeline import MerPipeline
    from llm_mer.inference.prediction import Prediction
    from llm_mer.prompting.tasks import Task
    from llm_mer.prompting.templates import PromptTemplate
    from llm_mer.reporting.hub_upload import push_to_hub

__version__ = "0.1.0"

__all__ = [
    "FusionAdapter",
    "MerPipeline",
    "Prediction",
    "PromptTemplate",
    "Task",
    "UserError",
    "Utterance",
    "__version__",
    "load_checkpoint",
    "load_dataset",
    "push_to_hub",
    "register_auto_classes",
]

_MODULES = {
    "FusionAdapter": "llm_mer.adapters.base",
    "MerPipeline": "llm_mer.inference.pipeline",
    "Prediction": "llm_mer.inference.prediction",
    "PromptTemplate": "llm_mer.prompting.templates",
    "Task": "llm_mer.prompting.tasks",
    "UserError": "llm_mer.errors",
    "Utterance": "llm_mer.data.schema",
    "load_checkpoint": "llm_mer.checkpoints.loading",
    "load_dataset": "llm_mer.data.reading",
    "push_to_hub": "llm_mer.reporting.hub_upload",
    "register_auto_classes": "llm_mer.checkpoints.auto_classes",
}


def __getattr__(name: str) -> Any:
    """A public name, imported now (PEP 562)."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
