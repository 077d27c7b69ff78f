"""``llm-mer prompts compare``: comparing prompts on one checkpoint, or training one with each."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

from llm_mer.errors import UserError
from llm_mer.experiments.options import PromptComparisonConfig as Options

EXAMPLES = (
    "llm-mer prompts compare --checkpoint runs/quickstart/egmf --data runs/quickstart/features",
    "llm-mer prompts compare --config configs/quickstart.yaml --prompts short instruct --seeds 1 2 3",
)


def run(options: Options) -> str:
    """The tables, which are also written to the output folder with the figure and all predictions.

    Raises:
        UserError: neither or both of a checkpoint and a training YAML, and what
            :func:`llm_mer.experiments.prompt_comparison.compare_prompts` and ``llm-mer compare`` refuse.
    """
    if bool(options.checkpoint) == bool(options.config):
        raise UserError("give either --checkpoint, evaluated with every prompt, or --config, trained with each")
    from llm_mer.experiments.prompt_comparison import (
        COMPARISON,
        FIGURE,
        PREDICTIONS,
        TABLE,
        compare_prompts,
        markdown,
        train_with_each_prompt,
    )

    if options.config:
        return train_with_each_prompt(options)
    from llm_mer.evaluation.evaluate import output_folder
    from llm_mer.evaluation.rows import save_predictions
    from llm_mer.reporting.prompt_figure import draw_prompt_scores
    from llm_mer.storage.atomic_files import open_atomically, write_json_atomically, write_text_atomically
    from llm_mer.storage.locks import lock_output
    from llm_mer.storage.watched_folder import watch_folder

    folder = output_folder(options.output, Path(options.checkpoint) / "prompts")
    with lock_output(folder), watch_folder(folder):
        comparison, by_variant = compare_prompts(options)
        text = markdown(comparison)
        save_predictions(folder / PREDICTIONS, by_variant)
        write_json_atomically(folder / COMPARISON, asdict(comparison))
        write_text_atomically(folder / TABLE, text + "\n")
        with open_atomically(folder / FIGURE, "wb") as stream:
            draw_prompt_scores(comparison).savefig(stream, metadata={"Software": None})
    return f"{text}\nwritten to {folder}"
