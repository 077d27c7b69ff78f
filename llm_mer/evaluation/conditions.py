"""Conditions of an evaluation: what the model sees is shuffled, left out or corrupted by a stated amount."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from torch import nn

from llm_mer.adapters.base import FusionAdapter
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
READ_OUT, POOLED = "read-out", "pooled"
"""Other answers of the same model to the same questions."""
TRANSCRIPT, FEATURES, ADAPTER = "transcript", "features", "adapter"
"""What is changed apart from a modality: the words alone, every feature sequence, all that the adapter tells."""


@dataclass(frozen=True)
class Condition:
    """One way in which what the model sees is changed.

    Attributes:
        name: in tables and files. kind: ``shuffle``, ``without`` or a kind of corruption.
        modalities: that are shuffled or left out, or one of ``transcript``, ``features`` and ``adapter``.
        amount: of the corruption.
    """

    name: str
    kind: str
    modalities: tuple[str, ...] = ()
    amount: float | None = None

    @property
    def withholds_adapter(self) -> bool:
        """Whether the language model gets no pseudo tokens."""
        return self.kind == "without" and self.modalities == (ADAPTER,)


def parse_conditions(texts: Sequence[str], available: Sequence[str], with_backbone: bool = True) -> dict[str, Condition]:
    """Conditions by name from ``shuffle:audio,vision``, ``without:text``, ``subsets`` and ``missing:0.3``.

    Args:
        available: modalities that the adapter reads. with_backbone: whether a language model answers.

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
        elif (kind, rest) in (("shuffle", TRANSCRIPT), ("without", ADAPTER)):
            if not with_backbone:
                raise UserError(f"condition {text!r}: no language model answers here, only an adapter")
            found.append(_changed_part(kind, rest))
        elif (kind, rest) == ("shuffle", FEATURES):
            found.append(_changed_part(kind, rest))
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


def _changed_part(kind: str, part: str) -> Condition:
    return Condition(f"{part} shuffled" if kind == "shuffle" else f"without {part}", kind, (part,))


def _changed_modalities(text: str, kind: str, rest: str, available: Sequence[str]) -> Condition:
    named = [part.strip() for part in rest.split(",") if part.strip()]
    # In one order and each once: shuffle:vision,audio is what shuffle:audio,vision is.
    modalities = tuple(sorted(set(named), key=lambda m: (m not in available, [*available, m].index(m))))
    if kind not in ("shuffle", "without") or not modalities:
        known = ", ".join(f"{name}:{'RATE' if cls.is_rate else 'DB'}" for name, cls in CORRUPTIONS.items())
        raise UserError(
            f"condition {text!r}: write shuffle:audio,vision, shuffle:transcript, shuffle:features, "
            f"without:text, without:adapter, subsets, or one of {known}"
        )
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
    if condition.withholds_adapter:
        return dataset  # the same questions; :func:`withhold_adapter` changes the model
    if condition.kind == "without":
        return dataset.without(condition.modalities)
    assert condition.amount is not None
    return dataset.corrupted(CORRUPTIONS[condition.kind].build(condition.amount, seed, dataset, input_spec))


@contextmanager
def withhold_adapter(adapter: nn.Module, condition: Condition | None) -> Iterator[None]:
    """Give the language model no pseudo tokens where the condition (None: as is) says so.

    Their places stay in the prompt and hold what a training with ``pseudo_token_dropout`` or ``words_first`` puts there:
    zero vectors, with ``pseudo_token_gate`` its learned constants. The adapter's own head answers as ever.
    """
    withheld = condition is not None and condition.withholds_adapter
    if not withheld:
        yield
        return
    assert isinstance(adapter, FusionAdapter)
    before, adapter.withhold_tokens = adapter.withhold_tokens, True
    try:
        yield
    finally:
        adapter.withhold_tokens = before


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
