"""The pickles of MMSA: MOSI, MOSEI, CH-SIMS and CH-SIMS v2, aligned or not.

Layout (``aligned_50.pkl``, ``unaligned_50.pkl``, ``ch-simsv2s.pkl``)::

    {"train" | "valid" | "test": {
        "raw_text": N sentences, "id": N texts "video$_$segment", "regression_labels": (N,),
        "audio": (N, T_a, D_a), "vision": (N, T_v, D_v),                # padded with zeros
        "audio_lengths": N, "vision_lengths": N,                        # unaligned files only
        "text": (N, T_t, D_t), "text_bert": (N, 3, T_t),                # optional; ids, mask, segments
        "annotations": N of "Negative", "Neutral", "Positive",          # optional
        "regression_labels_T", "…_A", "…_V": (N,),                      # CH-SIMS: of each modality alone
    }}

Conventions: the video is the dialogue and the segment's number the turn. Lengths cut padding. An aligned file has none, as
its modalities share one time axis: there, steps at both ends are cut from all three alike if the mask of ``text_bert``
excludes them and audio and vision are zero. As in the loaders published with these files, minus infinity in ``audio``
(silence, in COVAREP's logarithms) and NaN in ``vision`` (no face) can be read as 0.

Labels: ``sentiment``, [-3, 3] in the English sets, [-1, 1] in the Chinese ones; ``polarity`` where the annotation is not
neutral; and, if the file has scores of each modality alone, ``sentiment_text``, ``sentiment_audio`` and
``sentiment_vision``, targets for custom tasks. ``classification_labels`` are not read: they only number the annotations.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from llm_mer.data.missing_values import MISSING_VALUES, REFUSE, ZERO, fill_gaps
from llm_mer.data.schema import SPLITS, Utterance
from llm_mer.data.sources.common import trim_padding
from llm_mer.data.sources.numbers import real_number
from llm_mer.data.sources.safe_pickle import load_pickle
from llm_mer.errors import UserError
from llm_mer.prompting.languages import LANGUAGES, detect_corpus_language

FIELDS: tuple[str, ...] = ("raw_text", "id", "audio", "vision", "regression_labels")
LENGTHS: dict[str, str] = {"audio": "audio_lengths", "vision": "vision_lengths"}
SEPARATOR = "$_$"
UNIMODAL: dict[str, str] = {
    "regression_labels_T": "sentiment_text",
    "regression_labels_A": "sentiment_audio",
    "regression_labels_V": "sentiment_vision",
}
"""Field of the file → target."""
ANNOTATIONS = "annotations"
POLARITIES = ("negative", "positive")

logger = logging.getLogger(__name__)


GAPS: dict[str, Callable[[np.ndarray], np.ndarray]] = {"audio": np.isneginf, "vision": np.isnan}
"""How published files mark a value that could not be measured; MMSA's own loader reads it as 0."""


def read_mmsa(path: Path | str, language: str | None = None, missing_values: str = REFUSE) -> Iterator[Utterance]:
    """Read the utterances of an MMSA pickle, which is loaded as a whole; a split is released after its last row.

    Args:
        language: of the sentences; detected if None.
        missing_values: ``zero`` reads :data:`GAPS` as 0 and logs how many; otherwise they are unchanged, and refused when
            the features are stored or read (:mod:`llm_mer.data.missing_values`).

    Raises:
        UserError: a name the safe unpickler does not allow, a missing field, inconsistent lengths, a score out of range.
    """
    path = Path(path)
    if language is not None and language not in LANGUAGES:
        raise UserError(f"language is {language!r}; it must be one of {', '.join(LANGUAGES)}")
    if missing_values not in MISSING_VALUES:
        raise UserError(f"missing_values is {missing_values!r}; it must be one of {', '.join(MISSING_VALUES)}")
    content = load_pickle(path)
    if not isinstance(content, dict) or not set(SPLITS) & set(content):
        raise UserError(f"{path}: not an MMSA pickle: it must be a dict with {', '.join(SPLITS)}")
    ignored = sorted(str(name) for name in set(content) - set(SPLITS))
    if ignored:
        logger.warning("%s: ignored, as they are not named after a split: %s", path, ", ".join(ignored))
    parts = {split: _check_split(content.pop(split), f"{path}: {split}") for split in SPLITS if split in content}
    del content
    if language is None:
        language = detect_corpus_language((str(text) for part in parts.values() for text in part["raw_text"]), str(path))
    for split in list(parts):
        yield from _read_split(parts.pop(split), split, language, f"{path}: {split}", missing_values == ZERO)


def _check_split(part: Any, where: str) -> dict[str, Any]:
    if not isinstance(part, dict):
        raise UserError(f"{where} is a {type(part).__name__}; it must be a dict of fields")
    missing = [name for name in FIELDS if name not in part]
    if not missing and any(name in part for name in LENGTHS.values()):
        missing = [name for name in LENGTHS.values() if name not in part]
    if missing:
        raise UserError(f"{where} has no field {', '.join(missing)}; found {', '.join(sorted(map(str, part)))}")
    count = _row_count(part, "id", where)
    for name in (*FIELDS, *LENGTHS.values(), *UNIMODAL, ANNOTATIONS, "text", "text_bert"):
        if name in part and _row_count(part, name, where) != count:
            raise UserError(f"{where}: field {name} has {_row_count(part, name, where)} rows, id has {count}")
    return part


def _row_count(part: dict[str, Any], name: str, where: str) -> int:
    try:
        return len(part[name])
    except TypeError:
        raise UserError(
            f"{where}: field {name} is a {type(part[name]).__name__}; it must have one row per utterance"
        ) from None


def _used_range(used: np.ndarray) -> slice:
    """Slice from the first to the last used step."""
    steps = np.flatnonzero(used)
    return slice(int(steps[0]), int(steps[-1]) + 1) if len(steps) else slice(0, 0)


def _nonzero_steps(values: np.ndarray) -> np.ndarray:
    """Mask of steps that are not all zero."""
    return np.asarray((values != 0).any(axis=1))


def _token_mask(part: dict[str, Any], row: int, where: str) -> np.ndarray | None:
    """Mask of steps that hold a token."""
    if "text_bert" not in part:
        return None
    tokens = np.asarray(part["text_bert"][row])
    if tokens.ndim != 2 or len(tokens) != 3:
        raise UserError(f"{where}: field text_bert has shape {tokens.shape}; it must be (3, steps)")
    return tokens[1] > 0


def _sequences(part: dict[str, Any], row: int, where: str, gap_counts: Counter[str] | None) -> dict[str, np.ndarray | None]:
    """The three feature sequences of one utterance without padding; ``gap_counts`` counts the gaps that become 0."""
    padded: dict[str, np.ndarray] = {}
    for name in ("text", "audio", "vision"):
        if name in part:
            steps_of_file = trim_padding(part[name][row], len(part[name][row]), name, name, where)
            if steps_of_file is not None:
                padded[name] = steps_of_file
    for name, is_gap in GAPS.items() if gap_counts is not None else ():
        if name in padded:
            padded[name], count = fill_gaps(padded[name], is_gap(padded[name]))
            assert gap_counts is not None
            gap_counts[name] += count
    mask = _token_mask(part, row, where)
    found: dict[str, np.ndarray | None] = {}
    if LENGTHS["audio"] in part:
        for name, length in LENGTHS.items():
            if name in padded:
                found[name] = trim_padding(padded[name], part[length][row], name, length, where)
        if "text" in padded:
            mask_fits = mask is not None and len(mask) == len(padded["text"])
            found["text"] = padded["text"][
                _used_range(mask if mask_fits and mask is not None else _nonzero_steps(padded["text"]))
            ]
    else:
        steps = {name: len(values) for name, values in padded.items()}
        if len(set(steps.values())) > 1:
            raise UserError(
                f"{where}: no field audio_lengths, so the file is aligned, but its modalities have {steps} steps"
            )
        used = np.zeros(next(iter(steps.values()), 0), dtype=bool)
        mask_fits = mask is not None and len(mask) == len(used)
        if mask_fits and mask is not None:
            used |= mask
        for name, values in padded.items():
            # Embeddings of padding are not zero, so text counts only if there is no mask for its padding.
            if name != "text" or not mask_fits:
                used |= _nonzero_steps(values)
        found = {name: values[_used_range(used)] for name, values in padded.items()}
    return {name: values if values is not None and len(values) else None for name, values in found.items()}


def _scores(part: dict[str, Any], name: str, where: str) -> np.ndarray:
    """Scores as ``(N,)``, of whatever type the file has."""
    scores = np.asarray(part[name], dtype=object).reshape(len(part["id"]), -1)
    if scores.shape[1] != 1:
        raise UserError(f"{where}: field {name} has {scores.shape[1]} values a row; it must have one")
    return scores[:, 0]


def _read_split(part: dict[str, Any], split: str, language: str, where: str, fill: bool) -> Iterator[Utterance]:
    gap_counts: Counter[str] | None = Counter() if fill else None
    targets = {"regression_labels": "sentiment", **{name: target for name, target in UNIMODAL.items() if name in part}}
    scores = {name: _scores(part, name, where) for name in targets}
    unknown_annotations = {str(word).strip().lower() for word in part.get(ANNOTATIONS, ())} - {*POLARITIES, "neutral"}
    if unknown_annotations:
        logger.warning("%s: unknown annotations are left out: %s", where, ", ".join(sorted(unknown_annotations)))
    for row in range(len(part["id"])):
        identifier = str(np.asarray(part["id"][row]).reshape(-1)[0])
        video, _, segment = identifier.partition(SEPARATOR)
        location = f"{where}: utterance {identifier!r}"
        features = _sequences(part, row, location, gap_counts)
        has_order = segment.isdecimal()
        labels: dict[str, str | float] = {
            target: real_number(scores[name][row], name, location, -3.0, 3.0) for name, target in targets.items()
        }
        if ANNOTATIONS in part:
            word = str(part[ANNOTATIONS][row]).strip().lower()
            labels.update({"polarity": word} if word in POLARITIES else {})
        yield Utterance(
            id=identifier,
            split=split,
            language=language,
            text=str(part["raw_text"][row]),
            text_features=features.get("text"),
            audio_features=features.get("audio"),
            vision_features=features.get("vision"),
            labels=labels,
            # Without segment numbers there is no order, so there is no dialogue.
            dialogue_id=video if has_order else None,
            turn=int(segment) if has_order else None,
        )
    for name, count in (gap_counts or {}).items():
        if count:
            logger.warning("%s: %d values of %s are not finite, and were read as 0", where, count, name)
