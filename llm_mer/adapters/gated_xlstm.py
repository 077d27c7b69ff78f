"""GatedxLSTM: gated extended LSTMs over speaker and interlocutor (arXiv 2503.20919).

What the current speaker and the interlocutor said in the last turns runs through one xLSTM stack per role and modality;
a gate per stream and sample weighs the streams. The stacks are the ``xlstm`` package's own, in its plain PyTorch form,
which needs neither triton nor a compiler.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor, nn
from xlstm.blocks.mlstm.block import mLSTMBlockConfig
from xlstm.blocks.mlstm.layer import mLSTMLayerConfig
from xlstm.xlstm_block_stack import xLSTMBlockStack, xLSTMBlockStackConfig

from llm_mer.adapters.base import (
    AdapterConfig,
    ConversationContext,
    FusedFeatures,
    FusionAdapter,
    FusionInputs,
    FusionOutput,
    ModalitySequence,
)
from llm_mer.adapters.context_window import utterance_window, vector_sizes
from llm_mer.adapters.diagnostics import DiagnosticInfo
from llm_mer.adapters.layers import real_steps_to_front

QKV_BLOCK_SIZE = 4


@dataclass
class GatedXLSTMConfig(AdapterConfig):
    """Options of GatedxLSTM. ``num_heads`` is the number of heads of each mLSTM block."""

    turns: int = field(default=3, metadata={"help": "turns read, the target's and those before it"})
    num_steps: int = field(default=16, metadata={"help": "steps an utterance vector is cut into"})
    step_size: int = field(default=32, metadata={"help": "size of one step"})
    vector_projection: str = field(
        default="auto",
        metadata={
            "help": "auto: a vector of num_steps × step_size is cut, and frames of step_size are read, as they are, others "
            "are projected to that size; always: project all",
            "choices": ["auto", "always"],
        },
    )
    num_blocks: int = field(default=1, metadata={"help": "mLSTM blocks per stack"})
    level: str = field(
        default="utterance",
        metadata={
            "help": "what the target enters its speaker's streams as: its vector cut into steps, or its frames",
            "choices": ["utterance", "frame"],
        },
    )
    max_frames: int = field(default=512, metadata={"help": "frames of the target read per modality at level frame"})
    use_interlocutor: bool = field(default=True, metadata={"help": "read the interlocutor's streams"})
    use_gates: bool = field(default=True, metadata={"help": "gate the streams; off: every stream weighs 1"})


@dataclass
class TurnSlots:
    """Which utterance of the window stands for a role at each turn.

    Attributes:
        index: ``(B, turns)`` long, place in the window, oldest turn first; anything where there is none.
        exists: ``(B, turns)`` bool.
    """

    index: Tensor
    exists: Tensor


def select_turns(mask: Tensor, speakers: Tensor, target: Tensor, turns: int) -> dict[str, TurnSlots]:
    """The utterances of both roles at turns ``τ = t-turns+1, …, t`` of the window, ``t`` the target.

    ``speaker``: the latest utterance of the target's speaker up to and including τ (our choice; at ``t`` the target
    itself). ``interlocutor``: the latest utterance of anyone else strictly before τ. An utterance whose speaker is
    unknown (-1) takes neither role unless it is the target. Nothing after the target is read. Turns are counted over
    utterances that exist, so it does not matter where a window is padded.

    Args:
        mask, speakers: ``(B, U)``. target: ``(B,)``.
    """
    place = torch.arange(mask.shape[1], device=mask.device)
    at_target = place == target[:, None]  # (B, U)
    rank = mask.long().cumsum(dim=1)  # 1 for the first utterance
    turn = rank.gather(1, target[:, None]) - torch.arange(turns - 1, -1, -1, device=mask.device)  # (B, turns)
    own = mask & ((speakers == 0) | at_target)
    other = mask & (speakers > 0) & ~at_target
    chosen = {
        "speaker": own[:, None] & (rank[:, None] <= turn[:, :, None]),
        "interlocutor": other[:, None] & (rank[:, None] < turn[:, :, None]),
    }
    slots = {}
    for role, candidates in chosen.items():  # (B, turns, U)
        latest = torch.where(candidates, place, -1).amax(dim=-1)
        slots[role] = TurnSlots(latest.clamp(min=0), latest >= 0)
    return slots


class StepProjection(nn.Module):
    """Values of any size made to fit the steps; left as they are where they fit and ``projection`` is ``auto``."""

    def __init__(self, source: int, size: int, projection: str, dropout: float) -> None:
        super().__init__()
        self.linear: nn.Linear | None = None
        if source != size or projection == "always":
            self.linear = nn.Linear(source, size)
            self.norm = nn.LayerNorm(size)
            self.dropout = nn.Dropout(dropout)

    def project(self, values: Tensor) -> Tensor:
        """``LN(W x + b)``, or ``x``: ``(..., D_m) -> (..., size)``."""
        if self.linear is None:
            return values
        projected: Tensor = self.dropout(self.norm(self.linear(values.to(self.linear.weight.dtype))))
        return projected


class VectorSteps(StepProjection):
    """An utterance vector cut into steps; a learned stand-in where the utterance lacks the modality.

    ``x = cut(v)`` for a vector of ``num_steps · step_size`` values, as the paper's 512 in 16 steps of 32; any other size
    is made to divide, ``x = cut(LN(W v + b))`` (our choice).

    Shapes: ``(B, U, D_m), (B, U) -> (B, U, num_steps, step_size)``.
    """

    def __init__(self, size: int, num_steps: int, step_size: int, projection: str, dropout: float) -> None:
        super().__init__(size, num_steps * step_size, projection, dropout)
        self.num_steps = num_steps
        self.missing = nn.Parameter(torch.randn(num_steps * step_size))

    def forward(self, vectors: Tensor, present: Tensor) -> Tensor:
        values = self.project(vectors)
        values = torch.where(present.unsqueeze(-1), values, self.missing.to(values.dtype))
        return values.unflatten(-1, (self.num_steps, -1))


class FrameSteps(StepProjection):
    """Frames of the target as steps: ``(B, T, D_m), (B, T) -> (B, S, step_size), (B, S)``, S at most ``max_frames``.

    Frames of ``step_size`` values are used as they are, others are projected (our choice). Real frames come first, so
    padding before them does not use up the length.
    """

    def __init__(self, size: int, step_size: int, projection: str, max_frames: int, dropout: float) -> None:
        super().__init__(size, step_size, projection, dropout)
        self.max_frames = max_frames

    def forward(self, features: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        features, mask = real_steps_to_front(features.masked_fill(~mask.unsqueeze(-1), 0.0), mask)
        features, mask = features[:, : self.max_frames], mask[:, : self.max_frames]
        return self.project(features), mask


class StreamEncoder(nn.Module):
    """One xLSTM stack of mLSTM blocks over the real steps of a stream, ``(B, S, s), (B, S) -> (B, s)`` its last real step.

    Real steps must come first (:func:`real_steps_to_front`); the stack is causal, so what follows them is not seen. A
    stream without a real step is zeros. The stack runs outside autocast: mLSTM sums log forget gates over time and
    exponentiates them, which half precision spoils. It keeps float64 as it is.
    """

    def __init__(self, config: GatedXLSTMConfig, length: int) -> None:
        super().__init__()
        layer = mLSTMLayerConfig(
            num_heads=config.num_heads,
            qkv_proj_blocksize=QKV_BLOCK_SIZE,
            # Heads and blocks must divide the inner size; the package's own multiple, 64, is for GPU kernels.
            round_proj_up_to_multiple_of=math.lcm(config.num_heads, QKV_BLOCK_SIZE),
        )
        self.stack = xLSTMBlockStack(
            xLSTMBlockStackConfig(
                mlstm_block=mLSTMBlockConfig(mlstm=layer),
                context_length=length,
                num_blocks=config.num_blocks,
                embedding_dim=config.step_size,
                dropout=config.dropout,
            )
        )

        # The package keeps its causal mask as a buffer that is not saved; after transformers' loading on the meta device
        # such a buffer holds anything.
        for module in self.stack.modules():
            module._non_persistent_buffers_set.clear()

    def forward(self, steps: Tensor, mask: Tensor, recurrent: bool = False) -> Tensor:
        steps = steps.to(self.stack.post_blocks_norm.weight.dtype)
        length = mask.sum(dim=1)  # (B,)
        with torch.autocast(steps.device.type, enabled=False):
            last = self.recur(steps, length) if recurrent else self.parallel(steps, length)
        return last.masked_fill((length == 0).unsqueeze(-1), 0.0)

    def parallel(self, steps: Tensor, length: Tensor) -> Tensor:
        """All steps at once."""
        encoded: Tensor = self.stack(steps)
        place = (length - 1).clamp(min=0)[:, None, None].expand(-1, 1, encoded.shape[-1])
        return encoded.gather(1, place).squeeze(1)

    @torch.no_grad()
    def recur(self, steps: Tensor, length: Tensor) -> Tensor:
        """Step by step with the stack's recurrent state; memory does not grow with steps. The package changes its state
        in place, so there is no gradient."""
        last = torch.zeros_like(steps[:, 0])
        state = None
        for i in range(int(length.max())):
            encoded, state = self.stack.step(steps[:, i : i + 1], state)
            last = torch.where((length == i + 1).unsqueeze(-1), encoded[:, 0], last)
        return last


class GatedXLSTMAdapter(FusionAdapter):
    """Gated extended LSTMs over speaker and interlocutor, arXiv 2503.20919.

    ::

        x_j = steps of role and modality j at turns t-2, t-1, t            (B, 3 · 16, s)
        E_j = xLSTM_j(x_j) at its last real step                           (B, s)
        w_j = σ(W_j E_j + b_j)                                             (B, 1)
        h   = W [w_j E_j]_j                                                (B, d)

    with ``s`` = ``step_size``. Text and audio make the paper's four streams; vision makes them six (our extension). The
    gate is each sample's own; the authors' released code averages it over the batch, which would make a prediction depend
    on its batch-mates. :func:`select_turns` says which utterance stands for which role and turn. A turn without such an
    utterance has no steps, a stream without any turn is zeros with a gate of 0, and an utterance that lacks the modality
    is a learned stand-in. Without context the target's own pooled sequence is a window of one, without interlocutor.

    The steps are an utterance vector's own values where it has ``num_steps · step_size`` of them, and frames' own values
    where they have ``step_size`` (the paper's). Another size is projected and normalised first, by one projection of the
    modality for both roles, and with ``vector_projection: always`` every size is (our choice).

    At ``level: frame`` the target's frames enter its speaker's streams, after the cut vectors of earlier turns; other
    utterances exist as vectors only (our choice).

    **Streaming.** :meth:`stream` takes a dialogue utterance by utterance and equals the parallel mode over the whole
    dialogue, or over its last ``window`` utterances (atol 1e-4). The three turns slide, and roles change with the
    speaker, so xLSTM states of one target cannot serve the next: each utterance replays its ``3 · 16`` steps through the
    stacks' recurrent form. Constant in the length of the dialogue are the utterances kept (the last three, and the
    latest of each speaker before them), the recurrent state of a stream while it runs (one matrix per head and block),
    and the time per utterance.

    Diagnostics: ``stream_gates`` w (B, streams) in the order of :attr:`streams`: all modalities of the speaker, then of
    the interlocutor, modalities in the order text, audio, vision.
    """

    name: ClassVar[str] = "gated_xlstm"
    config_class: ClassVar[type[AdapterConfig]] = GatedXLSTMConfig
    uses_context: ClassVar[bool] = True
    example_options: ClassVar[tuple[dict[str, bool | int | str], ...]] = (
        {"num_steps": 3, "step_size": 8, "max_frames": 16},
        {"num_steps": 3, "step_size": 8, "max_frames": 16, "level": "frame"},
        {"num_steps": 1, "step_size": 8, "max_frames": 16},  # vectors of 8 values are one step, cut as they are
    )
    ablations: ClassVar[dict[str, dict[str, bool | str]]] = {
        "w/o interlocutor": {"use_interlocutor": False},
        "w/o gates": {"use_gates": False},
    }
    config: GatedXLSTMConfig

    @property
    def frame_modalities(self) -> tuple[str, ...]:
        return ()

    @property
    def step_limit(self) -> int | None:
        return self.config.max_frames if self.config.level == "frame" else 0

    @property
    def streams(self) -> tuple[tuple[str, str], ...]:
        """``(role, modality)`` of every stream, in the order of ``stream_gates``."""
        roles = ("speaker", "interlocutor") if self.config.use_interlocutor else ("speaker",)
        return tuple((role, modality) for role in roles for modality in self.config.modalities)

    def build(self) -> None:
        config = self.config
        check_options(config)
        self.recurrent = False
        cut = (config.num_steps, config.step_size, config.vector_projection, config.dropout)
        self.vectors = nn.ModuleDict({m: VectorSteps(size, *cut) for m, size in vector_sizes(config).items()})
        self.frames = nn.ModuleDict()
        if config.level == "frame":
            self.frames.update(
                {
                    m: FrameSteps(
                        config.feature_sizes[m],
                        config.step_size,
                        config.vector_projection,
                        config.max_frames,
                        config.dropout,
                    )
                    for m in config.modalities
                }
            )
        turns = config.turns * config.num_steps
        self.encoders = nn.ModuleDict()
        self.gates = nn.ModuleDict()
        for role, modality in self.streams:
            length = turns + config.max_frames if config.level == "frame" and role == "speaker" else turns
            self.encoders[f"{role}_{modality}"] = StreamEncoder(config, length)
            if config.use_gates:
                self.gates[f"{role}_{modality}"] = nn.Linear(config.step_size, 1)
        self.fusion = nn.Linear(len(self.streams) * config.step_size, config.hidden_size)

    def fuse(self, inputs: FusionInputs) -> FusedFeatures:
        window = utterance_window(inputs, vector_sizes(self.config))
        speakers = torch.zeros_like(window.target[:, None]) if inputs.context is None else inputs.context.speakers
        slots = select_turns(window.mask, speakers, window.target, self.config.turns)
        steps = {m: self.vectors[m](window.vectors[m], window.present[m]) for m in self.config.modalities}  # (B, U, n, s)
        weighed: list[Tensor] = []
        gates: list[Tensor] = []
        for role, modality in self.streams:
            values, mask = self.unroll(steps[modality], slots[role])
            if role == "speaker" and modality in self.frames:
                values, mask = self.with_frames(values, mask, inputs.sequence(modality), modality)
            values, mask = real_steps_to_front(values, mask)
            encoded = self.encoders[f"{role}_{modality}"](values, mask, self.recurrent)  # (B, s)
            gate = encoded.new_ones(encoded.shape[0], 1)
            if f"{role}_{modality}" in self.gates:
                gate = torch.sigmoid(self.gates[f"{role}_{modality}"](encoded))
            gate = gate.masked_fill(~mask.any(dim=1, keepdim=True), 0.0)
            weighed.append(gate * encoded)
            gates.append(gate)
        fused = self.fusion(torch.cat(weighed, dim=-1))
        return FusedFeatures(fused, diagnostics={"stream_gates": torch.cat(gates, dim=1)})

    def diagnostic_info(self, labels: Sequence[str] = ()) -> list[DiagnosticInfo]:
        names = tuple(f"{role} {modality}" for role, modality in self.streams)
        return [DiagnosticInfo("stream_gates", "Stream gates", names, "gates")]

    def unroll(self, steps: Tensor, slots: TurnSlots) -> tuple[Tensor, Tensor]:
        """The steps of a role's turns in order: ``(B, U, n, s) -> (B, turns · n, s)`` and their mask."""
        _, _, count, size = steps.shape
        index = slots.index[:, :, None, None].expand(-1, -1, count, size)
        values = steps.gather(1, index).masked_fill(~slots.exists[:, :, None, None], 0.0)
        return values.flatten(1, 2), slots.exists.repeat_interleave(count, dim=1)

    def with_frames(
        self, values: Tensor, mask: Tensor, sequence: ModalitySequence | None, modality: str
    ) -> tuple[Tensor, Tensor]:
        """The target's frames in place of its cut vector; without frames its stand-in, the last steps, stays."""
        if sequence is None:
            return values, mask
        frames, frames_mask = self.frames[modality](sequence.features, sequence.mask.bool())
        last = torch.arange(values.shape[1], device=mask.device) >= values.shape[1] - self.config.num_steps
        mask = mask & ~(last & frames_mask.any(dim=1, keepdim=True))
        return torch.cat([values, frames.to(values.dtype)], dim=1), torch.cat([mask, frames_mask], dim=1)

    def stream(self, window: int | None = None, recurrent: bool = True) -> GatedXLSTMStream:
        """A dialogue utterance by utterance; ``window`` forgets utterances that far back, as a context window does."""
        return GatedXLSTMStream(self, window, recurrent)


@dataclass
class HeardUtterance:
    """What a stream keeps of an utterance: when it was, by whom, ``{modality: (D_m,)}``."""

    turn: int
    speaker: Hashable | None
    vectors: dict[str, Tensor]


class GatedXLSTMStream:
    """One dialogue, utterance by utterance (see *Streaming* in :class:`GatedXLSTMAdapter`). Put the adapter in eval mode.

    Args:
        window: utterances the parallel mode would see, the target included; None for the whole dialogue.
        recurrent: run the stacks step by step, with one matrix of state a head; off: over all steps of what is kept at
            once, which is faster and as constant, but needs the square of the steps in memory.
    """

    def __init__(self, adapter: GatedXLSTMAdapter, window: int | None = None, recurrent: bool = True) -> None:
        if window is not None and window < 1:
            raise ValueError(f"window is {window}; it must be at least 1")
        self.adapter = adapter
        self.window = window
        self.recurrent = recurrent
        self.reset()

    def reset(self) -> None:
        """Begin another dialogue."""
        self.turn = 0
        self.recent: deque[HeardUtterance] = deque()
        self.earlier: dict[Hashable, HeardUtterance] = {}

    @property
    def kept(self) -> int:
        """Utterances kept: at most ``turns`` and one for each speaker."""
        return len(self.recent) + len(self.earlier)

    @torch.no_grad()
    def step(
        self,
        speaker: Hashable | None,
        vectors: Mapping[str, Tensor | None],
        sequences: Mapping[str, ModalitySequence] | None = None,
    ) -> FusionOutput:
        """The output for the next utterance, batch size 1.

        Args:
            speaker: any name, None when unknown. vectors: ``{modality: (D_m,)}``, None or left out when missing.
            sequences: frames of this utterance, ``(1, T, D_m)``, read at ``level: frame`` only.

        Raises:
            ValueError: the utterance has no modality the adapter reads.
        """
        modalities = self.adapter.config.modalities
        known = {m: v for m in modalities if (v := vectors.get(m)) is not None}
        if not known and not sequences:
            raise ValueError(f"the utterance has no modality at all; this adapter reads {', '.join(modalities)}")
        self.hear(HeardUtterance(self.turn, speaker, known))
        inputs = FusionInputs(context=self.context())
        device = self.adapter.fusion.weight.device
        for modality in modalities:
            if self.adapter.config.level == "frame":
                sequence = (sequences or {}).get(modality)
            else:
                # At utterance level only the presence of the target's sequence is read.
                features = torch.zeros(1, 1, self.adapter.config.feature_sizes[modality], device=device)
                sequence = ModalitySequence(features, torch.full((1, 1), modality in known, device=device))
            setattr(inputs, modality, sequence)
        self.adapter.recurrent = self.recurrent
        try:
            output: FusionOutput = self.adapter(inputs)
        finally:
            self.adapter.recurrent = False
        self.turn += 1
        return output

    def hear(self, utterance: HeardUtterance) -> None:
        """Keep an utterance, and let go of what no later target can read."""
        self.recent.append(utterance)
        while len(self.recent) > self.adapter.config.turns:
            old = self.recent.popleft()
            # Nobody's utterance takes no role once it is not the target.
            if old.speaker is not None:
                self.earlier[old.speaker] = old
        if self.window is not None:
            oldest = utterance.turn - self.window + 1
            self.earlier = {name: u for name, u in self.earlier.items() if u.turn >= oldest}
            while self.recent[0].turn < oldest:
                self.recent.popleft()

    def context(self) -> ConversationContext:
        """What is kept as a window: the dialogue without the utterances that take no role, so turns at its end agree."""
        utterances = [*sorted(self.earlier.values(), key=lambda u: u.turn), *self.recent]
        device = self.adapter.fusion.weight.device
        own = utterances[-1].speaker
        speakers = [-1 if u.speaker is None else int(u.speaker != own) for u in utterances]
        mask = torch.ones(1, len(utterances), dtype=torch.bool, device=device)
        context = ConversationContext(
            mask=mask,
            speakers=torch.tensor([speakers], device=device),
            target=torch.tensor([len(utterances) - 1], device=device),
        )
        for modality, size in vector_sizes(self.adapter.config).items():
            empty = torch.zeros(size, device=device)
            rows = [u.vectors.get(modality, empty).to(device) for u in utterances]
            present = torch.tensor([[modality in u.vectors for u in utterances]], device=device)
            setattr(context, modality, torch.stack(rows).unsqueeze(0))
            setattr(context, f"{modality}_mask", present)
        return context


def check_options(config: GatedXLSTMConfig) -> None:
    """Raise ``ValueError`` for options that cannot work, naming the option."""
    if config.level not in ("utterance", "frame"):
        raise ValueError(f"level is {config.level!r}; choose utterance or frame")
    if config.vector_projection not in ("auto", "always"):
        raise ValueError(f"vector_projection is {config.vector_projection!r}; choose auto or always")
    for name in ("turns", "num_steps", "step_size", "num_blocks", "max_frames"):
        if getattr(config, name) < 1:
            raise ValueError(f"{name} is {getattr(config, name)}; it must be at least 1")
