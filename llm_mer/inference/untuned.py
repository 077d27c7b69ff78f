"""A language model as it was published, asked like a checkpoint: zero-shot answers, and the same corrected for its prior.

A language model prefers some answers whatever it is asked, the more so the more often they stand in its training text.
Contextual calibration (Zhao et al. 2021, *Calibrate Before Use*) measures that preference with inputs that say nothing::

    q(c) = 1/M Σ_m p(c | content-free input m),    p'(c | x) ∝ p(c | x) / q(c)

No label of any utterance is used, nor any utterance.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from scipy.special import log_softmax
from torch import nn

from llm_mer.adapters import register_adapter
from llm_mer.adapters.base import AdapterConfig, FusedFeatures, FusionAdapter, FusionInputs
from llm_mer.checkpoints.backbone_reference import identify_backbone
from llm_mer.checkpoints.description import BackboneReference, CheckpointDescription, stack_versions
from llm_mer.checkpoints.precision import resolve_precision
from llm_mer.inference.answer_values import fill_distribution
from llm_mer.inference.pipeline import MerPipeline
from llm_mer.inference.prediction import Prediction
from llm_mer.inference.predictor import Predictor
from llm_mer.model.configuration_mer import MerConfig
from llm_mer.model.modeling_mer import MerForConditionalGeneration
from llm_mer.model.processing_mer import MerProcessor
from llm_mer.model.prompt_lengths import backbone_positions
from llm_mer.prompting.languages import LANGUAGES
from llm_mer.prompting.tasks import Task, get_task
from llm_mer.prompting.templates import load_prompts
from llm_mer.scoring.prompt_layout import TaskPrompts

CONTENT_FREE: dict[str, tuple[str | None, ...]] = {"en": ("N/A", "[MASK]", None), "zh": ("无", "[MASK]", None)}
"""Transcripts that say nothing, those of the paper; None is an empty one, for which a template has words."""
LONGEST_PROMPT = 1024


class LanguageModelAlone(FusionAdapter):
    """The place of an adapter where there is none: reads nothing, has no weights, gives no pseudo tokens."""

    name: ClassVar[str] = "language_model_alone"
    default_loss_weights: ClassVar[dict[str, float]] = {}

    @property
    def frame_modalities(self) -> tuple[str, ...]:
        return ()

    @property
    def step_limit(self) -> int | None:
        return 0

    @property
    def output_size(self) -> int:
        return 1

    def build(self) -> None:
        """Nothing."""

    def fuse(self, inputs: FusionInputs) -> FusedFeatures:
        """A zero a sample."""
        text = inputs.sequence("text")
        assert text is not None
        return FusedFeatures(text.features.new_zeros(inputs.batch_size, 1))


def load_untuned(
    backbone: str,
    tasks: list[str],
    prompts: list[str],
    device: str | None = None,
    dtype: str = "auto",
    **options: Any,
) -> MerPipeline:
    """A published language model as a pipeline; ``options`` are those of :class:`Predictor`.

    Args:
        backbone: as ``--backbone`` of a training. tasks, prompts: names or files.

    Raises:
        UserError: what loading and asking refuse.
    """
    from llm_mer.backbones.loading import load_backbone

    chosen = [get_task(name) for name in tasks]
    identity = identify_backbone(backbone)
    assert identity is not None
    reference = BackboneReference(identity["name"], None, identity["fingerprint"], "none", "bfloat16")
    if device is None:
        accelerator = torch.accelerator.current_accelerator(check_available=True)
        device = "cpu" if accelerator is None else accelerator.type
    precision = resolve_precision(dtype, reference, torch.device(device).type, backbone)
    loaded = load_backbone(backbone, dtype=precision)
    size = int(loaded.model.config.get_text_config().hidden_size)
    register_adapter(LanguageModelAlone)
    adapter_config = AdapterConfig(num_pseudo_tokens=0, feature_sizes={"text": size}, backbone_size=size)
    model_entry: dict[str, Any] = {
        "adapter": LanguageModelAlone.name,
        "adapter_config": vars(adapter_config),
        "text_source": "backbone",
    }
    model = MerForConditionalGeneration.from_backbone(
        loaded.model, MerConfig(text_config=loaded.model.config, **model_entry)
    )
    processor = MerProcessor(
        tokenizer=loaded.tokenizer,
        tasks=chosen,
        prompts=load_prompts(prompts),
        feature_sizes={"text": size},
        statistics={},
        num_pseudo_tokens=0,
        max_text_tokens=LONGEST_PROMPT,
        max_prompt_tokens=LONGEST_PROMPT,
    )
    processor.check_answer_starts()
    limit_prompts(processor, backbone_positions(loaded.model.config))
    placed: nn.Module = model
    predictor = Predictor(placed.to(device).eval(), processor, **options)
    description = CheckpointDescription(model_entry, processor.to_dict(), reference, versions=stack_versions())
    return MerPipeline(predictor, description, Path(backbone))


def limit_prompts(processor: MerProcessor, positions: int | None, examples: int = 0) -> None:
    """Let prompts have :data:`LONGEST_PROMPT` tokens and those of their ``examples``, as far as the backbone reads them."""
    processor.max_prompt_tokens = LONGEST_PROMPT + examples
    if positions is None:
        return
    asked = [(t, p.language) for t in processor.tasks for p in processor.prompts if p.can_ask(t)]
    longest = max((len(answer) for task, language in asked for answer in processor.answers(task, language)), default=0)
    processor.max_prompt_tokens = min(processor.max_prompt_tokens, positions - longest - 1)


def content_free_probabilities(predictor: Predictor, task: Task, language: str) -> np.ndarray:
    """``(C,)`` mean probability of each answer after the prompts of transcripts that say nothing (:data:`CONTENT_FREE`)."""
    processor = predictor.processor
    texts = CONTENT_FREE[language]
    prompts = [processor.encode_prompt(task, language, text, []) for text in texts]
    ids = torch.full((len(texts),), LANGUAGES.index(language), device=predictor.device)
    asked = [TaskPrompts(prompts, predictor.answer_tree(task, language))]
    (scores,) = predictor.answering.score(asked, {"language_ids": ids})
    shares: np.ndarray = scores.log_probabilities.double().exp().mean(dim=0).cpu().numpy()
    return shares


def without_prior(prediction: Prediction, task: Task, prior: np.ndarray, statistic: str) -> Prediction:
    """The same with its distribution divided by that of content-free inputs, and the answer of that."""
    corrected = replace(prediction, outside_mass=None, temperature=None, generated=None, parsed=None)
    log_probabilities = np.asarray(prediction.log_probabilities, dtype=np.float64) - np.log(prior)
    fill_distribution(corrected, task, log_softmax(log_probabilities), statistic)
    return corrected
