"""Exact log-probabilities of every admissible answer: prompt and all answers in one pass, under a tree mask."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig

from llm_mer.backbones.attention import additive_mask, attention_by_mask, check_mask
from llm_mer.model.packing import SHARED_FROM
from llm_mer.scoring.answer_tree import AnswerTree

CHUNK_ELEMENTS = 2**26
"""Logit values held at once (256 MB in float32); longer work is cut into chunks of rows."""


class ScoredModel(Protocol):
    """What scoring reads of a model: a transformers causal language model, or anything laid out like one."""

    @property
    def model(self) -> nn.Module:
        """Returns ``last_hidden_state`` and ``past_key_values``."""

    @property
    def lm_head(self) -> nn.Module:
        """Turns hidden states into logits."""


@dataclass
class PrefixCache:
    """What the prompts of the last batch began with, computed: the next batch that begins alike takes it as it is.

    Right as long as the weights stay, those of a language too where LoRA is routed by it: whoever scores batch after batch
    of one task and language holds one, and lets it go.

    Attributes:
        ids: ``(P,)``. cache: keys and values of one row of them.
    """

    ids: Tensor | None = None
    cache: Any = None


def shared_prefix(inputs: Mapping[str, Any], single: bool = False) -> int:
    """How many tokens every prompt of a batch begins with alike, before its pseudo tokens; at least one is left over.

    0 where that cannot be said: padding inside a prompt, or samples of several languages, whose weights may differ. Also for
    one prompt, which shares with nobody, unless ``single``.
    """
    ids, mask, languages = inputs["input_ids"], inputs["attention_mask"], inputs.get("language_ids")
    if ids.shape[0] < 2 and not single:
        return 0
    if languages is not None and not bool((languages == languages[0]).all()):
        return 0
    width = ids.shape[1]
    places = torch.arange(width, device=ids.device)
    first, last = mask.argmax(dim=1), (mask * places).argmax(dim=1)  # (B,)
    if not bool((last - first + 1 == mask.sum(dim=1)).all()):
        return 0
    limit = last - first
    pseudo = inputs.get("pseudo_token_mask")
    if pseudo is not None:
        begin = torch.where(pseudo.any(dim=1), pseudo.int().argmax(dim=1), width)
        limit = torch.minimum(limit, begin - first)
    aligned = ids.gather(1, (first.unsqueeze(1) + places).clamp(max=width - 1))
    alike = (aligned == aligned[:1]).all(dim=0) & (places < limit.min())
    return int(alike.int().cumprod(dim=0).sum())


def config_of(body: nn.Module) -> PreTrainedConfig:
    """The configuration of the language model, which may be inside."""
    config = getattr(body, "language_model", body).config
    assert isinstance(config, PreTrainedConfig)
    return config


class LabelScorer:
    """Scores a fixed set of answers after any prompt.

    ``log p(answer | prompt) = Σ_i log p(token_i | prompt, token_<i)``, the end token included, exact: each answer token
    sees the prompt and its own earlier tokens only, at its true position. One forward pass, however many answers: their
    tree stands behind every prompt. What all prompts of a batch begin with (an instruction) is computed once, in a short
    pass of one row before it, and not again for the next batch where it is kept.

    Args:
        model: ``.model`` (returns ``last_hidden_state`` and ``past_key_values``) and ``.lm_head``: a transformers causal
            language model or :class:`~llm_mer.model.modeling_mer.MerForConditionalGeneration`.
        answers: token ids of each answer. end_token_id: closes an answer, so that "1" and "1.5" do not share mass; None
            scores the tokens alone, which is less work (:func:`has_prefix_conflict` says where it is still a distribution).
    """

    def __init__(self, model: ScoredModel, answers: Sequence[Sequence[int]], end_token_id: int | None) -> None:
        self.model = model
        self.tree = AnswerTree.build(answers, end_token_id)
        self.paths, self.ancestors = self.tree.path_matrix(), self.tree.ancestors()

    @torch.no_grad()
    def score(self, inputs: Mapping[str, Any], kept: PrefixCache | None = None) -> Tensor:
        """``(B, C)`` float32 natural-log probabilities of the answers.

        Args:
            inputs: keyword arguments of ``model.model`` for the prompt: ``input_ids (B, L)``, ``attention_mask (B, L)``
                padded on either side, and whatever else it reads (pseudo-token tensors).
            kept: of the batches before; what the prompts begin with is taken from it and left in it.

        Raises:
            UserError: layers of the backbone that see less than the prompt and its answers, or that no mask reaches.
        """
        shared = shared_prefix(inputs, single=kept is not None)
        cache, real, arguments = None, inputs["attention_mask"], dict(inputs)
        if shared >= SHARED_FROM:
            cache, real, arguments = self._after_prefix(inputs, shared, kept)
        else:
            shared = 0
        batch, length = real.shape
        device = real.device
        count = len(self.tree.tokens)
        answers = torch.tensor(self.tree.tokens, dtype=torch.long, device=device).expand(batch, count)
        depths = torch.tensor(self.tree.depths, dtype=torch.long, device=device)
        lengths = shared + real.long().sum(dim=1, keepdim=True)  # (B, 1)
        places = (shared + real.long().cumsum(dim=1) - 1).clamp(min=0)
        arguments["input_ids"] = torch.cat([arguments["input_ids"], answers], dim=1)  # (B, L + M)
        arguments["position_ids"] = torch.cat([places, lengths - 1 + depths], dim=1)
        if "pseudo_token_mask" in arguments:
            arguments["pseudo_token_mask"] = nn.functional.pad(arguments["pseudo_token_mask"], (0, count))
        visible = self._visible(real.bool(), shared)
        check_mask(config_of(self.model.model), visible.shape[-1])
        with attention_by_mask(config_of(self.model.model)) as eager:
            # Eager attention adds the mask to scores of any type, and takes the softmax in float32.
            arguments["attention_mask"] = additive_mask(visible, torch.float32) if eager else visible
            output = self.model.model(**arguments, past_key_values=cache, use_cache=cache is not None)
        hidden = output.last_hidden_state  # (B, L + M, H)
        last = (real * torch.arange(length, device=device)).argmax(dim=1)  # (B,) place of the last real token
        ends = hidden[torch.arange(batch, device=device), last].unsqueeze(1)
        edges = self._edge_log_probs(torch.cat([ends, hidden[:, length:]], dim=1))  # (B, 1 + M, H) -> (B, E)
        with torch.autocast(device.type, enabled=False):  # which would round the sums to bfloat16
            scores: Tensor = edges @ self.paths.to(device).T
        return scores

    def _after_prefix(
        self, inputs: Mapping[str, Any], shared: int, kept: PrefixCache | None
    ) -> tuple[Any, Tensor, dict[str, Any]]:
        """The cache of the beginning that all rows share, repeated for each; the mask and inputs of what follows it.

        A row padded on the left keeps its width less the beginning, so its own beginning becomes padding.
        """
        ids, mask = inputs["input_ids"], inputs["attention_mask"]
        first = mask.argmax(dim=1)  # (B,) place of the first real token
        beginning = ids[0, first[0] : first[0] + shared]
        if kept is not None and kept.ids is not None and torch.equal(kept.ids, beginning):
            cache = copy.deepcopy(kept.cache)
        else:
            once = {name: inputs[name][:1] for name in ("language_ids",) if name in inputs}
            cache = self.model.model(input_ids=beginning.unsqueeze(0), use_cache=True, **once).past_key_values
            if kept is not None:
                kept.ids, kept.cache = beginning, copy.deepcopy(cache)
        cache.batch_repeat_interleave(ids.shape[0])
        places = torch.arange(ids.shape[1], device=ids.device)
        real = mask * (places >= (first + shared).unsqueeze(1))
        rest = dict(inputs)
        for name in ("input_ids", "pseudo_token_mask"):
            if name in rest:
                rest[name] = rest[name][:, shared:]
        return cache, real[:, shared:], rest

    def _visible(self, real: Tensor, shared: int) -> Tensor:
        """``(B, 1, L + M, P + L + M)`` bool: what each place sees of the beginning, the prompt and the answers.

        Padding sees itself: a place that sees nothing would be NaN.
        """
        batch, length = real.shape
        count = len(self.tree.tokens)
        whole = length + count
        visible = torch.eye(whole, dtype=torch.bool, device=real.device).repeat(batch, 1, 1)
        causal = torch.ones(length, length, dtype=torch.bool, device=real.device).tril()
        visible[:, :length, :length] |= causal & real[:, None, :]
        visible[:, length:, :length] = real[:, None, :]
        visible[:, length:, length:] = self.ancestors.to(real.device)
        return nn.functional.pad(visible, (shared, 0), value=True).unsqueeze(1)

    def _edge_log_probs(self, hidden: Tensor) -> Tensor:
        """Log-probability of each edge: ``(B, 1 + M, H) -> (B, E)``, holding a bounded part of the logits at a time."""
        parents = torch.tensor([edge[0] for edge in self.tree.edges], device=hidden.device)
        tokens = torch.tensor([edge[1] for edge in self.tree.edges], device=hidden.device)
        vocabulary = int(config_of(self.model.model).vocab_size)
        rows = max(1, CHUNK_ELEMENTS // max(vocabulary * hidden.shape[1], 1))
        parts = []
        for chunk in hidden.split(rows):
            logits = self.model.lm_head(chunk).float()  # (b, 1 + M, V)
            normaliser = logits.logsumexp(dim=-1)  # (b, 1 + M)
            parts.append(logits[:, parents, tokens] - normaliser[:, parents])
        return torch.cat(parts)

    def log_probabilities(self, inputs: Mapping[str, Any], kept: PrefixCache | None = None) -> Tensor:
        """``(B, C)`` scores normalised over the answers: an always-valid distribution."""
        return torch.log_softmax(self.score(inputs, kept), dim=-1)

    def complete_mass(self, inputs: Mapping[str, Any]) -> Tensor:
        """``(B,)`` log-probability that a free answer would be an admissible one."""
        return self.score(inputs).logsumexp(dim=-1)
