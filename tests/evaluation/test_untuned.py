"""An untuned language model is scored as a checkpoint is, and without its prior; both against a naive computation."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from llm_mer.backbones.loading import load_backbone
from llm_mer.cli.main import main
from llm_mer.data.store import UtteranceStore
from llm_mer.evaluation.evaluate import evaluate
from llm_mer.evaluation.options import EvaluateConfig
from llm_mer.evaluation.rows import Evaluation, load_predictions
from llm_mer.evaluation.untuned import PRIOR_CORRECTED
from llm_mer.inference.untuned import load_untuned
from llm_mer.prompting.tasks import get_task
from llm_mer.prompting.templates import load_prompts, select_prompt


def config(backbone: Path, store: Path, output: Path, **changes: Any) -> EvaluateConfig:
    options: dict[str, Any] = {"tasks": ["emotion", "sentiment"], "prompts": ["short"], "resamples": 20, "limit": 10}
    return EvaluateConfig(backbone=str(backbone), data=[str(store)], output=str(output), **(options | changes))


def naive_log_probability(model: Any, prompt: list[int], answer: list[int]) -> float:
    """``Σ_i log p(token_i | prompt, token_<i)`` by one whole forward pass of one answer."""
    with torch.no_grad():
        logits = model(torch.tensor([prompt + answer])).logits[0].double()
    steps = torch.log_softmax(logits, dim=-1)
    return float(sum(steps[len(prompt) - 1 + i, token] for i, token in enumerate(answer)))


def naive_answers(backbone: Path, task_name: str, language: str, text: str | None) -> np.ndarray:
    """Log-probabilities of every answer to a plain prompt about a transcript, with its end token."""
    loaded = load_backbone(backbone)
    task = get_task(task_name)
    template = select_prompt(load_prompts(["short"]), task, language)
    shown = template.task.format(transcript=text or template.missing_transcript)
    tokenizer = loaded.tokenizer
    opening = [i for i in tokenizer("", add_special_tokens=True)["input_ids"] if i != tokenizer.eos_token_id]
    prefix = tokenizer(template.prefix, add_special_tokens=False)["input_ids"]
    prompt = opening + prefix + tokenizer(template.suffix + shown, add_special_tokens=False)["input_ids"]
    pipeline = load_untuned(str(backbone), [task_name], ["short"])
    answers = pipeline.predictor.processor.answers(task, language)
    end = tokenizer.eos_token_id
    return np.array([naive_log_probability(loaded.model, prompt, [*answer, end]) for answer in answers])


@pytest.fixture(scope="module")
def evaluated(
    backbones: dict[str, Path], store: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Evaluation, dict[str, Any]]:
    return evaluate(config(backbones["llama"], store, tmp_path_factory.mktemp("out")), progress=False)


@pytest.mark.parametrize("task", ["emotion", "sentiment"])
def test_every_answer_has_the_probability_of_a_whole_forward_pass(
    task: str, evaluated: tuple[Evaluation, dict[str, Any]], backbones: dict[str, Path], store: Path
) -> None:
    texts = {u.id: u.text for u in UtteranceStore.open(store).split("test")}
    found = [p for p in evaluated[1]["as is"] if p.task == task]
    for language in ("en", "zh"):
        prediction = next(p for p in found if p.language == language)
        scores = naive_answers(backbones["llama"], task, language, texts[prediction.id])
        expected = scores - np.logaddexp.reduce(scores)
        np.testing.assert_allclose(prediction.log_probabilities, expected, atol=2e-4)
        assert prediction.outside_mass == pytest.approx(np.log1p(-np.exp(scores).sum()), abs=1e-4)
        if task == "emotion":
            assert prediction.value == get_task(task).label_names[int(scores.argmax())]


@pytest.mark.parametrize("language", ["en", "zh"])
def test_corrected_answers_are_divided_by_those_of_transcripts_that_say_nothing(
    language: str, evaluated: tuple[Evaluation, dict[str, Any]], backbones: dict[str, Path]
) -> None:
    evaluation, by_condition = evaluated
    nothing = {"en": ("N/A", "[MASK]", None), "zh": ("无", "[MASK]", None)}[language]
    shares = []
    for text in nothing:
        scores = np.exp(naive_answers(backbones["llama"], "emotion", language, text))
        shares.append(scores / scores.sum())
    prior = np.mean(shares, axis=0)
    noted = list(evaluation.checkpoint["answer_prior"]["emotion"][language].values())
    np.testing.assert_allclose(noted, prior, atol=1e-4)
    plain = {p.id: p for p in by_condition["as is"] if (p.task, p.language) == ("emotion", language)}
    corrected = [p for p in by_condition[PRIOR_CORRECTED] if (p.task, p.language) == ("emotion", language)]
    assert {p.id for p in corrected} == set(plain)
    for prediction in corrected:
        divided = np.exp(plain[prediction.id].log_probabilities) / prior
        np.testing.assert_allclose(np.exp(prediction.log_probabilities), divided / divided.sum(), atol=1e-4)
        assert prediction.value == get_task("emotion").label_names[int(divided.argmax())]


def test_a_correction_knows_no_label(backbones: dict[str, Path], store: Path, tmp_path: Path) -> None:
    from llm_mer.data.store import write_store

    utterances = list(UtteranceStore.open(store).split("test"))
    own = [u.labels["emotion"] for u in utterances]
    for utterance, other in zip(utterances, own[1:] + own[:1], strict=True):
        utterance.labels["emotion"] = other
    moved = write_store(utterances, tmp_path / "moved")
    answers = []
    for data in (store, moved):
        _, by_condition = evaluate(config(backbones["llama"], data, tmp_path / "out", tasks=["emotion"]), progress=False)
        answers.append({p.id: (p.value, p.log_probabilities) for p in by_condition[PRIOR_CORRECTED]})
    assert answers[0] == answers[1]


def test_the_command_reports_as_of_a_checkpoint(
    backbones: dict[str, Path], store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = ["evaluate", "--backbone", str(backbones["llama"]), "--data", str(store), "--tasks", "emotion"]
    argv += ["--prompts", "short", "--output", str(tmp_path / "out"), "--limit", "10", "--resamples", "20"]
    argv += ["--conditions", "shuffle:transcript", "--generate"]
    assert main(argv) == 0
    shown = capsys.readouterr().out
    evaluation = Evaluation.load(tmp_path / "out")
    assert evaluation.name == backbones["llama"].name
    assert evaluation.checkpoint["adapter"] == "language_model_alone"
    names = {row.condition for row in evaluation.rows}
    assert names == {"as is", PRIOR_CORRECTED, "transcript shuffled", "free generation"}
    as_is, corrected = evaluation.find(task="emotion"), evaluation.find(PRIOR_CORRECTED, "emotion")
    assert as_is is not None
    assert corrected is not None
    assert as_is.n == corrected.n == 10
    assert as_is.baseline == corrected.baseline
    assert as_is.unparseable_rate == 0
    assert as_is.outside_share is not None
    assert as_is.outside_share > 0
    assert corrected.outside_share is None
    assert len(load_predictions(tmp_path / "out" / "predictions.jsonl")[PRIOR_CORRECTED]) == 10
    assert PRIOR_CORRECTED in shown
    report = tmp_path / "report.html"
    assert main(["report", "--evaluations", str(tmp_path / "out"), "--output", str(report)]) == 0
    assert PRIOR_CORRECTED in report.read_text(encoding="utf-8")


REFUSED = {
    "no backbone": ({"--backbone": None}, "name a trained model with --checkpoint, or an untuned"),
    "no output": ({"--output": None}, "--output: name a folder"),
    "no tasks": ({"--tasks": None}, "--tasks: an untuned language model has none of its own"),
    "no prompts": ({"--prompts": None}, "--prompts: an untuned language model has none of its own"),
    "a read-out": ({"--answer": "read_out"}, "--answer: needs a trained model"),
    "seeds": ({"--seeds": "1"}, "--seeds: needs a trained model"),
    "prompts of a checkpoint": ({"--checkpoint": "somewhere"}, "--prompts: a checkpoint is asked with the prompts"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_an_untuned_model_cannot_do_is_refused_before_anything_is_made(
    case: str,
    backbones: dict[str, Path],
    store: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    changes, message = REFUSED[case]
    monkeypatch.chdir(tmp_path)
    given = {"--backbone": str(backbones["llama"]), "--data": str(store), "--tasks": "emotion"}
    given |= {"--prompts": "short", "--output": "out", **changes}
    argv = [part for name, value in given.items() if value is not None for part in (name, value)]
    assert main(["evaluate", *argv]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not list(tmp_path.glob("**/*.json*"))


def test_the_options_of_the_command_are_written_with_the_predictions(evaluated: tuple[Evaluation, Any]) -> None:
    evaluation, _ = evaluated
    assert evaluation.checkpoint["trained_on"] == {}
    assert len(str(evaluation.checkpoint_sha256)) == 64
    json.dumps(evaluation.checkpoint)
