"""One option says what the language model computes with; the answers say it too, and those of two precisions never mix."""

from __future__ import annotations

import dataclasses
import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from llm_mer.backbones.loading import load_backbone
from llm_mer.checkpoints.calibration import Calibration, Temperature
from llm_mer.checkpoints.description import CheckpointDescription
from llm_mer.checkpoints.loading import load_checkpoint
from llm_mer.checkpoints.precision import PRECISIONS, resolve_precision
from llm_mer.cli.infer import infer
from llm_mer.cli.train import finetune
from llm_mer.data.schema import Utterance
from llm_mer.data.sources.manifest import write_manifest
from llm_mer.data.store import UtteranceStore
from llm_mer.errors import UserError
from llm_mer.evaluation.calibrate import CalibrateConfig, calibrate
from llm_mer.evaluation.evaluate import evaluate
from llm_mer.evaluation.journal import JOURNAL
from llm_mer.evaluation.options import EvaluateConfig
from llm_mer.evaluation.over_seeds import over_seeds
from llm_mer.evaluation.over_seeds import run as run_evaluation
from llm_mer.evaluation.rows import Evaluation
from llm_mer.experiments.options import PromptComparisonConfig
from llm_mer.experiments.prompt_comparison import compare_prompts, markdown
from llm_mer.inference.inputs import InferConfig
from llm_mer.inference.pipeline import MerPipeline
from llm_mer.inference.prediction import Prediction

HALF = ("bfloat16", "float16")
FROM_FLOAT32 = {"bfloat16": 0.05, "float16": 0.01}
"""How far a probability of the tiny models is from float32's: 0.010 and 0.002 were measured."""
BETWEEN_BATCHES = {"bfloat16": 0.02, "float16": 0.005}
"""How far it is from that of another batch: 0 and 0.0008 were measured, and other processors add in another order."""


@pytest.fixture(scope="module")
def pipelines(trained: Path) -> dict[str, MerPipeline]:
    return {name: MerPipeline.from_pretrained(trained, dtype=name) for name in PRECISIONS[1:]}


@pytest.fixture(scope="module")
def utterances(store: Path) -> list[Utterance]:
    return list(UtteranceStore.open(store).split("test"))[:10]


def probabilities(predictions: list[Prediction]) -> list[np.ndarray]:
    return [np.exp(np.array(p.log_probabilities)) for p in predictions]


def furthest(one: list[Prediction], other: list[Prediction]) -> float:
    assert [(p.id, p.task) for p in one] == [(p.id, p.task) for p in other]
    return max(float(np.abs(a - b).max()) for a, b in zip(probabilities(one), probabilities(other), strict=True))


# --- what holds in half precision -------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", HALF)
def test_answers_say_the_precision_that_was_asked_for_and_are_near_those_of_float32(
    dtype: str, pipelines: dict[str, MerPipeline], utterances: list[Utterance]
) -> None:
    exact, found = pipelines["float32"](utterances), pipelines[dtype](utterances)
    assert {p.precision for p in exact} == {"float32"}
    assert {p.precision for p in found} == {dtype}
    assert 0 < furthest(exact, found) < FROM_FLOAT32[dtype]
    for prediction in found:
        # Normalised in float32 whatever the layers compute with.
        assert np.exp(np.array(prediction.log_probabilities)).sum() == pytest.approx(1.0, abs=1e-5)


@pytest.mark.parametrize("dtype", HALF)
def test_asked_again_in_the_same_batches_half_precision_answers_the_same_to_the_last_bit(
    dtype: str, pipelines: dict[str, MerPipeline], utterances: list[Utterance]
) -> None:
    one, two = pipelines[dtype](utterances), pipelines[dtype](utterances)
    assert [p.log_probabilities for p in one] == [p.log_probabilities for p in two]


@pytest.mark.parametrize("dtype", HALF)
def test_batch_size_and_padding_move_answers_of_half_precision_within_a_tolerance_alone(
    dtype: str, pipelines: dict[str, MerPipeline], utterances: list[Utterance]
) -> None:
    pipeline = pipelines[dtype]
    longer = dataclasses.replace(utterances[0], id="longer", text="we meet on monday " * 12)
    together = pipeline([*utterances, longer])
    alone = [prediction for utterance in [*utterances, longer] for prediction in pipeline([utterance])]
    by_question = {(p.id, p.task): p for p in alone}
    assert furthest(together, [by_question[p.id, p.task] for p in together]) < BETWEEN_BATCHES[dtype]


# --- one option, one path ---------------------------------------------------------------------------------------------


def test_the_type_of_torch_is_taken_too_and_anything_else_is_refused(trained: Path, no_backbone: None) -> None:
    reference = CheckpointDescription.load(trained).backbone
    assert reference is not None
    assert resolve_precision(torch.bfloat16, reference, "cpu", "x") == "bfloat16"
    assert resolve_precision("auto", reference, "cpu", "x") == "float32"
    assert resolve_precision("auto", dataclasses.replace(reference, dtype="bfloat16"), "cuda", "x") == "bfloat16"
    assert resolve_precision("auto", dataclasses.replace(reference, dtype="bfloat16"), "cpu", "x") == "float32"
    with pytest.raises(UserError, match="dtype: 'bf16' is not one of auto, float32, bfloat16, float16"):
        MerPipeline.from_pretrained(trained, dtype="bf16")


def test_an_adapter_alone_computes_in_float32_and_refuses_another(arguments: Callable[..., list[str]]) -> None:
    folder = finetune(arguments(backbone="none", adapter="gia_mic", max_steps=1))
    with pytest.raises(UserError, match=r"dtype: bfloat16 would have no effect: .* holds an adapter alone"):
        MerPipeline.from_pretrained(folder, dtype="bfloat16")
    assert MerPipeline.from_pretrained(folder, dtype="float32").predictor.precision is None


def test_weights_that_float16_cannot_hold_are_refused(backbones: dict[str, Path], tmp_path: Path) -> None:
    folder = tmp_path / "backbone"
    folder.mkdir()
    for path in backbones["llama"].iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    state = load_file(folder / "model.safetensors")
    name = next(name for name in state if name.endswith("down_proj.weight"))
    state[name][0, 0] = 1e6
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    load_backbone(folder, dtype="bfloat16")
    with pytest.raises(UserError, match=r"backbone .*down_proj\.weight"):
        load_backbone(folder, dtype="float16")


# --- precisions are not mixed -----------------------------------------------------------------------------------------


def test_a_file_of_answers_is_not_continued_in_another_precision(trained: Path, tmp_path: Path) -> None:
    def ask(count: int, **options: Any) -> None:
        said = [Utterance(f"u{i}", text="the book", language="en") for i in range(count)]
        manifest = write_manifest(said, tmp_path / "clips.jsonl")
        infer(InferConfig(str(trained), manifest=str(manifest), output=str(tmp_path / "out.jsonl"), **options))

    ask(1)
    assert json.loads((tmp_path / "out.jsonl.made_by.json").read_text())["settings"]["precision"] == "float32"
    with pytest.raises(UserError, match="made otherwise: precision was 'float32', now 'bfloat16'"):
        ask(2, dtype="bfloat16")
    ask(2, dtype="float32")  # what auto came to
    rows = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert {(row["id"], row["precision"]) for row in rows} == {("u0", "float32"), ("u1", "float32")}


def test_an_unfinished_evaluation_does_not_go_on_in_another_precision(
    trained: Path, store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = EvaluateConfig(str(trained), [str(store)], str(tmp_path), limit=4, resamples=10, dtype="bfloat16")
    with monkeypatch.context() as patched:
        patched.setattr("llm_mer.evaluation.evaluate.save_evaluation", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            run_evaluation(config)
    assert (tmp_path / JOURNAL).is_file()
    with pytest.raises(UserError, match="precision was 'bfloat16', now 'float32'"):
        run_evaluation(dataclasses.replace(config, dtype="auto"))
    run_evaluation(config)
    assert Evaluation.load(tmp_path).checkpoint["precision"] == "bfloat16"


def test_evaluations_in_two_precisions_are_not_averaged_over_seeds() -> None:
    shared: dict[str, Any] = {"data": "x", "split": "test", "seed": 0, "resamples": 1}
    one, two = (Evaluation(name, {"precision": name}, **shared) for name in ("float32", "bfloat16"))
    with pytest.raises(UserError, match=r"bfloat16 was evaluated in bfloat16, float32 in float32: .* one --dtype"):
        over_seeds([one, two])


def test_temperatures_say_the_precision_they_were_fitted_in_and_another_is_warned_of(
    copied: Path, store: Path, caplog: pytest.LogCaptureFixture
) -> None:
    calibrate(CalibrateConfig(str(copied), str(store), tasks=["emotion"], dtype="bfloat16"))
    fitted = Calibration.load(copied)
    assert fitted is not None
    assert fitted.precision == "bfloat16"
    with caplog.at_level(logging.WARNING, "llm_mer"):
        MerPipeline.from_pretrained(copied, dtype="bfloat16")
        assert not [r for r in caplog.records if "temperatures" in r.getMessage()]
        found, _ = evaluate(EvaluateConfig(str(copied), [str(store)], limit=4, resamples=10), progress=False)
    told = "the temperatures were fitted on answers in bfloat16, and these are in float32"
    assert [r for r in caplog.records if told in r.getMessage()]
    assert any(told in warning for warning in found.warnings)
    # Those of an earlier version say nothing, and nothing is said of them.
    earlier = Calibration(fitted.weights_sha256, fitted.data, (Temperature("emotion", "en", 2.0, 3, 1.0, 0.9),))
    assert earlier.other_precision("float32") is None


def test_prompts_are_compared_in_the_precision_that_is_asked_for(trained: Path, store: Path) -> None:
    config = PromptComparisonConfig(
        str(trained), data=str(store), prompts=["short"], label_orders=0, limit=4, resamples=10, dtype="bfloat16"
    )
    comparison, by_variant = compare_prompts(config, progress=False)
    assert comparison.precision == "bfloat16"
    assert {p.precision for predictions in by_variant.values() for p in predictions} == {"bfloat16"}
    assert markdown(comparison).endswith("Computed in bfloat16.")


def test_a_checkpoint_in_another_precision_holds_the_same_adapter_in_float32(trained: Path) -> None:
    one, two = (load_checkpoint(trained, dtype=dtype).model.state_dict() for dtype in ("float32", torch.bfloat16))
    used = [name for name in one if "original_module" not in name]  # of which PEFT keeps a copy that never answers
    kept = [name for name in used if "fusion_adapter" in name or "lora_" in name]
    assert kept
    assert all(torch.equal(one[name], two[name]) for name in kept)
    assert {two[name].dtype for name in two if name.endswith("down_proj.base_layer.weight")} == {torch.bfloat16}
