"""The vLLM engine gives the scores of the transformers engine.

Where vLLM is installed the comparison runs on it. Everywhere it runs on a stand-in: transformers behind what vLLM 0.30
documents of ``LLM.generate`` with prompt embeddings, its limits among them.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from conftest import build_backbone, training_options
from transformers import AutoModelForCausalLM

from llm_mer.checkpoints.merging import merge_checkpoint
from llm_mer.cli.train import finetune
from llm_mer.data.dataset import MerDataset
from llm_mer.data.store import UtteranceStore
from llm_mer.errors import UserError
from llm_mer.inference.pipeline import MerPipeline
from llm_mer.model.collator import MerCollator, UtteranceBatch
from llm_mer.scoring.answer_tree import AnswerTree
from llm_mer.scoring.engines import vllm_engine
from llm_mer.scoring.engines.base import ENGINES, open_engine, read_options
from llm_mer.scoring.engines.vllm_engine import TOKENS_ASKED, questions_of
from llm_mer.scoring.prompt_layout import TaskPrompts

INSTALLED = importlib.util.find_spec("vllm") is not None


@dataclass
class SamplingParams:
    """The fields of vLLM's that the engine uses, with vLLM's defaults."""

    temperature: float = 1.0
    max_tokens: int | None = 16
    stop_token_ids: list[int] = field(default_factory=list)
    logprobs: int | None = None
    logprob_token_ids: list[int] | None = None
    detokenize: bool = True


@dataclass
class Logprob:
    logprob: float
    rank: int | None = None
    decoded_token: str | None = None


class LLM:
    """Greedy generation of one prompt after another by transformers."""

    made: list[LLM] = []  # noqa: RUF012

    def __init__(
        self, model: str, dtype: str, max_model_len: int, enable_prompt_embeds: bool = False, **others: Any
    ) -> None:
        unknown = set(others) - {"enable_prefix_caching", "skip_tokenizer_init", "generation_config", "logprobs_mode"}
        if unknown - {"gpu_memory_utilization"}:
            raise TypeError(f"EngineArgs.__init__() got an unexpected keyword argument {sorted(unknown)[0]!r}")
        assert others["logprobs_mode"] == "raw_logprobs"
        assert others["skip_tokenizer_init"]
        self.model = AutoModelForCausalLM.from_pretrained(model, dtype=getattr(torch, dtype), local_files_only=True).eval()
        if max_model_len > self.model.config.max_position_embeddings:
            raise ValueError("User-specified max_model_len is greater than the derived max_model_len")
        self.max_model_len, self.enable_prompt_embeds, self.others = max_model_len, enable_prompt_embeds, others
        self.calls: list[int] = []
        LLM.made.append(self)

    def generate(self, prompts: Any, sampling_params: Any, use_tqdm: bool = True) -> list[Any]:
        several = sampling_params if isinstance(sampling_params, list) else [sampling_params] * len(prompts)
        assert len(several) == len(prompts)
        self.calls.append(len(prompts))
        return [self.answer(prompt, parameters) for prompt, parameters in zip(prompts, several, strict=True)]

    @torch.no_grad()
    def answer(self, prompt: dict[str, torch.Tensor], parameters: SamplingParams) -> Any:
        if not self.enable_prompt_embeds:
            raise ValueError("You must set `--enable-prompt-embeds` to input `prompt_embeds`.")
        embeds, wanted = prompt["prompt_embeds"], parameters.logprob_token_ids
        vocabulary = self.model.config.vocab_size
        if embeds.ndim != 2 or embeds.shape[1] != self.model.config.hidden_size:
            raise ValueError("prompt_embeds must be of shape (seq_len, hidden_size).")
        if embeds.shape[0] >= self.max_model_len:
            raise ValueError("the prompt is longer than the maximum model length")
        if wanted is not None and len(wanted) > 128:
            raise ValueError(f"Requested logprob_token_ids of length {len(wanted)}, which is greater than max allowed: 128")
        if wanted is not None and not all(0 <= token < vocabulary for token in wanted):
            raise ValueError("logprob_token_ids contain out-of-vocab token ids")
        assert parameters.temperature == 0.0
        assert parameters.max_tokens is not None
        rows, tokens, logprobs = embeds.unsqueeze(0), [], []
        for _ in range(parameters.max_tokens):
            log_probs = self.model(inputs_embeds=rows).logits[0, -1].float().log_softmax(dim=-1)
            token = int(log_probs.argmax())
            tokens.append(token)
            logprobs.append({i: Logprob(float(log_probs[i])) for i in (token, *(wanted or ()))})
            if token in parameters.stop_token_ids or rows.shape[1] + 1 >= self.max_model_len:
                break
            rows = torch.cat([rows, self.model.get_input_embeddings()(torch.tensor([[token]]))], dim=1)
        completion = SimpleNamespace(token_ids=tokens, logprobs=logprobs if wanted is not None else None, text="")
        return SimpleNamespace(outputs=[completion], finished=True)


@pytest.fixture(
    params=["stand-in", pytest.param("vLLM", marks=pytest.mark.skipif(not INSTALLED, reason="vLLM is not installed"))]
)
def kind(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The stand-in in vLLM's place, or vLLM."""
    if request.param == "stand-in":
        stand_in(monkeypatch)
    else:
        monkeypatch.setenv("VLLM_CPU_KVCACHE_SPACE", "1")
        monkeypatch.setenv("VLLM_WORKER_MULTIPROC_METHOD", "spawn")
    return str(request.param)


def stand_in(monkeypatch: pytest.MonkeyPatch) -> None:
    module = ModuleType("vllm")
    module.__spec__ = importlib.util.spec_from_loader("vllm", None)
    module.__dict__.update(LLM=LLM, SamplingParams=SamplingParams, __version__="0.30.0")
    monkeypatch.setitem(sys.modules, "vllm", module)
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    LLM.made.clear()


def eager(kind: str) -> dict[str, Any]:
    """Options under which vLLM starts quickly."""
    return {} if kind == "stand-in" else {"enforce_eager": True, "max_num_seqs": 16}


def train(shared: Any, architecture: str, store: Path) -> Path:
    """A checkpoint whose LoRA says something. Heads have 32 dimensions, the fewest that vLLM takes on a CPU."""
    backbone = shared.make(f"vllm-backbone-{architecture}", lambda path: build_backbone(architecture, path, hidden_size=128))
    changes = {"tasks": ["emotion", "sentiment"], "learning_rate": "2e-2", "auxiliary_head": "true"}
    folder: Path = shared.make(
        f"vllm-{architecture}", lambda path: finetune(training_options(store, backbone, path, **changes))
    )
    return folder


@pytest.fixture(scope="module")
def llama(shared: Any, store: Path) -> Path:
    """Embeddings and head are tied."""
    return train(shared, "llama", store)


@pytest.fixture(scope="module")
def glm(shared: Any, store: Path) -> Path:
    """They are not."""
    return train(shared, "glm", store)


@pytest.fixture(params=["llama", "glm"])
def checkpoint(request: pytest.FixtureRequest) -> Path:
    folder: Path = request.getfixturevalue(request.param)
    return folder


def furthest(one: list[Any], two: list[Any]) -> float:
    assert [(p.id, p.task) for p in one] == [(p.id, p.task) for p in two]
    return max(
        float(np.abs(np.subtract(a.log_probabilities, b.log_probabilities)).max()) for a, b in zip(one, two, strict=True)
    )


def test_scores_values_diagnostics_and_free_text_are_those_of_transformers(checkpoint: Path, store: Path, kind: str) -> None:
    utterances = list(UtteranceStore.open(store).split("test"))[:6]
    expected = MerPipeline.from_pretrained(checkpoint, generate=True)(utterances)
    pipeline = MerPipeline.from_pretrained(
        checkpoint, engine="vllm", engine_options=eager(kind), generate=True, batch_size=4, device="cpu"
    )
    found = pipeline(utterances)
    assert furthest(found, expected) < 1e-4
    for one, two in zip(found, expected, strict=True):
        assert (one.value, one.generated, one.parsed, one.head_value) == (
            two.value,
            two.generated,
            two.parsed,
            two.head_value,
        )
        assert one.diagnostics.keys() == two.diagnostics.keys()
        for name, value in one.diagnostics.items():
            np.testing.assert_allclose(value, two.diagnostics[name], atol=1e-4)
    assert len({p.value for p in found if p.task == "emotion"}) > 1


def test_unnormalised_scores_are_those_of_transformers(glm: Path, store: Path, kind: str) -> None:
    utterances = list(UtteranceStore.open(store).split("test"))[:3]
    plain = MerPipeline.from_pretrained(glm).predictor
    predictor = MerPipeline.from_pretrained(glm, engine="vllm", engine_options=eager(kind), device="cpu").predictor
    for task, language in ((task, language) for task in plain.processor.tasks for language in ("en", "zh")):
        read = read_batch(plain, utterances, task)
        inputs = read.inputs.model_inputs()
        answers = plain.processor.answers(task, language)
        for end in (plain.processor.end_token_id, None):
            asked = [TaskPrompts(read.prompts[0], AnswerTree.build(answers, end))]
            (expected,) = plain.answering.score(asked, inputs)
            (found,) = predictor.answering.score(asked, inputs)
            torch.testing.assert_close(found.unnormalised, expected.unnormalised, atol=1e-4, rtol=0.0)


def read_batch(predictor: Any, utterances: list[Any], task: Any) -> UtteranceBatch:
    """A batch of prompts of several lengths."""
    dataset = MerDataset(utterances, [task], require_truth=False)
    read = MerCollator(dataset, predictor.processor).utterances(range(len(utterances)), [task])
    assert len({len(prompt.ids) for prompt in read.prompts[0]}) > 1
    return read


def test_a_merged_checkpoint_answers_where_it_lies(glm: Path, store: Path, tmp_path: Path, kind: str) -> None:
    if kind != "stand-in":
        pytest.skip("asks the stand-in what it was given")
    merged = merge_checkpoint(glm, tmp_path / "merged")
    utterances = list(UtteranceStore.open(store).split("test"))[:2]
    found = MerPipeline.from_pretrained(merged, engine="vllm")(utterances, ["emotion"])
    assert furthest(found, MerPipeline.from_pretrained(glm)(utterances, ["emotion"])) < 1e-4
    assert LLM.made[0].model.config._name_or_path == str(merged / "backbone")


@pytest.fixture
def without_vllm(monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == "vllm" else find(name, *rest))


@pytest.mark.usefixtures("without_vllm", "no_backbone")
def test_without_vllm_one_line_says_how_to_install_it(trained: Path) -> None:
    with pytest.raises(UserError, match=r"vLLM is not installed: pip install 'llm-mer\[vllm\]'"):
        MerPipeline.from_pretrained(trained, engine="vllm")


def test_a_vllm_that_knows_no_chosen_tokens_is_too_old(trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in(monkeypatch)
    monkeypatch.setattr(sys.modules["vllm"], "SamplingParams", lambda temperature=1.0, logprobs=None: None)
    with pytest.raises(UserError, match=r"vLLM 0\.30\.0 cannot give .*logprob_token_ids.*install -U"):
        MerPipeline.from_pretrained(trained, engine="vllm")


def test_what_cannot_be_is_refused_before_a_backbone_is_loaded(
    trained: Path, no_backbone: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    stand_in(monkeypatch)
    with pytest.raises(UserError, match="engine: 'tgi' is not one of transformers, vllm"):
        MerPipeline.from_pretrained(trained, engine="tgi")
    with pytest.raises(UserError, match="engine transformers has none, found tensor_parallel_size"):
        MerPipeline.from_pretrained(trained, engine_options={"tensor_parallel_size": 2})
    with pytest.raises(UserError, match="max_model_len is set by the engine"):
        MerPipeline.from_pretrained(trained, engine="vllm", engine_options={"max_model_len": 2})
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match="vLLM starts its own; start one, with --engine_options tensor_parallel_size=N"):
        MerPipeline.from_pretrained(trained, engine="vllm")


def test_vllm_computes_in_the_precision_that_is_asked_for_and_the_answers_say_it(
    trained: Path, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stand_in(monkeypatch)
    utterances = list(UtteranceStore.open(store).split("test"))[:2]
    found = MerPipeline.from_pretrained(trained, engine="vllm", dtype="bfloat16")(utterances, ["emotion"])
    assert LLM.made[-1].model.dtype == torch.bfloat16
    assert {p.precision for p in found} == {"bfloat16"}
    MerPipeline.from_pretrained(trained, engine="vllm")
    assert LLM.made[-1].model.dtype == torch.float32


def test_an_option_vllm_does_not_know_is_one_line(trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in(monkeypatch)
    with pytest.raises(UserError, match=r"vLLM cannot run .*unexpected keyword argument 'tensor_paralel'"):
        MerPipeline.from_pretrained(trained, engine="vllm", engine_options={"tensor_paralel": 2})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"backbone": "none", "adapter": "gia_mic"}, "holds an adapter alone, without a language model"),
        ({"lora_sharing": "per_language"}, "routes LoRA by language.*llm-mer merge --checkpoint .* --language en"),
    ],
)
def test_checkpoints_without_plain_weights_are_refused(
    changes: dict[str, str], message: str, arguments: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    stand_in(monkeypatch)
    folder = finetune(arguments(max_steps=1, **changes))
    with pytest.raises(UserError, match=message):
        open_engine("vllm", folder)


def test_options_are_read_as_yaml() -> None:
    texts = ["tensor_parallel_size=2", "gpu_memory_utilization=0.8", "enforce_eager=true", "quantization=fp8"]
    assert read_options(texts) == {
        "tensor_parallel_size": 2,
        "gpu_memory_utilization": 0.8,
        "enforce_eager": True,
        "quantization": "fp8",
    }
    assert read_options(None) == {}
    for wrong in ("tensor_parallel_size", "=2", "a b=1", "name={"):
        with pytest.raises(UserError, match="engine_options"):
            read_options([wrong])


@pytest.mark.parametrize("limit", [1, 2, TOKENS_ASKED])
def test_questions_ask_for_every_edge_once_after_its_own_path(limit: int) -> None:
    answers, end = [[5], [5, 6], [7, 8, 9], [7, 8]], 2
    tree = AnswerTree.build(answers, end)
    asked = {
        edge: (question.path, token)
        for question in questions_of(tree, limit)
        for edge, token in zip(question.edges, question.tokens, strict=True)
    }
    assert max(len(question.tokens) for question in questions_of(tree, limit)) <= limit
    assert sum(len(question.edges) for question in questions_of(tree, limit)) == len(tree.edges)
    for answer, path in zip(answers, tree.paths, strict=True):
        sequence = [*answer, end]
        assert [asked[edge] for edge in path] == [(tuple(sequence[:i]), token) for i, token in enumerate(sequence)]


def test_long_work_is_cut_into_calls_of_bounded_size(glm: Path, store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in(monkeypatch)
    utterances = list(UtteranceStore.open(store).split("test"))[:4]
    whole = MerPipeline.from_pretrained(glm, engine="vllm")(utterances, ["sentiment"])
    few = len(LLM.made[-1].calls)
    monkeypatch.setattr(vllm_engine, "EMBEDDING_BYTES", 2**15)
    parts = MerPipeline.from_pretrained(glm, engine="vllm")(utterances, ["sentiment"])
    assert furthest(whole, parts) == 0.0
    assert len(LLM.made[-1].calls) > 3 * few
    assert sum(LLM.made[-1].calls) == sum(LLM.made[-2].calls)


def test_every_engine_of_the_table_can_be_opened() -> None:
    for module in ENGINES.values():
        assert callable(importlib.import_module(module).open_engine)


@pytest.fixture(autouse=True)
def _forget() -> Iterator[None]:
    yield
    LLM.made.clear()
