"""Features normalised by speaker, from training to answers: what a speaker always has is not taken for an emotion."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from conftest import training_options

from llm_mer import MerPipeline
from llm_mer.cli.main import main
from llm_mer.data.schema import Utterance
from llm_mer.data.store import write_store

LABELS = ("joy", "anger")
BY_SPEAKER = ["audio=speaker"]


def voices(split: str, speakers: int, utterances: int, seed: int) -> list[Utterance]:
    """Voices whose level says who speaks, many times as loudly as what they feel."""
    generator = np.random.default_rng(seed)
    found = []
    for s in range(speakers):
        level = generator.normal(0, 8)
        for u in range(utterances):
            felt = 1.0 if u % 2 else -1.0
            steps = level + felt + generator.normal(0, 0.2, (4, 2))
            name = f"{split}-{s}-{u}"
            found.append(
                Utterance(
                    id=name,
                    split=split,
                    language="en",
                    text="well",
                    speaker=f"{split}-{s}",
                    labels={"emotion": LABELS[u % 2]},
                    audio_features=steps.astype(np.float32),
                )
            )
    return found


@pytest.fixture(scope="module")
def voice_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    everything = [*voices("train", 16, 12, 0), *voices("test", 6, 12, 1)]
    return write_store(everything, tmp_path_factory.mktemp("voices") / "store")


def train(store: Path, output: Path, **changes: object) -> int:
    chosen = {"adapter": "gated_projector", "num_train_epochs": 8, "learning_rate": "1e-2", "use_text": "false", **changes}
    return main(["train", *training_options(store, "none", output, **chosen)])


@pytest.fixture(scope="module")
def by_speaker(voice_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("runs") / "speaker"
    assert train(voice_store, output, normalisation=BY_SPEAKER) == 0
    return output


def evaluate(checkpoint: Path, store: Path, output: Path) -> tuple[dict, list[dict]]:
    command = (
        "evaluate",
        "--checkpoint",
        str(checkpoint),
        "--data",
        str(store),
        "--output",
        str(output),
        "--resamples",
        "10",
    )
    assert main([*command, "--tasks", "emotion"]) == 0
    rows = [json.loads(line) for line in (output / "predictions.jsonl").read_text().splitlines()]
    return json.loads((output / "evaluation.json").read_text()), rows


def accuracy(rows: list[dict]) -> float:
    return float(np.mean([row["value"] == row["truth"] for row in rows]))


def test_new_speakers_are_understood_by_what_is_not_always_theirs(
    voice_store: Path, by_speaker: Path, tmp_path: Path
) -> None:
    evaluation, rows = evaluate(by_speaker, voice_store, tmp_path / "scores")
    assert accuracy(rows) == 1.0
    assert {row["speaker_utterances"] for row in rows} == {12}
    assert not [line for line in evaluation["warnings"] if "known from fewer" in line]
    plain = tmp_path / "global"
    assert train(voice_store, plain) == 0
    _, rows = evaluate(plain, voice_store, tmp_path / "plain")
    assert accuracy(rows) < 0.8
    assert all("speaker_utterances" not in row for row in rows)


def test_earlier_utterances_of_a_speaker_make_the_answers_of_an_evaluation(
    voice_store: Path, by_speaker: Path, tmp_path: Path
) -> None:
    _, rows = evaluate(by_speaker, voice_store, tmp_path / "scores")
    expected = {row["id"]: row["probabilities"]["joy"] for row in rows}
    pipeline = MerPipeline.from_pretrained(by_speaker)
    asked = voices("test", 6, 12, 1)
    pipeline.know_speakers(str(voice_store))
    for chosen in (asked[:1], asked[5:9]):
        for prediction in pipeline(chosen):
            assert prediction.probabilities["joy"] == pytest.approx(expected[prediction.id], abs=1e-5)
            assert prediction.speaker_utterances == 12


def test_answers_without_earlier_utterances_do_not_depend_on_what_is_asked_beside_them(by_speaker: Path) -> None:
    pipeline = MerPipeline.from_pretrained(by_speaker)
    asked = voices("test", 6, 12, 1)[:4]
    together = pipeline(asked)
    for utterance, prediction in zip(asked, together, strict=True):
        (alone,) = pipeline([utterance])
        assert alone.probabilities["joy"] == pytest.approx(prediction.probabilities["joy"], abs=1e-6)
        assert alone.speaker_utterances == prediction.speaker_utterances == 1


def test_infer_notes_what_it_knew_of_the_speakers(
    voice_store: Path, by_speaker: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arrays, output = tmp_path / "clip.npz", tmp_path / "answers.jsonl"
    np.savez(arrays, audio=voices("test", 1, 1, 1)[0].audio_features)
    command = ["infer", "--checkpoint", str(by_speaker), "--features", str(arrays), "--language", "en"]
    assert main([*command, "--output", str(output), "--speaker_data", str(voice_store)]) == 0
    assert main([*command, "--output", str(output)]) == 2
    assert "speaker_data was" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"normalisation": ["vision=speaker"]}, "normalisation: vision=speaker"),
        ({"normalisation": ["text=none"]}, "normalisation: text=none has no effect"),
    ],
)
def test_a_kind_that_cannot_be_is_refused(
    changes: dict[str, list[str]], message: str, voice_store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train(voice_store, tmp_path / "run", **changes) == 2
    assert message in capsys.readouterr().err


def test_what_a_checkpoint_was_not_trained_for_is_refused(
    voice_store: Path, by_speaker: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plain = tmp_path / "plain"
    assert train(voice_store, plain, max_steps=1) == 0
    arrays = tmp_path / "clip.npz"
    np.savez(arrays, audio=np.ones((3, 2), dtype=np.float32))
    command = ["infer", "--checkpoint", str(plain), "--features", str(arrays), "--language", "en"]
    assert main([*command, "--speaker_data", str(voice_store)]) == 2
    assert "was not trained with normalisation by speaker" in capsys.readouterr().err
    assert train(voice_store, tmp_path / "next", init_checkpoint=plain, normalisation=BY_SPEAKER) == 2
    assert "was trained with normalisation global, not audio=speaker" in capsys.readouterr().err
