"""``llm-mer calibrate``: temperatures of a checkpoint's answers, fitted on the validation split."""

from __future__ import annotations

from llm_mer.evaluation.options import CalibrateConfig as Options

EXAMPLES = ("llm-mer calibrate --checkpoint runs/quickstart/egmf --data runs/quickstart/features",)


def run(options: Options) -> str:
    """See :func:`llm_mer.evaluation.calibrate.calibrate`."""
    from llm_mer.evaluation.calibrate import calibrate, table

    return table(calibrate(options), options.checkpoint)
