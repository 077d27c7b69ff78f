"""Utterance vectors of a conversation window, as adapters that read context share them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from llm_mer.adapters.base import AdapterConfig, FusionInputs
from llm_mer.adapters.layers import masked_mean


@dataclass
class UtteranceWindow:
    """Utterance vectors of a batch, without speakers.

    Attributes:
        vectors: ``{modality: (B, U, D_m)}``, zeros where absent. present: ``{modality: (B, U)}`` bool.
        mask: ``(B, U)`` bool, True where an utterance exists. target: ``(B,)`` long.
    """

    vectors: dict[str, Tensor]
    present: dict[str, Tensor]
    mask: Tensor
    target: Tensor


def vector_sizes(config: AdapterConfig) -> dict[str, int]:
    """``{modality: D_m}`` of utterance vectors; a modality without context vectors is pooled from its own frames."""
    return {m: config.context_sizes.get(m) or config.feature_sizes[m] for m in config.modalities}


def utterance_window(inputs: FusionInputs, sizes: dict[str, int]) -> UtteranceWindow:
    """The conversation window, or the pooled sequences as a window of one when there is no context.

    A modality hidden from the sample (switched off, dropped for training, not given) is hidden at the target's place
    too; earlier utterances keep what their own masks say.

    Raises:
        ValueError: vectors of another size than the adapter was built for.
    """
    context = inputs.context
    if context is None:
        return pooled_window(inputs, sizes)
    mask = context.mask.bool()
    batch, utterances = mask.shape
    at_target = torch.arange(utterances, device=mask.device) == context.target[:, None]  # (B, U)
    vectors, present = {}, {}
    for modality, size in sizes.items():
        values = {"text": context.text, "audio": context.audio, "vision": context.vision}[modality]
        known = {"text": context.text_mask, "audio": context.audio_mask, "vision": context.vision_mask}[modality]
        if values is None:
            vectors[modality] = torch.zeros(batch, utterances, size, device=mask.device)
            present[modality] = torch.zeros_like(mask)
            continue
        if values.shape[-1] != size:
            raise ValueError(
                f"context vectors of {modality} have size {values.shape[-1]}, but the adapter was built for {size} "
                "(AdapterConfig.context_sizes)"
            )
        sequence = inputs.sequence(modality)
        shown = mask & ~at_target if sequence is None else mask & ~(at_target & ~sequence.present[:, None])
        present[modality] = shown if known is None else shown & known.bool()
        vectors[modality] = values.masked_fill(~present[modality].unsqueeze(-1), 0.0)
    return UtteranceWindow(vectors, present, mask, context.target)


def pooled_window(inputs: FusionInputs, sizes: dict[str, int]) -> UtteranceWindow:
    """A window of one: mean over time, or mean and standard deviation, whichever has the size of an utterance vector.

    Raises:
        ValueError: neither has that size, so the target cannot be read without its conversation.
    """
    device = next(s.mask.device for m in sizes if (s := inputs.sequence(m)) is not None)
    vectors, present = {}, {}
    for modality, size in sizes.items():
        sequence = inputs.sequence(modality)
        if sequence is None:
            vectors[modality] = torch.zeros(inputs.batch_size, 1, size, device=device)
            present[modality] = torch.zeros(inputs.batch_size, 1, dtype=torch.bool, device=device)
            continue
        width = sequence.features.shape[-1]
        if size not in (width, 2 * width):
            raise ValueError(
                f"no conversation context was given, and {modality} frames of size {width} cannot be pooled to the "
                f"utterance vectors of size {size} this adapter was built for; pass FusionInputs.context"
            )
        mask = sequence.mask.bool()
        vector = masked_mean(sequence.features, mask)
        if size != width:
            variance = masked_mean(
                (sequence.features.masked_fill(~mask.unsqueeze(-1), 0.0) - vector.unsqueeze(1)) ** 2, mask
            )
            # The square root has no finite slope at 0, where a single step always is.
            deviation = variance.clamp(min=1e-12).sqrt().masked_fill(variance <= 1e-12, 0.0)
            vector = torch.cat([vector, deviation], dim=-1)
        vectors[modality], present[modality] = vector.unsqueeze(1), mask.any(dim=1, keepdim=True)
    mask = torch.ones(inputs.batch_size, 1, dtype=torch.bool, device=device)
    return UtteranceWindow(vectors, present, mask, torch.zeros(inputs.batch_size, dtype=torch.long, device=device))
