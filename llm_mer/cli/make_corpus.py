"""``llm-mer make-corpus``: the synthetic bilingual corpus of clips."""

from __future__ import annotations

from llm_mer.data.sources.synthetic import CorpusConfig as Options

EXAMPLES = ("llm-mer make-corpus --output data/corpus --utterances_per_language 360",)


def run(options: Options) -> object:
    """See :func:`llm_mer.data.sources.synthetic.make_corpus`."""
    from llm_mer.data.sources.synthetic import make_corpus

    return make_corpus(options)
