"""Conditions of an evaluation: what the model sees is shuffled, left out or corrupted by a stated amount."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from llm_mer.data.corruption import FeatureCache, ModelInputSpec
from llm_mer.data.dataset import MerDataset
from llm_mer.distributed.process_group import ProcessGroup
from llm_mer.errors import UserError
from llm_mer.features.corruption import CORRUPTIONS

if TYPE_CHECKING:
    from llm_mer.checkpoints.description import CheckpointDescription

NOISY_FEATURES = "noisy_features"
"""Folder of features that were extracted again, in the output folder; another evaluation into it finds them."""
AS_IS, GENERATION, DIALOGUE = "as is", "free generation", "dialogue decoder"


@dataclass(frozen=True)
class Condition:
    """One way in which what the model sees is changed.

    Attributes:
        name: in tables and files. kind: ``shuffle``, ``without`` or a kind of corruption.
        modalities: that are shuffled or left out. amount: of the corruption.
    """

    name: str
    kind: str
    modalities: tuple[str, ...] = ()
    amount: float | None = None


def parse_conditions(texts: Sequence[str], available: Sequence[str]) -> dict[str, Condition]:
    """Conditions by name from ``shuffle:audio,vision``, ``without:text``, ``subsets`` and ``missing:0.3``.

    Raises:
        UserError: another word, a modality the model does not read, an amount out of range, or nothing left.
    """
    found: list[Condition] = []
    for text in texts:
        kind, _, rest = text.partition(":")
        if text == "subsets":
            for number in range(1, 2 ** len(available) - 1):
                kept = [m for i, m in enumerate(available) if number >> i & 1]
                hidden = tuple(m for m in available if m not in kept)
                found.append(Condition(f"{' + '.join(kept)} only", "without", hidden))
        elif kind in CORRUPTIONS:
            found.append(_parse_corruption(text, kind, rest, available))
        else:
            found.append(_changed_modalities(text, kind, rest, available))
    return {condition.name: condition for condition in found}


def _parse_corruption(text: str, kind: str, rest: str, available: Sequence[str]) -> Condition:
    corruption = CORRUPTIONS[kind]
    try:
        amount = float(rest)
    except ValueError:
        example = f"{kind}:0.3" if corruption.is_rate else f"{kind}:10"
        raise UserError(f"condition {text!r}: {rest!r} is no number; write {example}") from None
    corruption.check_amount(amount)
    if corruption.needs is not None and corruption.needs not in available:
        raise UserError(f"condition {text!r}: the checkpoint reads {', '.join(available)}, not {corruption.needs}")
    return Condition(corruption.name(amount), kind, amount=amount)


def _changed_modalities(text: str, kind: str, rest: str, available: Sequence[str]) -> Condition:
    modalities = tuple(part.strip() for part in rest.split(",") if part.strip())
    if kind not in ("shuffle", "without") or not modalities:
        known = ", ".join(f"{name}:{'RATE' if cls.is_rate else 'DB'}" for name, cls in CORRUPTIONS.items())
        raise UserError(f"condition {text!r}: write shuffle:audio,vision, without:text, subsets, or one of {known}")
    unknown = [m for m in modalities if m not in available]
    if unknown:
        raise UserError(f"condition {text!r}: the checkpoint reads {', '.join(available)}, not {', '.join(unknown)}")
    if kind == "without" and set(modalities) == set(available):
        raise UserError(f"condition {text!r} leaves no modality")
    name = f"{' and '.join(modalities)} shuffled" if kind == "shuffle" else f"without {' and '.join(modalities)}"
    return Condition(name, kind, modalities)


def input_spec_of(description: CheckpointDescription, available: Sequence[str], cache: Path | None) -> ModelInputSpec:
    """What the model of a checkpoint reads; features that are made again are kept in ``cache``, or in memory."""
    from llm_mer.data.feature_settings import FeatureSettings

    settings = description.data.get("features")
    return ModelInputSpec(
        tuple(available),
        str(description.model["text_source"]),
        None if settings is None else FeatureSettings.from_dict(settings),
        FeatureCache(cache),
    )


def apply_condition(dataset: MerDataset, condition: Condition, seed: int, input_spec: ModelInputSpec) -> MerDataset:
    """The dataset under a condition.

    Raises:
        UserError: data that cannot be shuffled or corrupted in this way.
    """
    if condition.kind == "shuffle":
        return dataset.shuffled(condition.modalities, seed)
    if condition.kind == "without":
        return dataset.without(condition.modalities)
    assert condition.amount is not None
    return dataset.corrupted(CORRUPTIONS[condition.kind].build(condition.amount, seed, dataset, input_spec))


def precompute_corrupted_features(
    dataset: MerDataset, every_row: bool, processes: ProcessGroup, progress: str | None = None
) -> None:
    """Extract again the features that corrupted utterances need, each process its share.

    ``every_row`` where conversations are read too, which reach beyond the utterances that are asked about.
    """
    rows = range(len(dataset.utterances)) if every_row else dataset.rows
    mine = rows[processes.rank :: processes.world_size]
    shown = progress if processes.is_first else None
    for corruption in dataset.corruptions:
        corruption.prepare((dataset.utterances[row] for row in mine), len(mine), shown)
        processes.gather(None)  # what the others made is read from the cache
