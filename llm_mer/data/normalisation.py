"""How each modality's features are normalised: over the training data, by speaker, by utterance, or not at all.

Nothing heavy is imported here: the options of a training list the kinds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from llm_mer.errors import UserError

GLOBAL, SPEAKER, UTTERANCE, NONE = "global", "speaker", "utterance", "none"
MODALITIES = ("text", "audio", "vision")
NORMALISATIONS: dict[str, str] = {
    GLOBAL: "by the mean and the deviation over all training steps",
    SPEAKER: "as global, after what distinguishes the speaker was subtracted (llm_mer.data.speaker_effects)",
    UTTERANCE: "by the mean and the deviation over the utterance's own steps",
    NONE: "as they are, for features that live in a space of their own",
}


def parse_normalisation(entries: Sequence[str]) -> dict[str, str]:
    """``["audio=speaker"]`` → ``{"audio": "speaker"}``; ``global``, the default, is left out.

    Raises:
        UserError: an entry that is not ``MODALITY=KIND``, or a modality with two.
    """
    found: dict[str, str] = {}
    for entry in entries:
        modality, _, kind = (part.strip() for part in entry.partition("="))
        if modality not in MODALITIES or kind not in NORMALISATIONS:
            raise UserError(
                f"normalisation: {entry!r} is not MODALITY=KIND, e.g. audio=speaker; modalities are "
                f"{', '.join(MODALITIES)}, kinds {', '.join(NORMALISATIONS)}"
            )
        if modality in found:
            raise UserError(f"normalisation: {modality!r} has two kinds, {found[modality]} and {kind}; name one")
        found[modality] = kind
    return {modality: kind for modality, kind in found.items() if kind != GLOBAL}


def check_normalised_modalities(kinds: Mapping[str, str], read: Sequence[str]) -> None:
    """Raises :class:`UserError` for a kind of a modality whose features the model does not read."""
    for modality, kind in kinds.items():
        if modality not in read:
            raise UserError(
                f"normalisation: {modality}={kind} has no effect: the model reads features of {', '.join(read) or 'nothing'}"
            )
