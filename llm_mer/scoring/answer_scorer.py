"""Exact log-probabilities of every admissible answer: prompts and all answers in one pass, under a tree mask."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache

from llm_mer.adapters.base import FusionOutput
from llm_mer.backbones.attention import additive_mask, attention_by_mask, check_mask
from llm_mer.model.modeling_mer import FUSION_KEYS, MerForConditionalGeneration
from llm_mer.model.outputs import MerOutput, NextTokens
from llm_mer.scoring.prefix_cache import PrefixCache, prefix_layers
from llm_mer.scoring.prompt_layout import PromptLayout, TaskPrompts, group_tasks


@dataclass(frozen=True)
class AnswerScores:
    """What scoring one task's answers found for a batch of ``B`` utterances.

    Attributes:
        unnormalised: ``(B, C)`` float32, ``log p(answer | prompt)`` of each admissible answer.
        fusion: what the adapter said of the batch; None for a bare backbone.
        read_out: ``(B, outputs)`` at the prompts' ends (:class:`~llm_mer.model.read_out.ReadOut`); None without one.
    """

    unnormalised: Tensor
    fusion: FusionOutput | None
    read_out: Tensor | None = None

    @property
    def log_probabilities(self) -> Tensor:
        """``(B, C)`` normalised over the answers: an always-valid distribution."""
        return torch.log_softmax(self.unnormalised, dim=-1)

    @property
    def admissible_mass(self) -> Tensor:
        """``(B,)`` log-probability that a free answer would be an admissible one."""
        return self.unnormalised.logsumexp(dim=-1)

    @property
    def outside_mass(self) -> Tensor:
        """``(B,)`` log-probability that a free answer would be none of them: ``log(1 - Σ_c p_c)``.

        At the least the logarithm of float32's precision, -15.94: what is rarer than that, rounding hides.
        """
        inside = self.admissible_mass.clamp(max=-torch.finfo(torch.float32).eps)
        return torch.log(-torch.expm1(inside))


class AnswerTreeScorer:
    """Scores fixed sets of answers after any prompts.

    ``log p(answer | prompt) = Σ_i log p(token_i | prompt, token_<i)``, the end token included where the tree has one, exact:
    each answer token sees its prompt and its own earlier tokens only, at its true position. One forward pass, however many
    answers, and however many tasks whose prompts begin alike (:mod:`llm_mer.scoring.prompt_layout`). What all prompts of a
    batch begin with (an instruction) is computed once, in a short pass of one row before it, and not again for the next
    batch where it is kept. The adapter runs once a batch.
    """

    def __init__(self, model: MerForConditionalGeneration) -> None:
        self.model = model

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return next(self.model.parameters()).device

    @torch.no_grad()
    def score(
        self, task_prompts: Sequence[TaskPrompts], inputs: Mapping[str, Any], kept: PrefixCache | None = None
    ) -> list[AnswerScores]:
        """The scores of each task.

        Args:
            task_prompts: tasks, each with one prompt an utterance.
            inputs: what the model reads beside prompts, on its device: tensors of ``FUSION_KEYS`` or a ``fusion``, and
                ``language_ids (B,)``, all of one language.
            kept: of the batches before; shared prefixes are taken from it and left in it.

        Raises:
            UserError: layers of the backbone that see less than the prompt and its answers, or that no mask reaches.
        """
        given = dict(inputs)
        found: dict[int, tuple[Tensor, Tensor | None]] = {}
        for number, tasks in enumerate(group_tasks(task_prompts)):
            group = [task_prompts[task] for task in tasks]
            output = self._forward(PromptLayout.build(group, single=kept is not None), given, kept, number)
            assert output.answer_log_probs is not None
            widths = [len(own.answers.edges) for own in group]
            for index, (task, edges) in enumerate(zip(tasks, output.answer_log_probs.split(widths, dim=1), strict=True)):
                read_out = None if output.read_out is None else output.read_out[:, index]
                found[task] = self._sum_over_paths(task_prompts[task], edges), read_out
            if output.fusion is not None:  # the next pass takes it as it is
                given = {name: value for name, value in given.items() if name not in FUSION_KEYS}
                given["fusion"] = output.fusion
        return [AnswerScores(found[task][0], given.get("fusion"), found[task][1]) for task in range(len(task_prompts))]

    def _sum_over_paths(self, own: TaskPrompts, edges: Tensor) -> Tensor:
        """``(B, E) -> (B, C)``: an answer's log-probability is the sum over its tokens."""
        # No matrix product, which autocast would round to bfloat16.
        return (edges.unsqueeze(1) * own.answers.path_matrix.to(edges.device)).sum(dim=-1)

    def _forward(self, layout: PromptLayout, given: dict[str, Any], kept: PrefixCache | None, number: int) -> MerOutput:
        """One pass of the model over the rows of a layout."""
        device = self.device
        cache = self._prefix(layout.prefix, given, kept, number, device) if layout.prefix else None
        config = self.model.config.get_text_config()
        check_mask(config, len(layout.prefix) + layout.input_ids.shape[1])
        next_tokens = layout.next_tokens
        visible = layout.visible(device)
        tensors = (next_tokens.positions, next_tokens.nodes, next_tokens.tokens, next_tokens.ends)
        with attention_by_mask(config) as eager:
            output: MerOutput = self.model(
                input_ids=layout.input_ids.to(device),
                position_ids=layout.position_ids.to(device),
                # Eager attention adds the mask to scores of any type, and takes the softmax in float32.
                attention_mask=additive_mask(visible, torch.float32) if eager else visible,
                pseudo_token_mask=None if layout.pseudo_token_mask is None else layout.pseudo_token_mask.to(device),
                past_key_values=cache,
                use_cache=cache is not None,
                next_tokens=NextTokens(*(t.to(device) for t in tensors if t is not None)),
                **given,
            )
        return output

    def _prefix(
        self, ids: tuple[int, ...], given: Mapping[str, Any], kept: PrefixCache | None, number: int, device: torch.device
    ) -> Cache:
        """Keys and values of the shared prefix."""
        before = kept.found.get(number) if kept is not None else None
        if before is not None and before[0] == ids:
            return before[1]
        once = {name: given[name][:1] for name in ("language_ids",) if name in given}
        row = torch.tensor([ids], device=device)
        computed = self.model.model(input_ids=row, use_cache=True, **once).past_key_values
        assert computed is not None
        cache = prefix_layers(computed)
        if kept is not None:
            kept.found[number] = (ids, cache)
        return cache
