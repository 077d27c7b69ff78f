"""Options of a training on few clips, where neither the command line nor a YAML file gives them."""

from __future__ import annotations

import math
from typing import Any

BACKBONE = "tiny:llama"
TINY = "tiny:"
SMALL_BATCH, LARGE_BATCH, LARGE = 8, 16, 500
"""Questions a step, below and from :data:`LARGE` questions."""
STEPS = 300
"""Steps that are aimed at, within :data:`EPOCHS`."""
EPOCHS = (3, 25)


def training_defaults(backbone: str, questions: int, has_validation: bool) -> dict[str, Any]:
    """The options by backbone and number of training questions.

    A backbone that is trained on the spot, and an adapter alone, take the rates of the quickstart; a pretrained one smaller
    ones for LoRA than for the adapter.
    """
    batch = SMALL_BATCH if questions < LARGE else LARGE_BATCH
    epochs = math.ceil(STEPS / math.ceil(max(questions, 1) / batch))
    chosen: dict[str, Any] = {
        "backbone": backbone,
        "adapter": "egmf",
        "auxiliary_head": True,
        "hidden_size": 128,
        "num_heads": 4,
        "dropout": 0.3,
        "modality_dropout": 0.1,
        "num_train_epochs": min(max(epochs, EPOCHS[0]), EPOCHS[1]),
        "per_device_train_batch_size": batch,
        "weight_decay": 0.05,
        "save_total_limit": 1,
        "seed": 1111,
    }
    if backbone == "none":
        chosen |= {"text_source": "features", "learning_rate": 1e-3}
    elif backbone.startswith(TINY):
        chosen |= {"prompts": ["question"], "num_pseudo_tokens": 4, "learning_rate": 4e-3, "lora_dropout": 0.0}
    else:
        chosen |= {"prompts": ["question"], "num_pseudo_tokens": 4, "learning_rate": 2e-4, "adapter_learning_rate": 1e-3}
    if not has_validation:
        chosen |= {"eval_strategy": "no", "load_best_model_at_end": False}
    return chosen
