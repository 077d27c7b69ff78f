"""The model: a fusion adapter whose pseudo tokens stand inside the prompt of a language model.

The layout is that of transformers' vision-language models: :class:`MerModel` injects into ``inputs_embeds`` and returns
the last hidden state, :class:`MerForConditionalGeneration` is ``.model`` plus ``.lm_head``. PEFT, TRL, ``generate`` and
gradient checkpointing therefore work on it unchanged.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import LongTensor, Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import AutoModel, GenerationConfig, GenerationMixin, PreTrainedModel
from transformers.cache_utils import Cache

from llm_mer.adapters import adapter_class, build_adapter
from llm_mer.adapters.base import (
    MODALITIES,
    ConversationContext,
    FusionAdapter,
    FusionInputs,
    FusionOutput,
    FusionTargets,
    ModalitySequence,
)
from llm_mer.adapters.layers import check_on_device
from llm_mer.backbones.attention import attends_by_positions, attention_implementation
from llm_mer.backbones.language_lora import LanguageRouter
from llm_mer.distributed.sharded_parameters import full_numel
from llm_mer.model.configuration_mer import MerConfig
from llm_mer.model.last_feed_forward import feed_forward_at
from llm_mer.model.output_head import CHUNK_ELEMENTS, next_token_log_probs
from llm_mer.model.outputs import MerOutput, NextTokens, find_label_positions
from llm_mer.model.packing import block_causal_mask
from llm_mer.model.read_out import ReadOut, prompt_ends

FUSION_KEYS: tuple[str, ...] = (
    "text_ids",
    *(f"{modality}_{part}" for modality in MODALITIES for part in ("features", "mask")),
    *(f"context_{modality}{part}" for modality in MODALITIES for part in ("", "_mask")),
    "context_mask",
    "context_speakers",
    "context_target",
    "class_targets",
    "score_targets",
)
"""Flat tensor names under which a batch carries :class:`FusionInputs` through trainers, DDP and ``generate``."""


def fusion_inputs(tensors: dict[str, Tensor | None], embed: nn.Module | None = None) -> FusionInputs:
    """Rebuild :class:`FusionInputs` from flat tensors.

    Args:
        tensors: any of :data:`FUSION_KEYS`; ``text_ids (B, T_t)`` stands for text features to be looked up.
        embed: the backbone's embedding table, which turns ``text_ids`` into ``(B, T_t, H)``.
    """

    def sequence(modality: str) -> ModalitySequence | None:
        features, mask = tensors.get(f"{modality}_features"), tensors.get(f"{modality}_mask")
        if modality == "text" and features is None and tensors.get("text_ids") is not None:
            if embed is None:
                raise ValueError("text_ids were given, but there is no backbone whose embeddings they could become")
            features = embed(tensors["text_ids"])
        if features is None:
            return None
        if mask is None:
            raise ValueError(f"{modality}_features came without {modality}_mask")
        return ModalitySequence(features, mask.bool())

    context = None
    if (window := tensors.get("context_mask")) is not None:
        speakers, target = tensors.get("context_speakers"), tensors.get("context_target")
        assert speakers is not None
        assert target is not None

        def flag(modality: str) -> Tensor | None:
            mask = tensors.get(f"context_{modality}_mask")
            return None if mask is None else mask.bool()

        context = ConversationContext(
            mask=window.bool(),
            speakers=speakers,
            target=target,
            text=tensors.get("context_text"),
            audio=tensors.get("context_audio"),
            vision=tensors.get("context_vision"),
            text_mask=flag("text"),
            audio_mask=flag("audio"),
            vision_mask=flag("vision"),
        )
    targets = None
    if tensors.get("class_targets") is not None or tensors.get("score_targets") is not None:
        targets = FusionTargets(tensors.get("class_targets"), tensors.get("score_targets"))
    return FusionInputs(sequence("text"), sequence("audio"), sequence("vision"), context, targets)


class MerPreTrainedModel(PreTrainedModel):
    """What both classes tell transformers about themselves."""

    config: MerConfig
    config_class = MerConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _skip_keys_device_placement = ["past_key_values"]  # noqa: RUF012

    @property
    def is_gradient_checkpointing(self) -> bool:
        """What PEFT 0.21 and TRL 1.16 ask, without the warning that transformers 5.23 gives its users for it."""
        return bool(self.is_activation_checkpointing)

    def _init_weights(self, module: nn.Module) -> None:
        """Nothing: backbone and adapter each initialise themselves, and a loaded backbone must keep its weights."""


class MerModel(MerPreTrainedModel):
    """Backbone and adapter. The adapter's ``K`` pseudo tokens replace the embeddings at ``pseudo_token_mask``."""

    def __init__(self, config: MerConfig, language_model: PreTrainedModel | None = None) -> None:
        super().__init__(config)
        self.language_model = language_model if language_model is not None else AutoModel.from_config(config.text_config)
        self.fusion_adapter = build_adapter(config.adapter, config.build_adapter_config())
        self.language_router: LanguageRouter | None = None
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.language_model.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.language_model.set_input_embeddings(value)

    def fuse(self, tensors: dict[str, Tensor | None]) -> FusionOutput:
        """Run the adapter alone on flat tensors (:data:`FUSION_KEYS`)."""
        output: FusionOutput = self.fusion_adapter(fusion_inputs(tensors, self.get_input_embeddings()))
        return output

    def inject(
        self, embeds: Tensor, pseudo_token_mask: Tensor, pseudo_tokens: Tensor, sample_ids: Tensor | None = None
    ) -> Tensor:
        """Put ``pseudo_tokens (B, K, H)`` where ``pseudo_token_mask (B, L)`` is True in ``embeds (B, L, H)``.

        With ``sample_ids (R, L)`` mask and embeddings are of ``R`` rows that hold the ``B`` samples one after another.
        """
        samples, count, size = pseudo_tokens.shape
        self._check_pseudo_token_positions(pseudo_token_mask, samples, count, sample_ids)
        # By index: the gradient of masked_scatter would count them on the host. Samples follow one another in order.
        positions = torch.argsort(~pseudo_token_mask.flatten(), stable=True)[: samples * count]
        flat = embeds.reshape(-1, size).index_copy(0, positions, pseudo_tokens.reshape(-1, size).to(embeds.dtype))
        return flat.view_as(embeds)

    @staticmethod
    def _check_pseudo_token_positions(positions: Tensor, samples: int, count: int, sample_ids: Tensor | None) -> None:
        """Each sample must have ``count`` positions for its pseudo tokens.

        On a CPU the error says what was found. Another device checks by itself, and stops with a shorter message.

        Raises:
            ValueError: on a CPU. Elsewhere the device's own assertion fails.
        """
        if sample_ids is None:
            found = positions.sum(dim=1)
            outside = positions.new_zeros(1)
        else:
            # How many positions each number has: one more in front for padding, numbered -1, and one more behind for shared
            # prefixes, numbered after the samples. Neither of these may hold a pseudo token.
            numbers = (sample_ids + 1).clamp(max=samples + 1)
            counts = numbers.new_zeros(samples + 2).scatter_add(0, numbers.flatten(), positions.long().flatten())
            found, outside = counts[1:-1], counts[:: samples + 1]
        complete = (found == count).all() & ~outside.any()
        if check_on_device(complete, f"each prompt must hold {count} pseudo-token positions; was a prompt truncated?"):
            return
        if bool(outside.any()):
            raise ValueError("pseudo-token positions stand in padding, or in samples that the features do not have")
        raise ValueError(
            f"each prompt must hold {count} pseudo-token positions, found {found.tolist()}; was a prompt truncated?"
        )

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        pseudo_token_mask: Tensor | None = None,
        fusion: FusionOutput | None = None,
        language_ids: Tensor | None = None,
        sample_ids: Tensor | None = None,
        shared_prefix_ids: Tensor | None = None,
        **kwargs: Any,
    ) -> MerOutput:
        """Embed, inject, run the backbone.

        Args:
            input_ids: ``(B, L)``; the ids at pseudo-token positions are not read.
            attention_mask: ``(B, L)`` or a 4D mask. pseudo_token_mask: ``(B, L)`` bool, K True a row; None runs the
                bare backbone (later steps of generation).
            fusion: what the adapter said of these samples before; it does not run again.
            language_ids: ``(B,)`` index of each sample's language in ``LANGUAGES``; read where LoRA is routed by language.
            sample_ids, shared_prefix_ids: ``(R, L)`` of a packed batch, in which input_ids, position_ids and
                pseudo_token_mask are ``(R, L)`` and hold several of the ``B`` samples a row; see
                :class:`llm_mer.model.collator.MerBatch`.
            **kwargs: tensors of :data:`FUSION_KEYS` go to the adapter, anything else to the backbone.
        """
        tensors = {name: kwargs.pop(name) for name in FUSION_KEYS if name in kwargs}
        if inputs_embeds is None:
            if input_ids is None:
                raise ValueError("give input_ids or inputs_embeds")
            inputs_embeds = self.get_input_embeddings()(input_ids)
        if pseudo_token_mask is not None:
            if fusion is None:
                fusion = self.fuse(tensors)
            mask = pseudo_token_mask.bool()
            missing = inputs_embeds.shape[1] - mask.shape[1]
            if missing > 0:  # generation without a cache: the answer so far follows the prompt
                mask = F.pad(mask, (0, missing))
            inputs_embeds = self.inject(inputs_embeds, mask, fusion.pseudo_tokens, sample_ids)
        shape = inputs_embeds.shape
        if sample_ids is not None:
            if language_ids is not None:
                language_ids = language_ids[sample_ids.clamp(min=0)]  # (R, L)
            implementation = attention_implementation(self.language_model.config)
            if attends_by_positions(implementation):  # which it does in a single row
                if shared_prefix_ids is not None:
                    raise ValueError(f"{implementation} cannot let samples share a prefix: pack without it")
                assert position_ids is not None
                attention_mask, inputs_embeds = None, inputs_embeds.reshape(1, -1, shape[-1])
                position_ids = position_ids.reshape(1, -1)
                language_ids = None if language_ids is None else language_ids.reshape(1, -1)
            else:
                dtype = inputs_embeds.dtype if implementation == "eager" else None
                attention_mask = block_causal_mask(sample_ids, dtype, shared_prefix_ids)
        if self.language_router is not None:
            self.language_router.languages = language_ids
        outputs = self.language_model(
            inputs_embeds=inputs_embeds,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            **kwargs,
        )
        return MerOutput(
            last_hidden_state=outputs.last_hidden_state.view(*shape[:2], -1),
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            fusion=fusion,
        )


class MerForConditionalGeneration(MerPreTrainedModel, GenerationMixin):
    """Backbone, adapter and head: answers in the backbone's own vocabulary, one generative head for classes and numbers.

    Attributes:
        answer_loss: cross entropy summed over answer tokens, of hidden states ``(N, H)``, the linear head ``(V, H)`` and
            targets ``(N,)``, in position of the one over logits; see :mod:`llm_mer.model.liger_kernels`.
        read_out: reads answers off the hidden states, where the configuration names its tasks.
    """

    _tied_weights_keys = {"lm_head.weight": "model.language_model.embed_tokens.weight"}  # noqa: RUF012

    def __init__(
        self, config: MerConfig, language_model: PreTrainedModel | None = None, lm_head: nn.Module | None = None
    ) -> None:
        super().__init__(config)
        self.model = MerModel(config, language_model)
        text_config = config.get_text_config()
        self.answer_loss: Callable[[Tensor, nn.Module, Tensor], Tensor] | None = None
        self.lm_head = (
            lm_head if lm_head is not None else nn.Linear(text_config.hidden_size, text_config.vocab_size, bias=False)
        )
        self.read_out: nn.Module | None = None
        if config.read_out:
            self.read_out = ReadOut(text_config.hidden_size, config.read_out)
        self.post_init()

    @classmethod
    def from_backbone(cls, backbone: PreTrainedModel, config: MerConfig) -> MerForConditionalGeneration:
        """Wrap a loaded causal language model, keeping its weights, dtype and device."""
        body = backbone.base_model
        assert isinstance(body, PreTrainedModel)
        model = cls(config, body, backbone.get_output_embeddings())
        if (published := backbone.generation_config) is not None:
            # Its tokens and no more: a repetition penalty or a banned word of that file would make a greedy answer another.
            names = ("bos_token_id", "eos_token_id", "pad_token_id")
            model.generation_config = GenerationConfig(**{name: getattr(published, name) for name in names})
        model.model.fusion_adapter.to(backbone.device)
        if model.read_out is not None:
            model.read_out.to(backbone.device)
        return model

    def get_input_embeddings(self) -> nn.Module:
        return self.model.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.model.set_input_embeddings(value)

    def get_output_embeddings(self) -> nn.Module:
        return self.lm_head

    def set_output_embeddings(self, new_embeddings: nn.Module) -> None:
        self.lm_head = new_embeddings

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        pseudo_token_mask: Tensor | None = None,
        labels: Tensor | None = None,
        label_positions: Tensor | None = None,
        logits_to_keep: int = 0,
        next_tokens: NextTokens | None = None,
        answer_nodes: Tensor | None = None,
        answer_tokens: Tensor | None = None,
        **kwargs: Any,
    ) -> MerOutput:
        """Logits, and the answer's loss when ``labels (B, L)`` (-100 outside the answer) are given.

        With labels, logits are computed at answer positions only: of ``B · L`` rows of vocabulary size, the few that the
        loss reads. ``label_positions (N,)`` says which of the ``B · L`` positions, one row after another, hold the labels;
        without it they are looked for, which makes the host wait for an accelerator. With ``next_tokens`` there are none,
        only the log-probabilities of the tokens asked for, and no hidden state: the backbone's last layer is not computed
        where nothing is read. With ``answer_nodes (N, 2)``, rows and positions of ``input_ids``,
        these are of ``answer_tokens (N, K)``, to be learnt from.
        """
        with nullcontext() if next_tokens is None else feed_forward_at(self.model.language_model, next_tokens.positions):
            outputs = self.model(
                input_ids=input_ids,
                attention_mask=attention_mask,
                position_ids=position_ids,
                past_key_values=past_key_values,
                inputs_embeds=inputs_embeds,
                pseudo_token_mask=pseudo_token_mask,
                **kwargs,
            )
        hidden = outputs.last_hidden_state
        loss = loss_sum = logits = answer_log_probs = None
        if next_tokens is not None:
            answer_log_probs = self._log_probs(hidden, next_tokens)
        elif answer_nodes is not None and answer_tokens is not None:
            answer_log_probs = self._answer_log_probs(hidden, answer_nodes, answer_tokens)
        elif labels is None:
            kept = hidden[:, -logits_to_keep:] if logits_to_keep else hidden
            logits = self.lm_head(kept)  # (B, L, V)
        else:
            if label_positions is None:
                label_positions = find_label_positions(labels)
            targets = labels.flatten()[label_positions]  # (N,)
            predicting = hidden.flatten(0, 1)[label_positions - 1]  # (N, H)
            logits = self.lm_head(predicting) if self.answer_loss is None else None  # (N, V)
            if not targets.shape[0]:
                loss_sum = hidden.float().sum() * 0.0  # keeps the graph, so every rank takes part in the reduction
            elif logits is not None:
                loss_sum = F.cross_entropy(logits.float(), targets, reduction="sum")
            else:
                assert self.answer_loss is not None
                loss_sum = self.answer_loss(predicting, self.lm_head, targets)
            loss = loss_sum / max(targets.shape[0], 1)
        read_out = None
        if self.read_out is not None:
            ends = prompt_ends(hidden, labels, next_tokens, answer_nodes)
            read_out = None if ends is None else self.read_out(ends)
        return MerOutput(
            loss=loss,
            loss_sum=loss_sum,
            logits=logits,
            last_hidden_state=hidden if labels is None and next_tokens is None else None,
            answer_log_probs=answer_log_probs,
            read_out=read_out,
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            fusion=outputs.fusion,
        )

    def _log_probs(self, hidden: Tensor, asked: NextTokens) -> Tensor:
        """``(B, L, H) -> (B, E)`` log-probabilities of the tokens asked for, of a head in float32."""
        rows = torch.arange(hidden.shape[0], device=hidden.device).unsqueeze(1)
        return next_token_log_probs(self.lm_head, hidden[rows, asked.positions], asked.nodes, asked.tokens)

    def _answer_log_probs(self, hidden: Tensor, nodes: Tensor, tokens: Tensor) -> Tensor:
        """``(B, L, H) -> (N, K)`` log-probabilities of ``tokens (N, K)`` behind ``nodes (N, 2)``, with their gradient.

        Logits that would take more than :data:`CHUNK_ELEMENTS` are made in parts, and again in the backward pass.
        """

        def log_probs(predicting: Tensor, wanted: Tensor) -> Tensor:
            logits = self.lm_head(predicting).float()  # (n, V)
            return logits.gather(1, wanted) - logits.logsumexp(dim=-1, keepdim=True)

        predicting = hidden[nodes[:, 0], nodes[:, 1]]  # (N, H)
        size = max(1, CHUNK_ELEMENTS // self.config.get_text_config().vocab_size)
        if predicting.shape[0] <= size:
            return log_probs(predicting, tokens)
        parts = zip(predicting.split(size), tokens.split(size), strict=True)
        return torch.cat([checkpoint(log_probs, *part, use_reentrant=False) for part in parts])

    def _validate_model_kwargs(self, model_kwargs: dict[str, Any]) -> None:
        """Fusion tensors reach :meth:`forward` as ``**kwargs``, where ``generate`` cannot see that they are used."""
        kept = {k: v for k, v in model_kwargs.items() if k not in (*FUSION_KEYS, "language_ids", "fusion")}
        # GenerationMixin declares a self for another type checker, with members that no model has.
        super()._validate_model_kwargs(kept)  # type: ignore[misc]

    def prepare_inputs_for_generation(  # type: ignore[override]
        self, input_ids: LongTensor, is_first_iteration: bool = False, use_cache: bool = True, **kwargs: Any
    ) -> dict[str, Any]:
        """Pseudo tokens enter with the prompt; once they are in the cache, the adapter does not run again."""
        inputs: dict[str, Any] = super().prepare_inputs_for_generation(  # type: ignore[misc]  # as above
            input_ids, is_first_iteration=is_first_iteration, use_cache=use_cache, **kwargs
        )
        if use_cache and not is_first_iteration:
            for name in ("pseudo_token_mask", "fusion", *FUSION_KEYS):
                inputs.pop(name, None)
        return inputs


class MerHeadModel(MerPreTrainedModel):
    """An adapter with its own head and no language model: the papers' original setting (``--backbone none``)."""

    def __init__(self, config: MerConfig) -> None:
        super().__init__(config)
        self.fusion_adapter = build_adapter(config.adapter, config.build_adapter_config())
        self.post_init()

    def get_input_embeddings(self) -> Any:
        """Always None, since there are no token embeddings; FSDP calls this on every model."""
        return None

    def forward(self, **kwargs: Any) -> MerOutput:
        """Run the adapter on the tensors of :data:`FUSION_KEYS`; others (prompt ids, labels) are not read."""
        tensors = {name: kwargs.get(name) for name in FUSION_KEYS}
        fused: FusionOutput = self.fusion_adapter(fusion_inputs(tensors))
        return MerOutput(fusion=fused)


def describe_parameters(model: nn.Module) -> dict[str, int]:
    """Counts of ``total``, ``trainable`` and ``adapter`` parameters."""
    adapter = sum(full_numel(p) for n, p in model.named_parameters() if "fusion_adapter" in n and "original_module" not in n)
    total = sum(full_numel(p) for p in model.parameters())
    trainable = sum(full_numel(p) for p in model.parameters() if p.requires_grad)
    return {"total": total, "trainable": trainable, "adapter": adapter}


def fusion_adapter_of(model: nn.Module) -> FusionAdapter:
    """The adapter inside a bare, PEFT-wrapped or DDP-wrapped model (the trained copy, not PEFT's frozen original)."""
    found = [
        module
        for name, module in model.named_modules()
        if isinstance(module, FusionAdapter) and "original_module" not in name
    ]
    if len(found) != 1:
        raise ValueError(f"expected one fusion adapter inside {type(model).__name__}, found {len(found)}")
    return found[0]


def conditional_generation_of(model: nn.Module) -> MerForConditionalGeneration | MerHeadModel:
    """The ``.model`` / ``.lm_head`` module inside a bare, PEFT-wrapped or DDP-wrapped model."""
    for module in model.modules():
        if isinstance(module, MerForConditionalGeneration | MerHeadModel):
            return module
    raise ValueError(f"{type(model).__name__} holds neither MerForConditionalGeneration nor MerHeadModel")


__all__ = [
    "FUSION_KEYS",
    "MerForConditionalGeneration",
    "MerHeadModel",
    "MerModel",
    "MerOutput",
    "adapter_class",
    "conditional_generation_of",
    "describe_parameters",
    "fusion_adapter_of",
    "fusion_inputs",
]
