"""EmoS: three annotators' votes over 28 emotions for sentences of MELD (English) and CH-SIMS v2 (Chinese).

Layout: a folder with any of ``en.jsonl`` and ``zh.jsonl``, or one of them; each line is one sentence::

    {"id", "dialogue_id", "turn", "text", "language", "votes": {emotion: share of the annotators}, "split",
     "speaker", "meld_emotion",                                                 # English
     "sentiment", "sentiment_text", "sentiment_audio", "sentiment_vision"}      # Chinese, in [-1, 1]

Conventions: the shares are thirds, read as counts of three annotators, each of whom may have named several emotions; they
are the votes of the target ``emos``, ``unsure`` among them. Labels: ``emotion``, MELD's own, given by others; ``sentiment``
and those of each modality, CH-SIMS v2's. The task is ``benchmarks/emos/task.yaml``.

The published splits, training and validation, share Chinese videos: 119 of 130 are in both. By default each dialogue
(or video) is in one split as a whole: a hash of its name puts 70 % in training, 10 % in validation and 20 % in the test.
``split: published`` reads the splits as they are.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from llm_mer.data.schema import SPLITS, Utterance
from llm_mer.data.sources.common import label_name
from llm_mer.data.sources.manifest import json_entries
from llm_mer.data.sources.numbers import parse_number, real_number, whole_number
from llm_mer.data.votes import Votes
from llm_mer.errors import UserError
from llm_mer.prompting.tasks import get_task
from llm_mer.storage.quoting import quote

FILES: dict[str, str] = {"en": "en.jsonl", "zh": "zh.jsonl"}
ANNOTATORS = 3
SPLITTING: tuple[str, ...] = ("dialogue", "published")
SCORES: tuple[str, ...] = ("sentiment", "sentiment_text", "sentiment_audio", "sentiment_vision")
EMOTIONS: tuple[str, ...] = (
    "neutral", "admiration", "amusement", "anger", "annoyance", "approval", "caring", "confusion", "curiosity", "desire",
    "disappointment", "disapproval", "disgust", "embarrassment", "excitement", "fear", "gratitude", "grief", "joy", "love",
    "nervousness", "optimism", "pride", "realization", "relief", "remorse", "sadness", "surprise",
)  # fmt: skip
UNSURE = "unsure"


def read_emos(path: Path | str, split: str = "dialogue") -> Iterator[Utterance]:
    """Read EmoS's sentences, one line at a time.

    Args:
        split: ``dialogue`` keeps dialogues whole, ``published`` uses those of the file.

    Raises:
        UserError: no such file, an invalid line, a field of the wrong type, an unknown emotion, a share that is not a third.
    """
    if split not in SPLITTING:
        raise UserError(f"split is {split!r}; it must be one of {', '.join(SPLITTING)}")
    path = Path(path)
    files = [path / name for name in FILES.values()] if path.is_dir() else [path]
    files = [file for file in files if file.is_file() and file.name in FILES.values()]
    if not files:
        raise UserError(f"{path}: no such file; an EmoS folder holds {' and '.join(FILES.values())}")
    for file in files:
        with file.open("rb") as stream:
            for where, entry in json_entries(stream, str(file)):
                if isinstance(entry, UserError):
                    raise entry
                yield _utterance(entry, where, split)


def _utterance(entry: dict[str, Any], where: str, split: str) -> Utterance:
    texts = {name: _text(entry, name, where) for name in ("id", "dialogue_id", "text", "language", "split")}
    for name, allowed in (("split", SPLITS), ("language", tuple(FILES))):
        if texts[name] not in allowed:
            raise UserError(f"{where}: field {name} is {quote(texts[name])}; it must be one of {', '.join(allowed)}")
    labels: dict[str, str | float] = {}
    if "meld_emotion" in entry:
        labels["emotion"] = label_name(get_task("meld"), entry["meld_emotion"], "meld_emotion", where)
    labels |= {name: real_number(entry[name], name, where, -1, 1) for name in SCORES if name in entry}
    return Utterance(
        id=texts["id"],
        split=texts["split"] if split == "published" else split_of(texts["language"], texts["dialogue_id"]),
        language=texts["language"],
        text=texts["text"].strip(),
        labels=labels,
        dialogue_id=texts["dialogue_id"],
        turn=whole_number(entry.get("turn"), "turn", where),
        speaker=_text(entry, "speaker", where) if "speaker" in entry else None,
        votes={"emos": _votes(entry.get("votes"), where)},
    )


def _text(entry: dict[str, Any], name: str, where: str) -> str:
    value = entry.get(name)
    if not isinstance(value, str) or not value.strip():
        raise UserError(f"{where}: field {name} is {quote(value)}; it must be a text")
    return value


def _votes(shares: Any, where: str) -> Votes:
    if not isinstance(shares, dict):
        raise UserError(f"{where}: field votes is {quote(shares)}; it must be a mapping of emotions to shares")
    counts = {}
    for emotion, share in shares.items():
        if emotion not in (*EMOTIONS, UNSURE):
            raise UserError(f"{where}: field votes names {quote(emotion)}; known are {', '.join((*EMOTIONS, UNSURE))}")
        number = parse_number(share)
        count = None if number is None or not 0 <= number <= 1 else round(number * ANNOTATORS)
        # Published with four decimals: 0.3333, 0.6667, 1.
        if number is None or count is None or abs(count - number * ANNOTATORS) > 1e-3:
            raise UserError(
                f"{where}: votes of {emotion!r} are {quote(share)}; they must be a share of {ANNOTATORS} annotators"
            )
        counts[emotion] = count
    votes = Votes(counts, ANNOTATORS)
    votes.check(f"{where}: votes")
    return votes


def split_of(language: str, dialogue: str) -> str:
    """The split of a dialogue: 70 % of the hashes are training, 10 % validation, 20 % test."""
    share = int.from_bytes(hashlib.sha256(f"emos/{language}/{dialogue}".encode()).digest()[:8], "big") / 2**64
    return "train" if share < 0.7 else "valid" if share < 0.8 else "test"
