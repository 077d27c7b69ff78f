"""One vector for each utterance and modality of a conversation, for adapters that read context windows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from llm_mer.data.dataset import ContextVectors, MerDataset, build_context_vectors
from llm_mer.distributed.sharded_parameters import gathered_parameters
from llm_mer.model.modeling_mer import conditional_generation_of
from llm_mer.model.processing_mer import MerProcessor


def mean_token_embeddings(model: nn.Module, processor: MerProcessor, texts: Sequence[str]) -> np.ndarray:
    """Mean of the backbone's token embeddings of each text: ``(N, H)`` float32."""
    table = conditional_generation_of(model).get_input_embeddings()
    device = next(table.parameters()).device
    rows = []
    with torch.no_grad(), gathered_parameters(table.parameters()):
        for text in texts:
            ids = processor.encode_words(text)[: processor.max_text_tokens] or [processor.filler_id]
            rows.append(table(torch.tensor(ids, device=device)).float().mean(dim=0).cpu().numpy())
        weight = table.weight
        assert isinstance(weight, Tensor)
        return np.stack(rows) if rows else np.zeros((0, weight.shape[1]), dtype=np.float32)


def attach_context(
    dataset: MerDataset, model: nn.Module | None, processor: MerProcessor, sizes: Mapping[str, int] | None = None
) -> ContextVectors:
    """Compute the context vectors of a dataset once and put them on it; ``sizes`` are those an adapter was built for."""
    embed = None
    if processor.text_source == "backbone" and model is not None and processor.tokenizer is not None:
        source = model

        def embed(texts: list[str]) -> np.ndarray:
            return mean_token_embeddings(source, processor, texts)

    modalities = tuple(processor.feature_sizes)
    dataset.context = build_context_vectors(dataset, processor.normalise, embed, modalities, sizes, processor.feature_sizes)
    return dataset.context
