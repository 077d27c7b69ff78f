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
    from llm_mer.storage.atomic_files import open_atomically, replaced_folder, write_json_atomically, write_text_atomically
    from llm_mer.storage.locks import lock_output
    from llm_mer.storage.mount_points import refuse_mount_point
    from llm_mer.storage.watched_folder import watch_folder

    folder = output_folder(options.output, Path(options.checkpoint) / "prompts")
    with lock_output(folder):
        refuse_mount_point(folder)
        with watch_folder(folder):
            comparison, by_variant = compare_prompts(options)
            text = markdown(comparison)
        # One comparison's table, figure and predictions take the place of another's together.
        with replaced_folder(folder, lambda name: name in (PREDICTIONS, COMPARISON, TABLE, FIGURE)) as staging:
            save_predictions(staging / PREDICTIONS, by_variant)
            write_json_atomically(staging / COMPARISON, asdict(comparison))
            write_text_atomically(staging / TABLE, text + "\n")
            with open_atomically(staging / FIGURE, "wb") as stream:
                draw_prompt_scores(comparison).savefig(stream, metadata={"Software": None})
    return f"{text}\nwritten to {folder}"
