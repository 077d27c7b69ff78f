"""A clip that is longer than a checkpoint reads is refused with what would be lost, or answered in windows."""

from __future__ import annotations

import dataclasses
import itertools
import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import make_utterances

from llm_mer.cli.infer import infer
from llm_mer.cli.train import finetune
from llm_mer.data.feature_settings import FeatureSettings
from llm_mer.data.schema import Utterance
from llm_mer.data.store import UtteranceStore, write_store
from llm_mer.errors import UserError
from llm_mer.evaluation.evaluate import evaluate
from llm_mer.evaluation.options import EvaluateConfig
from llm_mer.inference.inputs import InferConfig
from llm_mer.inference.pipeline import MerPipeline
from llm_mer.inference.prediction import Prediction
from llm_mer.inference.windows import ClipWindow, ClipWindows, pool_windows
from llm_mer.model.step_limits import StepLimits
from llm_mer.prompting.tasks import Task, get_task

MADE = FeatureSettings(audio_rate=10.0, vision_fps=5.0).to_dict()
LIMITS = StepLimits({"audio": 400, "vision": 200}, {"audio": 10.0, "vision": 5.0})


def lengthened(utterance: Utterance, audio: int, vision: int | None = None, seed: int = 0) -> Utterance:
    """The utterance with so many steps of audio and, half as many unless said, of vision."""
    random = np.random.default_rng(seed)
    vision = audio // 2 if vision is None else vision
    assert utterance.audio_features is not None
    assert utterance.vision_features is not None
    sizes = utterance.audio_features.shape[1], utterance.vision_features.shape[1]
    features = [random.normal(size=(n, size)).astype(np.float32) for n, size in zip((audio, vision), sizes, strict=True)]
    return dataclasses.replace(utterance, audio_features=features[0], vision_features=features[1])


def with_rates(pipeline: MerPipeline) -> MerPipeline:
    """The pipeline as if its features had been made by ``llm-mer extract``, 10 and 5 steps a second."""
    data = {**pipeline.description.data, "features": MADE}
    return dataclasses.replace(pipeline, description=dataclasses.replace(pipeline.description, data=data))


@pytest.fixture(scope="module")
def pipeline(trained: Path) -> MerPipeline:
    return with_rates(MerPipeline.from_pretrained(trained))


@pytest.fixture(scope="module")
def windowed(trained: Path) -> MerPipeline:
    """The same, answering in windows of 3 seconds that overlap by one."""
    pipeline = with_rates(MerPipeline.from_pretrained(trained, batch_size=4))
    pipeline.predictor.windows = ClipWindows(3.0, 1.0, pipeline.step_limits)
    return pipeline


# --- where windows lie ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("steps", [301, 302, 399, 400, 401, 900, 5900])
@pytest.mark.parametrize(("seconds", "overlap"), [(30.0, 0.0), (30.0, 5.0), (7.3, 2.9), (31.0, 30.0)])
@pytest.mark.parametrize("rates", [{"audio": 10.0, "vision": 5.0}, {"audio": 12.5, "vision": 6.0}])
def test_windows_are_the_fewest_that_overlap_enough_and_together_the_whole_clip(
    steps: int, seconds: float, overlap: float, rates: dict[str, float]
) -> None:
    windows = ClipWindows(seconds, overlap, StepLimits({"audio": 400, "vision": 200}, rates))
    vision = round(steps / rates["audio"] * rates["vision"])
    clip = lengthened(make_utterances("test", 1)[0], steps, vision)
    found = windows.windows_of(clip)
    total = max(steps / rates["audio"], vision / rates["vision"])
    if total <= seconds:
        assert found == [ClipWindow(0.0, total)]
        return
    assert (found[0].start, found[-1].end) == (0.0, pytest.approx(total, abs=2e-3))
    assert all(w.end - w.start == pytest.approx(seconds, abs=2e-3) for w in found)
    shared = [a.end - b.start for a, b in itertools.pairwise(found)]
    assert min(shared) >= overlap - 4e-3
    assert len(found) == 2 or (len(found) - 1) * seconds - (len(found) - 2) * overlap < total + 1e-3  # one fewer is too few
    for modality, rate in rates.items():
        given = getattr(clip, f"{modality}_features")
        parts = [getattr(windows.cut_out(clip, w), f"{modality}_features") for w in found]
        assert all(len(part) <= LIMITS.steps[modality] for part in parts)
        assert all((part[0] == given[int(w.start * rate + 1e-6)]).all() for part, w in zip(parts, found, strict=True))
        assert {row.tobytes() for part in parts for row in part} == {row.tobytes() for row in given}


def test_a_modality_that_ends_before_a_window_is_missing_there_and_one_vector_stays() -> None:
    clip = lengthened(make_utterances("test", 1)[0], 600, vision=51)
    windows = ClipWindows(10.0, 0.0, LIMITS)
    first, second, *_ = (windows.cut_out(clip, window) for window in windows.windows_of(clip))
    assert first.vision_features is not None
    assert len(first.vision_features) == 50
    assert second.vision_features is None
    assert second.audio_features is not None
    assert second.text == clip.text
    vector = dataclasses.replace(clip, vision_features=clip.vision_features[:1])  # type: ignore[index]
    kept = windows.cut_out(vector, ClipWindow(50.0, 60.0)).vision_features
    assert kept is not None
    assert (kept == vector.vision_features).all()


@pytest.mark.parametrize(
    ("seconds", "overlap", "limits", "message"),
    [
        (41.0, 0.0, LIMITS, r"--windows 41: it must be above 0 and at most 40, the seconds that are read"),
        (0.0, 0.0, LIMITS, r"--windows 0: it must be above 0"),
        (5.0, 5.0, LIMITS, r"--window_overlap 5: it must be 0 or more and less than --windows 5"),
        (5.0, 0.0, StepLimits({"audio": 400}, {}), r"nobody knows how many steps make a second"),
        (5.0, 0.0, StepLimits({}, {}), r"reads means over the whole clip, so nothing of a long one is lost"),
    ],
)
def test_windows_that_cannot_be_are_refused(seconds: float, overlap: float, limits: StepLimits, message: str) -> None:
    with pytest.raises(UserError, match=message):
        ClipWindows(seconds, overlap, limits)


# --- the answer of the clip -------------------------------------------------------------------------------------------


def drawn(task: Task, count: int, seed: int) -> tuple[list[Prediction], np.ndarray]:
    """Predictions of a task with random distributions, and their log-probabilities ``(count, C)`` in float64."""
    from llm_mer.inference.answer_values import fill_distribution

    logits = np.random.default_rng(seed).normal(scale=4.0, size=(count, task.num_classes or len(task.grid())))
    log_probs = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    found = []
    for row in log_probs:
        prediction = Prediction("clip", task.name, "en", "", outside_mass=float(row[0]), seconds=0.5)
        prediction.training_distance = {"audio": float(-row[3])} | ({"vision": 0.5} if not found else {})
        prediction.diagnostics = {"gate": [float(row[1]), float(row[2])]}
        fill_distribution(prediction, task, row, "median")
        prediction.head_log_probabilities = row.tolist() if task.kind == "classification" else None
        prediction.head_value = prediction.value
        found.append(prediction)
    return found, log_probs


@pytest.mark.parametrize("name", ["emotion", "sentiment"])
def test_the_answer_is_the_mean_of_the_windows_probabilities(name: str) -> None:
    task = get_task(name)
    answers, log_probs = drawn(task, 3, seed=1)
    windows = [ClipWindow(0.0, 2.0), ClipWindow(1.5, 3.5), ClipWindow(3.0, 5.0)]
    pooled = pool_windows(answers, windows, task, "mean")
    mean = np.exp(log_probs).mean(axis=0)
    assert np.allclose(np.exp(pooled.log_probabilities), mean, atol=1e-12)
    assert np.allclose(list(pooled.probabilities.values()), mean, atol=1e-6)
    assert pooled.outside_mass == pytest.approx(np.log(np.exp(log_probs[:, 0]).mean()))
    assert pooled.diagnostics["gate"] == pytest.approx(log_probs[:, 1:3].mean(axis=0), abs=1e-4)
    assert pooled.training_distance == {"audio": pytest.approx(-log_probs[:, 3].min()), "vision": 0.5}
    assert pooled.seconds == 1.5
    if name == "emotion":
        assert pooled.value == pooled.head_value == task.label_names[int(mean.argmax())]
    else:
        grid = np.asarray(task.grid())
        assert pooled.value == pytest.approx(float(mean @ grid))
        assert pooled.head_value == pytest.approx(np.mean([a.head_value for a in answers]))
    assert [(w.start, w.end, w.value) for w in pooled.windows] == [
        (w.start, w.end, a.value) for w, a in zip(windows, answers, strict=True)
    ]
    assert Prediction.from_dict(json.loads(json.dumps(pooled.to_dict()))) == pooled


def test_each_window_is_answered_as_its_part_alone_would_be(pipeline: MerPipeline, windowed: MerPipeline) -> None:
    first, second, third = make_utterances("test", 3, dialogues=False)
    long, longer = lengthened(first, 75, seed=3), lengthened(third, 118, seed=4)
    found = windowed([long, second, longer])
    windows = windowed.predictor.windows
    assert windows is not None
    assert [len(p.windows) for p in found] == [4, 4, 0, 0, 6, 6]
    assert [p.cut for p in found] == [{}] * 6
    alone = pipeline([windows.cut_out(long, ClipWindow(w.start, w.end)) for w in found[0].windows], ["emotion"])
    assert [w.value for w in found[0].windows] == [p.value for p in alone]
    mean = np.exp([p.log_probabilities for p in alone]).mean(axis=0)
    assert np.allclose(np.exp(found[0].log_probabilities), mean, atol=1e-5)
    short = pipeline([second], ["emotion"])[0]
    assert np.allclose(found[2].log_probabilities, short.log_probabilities, atol=1e-4)


def test_an_adapter_that_reads_a_conversation_hears_the_window_in_the_place_of_the_clip(
    arguments: Callable[..., list[str]],
) -> None:
    """Its vector of the utterance is of the window; those of the turns before it stay."""
    folder = finetune(arguments(adapter="gated_xlstm", level="frame", num_steps=2, step_size=4, max_frames=16, max_steps=1))
    pipeline = with_rates(MerPipeline.from_pretrained(folder))
    limits = pipeline.step_limits
    assert limits.steps == {"audio": 16, "vision": 16}
    pipeline.predictor.windows = ClipWindows(1.0, 0.0, limits)
    turns = make_utterances("test", 6)[::2]
    clip = lengthened(turns[-1], 30)
    (found,) = pipeline([*turns[:-1], clip], last_only=True)
    windows = pipeline.predictor.windows
    pipeline.predictor.windows = None
    alone = [
        pipeline([*turns[:-1], windows.cut_out(clip, ClipWindow(w.start, w.end))], last_only=True)[0] for w in found.windows
    ]
    mean = np.exp([p.log_probabilities for p in alone]).mean(axis=0)
    assert len(found.windows) == 3
    assert np.allclose(np.exp(found.log_probabilities), mean, atol=1e-5)
    assert np.ptp([p.log_probabilities[0] for p in alone]) > 1e-6


def test_an_adapter_that_reads_means_loses_nothing_of_a_long_clip(arguments: Callable[..., list[str]]) -> None:
    folder = finetune(arguments(adapter="lpgnet", backbone="none", max_steps=1))
    pipeline = MerPipeline.from_pretrained(folder)
    (found,) = pipeline([lengthened(make_utterances("test", 1, dialogues=False)[0], 900)])
    assert found.cut == {}
    with pytest.raises(UserError, match="--windows 5: this checkpoint's adapter reads means over the whole clip"):
        MerPipeline.from_pretrained(folder, windows=5.0)


# --- never cut without a word -----------------------------------------------------------------------------------------


def test_a_long_clip_is_refused_with_its_seconds_what_would_be_lost_and_the_remedy(
    pipeline: MerPipeline, trained: Path
) -> None:
    clip = lengthened(make_utterances("test", 1, dialogues=False)[0], 590, vision=100)
    with pytest.raises(UserError) as told:
        pipeline([clip])
    assert str(told.value) == (
        "utterance 'test-000': 59.0 s of audio (590 steps), of which the first 40.0 s (400 steps) are read: 19.0 s would be "
        "lost; --windows 40 answers for each part and for the clip, --long_clips cut answers from the beginning alone"
    )
    with pytest.raises(UserError, match=r"590 steps of audio, of which the first 400 are read: 190 would be lost; give its"):
        MerPipeline.from_pretrained(trained)([clip])  # nobody knows how many steps make a second


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"long_clips": "shorten"}, "long_clips is 'shorten'; choose from refuse, cut"),
        ({"long_clips": "cut", "windows": 3.0}, "--windows 3 with --long_clips cut"),
        ({"window_overlap": 3.0}, "--window_overlap 3 without --windows"),
        ({"windows": 3.0}, "nobody knows how many steps make a second"),
    ],
)
def test_options_that_contradict_one_another_are_refused(trained: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        MerPipeline.from_pretrained(trained, **options)


def test_infer_writes_the_refusal_on_the_clip_s_line_and_says_on_standard_error_what_was_cut(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    clip = lengthened(make_utterances("test", 1, dialogues=False)[0], 401)
    np.savez(tmp_path / "clip.npz", audio=clip.audio_features, vision=clip.vision_features)  # type: ignore[arg-type]
    config = InferConfig(str(trained), features=str(tmp_path / "clip.npz"), language="en", tasks=["emotion"])
    infer(config)
    line = json.loads(capsys.readouterr().out)
    assert line["error"].startswith("utterance 'clip': 401 steps of audio, of which the first 400 are read: 1 would be lost")
    with caplog.at_level(logging.WARNING, "llm_mer"):
        infer(dataclasses.replace(config, long_clips="cut"))
    assert json.loads(capsys.readouterr().out)["cut"] == {"audio": [400, 401]}
    assert "only the beginning of a long audio is read" in caplog.text


@pytest.fixture(scope="module")
def long_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Whose training and test splits hold one utterance of 60 s each."""
    folder = tmp_path_factory.mktemp("long") / "store"
    parts = [make_utterances(split, 12) for split in ("train", "test")]
    parts[0][3], parts[1][3] = lengthened(parts[0][3], 600, 20), lengthened(parts[1][3], 600, 20)
    return write_store([u for part in parts for u in part], folder, description={"features": MADE})


def test_steps_are_counted_without_reading_features(long_store: Path) -> None:
    table = UtteranceStore.open(long_store).split("test")
    assert table.steps("audio") == [len(u.audio_features) for u in table]  # type: ignore[arg-type]
    assert table.steps("text") == [0] * len(table)


def test_training_and_evaluation_refuse_what_they_would_cut_unless_it_is_asked_for(
    long_store: Path, arguments: Callable[..., list[str]], tmp_path: Path
) -> None:
    chosen: dict[str, Any] = {"data": long_store, "max_steps": 1, "backbone": "none", "tasks": ["emotion"]}
    told = (
        r"split 'train': 1 of 12 utterances are longer than is read, e\.g\. 'train-003': 60\.0 s of audio \(600 steps\), of "
        r"which the first 40\.0 s \(400 steps\) are read: 20\.0 s would be lost; say max_audio_steps: 600 to read them whole"
    )
    with pytest.raises(UserError, match=told):
        finetune(arguments(**chosen))
    whole = finetune(arguments(**chosen, max_audio_steps=600, output=tmp_path / "whole"))
    cut = finetune(arguments(**chosen, long_clips="cut", output=tmp_path / "cut"))

    def scores(checkpoint: Path, **options: Any) -> list[Prediction]:
        config = EvaluateConfig(str(checkpoint), [str(long_store)], resamples=5, **options)
        evaluation, by_condition = evaluate(config, progress=False)
        assert any("longer than the 400 steps" in w for w in evaluation.warnings) == any(
            p.cut for p in by_condition["as is"]
        )
        return by_condition["as is"]

    assert not any(p.cut for p in scores(whole))
    assert [p.cut for p in scores(cut) if p.cut] == [{"audio": (400, 600)}]  # as it was trained
    with pytest.raises(UserError, match=r"split 'test': 1 of 12 .* 20\.0 s would be lost; --windows 40 answers"):
        scores(cut, long_clips="refuse")
    assert [len(p.windows) for p in scores(cut, windows=40.0) if p.windows] == [2]
