"""Findings of a validation, as a table and as JSON."""

from __future__ import annotations

import itertools
import textwrap
from collections import Counter
from dataclasses import asdict, dataclass
from typing import Any

from llm_mer.data.flags import FLAGS
from llm_mer.data.schema import SPLITS
from llm_mer.prompting.languages import LANGUAGES

ERROR, WARNING, INFO = "error", "warning", "info"
FIRST_WIDTH, ADVICE_WIDTH = 60, 44
"""Characters per line of the table's last two columns."""

ADVICE: dict[str, str] = {
    "unreadable": "fix the named problem; nothing after it was checked",
    "split or language": f"splits are {', '.join(SPLITS)}, languages {', '.join(LANGUAGES)}",
    "no modality": "give text, audio or video, or leave the utterance out",
    "not finite": "NaN or infinity in features: extract them again, or leave the modality out there",
    "shape": "features must be (steps, size), both above 0: leave a missing modality out",
    "feature size": "use one extractor for the whole data set: extract again",
    "duration": "audio and vision differ in length: are they from the same clip?",
    "duplicate id": "ids must be unique over all splits",
    "alike": "use one spelling each: same letter case, width and Unicode form (NFC), no invisible characters",
    "task language": "give the task's labels words in this language, or leave its utterances out (--languages)",
    "label": "correct the label, or name the task it belongs to with --tasks",
    "votes": "the label must have the most votes: correct it, or leave out the label or the votes",
    "no task": "no built-in task has these labels: name your task file with --tasks",
    "unseen class": "the training split has no examples of it: split the data again",
    "same utterance": "keep it in one split, or training data leak into the test",
    "same sentence": "harmless if speakers say the same; treat scores of text alone with care",
    "shared dialogue": "keep a dialogue in one split: its turns are context for one another",
    "shared speaker": "scores do not measure new speakers: split by speaker, or report it",
    "turn": "number the utterances of a dialogue, each once",
    "empty text": "leave an unknown text out, so that it counts as missing",
    "placeholder": "a table's word for a missing value: leave the field out, or the model reads it",
    "other language": "check the language: the question is asked in it",
    "hidden characters": "remove zero-width characters and byte order marks: the model would read them",
    "unicode form": "use NFC: tokenizers read decomposed letters differently",
    "encoding": "decode the text with its own encoding and write UTF-8",
    **{flag: f"{meaning}: listen to or look at the recording, or leave it out" for flag, meaning in FLAGS.items()},
    "zero features": "leave the modality out there, so that it counts as missing",
    "constant": "a feature that never changes in training is uninformative: does the extractor work?",
    "leak": "a single feature predicts the training labels: how was it computed?",
    "checked as": "name another task with --tasks",
    "majority": "a constant answer reaches this score",
    "tied votes": "no majority: trained and scored on the votes only, not on a truth",
    "missing split": "no model selection or scoring on it",
}
"""Check → advice."""


@dataclass
class Finding:
    """One row of the table.

    Attributes:
        severity: ``error``, ``warning`` or ``info``. check: a key of :data:`ADVICE`. split: where; several joined by ``+``.
        count: of utterances; of features for ``constant`` and ``leak``, of speakers and dialogues if those are shared.
        first: the first ids concerned, or what was found. advice: what to do.
    """

    severity: str
    check: str
    split: str
    count: int
    first: list[str]
    advice: str


@dataclass
class ValidationReport:
    """All findings, errors first.

    Attributes:
        source: as given. utterances: how many were read, by split. findings: rows of the table.
    """

    source: str
    utterances: dict[str, int]
    findings: list[Finding]

    @property
    def exit_code(self) -> int:
        """2 with an error, 1 with a warning, else 0."""
        found = {finding.severity for finding in self.findings}
        return 2 if ERROR in found else 1 if WARNING in found else 0

    def to_dict(self) -> dict[str, Any]:
        """Plain containers for JSON."""
        return {**asdict(self), "exit_code": self.exit_code}

    def __str__(self) -> str:
        head = ("severity", "check", "split", "count", "first", "what to do")
        rows = [
            (f.severity, f.check, f.split, str(f.count), "; ".join(shorten(text) for text in f.first), f.advice)
            for f in self.findings
        ]
        widths = [max(len(row[place]) for row in (head, *rows)) for place in range(4)]
        lines = []
        for row in (head, *rows):
            fixed = [f"{cell:<{width}}" for cell, width in zip(row[:3], widths, strict=False)]
            begin = "  ".join((*fixed, row[3].rjust(widths[3])))
            wrapped = (textwrap.wrap(row[4], FIRST_WIDTH, break_on_hyphens=False), textwrap.wrap(row[5], ADVICE_WIDTH))
            for number, (first, advice) in enumerate(itertools.zip_longest(*wrapped, fillvalue="")):
                start = begin if not number else " " * len(begin)
                lines.append(f"{start}  {first:<{FIRST_WIDTH}}  {advice}".rstrip())
            if not any(wrapped):
                lines.append(begin.rstrip())
        numbers = Counter(finding.severity for finding in self.findings)
        plural = [f"{numbers[s]} {s}{'' if numbers[s] == 1 else 's'}" for s in (ERROR, WARNING)]
        return "\n".join((*lines, "", f"{', '.join(plural)} in {sum(self.utterances.values())} utterances of {self.source}"))


def shorten(text: str, limit: int = 48) -> str:
    """One line of at most ``limit`` characters."""
    text = " ".join(text.split())
    return text if len(text) <= limit else f"{text[: limit - 1]}…"
