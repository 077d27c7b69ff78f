"""Real sentences joined with real voices, of the same emotion in a given share of cases.

A data set for which it is known by construction what words, voice and both reveal. A recipe (YAML) names its parts::

    sentences: meld:../shared/data/meld        # format and path of the sentences
    voices: ravdess:../shared/data/ravdess12   # format and path of the voices
    emotions: [neutral, joy, sadness, anger, surprise]
    agreement: 0.8
    rows: {train: 1200, valid: 300, test: 600}
    least_words: 4
    seed: 1111

Paths are relative to the recipe's folder. Row ``i`` of a split has the emotion ``y = emotions[i mod C]``, a voice ``s`` of
emotion ``y``, and a sentence ``w`` of emotion ``e``; the target is the voice's emotion, ``y``. In the share ``q``
(``agreement``) of each emotion's rows, exact to one row, ``e = y``; in the others ``e`` goes through the other
emotions in turn.

Given ``y``, sentence and voice are drawn independently of one another and the emotions are equally frequent, so

- a classifier that knows only the sentence's emotion has an accuracy of at most ``max(q, (1 − q) / (C − 1))``;
- a classifier that knows the voice's emotion is always right;
- the optimal combination of both is the product of their posteriors: ``p(y | w, s) ∝ p(y | w) · p(y | s)``.

Sentences and voices stay in the split that their own format gives them, so no speaker of a voice and no dialogue of a
sentence is in two splits. Within a split each is reused only when all of its emotion have been used, and a row is not part
of a conversation: ``dialogue_id`` stays empty, ``speaker`` is the voice's. Labels are ``emotion`` (the target) and
``sentence_emotion``; a row is tagged ``agree`` or ``conflict``, and its id is ``SPLIT-ROW.SENTENCE.VOICE``.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from llm_mer.data.schema import SPLITS, Utterance
from llm_mer.data.sources.common import require_file
from llm_mer.data.sources.meld import read_meld
from llm_mer.data.sources.ravdess import read_ravdess
from llm_mer.errors import UserError
from llm_mer.storage.yaml_text import read_yaml

SENTENCES: dict[str, Callable[..., Iterable[Utterance]]] = {"meld": read_meld}
VOICES: dict[str, Callable[..., Iterable[Utterance]]] = {"ravdess": read_ravdess}


@dataclass(frozen=True)
class JoinedRecipe:
    """Parts and proportions of a joined data set; see the module docstring.

    Attributes:
        sentences, voices: ``FORMAT:PATH``. emotions: at least two, distinct; both sets must have each of them in every
            split.
        agreement: ``q`` in [0, 1]. rows: utterances of each split. least_words: shorter sentences are left out.
    """

    sentences: str
    voices: str
    emotions: tuple[str, ...]
    agreement: float
    rows: dict[str, int]
    least_words: int = 1
    seed: int = 1111

    @classmethod
    def load(cls, path: Path) -> JoinedRecipe:
        """Read a recipe. Raises ``UserError`` naming the file and the field."""
        entry = read_yaml(require_file(path, "it holds a recipe: sentences, voices, emotions, agreement, rows"))
        if not isinstance(entry, dict):
            raise UserError(f"{path}: a recipe is a mapping, found {type(entry).__name__}")
        known = {f.name: f for f in fields(cls)}
        for name in entry:
            if name not in known:
                raise UserError(f"{path}: unknown field {name!r}; known are {', '.join(known)}")
        for name, default in (("least_words", 1), ("seed", 1111)):
            entry.setdefault(name, default)
        missing = [name for name in known if name not in entry]
        if missing:
            raise UserError(f"{path}: no field {missing[0]!r}")

        def field_error(name: str, expected: str) -> UserError:
            return UserError(f"{path}: field {name} is {entry[name]!r}; it must be {expected}")

        for name, formats in (("sentences", SENTENCES), ("voices", VOICES)):
            if not isinstance(entry[name], str) or entry[name].partition(":")[0] not in formats:
                raise field_error(name, f"FORMAT:PATH with one of the formats {', '.join(formats)}")
        emotions, rows, agreement = entry["emotions"], entry["rows"], entry["agreement"]
        names = isinstance(emotions, list) and all(isinstance(e, str) for e in emotions)
        if not names or len(set(emotions)) != len(emotions) or len(emotions) < 2:
            raise field_error("emotions", "a list of at least two different labels")
        if not _is_number(agreement) or not 0 <= agreement <= 1:
            raise field_error("agreement", "a number in [0, 1]")
        if not isinstance(rows, dict) or not rows or set(rows) - set(SPLITS):
            raise field_error("rows", f"numbers of rows by split ({', '.join(SPLITS)})")
        if not all(_is_whole(count) and count >= 1 for count in rows.values()):
            raise field_error("rows", "whole numbers of at least 1, by split")
        for name, minimum in (("least_words", 1), ("seed", 0)):
            if not _is_whole(entry[name]) or entry[name] < minimum:
                raise field_error(name, f"a whole number of at least {minimum}")
        return cls(**{**entry, "emotions": tuple(emotions), "agreement": float(agreement)})

    @property
    def words_ceiling(self) -> float:
        """Accuracy of the best answer from the sentence's emotion alone: ``max(q, (1 − q) / (C − 1))``."""
        return max(self.agreement, (1 - self.agreement) / (len(self.emotions) - 1))


def read_joined(path: Path | str) -> Iterator[Utterance]:
    """Read the rows of a recipe, split by split, in an order determined by its seed.

    Raises:
        UserError: a recipe that cannot be read, a split in which sentences or voices lack one of the emotions, and errors
            of the two formats.
    """
    path = Path(path)
    recipe = JoinedRecipe.load(path)
    sentences = _by_emotion(recipe.sentences, SENTENCES, path.parent, recipe.least_words)
    voices = _by_emotion(recipe.voices, VOICES, path.parent, None)
    for split in SPLITS:
        if count := recipe.rows.get(split):
            for kind, found in (("sentences", sentences), ("voices", voices)):
                for emotion in recipe.emotions:
                    if (split, emotion) not in found:
                        raise UserError(f"{path}: the {kind} have no {emotion} in the split {split}")
            yield from _join(recipe, split, count, sentences, voices)


def _join(
    recipe: JoinedRecipe,
    split: str,
    count: int,
    sentences: dict[tuple[str, str], list[Utterance]],
    voices: dict[tuple[str, str], list[Utterance]],
) -> Iterator[Utterance]:
    emotions = recipe.emotions
    draw_sentence = _ShuffledPools(sentences, random.Random(f"{recipe.seed} {split} sentences"))
    draw_voice = _ShuffledPools(voices, random.Random(f"{recipe.seed} {split} voices"))
    pairs: list[tuple[str, str]] = []  # (emotion of the voice, emotion of the sentence)
    for emotion_index, emotion in enumerate(emotions):
        total = len(range(emotion_index, count, len(emotions)))
        agreeing = round(recipe.agreement * total)
        others = [e for e in emotions if e != emotion]
        # Each emotion starts at a different one of the others, so that a few rows do not all conflict with the same one.
        pairs += [(emotion, emotion)] * agreeing
        pairs += [(emotion, others[(emotion_index + i) % len(others)]) for i in range(total - agreeing)]
    random.Random(f"{recipe.seed} {split} order").shuffle(pairs)
    for row, (emotion, sentence_emotion) in enumerate(pairs):
        sentence, voice = draw_sentence(split, sentence_emotion), draw_voice(split, emotion)
        yield Utterance(
            id=f"{split}-{row:05d}.{sentence.id}.{voice.id}",
            split=split,
            language=sentence.language,
            text=sentence.text,
            audio=voice.audio,
            audio_features=voice.audio_features,
            labels={"emotion": emotion, "sentence_emotion": sentence_emotion},
            speaker=voice.speaker,
            tags=("agree" if sentence_emotion == emotion else "conflict",),
        )


@dataclass
class _ShuffledPools:
    """Draws utterances of a split and emotion in random order; none is repeated before all were drawn."""

    pools: dict[tuple[str, str], list[Utterance]]
    rng: random.Random
    remaining: dict[tuple[str, str], list[Utterance]] = field(default_factory=dict)

    def __call__(self, split: str, emotion: str) -> Utterance:
        remaining = self.remaining.setdefault((split, emotion), [])
        if not remaining:
            remaining.extend(self.pools[split, emotion])
            self.rng.shuffle(remaining)
        return remaining.pop()


def _by_emotion(
    source: str, formats: dict[str, Callable[..., Iterable[Utterance]]], folder: Path, least_words: int | None
) -> dict[tuple[str, str], list[Utterance]]:
    """Group utterances by split and emotion, leaving out unusable ones."""
    name, _, path = source.partition(":")
    found: dict[tuple[str, str], list[Utterance]] = {}
    for utterance in formats[name](folder / path):
        usable = least_words is None or len((utterance.text or "").split()) >= least_words
        if usable and "emotion" in utterance.labels:
            found.setdefault((utterance.split, str(utterance.labels["emotion"])), []).append(utterance)
    return found


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
