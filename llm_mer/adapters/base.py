"""The contract between a fusion adapter and everything around it.

An adapter turns the feature sequences of an utterance into a few *pseudo tokens* of the backbone's embedding size.
Nothing in :mod:`llm_mer.adapters` imports anything else of the project (:mod:`llm_mer.errors` aside), so an adapter can
be lifted out and tested alone, or live in a package of its own.

Shapes: ``B`` batch, ``T_m`` steps of modality ``m``, ``D_m`` its feature size, ``d`` the adapter's hidden size, ``H``
the backbone's embedding size, ``K`` pseudo tokens, ``C`` classes, ``U`` utterances of a context window.
"""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor, nn

from llm_mer.adapters.diagnostics import DiagnosticInfo
from llm_mer.adapters.label_token import LabelToken
from llm_mer.adapters.layers import (
    AuxiliaryHead,
    ModalityProjection,
    PseudoTokenProjection,
    check_on_device,
    score_unit,
)
from llm_mer.adapters.pseudo_token_gate import PseudoTokenGate, drop_rows

MODALITIES: tuple[str, ...] = ("text", "audio", "vision")

IGNORE_CLASS = -100
"""Class target of a sample that has no class in the adapter's label set (the value ``cross_entropy`` ignores)."""


@dataclass
class ModalitySequence:
    """One modality of a batch.

    Attributes:
        features: ``(B, T_m, D_m)``; values at padded steps are never read, NaN included.
        mask: ``(B, T_m)`` bool, True at real steps. A row without a True step is a sample that lacks the modality.
    """

    features: Tensor
    mask: Tensor

    @property
    def present(self) -> Tensor:
        """``(B,)`` bool, False where the sample lacks this modality."""
        return self.mask.any(dim=1)


@dataclass
class ConversationContext:
    """Utterance-level history of each sample: one vector per modality and utterance of a context window.

    Attributes:
        text, audio, vision: ``(B, U, D_m)`` utterance vectors, or None where the data has no such modality. ``D_m`` is
            :attr:`AdapterConfig.context_sizes`, not the frame-level feature size.
        text_mask, audio_mask, vision_mask: ``(B, U)`` bool, True where the utterance exists and has the modality.
        mask: ``(B, U)`` bool, True where the window holds an utterance.
        speakers: ``(B, U)`` long, 0 for the target's speaker, 1, 2, … for others in order of appearance, -1 where
            unknown or padded.
        target: ``(B,)`` long, position of the target in the window (the last utterance of a causal window).
    """

    mask: Tensor
    speakers: Tensor
    target: Tensor
    text: Tensor | None = None
    audio: Tensor | None = None
    vision: Tensor | None = None
    text_mask: Tensor | None = None
    audio_mask: Tensor | None = None
    vision_mask: Tensor | None = None


@dataclass
class FusionTargets:
    """What auxiliary losses learn from; absent at inference.

    Attributes:
        classes: ``(B,)`` long in ``[0, C)``, :data:`IGNORE_CLASS` where the sample has none.
        scores: ``(B,)`` float in the configured score range, NaN where the sample has none.
    """

    classes: Tensor | None = None
    scores: Tensor | None = None


@dataclass
class FusionInputs:
    """Everything an adapter may read."""

    text: ModalitySequence | None = None
    audio: ModalitySequence | None = None
    vision: ModalitySequence | None = None
    context: ConversationContext | None = None
    targets: FusionTargets | None = None

    def sequence(self, modality: str) -> ModalitySequence | None:
        """The sequence of ``modality``, one of :data:`MODALITIES`."""
        return {"text": self.text, "audio": self.audio, "vision": self.vision}[modality]

    @property
    def batch_size(self) -> int:
        """``B``. Raises ``ValueError`` when no modality is given at all."""
        for modality in MODALITIES:
            sequence = self.sequence(modality)
            if sequence is not None:
                return int(sequence.features.shape[0])
        raise ValueError("no modality given: an adapter needs at least one of text, audio, vision")


@dataclass
class FusedFeatures:
    """What an adapter's own mathematics hands to the shared ending (:meth:`FusionAdapter.forward`).

    Attributes:
        vector: ``(B, d_out)`` fused utterance representation.
        aux_losses: ``{name: scalar}``, unweighted means over the batch.
        diagnostics: ``{name: (B, ...)}``, detached by the caller.
        logits, scores: ``(B, C)`` and ``(B,)`` when the adapter defines its own head; None leaves it to
            :class:`~llm_mer.adapters.layers.AuxiliaryHead`.
    """

    vector: Tensor
    aux_losses: dict[str, Tensor] = field(default_factory=dict)
    diagnostics: dict[str, Tensor] = field(default_factory=dict)
    logits: Tensor | None = None
    scores: Tensor | None = None


@dataclass
class FusionOutput:
    """What an adapter emits.

    Attributes:
        pseudo_tokens: ``(B, K, H)``.
        aux_losses: ``{name: scalar}``, unweighted; the trainer weighs and logs each by name.
        diagnostics: ``{name: (B, ...)}``, detached: gates, expert weights, attention.
        logits: ``(B, C)`` of the adapter's own classifier, or None.
        scores: ``(B,)`` of the adapter's own regressor in units of the score range, or None.
        features: ``(B, d_out)`` fused representation, detached (for pictures of the feature space).
    """

    pseudo_tokens: Tensor
    aux_losses: dict[str, Tensor] = field(default_factory=dict)
    diagnostics: dict[str, Tensor] = field(default_factory=dict)
    logits: Tensor | None = None
    scores: Tensor | None = None
    features: Tensor | None = None


MODALITY_ABLATIONS: dict[str, dict[str, bool | str]] = {
    "w/o text": {"use_text": False},
    "w/o audio": {"use_audio": False},
    "w/o vision": {"use_vision": False},
}
"""Ablations every adapter has."""


@dataclass
class AdapterConfig:
    """What every adapter is built from. Feature and backbone sizes are filled in from the data and the backbone."""

    hidden_size: int = field(default=128, metadata={"help": "the adapter's hidden size d"})
    num_pseudo_tokens: int = field(
        default=4, metadata={"help": "pseudo tokens K put into the prompt; 0: the language model gets the text alone"}
    )
    token_expansion: str = field(
        default="linear",
        metadata={
            "help": "how one fused vector becomes K pseudo tokens; labels: as linear, but the last one is the label words, "
            "as probable as the adapter's own classifier finds them",
            "choices": ["linear", "repeat", "labels"],
        },
    )
    pseudo_token_gate: bool = field(
        default=False,
        metadata={"help": "pseudo tokens are learned constants plus tanh(g) times what was fused, g = 0 at the start"},
    )
    pseudo_token_dropout: float = field(
        default=0.0,
        metadata={
            "help": "chance that the language model gets none of a training utterance's pseudo tokens (constants or zeros)"
        },
    )
    num_heads: int = field(default=4, metadata={"help": "attention heads"})
    dropout: float = field(default=0.1, metadata={"help": "dropout inside the adapter"})
    modality_dropout: float = field(
        default=0.0,
        metadata={"help": "chance of hiding each modality of a training sample (one always stays)"},
    )
    feature_noise: float = field(
        default=0.0,
        metadata={"help": "Gaussian noise on the features in training, in units of each sequence's own root mean square"},
    )
    use_text: bool = field(default=True, metadata={"help": "let the adapter read text (ablation: w/o text)"})
    use_audio: bool = field(default=True, metadata={"help": "let the adapter read audio (ablation: w/o audio)"})
    use_vision: bool = field(default=True, metadata={"help": "let the adapter read vision (ablation: w/o vision)"})
    auxiliary_head: bool = field(
        default=False, metadata={"help": "give the adapter its own classifier and regressor beside the language model"}
    )

    # Filled in from the data, the tasks and the backbone; not options of the command line.
    feature_sizes: dict[str, int] = field(default_factory=dict, metadata={"derived": True})
    """``{modality: D_m}``; a modality that is absent here does not exist in the data."""
    context_sizes: dict[str, int] = field(default_factory=dict, metadata={"derived": True})
    """``{modality: D_m}`` of utterance vectors in :class:`ConversationContext`."""
    backbone_size: int = field(default=0, metadata={"derived": True})
    """``H``."""
    backbone_embedding_norm: float = field(default=1.0, metadata={"derived": True})
    """Mean row norm of the backbone's embedding table: the scale pseudo tokens start at."""
    num_classes: int = field(default=0, metadata={"derived": True})
    """``C`` of the first classification task, 0 without one."""
    score_range: tuple[float, float] | None = field(default=None, metadata={"derived": True})
    """Range of the first regression task, None without one."""

    @property
    def modalities(self) -> tuple[str, ...]:
        """Modalities that exist in the data and are switched on, in canonical order."""
        use = {"text": self.use_text, "audio": self.use_audio, "vision": self.use_vision}
        return tuple(m for m in MODALITIES if use[m] and self.feature_sizes.get(m, 0) > 0)


class FusionAdapter(nn.Module, ABC):
    """Base of all adapters: projects modalities, calls :meth:`fuse`, emits pseudo tokens and auxiliary predictions.

    Invariants every subclass keeps, each with a test for all adapters: batch independence, padding invariance (NaN in
    padded steps included), any proper subset of modalities, gradients to every parameter, bf16 autocast within 2e-2
    of float32, core equations equal to a float64 NumPy rewrite, pseudo tokens at the backbone's embedding norm.

    Subclasses set :attr:`name`, :attr:`config_class`, :attr:`default_loss_weights`, implement :meth:`fuse` and report
    the width of its vector in :attr:`output_size`.
    """

    name: ClassVar[str]
    config_class: ClassVar[type[AdapterConfig]] = AdapterConfig
    default_loss_weights: ClassVar[dict[str, float]] = {"ce": 1.0, "l1": 1.0}
    """Weight of each auxiliary loss unless the configuration overrides it by name."""
    has_classifier: ClassVar[bool] = False
    """True when the adapter has a classifier of its own for a classification task, without ``auxiliary_head``."""
    uses_context: ClassVar[bool] = False
    """True when the adapter reads :attr:`FusionInputs.context`, so the loader builds windows."""
    ablations: ClassVar[dict[str, dict[str, bool | str]]] = {}
    """Rows of the paper's ablation table: the options each one changes. :data:`MODALITY_ABLATIONS` come on top."""
    example_options: ClassVar[tuple[dict[str, bool | int | str], ...]] = ({},)
    """Small configurations the contract tests build, the default first, one for each option value that computes in another
    way; sizes of the adapter's own are set here to what keeps a test quick."""

    def __init__(self, config: AdapterConfig) -> None:
        super().__init__()
        if not config.modalities:
            raise ValueError(
                f"the adapter has no modality to read: the data offers {sorted(config.feature_sizes)} and "
                f"use_text={config.use_text}, use_audio={config.use_audio}, use_vision={config.use_vision}"
            )
        for name in ("dropout", "modality_dropout", "pseudo_token_dropout"):
            if not 0.0 <= getattr(config, name) < 1.0:
                raise ValueError(f"{name} is {getattr(config, name)!r}; it must lie in [0, 1)")
        if config.feature_noise < 0.0:
            raise ValueError(f"feature_noise is {config.feature_noise!r}; it must be at least 0")
        self.config = config
        self.projections = nn.ModuleDict(
            {
                m: ModalityProjection(config.feature_sizes[m], config.hidden_size, config.dropout)
                for m in self.frame_modalities
            }
        )
        self.build()
        self.head: AuxiliaryHead | None = None
        if config.auxiliary_head:
            self.head = AuxiliaryHead(self.output_size, config.num_classes, config.score_range, config.dropout)
        self.label_token: LabelToken | None = None
        if config.num_pseudo_tokens > 0 and config.token_expansion == "labels":
            self._check_classifier()
            self.label_token = LabelToken(config.num_classes, config.backbone_size, config.backbone_embedding_norm)
        projected = config.num_pseudo_tokens - (self.label_token is not None)
        self.pseudo_tokens: PseudoTokenProjection | None = None
        if projected > 0:
            self.pseudo_tokens = PseudoTokenProjection(
                self.output_size,
                config.backbone_size,
                projected,
                "linear" if self.label_token is not None else config.token_expansion,
                config.backbone_embedding_norm,
            )
        self.token_gate: PseudoTokenGate | None = None
        if config.num_pseudo_tokens > 0 and config.pseudo_token_gate:
            self.token_gate = PseudoTokenGate(config.num_pseudo_tokens, config.backbone_size, config.backbone_embedding_norm)
        self.withhold_tokens = False
        """While True the language model gets no pseudo token of any utterance: set by a trainer that teaches it words
        first, and by an evaluation without the adapter."""

    @property
    def frame_modalities(self) -> tuple[str, ...]:
        """Modalities whose frame sequences are projected to ``d``; adapters that read only vectors return ``()``."""
        return self.config.modalities

    @property
    def step_limit(self) -> int | None:
        """Most steps that are read of a feature sequence: None for all it is given, 0 where utterance vectors are read
        alone, which are made of a whole clip."""
        return None

    @property
    def output_size(self) -> int:
        """Width of the vector that :meth:`fuse` returns."""
        return self.config.hidden_size

    @abstractmethod
    def build(self) -> None:
        """Create the adapter's modules (called once, after the shared projections exist)."""

    @abstractmethod
    def fuse(self, inputs: FusionInputs) -> FusedFeatures:
        """The paper's mathematics, from masked sequences to one vector per sample."""

    def forward(self, inputs: FusionInputs) -> FusionOutput:
        """Fuse, then project to pseudo tokens and auxiliary predictions.

        Raises:
            ValueError: no sequence was given, or on a CPU, where that is read, a sample has no modality at all. Elsewhere
                the device's own assertion fails.
        """
        inputs = self.select_modalities(inputs)
        fused = self.fuse(inputs)
        logits, scores = fused.logits, fused.scores
        losses = dict(fused.aux_losses)
        if self.head is not None:
            head = self.head(fused.vector)
            logits = head.logits if logits is None else logits
            scores = head.scores if scores is None else scores
            if inputs.targets is not None:
                targets, unit = inputs.targets, score_unit(self.config.score_range)
                losses = {**self.head.losses(head, targets.classes, targets.scores, unit), **losses}
        tokens = self._make_tokens(fused.vector, logits)
        diagnostics = {name: value.detach() for name, value in fused.diagnostics.items()}
        return FusionOutput(tokens, losses, diagnostics, logits, scores, fused.vector.detach())

    def _check_classifier(self) -> None:
        """Raises ``ValueError`` where there is no classifier whose answer a label token could say."""
        if not self.config.num_classes:
            raise ValueError("token_expansion labels needs a classification task; choose linear or repeat")
        if not (self.config.auxiliary_head or self.has_classifier):
            raise ValueError("token_expansion labels says what the adapter's own head answers; set auxiliary_head: true")

    def _make_tokens(self, vector: Tensor, logits: Tensor | None) -> Tensor:
        """Pseudo tokens ``(B, K, H)`` of fused vectors ``(B, d_out)`` and the own classifier's ``logits (B, C)``."""
        parts = [] if self.pseudo_tokens is None else [self.pseudo_tokens(vector)]
        if self.label_token is not None:
            assert logits is not None
            label = self.label_token(logits)
            parts.append(label.to(parts[0].dtype) if parts else label)
        if not parts:
            return vector.new_zeros(vector.shape[0], 0, max(self.config.backbone_size, 1))
        return self._pass_on(torch.cat(parts, dim=1))

    def _pass_on(self, tokens: Tensor) -> Tensor:
        """Pseudo tokens as the language model gets them: gated, and none of them in a row that is dropped."""
        gate = self.token_gate
        absent = torch.zeros_like(tokens) if gate is None else gate.without_features(tokens)
        passed = tokens if gate is None else gate(tokens)
        rate = self.config.pseudo_token_dropout if self.training else 0.0
        if self.withhold_tokens:
            rate = 1.0
        return drop_rows(passed, absent, rate) if rate > 0 else passed

    def project(self, inputs: FusionInputs, modality: str) -> tuple[Tensor, Tensor]:
        """Project one modality to ``d``: ``(B, T_m, d)`` and its mask; a missing one is the learned stand-in, one step."""
        sequence = inputs.sequence(modality)
        projection = self.projections[modality]
        assert isinstance(projection, ModalityProjection)
        if sequence is None:
            return projection.stand_in(inputs.batch_size)
        projected: tuple[Tensor, Tensor] = projection(sequence.features, sequence.mask)
        return projected

    def select_modalities(self, inputs: FusionInputs) -> FusionInputs:
        """Hide modalities that are switched off or dropped for training, and refuse a sample without any.

        Masks, not values, decide what is read, so hiding a modality is clearing its mask.
        """
        batch = inputs.batch_size
        masks: dict[str, Tensor] = {}
        for modality in self.config.modalities:
            sequence = inputs.sequence(modality)
            if sequence is not None:
                masks[modality] = sequence.mask.bool()
        if not masks:
            raise ValueError(f"no usable modality given: this adapter reads {', '.join(self.config.modalities)}")
        present = torch.stack([mask.any(dim=1) for mask in masks.values()], dim=1)  # (B, M)
        if self.training and self.config.modality_dropout > 0 and len(masks) > 1:
            present = self._drop_modalities(present)
        if not check_on_device(present.any(dim=1).all(), "a sample of the batch has no modality at all"):
            rows = [i for i in range(batch) if not bool(present[i].any())]
            raise ValueError(
                f"samples {rows} of the batch have no modality at all; this adapter reads "
                f"{', '.join(self.config.modalities)}"
            )
        selected: dict[str, ModalitySequence | None] = dict.fromkeys(MODALITIES)
        for column, (modality, mask) in enumerate(masks.items()):
            sequence = inputs.sequence(modality)
            assert sequence is not None
            features = self._with_noise(sequence.features, mask)
            selected[modality] = ModalitySequence(features, mask & present[:, column : column + 1])
        return FusionInputs(
            text=selected["text"],
            audio=selected["audio"],
            vision=selected["vision"],
            context=self._noisy_context(inputs.context),
            targets=inputs.targets,
        )

    def _with_noise(self, features: Tensor, mask: Tensor) -> Tensor:
        """``x + σ · rms(x) · ε`` in training, the root mean square over the sample's own real steps: ``(B, T, D)``."""
        if not self.training or self.config.feature_noise == 0.0:
            return features
        clean = features.masked_fill(~mask.unsqueeze(-1), 0.0)
        power = clean.pow(2).sum(dim=(1, 2)) / (mask.sum(dim=1).clamp(min=1) * features.shape[-1])
        return clean + self.config.feature_noise * power.sqrt()[:, None, None] * torch.randn_like(clean)

    def _noisy_context(self, context: ConversationContext | None) -> ConversationContext | None:
        """The same noise on every utterance vector of a conversation."""
        if context is None or not self.training or self.config.feature_noise == 0.0:
            return context
        changes: dict[str, Tensor] = {}
        for modality in MODALITIES:
            vectors: Tensor | None = getattr(context, modality)
            if vectors is not None:
                own: Tensor | None = getattr(context, f"{modality}_mask")
                known = context.mask.bool() if own is None else context.mask.bool() & own.bool()
                flat = self._with_noise(vectors.flatten(0, 1).unsqueeze(1), known.flatten(0, 1).unsqueeze(1))
                changes[modality] = flat.view_as(vectors)
        return dataclasses.replace(context, **changes)

    def loss_count(self, name: str, classes: int, scores: int) -> int | None:
        """How many samples ``aux_losses[name]`` is a mean over, in a batch with so many known classes and known scores.

        None for a loss of the batch as a whole. A trainer that splits a batch weighs the parts by it.
        """
        return {"ce": classes, "l1": scores}.get(name)

    def initialise_from_backbone(self, label_vectors: Tensor) -> None:
        """Hook, once before training: mean token embeddings of the label words ``(C, H)``. Does nothing by default."""

    def on_epoch_end(self) -> dict[str, float]:
        """Hook, once after every training epoch on every rank; returns values to log. Does nothing by default."""
        return {}

    def followed_vectors(self) -> dict[str, Tensor]:
        """Vectors whose way through training is worth a picture, ``{name: (n, d)}``; written at every epoch's end. None by
        default."""
        return {}

    def training_only_parameters(self) -> tuple[str, ...]:
        """State-dict prefixes (below the adapter) that inference does not need and a final checkpoint leaves out."""
        return ()

    def diagnostic_info(self, labels: Sequence[str] = ()) -> list[DiagnosticInfo]:
        """Titles, part names and kinds of everything this adapter tells about itself, in the order they are shown.

        Reports and readable lines show nothing else of them. A diagnostic that is not listed is shown under its key, its
        components numbered; a logged value that is not listed is not drawn.

        Args:
            labels: names of the ``C`` classes, in order.
        """
        return []

    def warnings_from(self, diagnostics: dict[str, Tensor]) -> list[str]:
        """What is worth warning about in diagnostics gathered over a dataset, ``{name: (N, ...)}``. None by default."""
        return []

    def _drop_modalities(self, present: Tensor) -> Tensor:
        """Hide each present modality with the configured chance; a sample that would lose all keeps all."""
        keep = torch.rand(present.shape, device=present.device) >= self.config.modality_dropout
        dropped = present & keep
        return torch.where(dropped.any(dim=1, keepdim=True), dropped, present)
