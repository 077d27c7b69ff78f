"""The model of a run, ready to train: backbone, adapter, processor and LoRA from the data and the options."""

from __future__ import annotations

import dataclasses
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from llm_mer.adapters import adapter_class, build_adapter
from llm_mer.adapters.base import MODALITIES, AdapterConfig
from llm_mer.backbones.attention import check_mask
from llm_mer.backbones.language_lora import SHARED, language_blocks, route_by_language
from llm_mer.checkpoints.backbone_reference import check_backbone
from llm_mer.checkpoints.description import CheckpointDescription
from llm_mer.checkpoints.integrity import verify_checkpoint
from llm_mer.checkpoints.weights import load_adapter_weights, load_head_weights
from llm_mer.data.feature_scale import SAMPLED_UTTERANCES, check_scale
from llm_mer.data.feature_settings import check_same_features
from llm_mer.data.normalisation import check_normalised_modalities
from llm_mer.data.statistics import FeatureStatistics
from llm_mer.errors import UserError
from llm_mer.model.configuration_mer import MerConfig
from llm_mer.model.context_vectors import attach_context, mean_token_embeddings
from llm_mer.model.modeling_mer import MerForConditionalGeneration, MerHeadModel, fusion_adapter_of
from llm_mer.model.processing_mer import MerProcessor
from llm_mer.model.read_out import read_out_sizes
from llm_mer.prompting.answer_start import BARE, JOINED
from llm_mer.prompting.tasks import Task
from llm_mer.prompting.templates import load_prompts
from llm_mer.training.initial_checkpoint import check_initial_adapter, check_initial_head
from llm_mer.training.options import ModelArguments
from llm_mer.training.run_config import RunConfig
from llm_mer.training.run_data import RunData

STAND_IN_SIZE = 8
"""Embedding size of a backbone that is not loaded yet, while the adapter's options are checked."""


@dataclass
class BuiltModel:
    """A model ready to train, with its processor and where its backbone came from."""

    model: PreTrainedModel
    processor: MerProcessor
    backbone_source: str | None


def resolve_backbone(name: str) -> str:
    """``tiny:llama`` and ``tiny:glm`` are trained on the spot (cached); anything else is a folder or a hub name."""
    if not name:
        raise UserError("backbone: name a folder, a hub name, tiny:llama, tiny:glm, or none")
    if name.startswith("tiny:"):
        from llm_mer.backbones.tiny import train_tiny_backbone
        from llm_mer.backbones.tiny_options import TinyBackboneConfig

        return str(train_tiny_backbone(TinyBackboneConfig(architecture=name.removeprefix("tiny:"))))
    return name


def model_feature_sizes(run: RunData, model: ModelArguments, backbone_size: int) -> dict[str, int]:
    """``{modality: D_m}`` the adapter is built for, text included as ``text_source`` says."""
    sizes = {m: s for m, s in run.feature_sizes.items() if m != "text"}
    if model.text_source == "features":
        if "text" in run.feature_sizes:
            sizes["text"] = run.feature_sizes["text"]
    elif backbone_size and any(run.train.text_length(row) for row in run.train.rows):
        sizes["text"] = backbone_size
    return {m: sizes[m] for m in MODALITIES if m in sizes}


def label_vectors(model: nn.Module, processor: MerProcessor, task: Task) -> Tensor:
    """Mean token embedding of each label's words over the languages: ``(C, H)``."""
    rows = []
    for label in task.labels:
        rows.append(mean_token_embeddings(model, processor, list(label.words.values())).mean(axis=0))
    return torch.from_numpy(np.stack(rows))


def derived_options(run: RunData, alone: bool) -> dict[str, Any]:
    """What the tasks, and the lack of a backbone, say of an adapter's configuration."""
    class_task = next((t for t in run.tasks if t.kind == "classification"), None)
    score_task = next((t for t in run.tasks if t.kind == "regression"), None)
    derived: dict[str, Any] = {
        "num_classes": class_task.num_classes if class_task else 0,
        "score_range": score_task.require_range() if score_task else None,
    }
    return derived | ({"num_pseudo_tokens": 0, "auxiliary_head": True} if alone else {})


def stand_in_config(config: RunConfig, run: RunData) -> AdapterConfig:
    """The adapter's configuration on these data, a very small backbone standing for one that is not loaded yet."""
    model = config.model
    alone = model.backbone == "none"
    hidden = 0 if alone else STAND_IN_SIZE
    source = dataclasses.replace(model, text_source="features") if alone else model
    sizes: dict[str, Any] = {"feature_sizes": model_feature_sizes(run, source, hidden), "backbone_size": hidden}
    return dataclasses.replace(config.adapter, **derived_options(run, alone), **sizes)


def check_adapter(run_config: RunConfig, run: RunData) -> None:
    """Build the adapter for these data, and a very small backbone, and drop it: what cannot work is told at once.

    Raises:
        UserError: naming the adapter and the option.
    """
    model = run_config.model
    alone = model.backbone == "none"
    if not alone and model.text_source == "features" and run_config.adapter.use_text and "text" not in run.feature_sizes:
        raise UserError(
            "text_source: features, but the data have no text features; leave it at backbone, or say use_text: false"
        )
    config = stand_in_config(run_config, run)
    for name, bound in {"hidden_size": 1, "num_heads": 1, "num_pseudo_tokens": 0}.items():
        if getattr(config, name) < bound:
            raise UserError(f"{name}: {getattr(config, name)}; it must be at least {bound}")
    if not alone and config.num_pseudo_tokens == 0 and model.lora_r == 0:
        raise UserError("num_pseudo_tokens: 0 with lora_r: 0 changes no answer of the language model; give it one of them")
    try:
        with torch.random.fork_rng(devices=[]):
            build_adapter(model.adapter, config)
    except ValueError as error:
        raise UserError(f"adapter {model.adapter!r}: {error}") from error


@dataclass
class _Backbone:
    """A loaded backbone with its tokenizer and source; all None for an adapter alone."""

    model: PreTrainedModel | None = None
    tokenizer: Any = None
    source: str | None = None

    @property
    def hidden_size(self) -> int:
        """``H``; 0 without a backbone."""
        return 0 if self.model is None else int(self.model.config.get_text_config().hidden_size)


def build_model(config: RunConfig, run: RunData) -> BuiltModel:
    """Build backbone, adapter and processor; LoRA and the adapter are trainable, the backbone is not."""
    check_adapter(config, run)
    model = config.model
    torch.manual_seed(config.training.seed)
    initial = _load_initial(config, run)
    if model.backbone == "none":
        model = dataclasses.replace(model, text_source="features")
        backbone = _Backbone()
    else:
        backbone = _load_backbone(config, initial)
    adapter_config = _build_adapter_config(config, run, model, backbone)
    processor = _build_processor(config, run, model, adapter_config, backbone)
    if adapter_class(model.adapter).uses_context:
        sizes = _attach_contexts(run, backbone.model, processor)
        adapter_config = dataclasses.replace(adapter_config, context_sizes=sizes)
    try:
        model_config = MerConfig(
            text_config=backbone.model.config if backbone.model is not None else None,
            adapter=model.adapter,
            adapter_config=dataclasses.asdict(adapter_config),
            text_source=model.text_source,
            lora_sharing=model.lora_sharing if backbone.model is not None else SHARED,
            read_out=read_out_sizes(run.tasks) if model.read_out else None,
        )
        if backbone.model is None:
            built: Any = MerHeadModel(model_config)
            if model.init_checkpoint:
                load_head_weights(built, Path(model.init_checkpoint))
            return BuiltModel(built, processor, None)
        base = MerForConditionalGeneration.from_backbone(backbone.model, model_config)
    except ValueError as error:
        raise UserError(f"adapter {model.adapter!r}: {error}") from error
    wrapped = _prepare_training_parts(base, processor, model)
    if adapter_config.num_pseudo_tokens == 0 and not adapter_config.auxiliary_head:
        fusion_adapter_of(wrapped).requires_grad_(False)  # its outputs are not used
    return BuiltModel(wrapped, processor, backbone.source)


def _load_initial(config: RunConfig, run: RunData) -> CheckpointDescription | None:
    """The checked description of ``init_checkpoint``; None without one."""
    model = config.model
    if not model.init_checkpoint:
        return None
    folder = Path(model.init_checkpoint)
    initial = CheckpointDescription.load(folder)
    if initial.merged is not None:
        raise UserError(
            f"init_checkpoint: {model.init_checkpoint} is merged and has no LoRA to go on with; name the checkpoint it was "
            "merged from"
        )
    check_initial_adapter(initial, config, model.init_checkpoint)
    check_initial_head(initial, run.tasks, model.init_checkpoint)
    verify_checkpoint(folder)
    check_initial(initial, run, model.init_checkpoint, config.data.data)
    sizes_here = read_out_sizes(run.tasks) if model.read_out else None
    if (sizes_there := initial.model.get("read_out")) != sizes_here:
        raise UserError(
            f"init_checkpoint: {model.init_checkpoint} has the read-out {sizes_there or 'none'} (outputs of each task), "
            f"and this run {sizes_here or 'none'}; say read_out and tasks as there"
        )
    return initial


def _load_backbone(config: RunConfig, initial: CheckpointDescription | None) -> _Backbone:
    """Load the run's backbone and check that it suits the initial checkpoint and the prompts."""
    from llm_mer.backbones.loading import load_backbone

    model = config.model
    source = resolve_backbone(model.backbone)
    if initial is not None:
        check_backbone(initial.backbone, source, model.init_checkpoint or "")
    dtype = model.dtype
    if dtype == "auto":
        dtype = "bfloat16" if torch.cuda.is_available() else "float32"
    loaded = load_backbone(
        source, dtype=dtype, quantization=model.quantization, attn_implementation=model.attn_implementation
    )
    check_mask(loaded.model.config.get_text_config(), config.data.max_prompt_tokens)
    return _Backbone(loaded.model, loaded.tokenizer, source)


def _build_adapter_config(config: RunConfig, run: RunData, model: ModelArguments, backbone: _Backbone) -> AdapterConfig:
    """The adapter's configuration, completed from tasks, data and backbone."""
    derived = derived_options(run, backbone.model is None)
    if backbone.model is not None:
        from llm_mer.backbones.loading import embedding_norm

        derived |= {
            "backbone_size": backbone.hidden_size,
            "backbone_embedding_norm": embedding_norm(backbone.model),
        }
    sizes = model_feature_sizes(run, model, backbone.hidden_size)
    # Modalities that the adapter is configured not to read may be absent at inference too.
    sizes = {m: size for m, size in sizes.items() if getattr(config.adapter, f"use_{m}")} or sizes
    return dataclasses.replace(config.adapter, **derived, feature_sizes=sizes)


def _build_processor(
    config: RunConfig, run: RunData, model: ModelArguments, adapter_config: AdapterConfig, backbone: _Backbone
) -> MerProcessor:
    data = config.data
    processor = MerProcessor(
        tokenizer=backbone.tokenizer,
        tasks=run.tasks,
        prompts=[] if backbone.model is None else load_prompts(data.prompts),
        feature_sizes=adapter_config.feature_sizes,
        statistics=run.statistics,
        num_pseudo_tokens=adapter_config.num_pseudo_tokens,
        text_source=model.text_source,
        chat=data.chat,
        max_text_tokens=data.max_text_tokens,
        max_audio_steps=data.max_audio_steps,
        max_vision_steps=data.max_vision_steps,
        max_prompt_tokens=data.max_prompt_tokens,
        long_clips=data.long_clips,
        answer_start=_answer_start(config),
        normalisation=run.normalisation,
        speaker_effects=run.speaker_effects,
        training_ranges=run.training_ranges,
    )
    check_normalised_modalities(run.normalisation, processor.read_as_features)
    processor.check_answer_starts()
    return processor


def _attach_contexts(run: RunData, backbone: PreTrainedModel | None, processor: MerProcessor) -> dict[str, int]:
    """Compute the context vectors of training and evaluation data; returns their sizes by modality."""
    embeddings = _EmbeddingsOf(backbone) if backbone is not None else None
    sizes = attach_context(run.train, embeddings, processor).sizes
    if run.evaluation is not None:
        attach_context(run.evaluation, embeddings, processor, sizes)
    return sizes


def _prepare_training_parts(base: MerForConditionalGeneration, processor: MerProcessor, model: ModelArguments) -> Any:
    """Initialise the adapter from the backbone, and add LoRA or load both from ``init_checkpoint``."""
    if processor.class_task is not None:
        adapter = fusion_adapter_of(base)
        vectors = label_vectors(base, processor, processor.class_task)
        adapter.initialise_from_backbone(vectors)
        if adapter.label_token is not None:
            adapter.label_token.initialise(vectors)
    if model.init_checkpoint:
        return _trainable(load_adapter_weights(base, Path(model.init_checkpoint)), model)
    return add_lora(base, model)


def check_initial(initial: CheckpointDescription, run: RunData, checkpoint: str, data: str) -> None:
    """Refuse a checkpoint to begin with whose weights would mean something else here.

    A class is a place in the adapter's heads and an index among answers, and a score is a share of its range; features go
    into the weights as they were made.

    Raises:
        UserError: a label at another place than in the checkpoint, another score range, or features made otherwise.
    """
    where = f"init_checkpoint: {checkpoint}"
    known = [Task.from_checkpoint(name, entry, where) for name, entry in initial.processor["tasks"].items()]
    for kind in ("classification", "regression"):
        before = next((task for task in known if task.kind == kind), None)
        now = next((task for task in run.tasks if task.kind == kind), None)
        pairs = [(task, mine) for task in known for mine in run.tasks if task.name == mine.name and task.kind == kind]
        if before is not None and now is not None and (before, now) not in pairs:
            pairs.append((before, now))  # the heads' own task, whatever it is called
        for there, here in pairs:
            names = there.label_names, here.label_names
            moved = [label for label in names[0] if label in names[1] and names[0].index(label) != names[1].index(label)]
            if moved:
                raise UserError(
                    f"{where} was trained with the labels of task {there.name!r} in the order {', '.join(names[0])}; here "
                    f"{here.name!r} has {', '.join(names[1])}, and its weights would take one for another: list them in "
                    "that order in the task file"
                )
            if there.score_range != here.score_range:
                raise UserError(
                    f"{where} was trained on scores of task {there.name!r} in {list(there.require_range())}; here "
                    f"{here.name!r} has {list(here.require_range())}"
                )
    if (before := initial.processor.get("normalisation", {})) != run.normalisation:
        told = [" ".join(f"{m}={kind}" for m, kind in kinds.items()) or "global" for kinds in (before, run.normalisation)]
        raise UserError(f"{where} was trained with normalisation {told[0]}, not {told[1]}; say so here too")
    reads = [m for m in initial.processor["feature_sizes"] if m != "text" or initial.model["text_source"] == "features"]
    check_same_features(initial.data, run.description, reads, data, where)
    statistics = initial.processor["statistics"]
    known_scale = {m: FeatureStatistics.from_dict(statistics[m]) for m in reads if m in statistics}
    check_scale(
        [run.train.utterance(row) for row in run.train.rows[:: max(len(run.train.rows) // SAMPLED_UTTERANCES, 1)]],
        known_scale,
        data,
    )


def _answer_start(config: RunConfig) -> str:
    """As it was in the checkpoint that this run goes on from: its LoRA has learnt such answers."""
    earlier = config.training.resume_from_checkpoint or config.model.init_checkpoint
    if not isinstance(earlier, str) or not earlier:
        return JOINED
    return str(CheckpointDescription.load(Path(earlier)).processor.get("answer_start", BARE))


class _EmbeddingsOf(MerForConditionalGeneration):
    """A bare backbone seen as something with input embeddings, before the model around it exists."""

    def __init__(self, backbone: PreTrainedModel) -> None:
        nn.Module.__init__(self)
        self.__dict__["backbone"] = backbone

    def get_input_embeddings(self) -> nn.Module:
        embeddings: nn.Module = self.__dict__["backbone"].get_input_embeddings()
        return embeddings


def _trainable(wrapped: Any, model: ModelArguments) -> Any:
    for name, parameter in wrapped.named_parameters():
        if ("lora_" in name and model.lora_r > 0) or "modules_to_save" in name:
            parameter.requires_grad_(True)
    return wrapped


def add_lora(base: MerForConditionalGeneration, model: ModelArguments) -> Any:
    """LoRA on the backbone's projections, the adapter trained whole through ``modules_to_save``.

    Where languages have ranks of their own (``lora_sharing``), each block has ``lora_r`` of them and the same scaling.
    ``lora_r = 0`` freezes LoRA at its start, where it is exactly zero: only the adapter trains, and the checkpoint has
    the same form.
    """
    from peft import LoraConfig, get_peft_model

    from llm_mer.backbones.lora_targets import find_lora_targets

    targets = find_lora_targets(base.model.language_model, model.lora_targets)
    blocks = len(language_blocks(model.lora_sharing))
    config = LoraConfig(
        r=blocks * max(model.lora_r, 1),
        lora_alpha=blocks * model.lora_alpha,
        lora_dropout=model.lora_dropout,
        target_modules=r"model\.language_model\..*\.(" + "|".join(map(re.escape, targets)) + ")",
        modules_to_save=["fusion_adapter"] + (["read_out"] if base.read_out is not None else []),
    )
    wrapped = get_peft_model(base, config)
    base.model.language_router = route_by_language(base, model.lora_sharing, config.r)
    if model.lora_r == 0:
        for name, parameter in wrapped.named_parameters():
            if "lora_" in name:
                parameter.requires_grad_(False)
    return wrapped
