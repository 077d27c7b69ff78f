"""What distinguishes a speaker in the features, estimated without labels and subtracted as far as it is known.

The mean over the steps of utterance ``u`` of speaker ``s`` is, for each feature, a one-way random-effects model:

    m_u = μ + b_s + e_u,        Var b_s = τ²  (between speakers),        Var e_u = σ²  (within a speaker)

``μ``, ``σ²`` and ``τ²`` are estimated on the training split (analysis of variance; Searle, Casella and McCulloch, *Variance
Components*, 1992, section 3.6). The best linear predictor of a speaker's effect from ``n`` utterances with mean ``m̄`` is

    b̂_s = n τ² / (n τ² + σ²) · (m̄ - μ)

and features become ``x - b̂_s``. With many utterances this is the usual normalisation by speaker, with few it is careful, and
a feature in which speakers do not differ (``τ² = 0``) stays as it is.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from llm_mer.data.schema import Utterance
from llm_mer.data.store import FEATURE_COLUMNS
from llm_mer.errors import UserError

FEW_UTTERANCES = 3
"""A speaker known from fewer is worth a warning."""


@dataclass
class UtteranceMeans:
    """Means of a speaker's utterances of one modality, one after another: their number, sum and sum of squares ``(D,)``.

    Utterances with the same features (one recording in two languages, or in several rows) count once.
    """

    count: int = 0
    total: np.ndarray | float = 0.0
    squares: np.ndarray | float = 0.0
    _seen: set[bytes] = field(default_factory=set, repr=False)

    def add(self, features: np.ndarray) -> None:
        """Add an utterance's features ``(T, D)``."""
        digest = hashlib.sha256(np.ascontiguousarray(features).tobytes()).digest()
        if digest in self._seen:
            return
        self._seen.add(digest)
        mean = features.astype(np.float64).mean(axis=0)
        self.count, self.total, self.squares = self.count + 1, self.total + mean, self.squares + mean**2

    @property
    def mean(self) -> np.ndarray:
        """``m̄ (D,)``."""
        return np.asarray(self.total) / self.count


def collect_means(utterances: Iterable[Utterance], modalities: Sequence[str]) -> dict[str, dict[str, UtteranceMeans]]:
    """``{modality: {speaker: means}}`` of the utterances whose speaker is known."""
    found: dict[str, dict[str, UtteranceMeans]] = {modality: {} for modality in modalities}
    for utterance in utterances:
        for modality in modalities:
            features = getattr(utterance, FEATURE_COLUMNS[modality])
            if features is not None and utterance.speaker is not None:
                found[modality].setdefault(utterance.speaker, UtteranceMeans()).add(features)
    return found


@dataclass
class SpeakerEffects:
    """``μ, σ², τ²`` of one modality, ``(D,)`` float64 each."""

    mean: np.ndarray
    within: np.ndarray
    between: np.ndarray

    @classmethod
    def fit(cls, speakers: Mapping[str, UtteranceMeans], where: str) -> SpeakerEffects:
        """Estimate them from ``a`` speakers with ``n_s`` of ``N`` utterances each.

        ::

            σ² = Σ_s Σ_u (m_u - m̄_s)² / (N - a)
            τ² = max(0, (Σ_s n_s (m̄_s - μ)² / (a - 1) - σ²) / n_0),    n_0 = (N - Σ_s n_s² / N) / (a - 1)

        Raises:
            UserError: ``where`` has fewer than two speakers, or none with two utterances.
        """
        count, utterances = len(speakers), sum(means.count for means in speakers.values())
        if count < 2 or utterances == count:
            raise UserError(
                f"{where}: {utterances} different utterances of {count} named speakers; normalisation by speaker needs two "
                "speakers or more, and one with two utterances or more"
            )
        mean = sum((np.asarray(means.total) for means in speakers.values()), np.zeros(1)) / utterances
        # Σ (m_u - m̄_s)² = Σ m_u² - n_s m̄_s²; rounding may leave a little below 0.
        inside = sum((means.squares - means.count * means.mean**2 for means in speakers.values()), np.zeros(1))
        within = np.maximum(inside, 0.0) / (utterances - count)
        spread = sum((means.count * (means.mean - mean) ** 2 for means in speakers.values()), np.zeros(1)) / (count - 1)
        typical = (utterances - sum(means.count**2 for means in speakers.values()) / utterances) / (count - 1)
        return cls(mean, within, np.maximum((spread - within) / typical, 0.0))

    def predict(self, mean: np.ndarray, count: int) -> np.ndarray:
        """``b̂ (D,)`` of a speaker from the mean ``(D,)`` of ``count`` utterances."""
        spread = count * self.between
        weight = np.divide(spread, spread + self.within, out=np.zeros_like(spread), where=spread > 0)
        return weight * (mean - self.mean)

    def to_dict(self) -> dict[str, Any]:
        """Plain lists."""
        return {name: [float(v) for v in getattr(self, name)] for name in ("mean", "within", "between")}

    @classmethod
    def from_dict(cls, entry: Mapping[str, Any]) -> SpeakerEffects:
        """Read :meth:`to_dict` back."""
        return cls(**{name: np.asarray(entry[name], dtype=np.float64) for name in ("mean", "within", "between")})


@dataclass
class KnownSpeakers:
    """Who is known, and from what.

    Attributes:
        effects: of each modality that is normalised by speaker.
        means: ``{modality: {speaker: means}}`` of the utterances that tell. An utterance of nobody among them tells of its
            speaker itself, as one utterance.
    """

    effects: Mapping[str, SpeakerEffects]
    means: Mapping[str, Mapping[str, UtteranceMeans]] = field(default_factory=dict)

    @classmethod
    def of(cls, utterances: Iterable[Utterance], effects: Mapping[str, SpeakerEffects], where: str) -> KnownSpeakers:
        """Everybody who speaks in these utterances.

        Raises:
            UserError: no utterance of ``where`` names its speaker.
        """
        means = collect_means(utterances, list(effects))
        if not any(means.values()):
            raise UserError(
                f"{where}: no utterance names its speaker, and the model normalises {', '.join(effects)} by speaker; give "
                "`speaker` in the data"
            )
        return cls(effects, means)

    def count(self, speaker: str | None) -> int:
        """From how many utterances a speaker is known, in the modality with fewest; 1 for an utterance that stands alone."""
        known = (self.means.get(modality, {}).get(speaker or "") for modality in self.effects)
        return min((means.count for means in known if means is not None), default=1)

    def normalise(self, utterance: Utterance, speakers: Mapping[str, str | None]) -> Utterance:
        """The utterance with ``b̂`` of each modality's speaker (``speakers[modality]``) subtracted from its features."""
        changes: dict[str, Any] = {}
        for modality, effects in self.effects.items():
            features = getattr(utterance, FEATURE_COLUMNS[modality])
            if features is None:
                continue
            means = self.means.get(modality, {}).get(speakers[modality] or "")
            if means is None:
                means = UtteranceMeans()
                means.add(features)
            effect = effects.predict(means.mean, means.count)
            changes[FEATURE_COLUMNS[modality]] = (features - effect).astype(np.float32)
        return dataclasses.replace(utterance, **changes)
