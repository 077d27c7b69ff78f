"""``llm-mer evaluate --backbone X`` without a checkpoint: an untuned model's answers, and the same without its prior."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from llm_mer.data.dataset import MerDataset
from llm_mer.data.reading import find_split
from llm_mer.data.schema import Utterance
from llm_mer.errors import UserError
from llm_mer.evaluation.options import EvaluateConfig
from llm_mer.inference.prediction import Prediction
from llm_mer.model.prompt_lengths import backbone_positions
from llm_mer.prompting.tasks import Task
from llm_mer.storage.fingerprints import json_sha256

if TYPE_CHECKING:
    from llm_mer.inference.pipeline import MerPipeline

PRIOR_CORRECTED = "prior-corrected"
"""The condition under which answers without the model's prior stand."""


def check_untuned(config: EvaluateConfig) -> None:
    """Check the options of an evaluation without a checkpoint.

    Raises:
        UserError: no backbone, tasks, prompts or output, or an option that only a checkpoint gives a meaning.
    """
    if not config.backbone:
        raise UserError("name a trained model with --checkpoint, or an untuned language model with --backbone")
    if not config.output:
        raise UserError("--output: name a folder; a backbone's own folder takes no evaluation")
    given = {
        "--seeds": bool(config.seeds),
        "--answer": config.answer != "scored",
        "--dialogue_decoder": config.dialogue_decoder != "none",
        "--adapter": config.adapter is not None,
        "--keep_features": config.keep_features,
    }
    for name, is_given in given.items():
        if is_given:
            raise UserError(f"{name}: needs a trained model; with --backbone and no --checkpoint leave it out")
    for name, values in {"--tasks": config.tasks, "--prompts": config.prompts}.items():
        if not values:
            raise UserError(f"{name}: an untuned language model has none of its own; name them")


def load_untuned_pipeline(config: EvaluateConfig, device: str | None) -> MerPipeline:
    """The backbone as it was published, asked with the prompts and tasks of the options.

    Raises:
        UserError: as :func:`check_untuned` and :func:`~llm_mer.inference.untuned.load_untuned`.
    """
    from llm_mer.inference.untuned import load_untuned

    check_untuned(config)
    return load_untuned(
        str(config.backbone),
        config.tasks or [],
        config.prompts,
        device,
        config.dtype,
        batch_size=config.batch_size,
        generate=config.generate,
        score_statistic=config.score_statistic,
    )


def draw_untuned_examples(
    config: EvaluateConfig, pipeline: MerPipeline, asked: MerDataset, splits: Mapping[str, Sequence[Utterance]], place: str
) -> dict[str, dict[str, list[str]]]:
    """Put the examples of the options before the prompts; returns their ids by task and language.

    Raises:
        UserError: the scored split itself, or as :func:`~llm_mer.inference.few_shot.add_examples`.
    """
    from llm_mer.inference.few_shot import add_examples

    where = f"{place}, split {config.examples_split!r}"
    if config.examples_split == config.split:
        raise UserError(f"--examples_split {config.split}: that split is scored; examples come from another one")
    if len(config.data) > 1:
        raise UserError("--examples: each store has examples of its own; evaluate stores one by one")
    known = pipeline.questions(find_split(splits, config.examples_split, place), asked.tasks, languages=config.languages)
    positions = backbone_positions(pipeline.predictor.core.config)
    return add_examples(pipeline.predictor.processor, asked, known, config.examples, config.examples_seed, positions, where)


def untuned_digest(pipeline: MerPipeline) -> str:
    """SHA-256 over what an untuned model's answers come from: its weights, tasks, prompts and limits."""
    reference = pipeline.description.backbone
    assert reference is not None
    return json_sha256([reference.name, reference.fingerprint, pipeline.description.processor], sort_keys=True)


def correct_for_prior(
    pipeline: MerPipeline, predictions: Sequence[Prediction], task: Task
) -> tuple[list[Prediction], dict[str, dict[str, float]]]:
    """A task's answers divided by those of content-free inputs, and these by language."""
    from llm_mer.inference.untuned import content_free_probabilities, without_prior

    own = [p for p in predictions if p.task == task.name]
    predictor = pipeline.predictor
    priors = {
        language: content_free_probabilities(predictor, task, language) for language in sorted({p.language for p in own})
    }
    corrected = [without_prior(p, task, priors[p.language], predictor.score_statistic) for p in own]
    names = list(own[0].probabilities) if own else []
    shares = {language: dict(zip(names, prior.round(6).tolist(), strict=True)) for language, prior in priors.items()}
    return corrected, shares
