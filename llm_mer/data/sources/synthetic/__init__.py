"""A bilingual test bench of real mp4 clips: espeak-ng speaks, a rendered face moves, emotions have inertia.

It exercises every part of the pipeline on media whose truth is known by construction. Scores on it are not scores on people.
"""

from llm_mer.data.sources.synthetic.corpus import CorpusConfig, make_corpus

__all__ = ["CorpusConfig", "make_corpus"]
