"""``llm-mer prompts compare``: one checkpoint asked in every prompt, or one trained with each."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

from llm_mer.errors import UserError
from llm_mer.experiments.prompt_comparison import (
    COMPARISON,
    FIGURE,
    PREDICTIONS,
    TABLE,
    PromptComparisonConfig,
    ask,
    markdown,
    train_each,
)
from llm_mer.reporting.prompt_figure import figure_of


def run(config: PromptComparisonConfig) -> str:
    """``llm-mer prompts compare``: the tables; also written, with the figure and every prediction, to the output folder.

    Raises:
        UserError: neither or both of a checkpoint and a training YAML, and what :func:`ask` and ``llm-mer compare`` refuse.
    """
    if bool(config.checkpoint) == bool(config.config):
        raise UserError("name either --checkpoint, asked in every prompt, or --config, trained with each")
    if config.config:
        return train_each(config)
    from llm_mer.evaluation.evaluate import output_folder
    from llm_mer.evaluation.rows import save_predictions

    folder = output_folder(config.output, Path(config.checkpoint) / "prompts")
    comparison, by_variant = ask(config)
    folder.mkdir(parents=True, exist_ok=True)
    save_predictions(folder / PREDICTIONS, by_variant)
    (folder / COMPARISON).write_text(json.dumps(asdict(comparison), ensure_ascii=False, indent=1), encoding="utf-8")
    text = markdown(comparison)
    (folder / TABLE).write_text(text + "\n", encoding="utf-8")
    figure_of(comparison).savefig(folder / FIGURE, metadata={"Software": None})
    return f"{text}\nwritten to {folder}"
