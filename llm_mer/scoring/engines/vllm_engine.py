"""vLLM as the engine: the adapter here, the backbone with LoRA merged into it there, prompts crossing as embeddings.

vLLM answers a prompt of embeddings ``(L, H)`` with the log-probabilities of named tokens at its end
(``SamplingParams.logprob_token_ids``), before any sampling. An answer tree then takes one request for each of its inner
nodes: the embeddings of the prompt and of the node's tokens, and the tokens that follow it. Prompts of one utterance begin
alike, and vLLM's prefix cache keeps their common blocks.
"""

from __future__ import annotations

import copy
import importlib.util
import inspect
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from llm_mer.adapters.base import FusionOutput
from llm_mer.backbones.language_lora import SHARED
from llm_mer.checkpoints.backbone_reference import find_backbone
from llm_mer.checkpoints.description import DESCRIPTION_FILE, CheckpointDescription, check_description
from llm_mer.checkpoints.integrity import verify_checkpoint
from llm_mer.checkpoints.loading import LoadedCheckpoint, load_tokenizer
from llm_mer.checkpoints.merging import merge_checkpoint
from llm_mer.checkpoints.precision import AUTO, resolve_precision
from llm_mer.checkpoints.weights import load_merged_weights
from llm_mer.errors import UserError, first_line
from llm_mer.model.configuration_mer import MerConfig
from llm_mer.model.modeling_mer import FUSION_KEYS, MerForConditionalGeneration
from llm_mer.model.processing_mer import MerProcessor, PromptIds
from llm_mer.scoring.answer_scorer import AnswerScores
from llm_mer.scoring.answer_tree import AnswerTree
from llm_mer.scoring.engines.base import MAX_ANSWER_TOKENS, OpenedCheckpoint
from llm_mer.scoring.prefix_cache import PrefixCache
from llm_mer.scoring.prompt_layout import TaskPrompts
from llm_mer.storage.temporary_folders import temporary_folder

TOKENS_ASKED = 128
"""Tokens whose log-probabilities one request may name: vLLM's own limit."""
EMBEDDING_BYTES = 2**28
"""Embeddings handed over in one call; longer work is cut into several."""
OWN_OPTIONS: tuple[str, ...] = (
    "model",
    "dtype",
    "enable_prompt_embeds",
    "enable_prefix_caching",
    "skip_tokenizer_init",
    "generation_config",
    "max_model_len",
    "logprobs_mode",
)
"""Arguments of vLLM's ``LLM`` that are set here."""


class LanguageModel(Protocol):
    """What is used of ``vllm.LLM``."""

    def generate(self, prompts: Any, sampling_params: Any, use_tqdm: bool) -> list[Any]:
        """A ``RequestOutput`` for each prompt, in their order."""


@dataclass(frozen=True)
class NodeQuestion:
    """What one request asks: the log-probabilities of ``tokens`` after the answer tokens of ``path``.

    ``edges`` are their indices among the edges of the answer tree.
    """

    path: tuple[int, ...]
    tokens: tuple[int, ...]
    edges: tuple[int, ...]


def questions_of(tree: AnswerTree, limit: int = TOKENS_ASKED) -> list[NodeQuestion]:
    """One question for every node of a tree that something follows, cut where more than ``limit`` tokens do."""
    paths: list[tuple[int, ...]] = [()]
    for token, parent in zip(tree.tokens, tree.parents, strict=True):
        paths.append((*paths[parent], token))
    following: dict[int, list[int]] = {}
    for edge, (parent, _) in enumerate(tree.edges):
        following.setdefault(parent, []).append(edge)
    return [
        NodeQuestion(paths[node], tuple(tree.edges[i][1] for i in part), tuple(part))
        for node, edges in following.items()
        for part in (edges[start : start + limit] for start in range(0, len(edges), limit))
    ]


class VLLMEngine:
    """Prompts made by the adapter and the embedding table of ``model``, answered by vLLM.

    Args:
        model: its backbone needs no blocks. language_model: a ``vllm.LLM`` with the backbone and prompt embeddings enabled.
        sampling_params: ``vllm.SamplingParams``.
    """

    def __init__(self, model: MerForConditionalGeneration, language_model: LanguageModel, sampling_params: Any) -> None:
        self.model, self.language_model, self.sampling_params = model, language_model, sampling_params

    def score(
        self, prompt_kinds: Sequence[TaskPrompts], inputs: Mapping[str, Any], kept: PrefixCache | None = None
    ) -> list[AnswerScores]:
        """See :meth:`llm_mer.scoring.engines.base.Engine.score`. ``kept`` is left alone: vLLM keeps prefixes by itself."""
        fusion = self._fuse(inputs)
        return [AnswerScores(self._score(own, fusion), fusion) for own in prompt_kinds]

    def _score(self, own: TaskPrompts, fusion: FusionOutput) -> Tensor:
        """``(B, C)`` float32 natural-log probabilities of a task's answers."""
        prompts, tree = self._embed_prompts(own.prompts, fusion), own.answers
        questions = questions_of(tree)
        edges = torch.zeros(len(prompts), len(tree.edges))
        # First the prompts by themselves, so that all other requests find their blocks in the prefix cache.
        for part in ([q for q in questions if not q.path], [q for q in questions if q.path]):
            asked_about = [(row, question) for row in range(len(prompts)) for question in part]
            found = self.ask([(prompts[row], question) for row, question in asked_about])
            for (row, question), values in zip(asked_about, found, strict=True):
                edges[row, list(question.edges)] = torch.tensor(values)
        return edges @ tree.path_matrix.T

    @torch.no_grad()
    def _fuse(self, inputs: Mapping[str, Any]) -> FusionOutput:
        """What the adapter says of a batch, or said before."""
        known: FusionOutput | None = inputs.get("fusion")
        return known or self.model.model.fuse({name: inputs[name] for name in FUSION_KEYS if name in inputs})

    @torch.no_grad()
    def _embed_prompts(self, prompts: Sequence[PromptIds], fusion: FusionOutput) -> list[Tensor]:
        """The embeddings ``(L_i, H)`` of each prompt on the CPU, pseudo tokens among them."""
        found = []
        for prompt, tokens in zip(prompts, fusion.pseudo_tokens.cpu(), strict=True):
            embeds = self.token_embeddings(prompt.ids)
            embeds[prompt.start : prompt.start + prompt.count] = tokens.to(embeds.dtype)
            found.append(embeds)
        return found

    @torch.no_grad()
    def token_embeddings(self, tokens: Sequence[int]) -> Tensor:
        """``(n, H)`` rows of the embedding table, on the CPU."""
        table: Any = self.model.get_input_embeddings()
        found: Tensor = table(torch.tensor(list(tokens), dtype=torch.long, device=table.weight.device)).cpu()
        return found

    def ask(self, requests: Sequence[tuple[Tensor, NodeQuestion]]) -> list[list[float]]:
        """The log-probabilities that each question asks for after its prompt."""
        answers = []
        for prompts, questions in self._pieces(requests):
            parameters = [
                self.sampling_params(temperature=0.0, max_tokens=1, logprob_token_ids=list(q.tokens), detokenize=False)
                for q in questions
            ]
            for question, output in zip(questions, self._run(prompts, parameters), strict=True):
                found = output.logprobs[0]
                answers.append([float(found[token].logprob) for token in question.tokens])
        return answers

    def _pieces(self, requests: Sequence[tuple[Tensor, NodeQuestion]]) -> Iterator[tuple[list[Tensor], list[NodeQuestion]]]:
        prompts: list[Tensor] = []
        questions: list[NodeQuestion] = []
        held = 0
        for prompt, question in requests:
            if question.path:
                prompt = torch.cat([prompt, self.token_embeddings(question.path)])
            if prompts and held + prompt.nbytes > EMBEDDING_BYTES:
                yield prompts, questions
                prompts, questions, held = [], [], 0
            prompts.append(prompt)
            questions.append(question)
            held += prompt.nbytes
        if prompts:
            yield prompts, questions

    def _run(self, prompts: Sequence[Tensor], parameters: Any) -> list[Any]:
        try:
            outputs = self.language_model.generate([{"prompt_embeds": p} for p in prompts], parameters, use_tqdm=False)
        except ValueError as error:  # a prompt longer than the backbone's positions, say
            raise UserError(f"engine vllm: {first_line(error)}") from error
        return [output.outputs[0] for output in outputs]

    def generate(
        self,
        prompts: Sequence[PromptIds],
        inputs: Mapping[str, Any],
        end_token_id: int,
        filler_id: int,
        max_tokens: int,
    ) -> list[list[int]]:
        """Greedy free generation; the end token may stand last, fillers never."""
        parameters = self.sampling_params(
            temperature=0.0, max_tokens=max_tokens, stop_token_ids=[end_token_id], detokenize=False
        )
        embeds = self._embed_prompts(prompts, self._fuse(inputs))
        return [list(output.token_ids) for output in self._run(embeds, parameters)]


def import_vllm() -> Any:
    """The package ``vllm``.

    Raises:
        UserError: it is not installed, cannot be imported, or is too old to say named tokens' log-probabilities.
    """
    if importlib.util.find_spec("vllm") is None:
        raise UserError("engine vllm: vLLM is not installed: pip install 'llm-mer[vllm]' (for a GPU; docs/inference.md)")
    # Read when vLLM is imported: its log would stand among the answers on standard output, and it reports its use.
    os.environ.setdefault("VLLM_LOGGING_STREAM", "ext://sys.stderr")
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
    try:
        import vllm
    except ImportError as error:
        raise UserError(f"engine vllm: vLLM is installed, but cannot be imported: {first_line(error)}") from error
    if "logprob_token_ids" not in inspect.signature(vllm.SamplingParams).parameters:
        raise UserError(
            f"engine vllm: vLLM {vllm.__version__} cannot give the log-probabilities of chosen tokens "
            "(SamplingParams.logprob_token_ids); pip install -U 'llm-mer[vllm]'"
        )
    return vllm


def open_engine(
    folder: Path, backbone: str | None, device: str | None, options: dict[str, Any], dtype: str | torch.dtype = AUTO
) -> OpenedCheckpoint:
    """A checkpoint whose backbone runs in vLLM; ``options`` are further arguments of ``vllm.LLM``.

    A checkpoint with LoRA is merged into a temporary folder first (in the system's, see ``TMPDIR``), which is gone when vLLM
    has read it; one written by ``llm-mer merge`` is read where it is.

    Args:
        device: of the adapter and the embedding table; vLLM finds its own. dtype: what vLLM computes with.

    Raises:
        UserError: see :func:`llm_mer.scoring.engines.base.open_engine`; besides, a checkpoint without language model or
            whose LoRA is routed by language, several processes, or anything vLLM says of the backbone or of an option.
    """
    description = CheckpointDescription.load(folder)
    check_description(description, folder / DESCRIPTION_FILE)
    reference = description.backbone
    if reference is None:
        raise UserError(f"engine vllm: {folder} holds an adapter alone, without a language model; use --engine transformers")
    if description.model.get("lora_sharing", SHARED) != SHARED:
        raise UserError(
            f"engine vllm: {folder} routes LoRA by language, and plain weights cannot; merge one language into a checkpoint "
            f"of its own: llm-mer merge --checkpoint {folder} --output FOLDER --language en"
        )
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UserError(
            "engine vllm: several processes were started, but vLLM starts its own; start one, with "
            "--engine_options tensor_parallel_size=N for several GPUs"
        )
    taken = sorted(set(options) & set(OWN_OPTIONS))
    if taken:
        raise UserError(f"engine_options: {', '.join(taken)} is set by the engine; leave it out")
    vllm = import_vllm()
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    if device is None:
        device = "cpu" if accelerator is None else accelerator.type
    precision = resolve_precision(dtype, reference, "cpu" if accelerator is None else accelerator.type, str(folder))
    # Libraries print on standard output while they load, where the answers will stand.
    with temporary_folder("llm-mer-vllm-") as scratch, redirect_stdout(sys.stderr):
        if description.merged is None:
            merged = merge_checkpoint(folder, scratch / "merged", dtype=precision, backbone=backbone)
            description, backbone = CheckpointDescription.load(merged), None
        else:
            merged = folder
        assert description.backbone is not None
        weights = Path(find_backbone(description.backbone, merged, backbone))
        processor = MerProcessor.from_dict(description.processor, load_tokenizer(merged))
        model = without_blocks(merged, weights, description, precision)
        config: Any = model.config.get_text_config()
        length = processor.max_prompt_tokens + max(MAX_ANSWER_TOKENS, longest_answer(processor))
        try:
            # Before anything of ours is on a GPU: vLLM may start its own process by a fork.
            language_model = vllm.LLM(
                model=str(weights),
                dtype=precision,
                enable_prompt_embeds=True,
                enable_prefix_caching=True,
                skip_tokenizer_init=True,
                generation_config="vllm",
                max_model_len=min(length, config.max_position_embeddings),
                logprobs_mode="raw_logprobs",
                **options,
            )
        except (ValueError, TypeError, RuntimeError) as error:
            raise UserError(f"engine vllm: vLLM cannot run {reference.name!r}: {first_line(error)}") from error
    placed: nn.Module = model
    loaded = LoadedCheckpoint(placed.to(device).eval(), processor, description)
    return OpenedCheckpoint(loaded, VLLMEngine(model, language_model, vllm.SamplingParams))


def longest_answer(processor: MerProcessor) -> int:
    """Tokens of the longest admissible answer and its end."""
    prompt_kinds = {(prompt.language, prompt.kind) for prompt in processor.prompts}
    answers = [
        processor.answers(task, language) for task in processor.tasks for language, kind in prompt_kinds if kind == task.kind
    ]
    return 1 + max(len(answer) for admissible in answers for answer in admissible)


def without_blocks(
    checkpoint: Path, backbone: Path, description: CheckpointDescription, dtype: str
) -> MerForConditionalGeneration:
    """A merged checkpoint's adapter and embedding table, around a backbone without blocks and head."""
    from transformers import AutoConfig, AutoModel

    config = AutoConfig.from_pretrained(backbone, local_files_only=True)
    bare = copy.deepcopy(config)
    bare.num_hidden_layers, bare.tie_word_embeddings = 0, False
    if getattr(bare, "layer_types", None) is not None:
        bare.layer_types = []
    body = AutoModel.from_config(bare, dtype=getattr(torch, dtype))
    table: Any = body.get_input_embeddings()
    name = next(name for name, parameter in body.named_parameters() if parameter is table.weight)
    weight = stored_tensor(backbone, f".{name}")
    with torch.no_grad():
        table.weight.copy_(weight)
    entry = {k: v for k, v in description.model.items() if k != "text_config"}
    model = MerForConditionalGeneration(MerConfig(text_config=config, **entry), body, nn.Identity())
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    load_merged_weights(model, checkpoint)
    verify_checkpoint(checkpoint)
    return model


def stored_tensor(folder: Path, ending: str) -> Tensor:
    """The one tensor of a folder's safetensors files whose name ends so. Raises :class:`UserError` without one."""
    from safetensors import SafetensorError, safe_open

    for path in sorted(folder.glob("*.safetensors")):
        try:
            with safe_open(path, framework="pt") as stream:
                for name in stream.keys():  # noqa: SIM118  (no mapping)
                    if f".{name}".endswith(ending):
                        found: Tensor = stream.get_tensor(name)
                        return found
        except SafetensorError as error:
            raise UserError(f"{path}: damaged or cut off: {error}") from None
    raise UserError(f"{folder}: no weight *{ending} in its safetensors files")
