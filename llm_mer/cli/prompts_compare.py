"""``llm-mer prompts compare``: one checkpoint asked in every prompt, or one trained with each."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

from llm_mer.errors import UserError
from llm_mer.experiments.options import PromptComparisonConfig as Options
from llm_mer.storage.json_text import dump_json

EXAMPLES = (
    "llm-mer prompts compare --checkpoint runs/quickstart/egmf --data runs/quickstart/features",
    "llm-mer prompts compare --config configs/quickstart.yaml --prompts short instruct --seeds 1 2 3",
)


def run(options: Options) -> str:
    """The tables; also written, with the figure and every prediction, to the output folder.

    Raises:
        UserError: neither or both of a checkpoint and a training YAML, and what
            :func:`llm_mer.experiments.prompt_comparison.ask` and ``llm-mer compare`` refuse.
    """
    if bool(options.checkpoint) == bool(options.config):
        raise UserError("name either --checkpoint, asked in every prompt, or --config, trained with each")
    from llm_mer.experiments.prompt_comparison import COMPARISON, FIGURE, PREDICTIONS, TABLE, ask, markdown, train_each

    if options.config:
        return train_each(options)
    from llm_mer.evaluation.evaluate import output_folder
    from llm_mer.evaluation.rows import save_predictions
    from llm_mer.reporting.prompt_figure import figure_of

    folder = output_folder(options.output, Path(options.checkpoint) / "prompts")
    comparison, by_variant = ask(options)
    folder.mkdir(parents=True, exist_ok=True)
    save_predictions(folder / PREDICTIONS, by_variant)
    (folder / COMPARISON).write_text(dump_json(asdict(comparison), indent=1), encoding="utf-8")
    text = markdown(comparison)
    (folder / TABLE).write_text(text + "\n", encoding="utf-8")
    figure_of(comparison).savefig(folder / FIGURE, metadata={"Software": None})
    return f"{text}\nwritten to {folder}"
