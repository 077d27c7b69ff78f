"""``llm-mer validate``: checking a store or the files of a public data set."""

from __future__ import annotations

from llm_mer.data.validation.validate import ValidateConfig as Options

EXAMPLES = (
    "llm-mer validate data/features",
    "llm-mer validate meld:raw/MELD.Raw --json faults.json",
)


def run(options: Options) -> object:
    """See :func:`llm_mer.data.validation.validate.validate`."""
    from llm_mer.data.validation.validate import validate

    return validate(options)
