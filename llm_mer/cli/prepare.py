"""``llm-mer prepare``: a public data set's files as a store."""

from __future__ import annotations

from llm_mer.data.prepare import PrepareConfig as Options

EXAMPLES = ("llm-mer prepare meld raw/MELD.Raw --output data/meld",)


def run(options: Options) -> object:
    """See :func:`llm_mer.data.prepare.prepare`."""
    from llm_mer.data.prepare import prepare

    return prepare(options)
