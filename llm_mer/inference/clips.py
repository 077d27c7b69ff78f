"""What a caller in Python says of an utterance, as an utterance."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from llm_mer.data.schema import Utterance
from llm_mer.errors import UserError
from llm_mer.prompting.languages import LANGUAGES

MEDIA = ("video", "audio")
FIELDS: tuple[str, ...] = (
    "id",
    *MEDIA,
    "text",
    "language",
    "text_features",
    "audio_features",
    "vision_features",
    "labels",
    "dialogue_id",
    "turn",
    "speaker",
    "tags",
)
"""What may be said of an utterance: ``video`` and ``audio`` are files, the rest is as in :class:`Utterance`."""


def utterance_from_fields(fields: Mapping[str, Any], place: int | None = None) -> Utterance:
    """An utterance from any of :data:`FIELDS`.

    A video's sound is used too, if it has any and no ``audio`` is named. Without ``language`` the transcript tells it.
    Where there is none it stays open, and is refused later unless the checkpoint speaks one language only.
    Without ``id`` it is the file's name without its ending, or ``text``; ``place`` in a list is added to it (``clip-0``).

    Raises:
        UserError: an unknown field, a file that is not there, a field of the wrong kind, or a language that cannot be told.
    """
    unknown = sorted(set(fields) - set(FIELDS))
    if unknown:
        raise UserError(f"utterance: unknown fields {unknown}; it may have {', '.join(FIELDS)}")
    given = {name: value for name, value in fields.items() if value is not None}
    for name in MEDIA:
        if name in given:
            given[name] = str(given[name])
            if not Path(given[name]).is_file():
                raise UserError(f"{name} {given[name]}: no such file")
    for name in ("id", "text", "language"):
        if not isinstance(given.get(name, ""), str):
            raise UserError(f"{name}: {given[name]!r} is not a text")
    stem = next((Path(given[name]).stem for name in MEDIA if name in given), "text")
    video = given.pop("video", None)
    if video is not None and "audio" not in given:
        from llm_mer.features.media import audio_source

        given["audio"] = audio_source(video)
    given.setdefault("id", stem if place is None else f"{stem}-{place}")
    if given.get("language", LANGUAGES[0]) not in LANGUAGES:
        raise UserError(f"language: {given['language']!r} is not one of {', '.join(LANGUAGES)}")
    return Utterance(split="test", vision=video, **given)


def as_utterance(entry: Utterance | Mapping[str, Any], place: int) -> Utterance:
    """An utterance of a list, given as one or by its fields. Raises :class:`UserError` for anything else."""
    if isinstance(entry, Utterance):
        return entry
    if isinstance(entry, Mapping):
        return utterance_from_fields(entry, place)
    raise UserError(f"utterances: item {place} is a {type(entry).__name__}; give an Utterance or a dict of its fields")
