"""``llm-mer compare``: adapters, ablations and seeds on one backbone."""

from __future__ import annotations

from llm_mer.experiments.options import CompareConfig as Options

EXAMPLES = (
    "llm-mer compare --config configs/quickstart.yaml --adapters egmf lsgmer --seeds 1 2 3",
    "llm-mer compare --config configs/quickstart.yaml --adapters egmf --ablations paper",
    "llm-mer compare --config configs/ravdess_voice.yaml --folds speaker --runs 3 --jobs 2",
)


def run(options: Options) -> object:
    """See :func:`llm_mer.experiments.comparison.compare.run`."""
    from llm_mer.experiments.comparison.compare import run

    return run(options)
