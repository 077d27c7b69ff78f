"""A synthetic bilingual corpus of mp4 clips: espeak-ng speech, a rendered face, and emotions with inertia over turns.

It exercises every part of the pipeline on media whose labels are known by construction. Scores on it say nothing about
people.
"""

from llm_mer.data.sources.synthetic.corpus import CorpusConfig, make_corpus

__all__ = ["CorpusConfig", "make_corpus"]
