"""Three numbers of one's own (valence, arousal, dominance) in one run: training, evaluation, inference."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from conftest import make_utterances, training_options

from llm_mer.cli.train import finetune
from llm_mer.data.store import write_store
from llm_mer.evaluation.evaluate import evaluate
from llm_mer.evaluation.options import EvaluateConfig
from llm_mer.inference.pipeline import MerPipeline

RANGES = {"valence": (0, 100), "arousal": (1, 5), "dominance": (-1, 1)}
QUESTIONS = {
    "valence": {"en": "How pleasant?", "zh": "多愉快？"},
    "arousal": {"en": "How excited?", "zh": "多激动？"},
    "dominance": {"en": "How much in control?", "zh": "多有控制力？"},
}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Each number is told by the signs of the audio and the vision, on a scale of its own."""
    folder = tmp_path_factory.mktemp("scores")
    utterances = [*make_utterances("train", 48), *make_utterances("test", 16)]
    for number, utterance in enumerate(utterances):
        place = (float(utterance.labels["sentiment"]) + 3) / 6
        places = {"valence": place, "arousal": 1 - place, "dominance": place}
        utterance.labels = {
            name: round(low + (high - low) * places[name], 1 if high < 9 else 0) for name, (low, high) in RANGES.items()
        }
        if number % 5 == 0:
            del utterance.labels["dominance"]  # not everybody was asked everything
    write_store(utterances, folder / "store")
    for name, (low, high) in RANGES.items():
        decimals = 0 if high > 9 else 1
        entry = {"kind": "regression", "range": [low, high], "decimals": decimals, "question": QUESTIONS[name]}
        (folder / f"{name}.yaml").write_text(yaml.safe_dump({name: entry}, allow_unicode=True), encoding="utf-8")
    return folder


def test_three_numbers_are_trained_evaluated_and_answered_together(
    data: Path, backbones: dict[str, Path], tmp_path: Path
) -> None:
    finetune(
        training_options(
            data / "store",
            backbones["llama"],
            tmp_path / "run",
            tasks=[data / f"{name}.yaml" for name in RANGES],
            prompts=["question"],
            objective="answers",
            read_out="true",
            auxiliary_head="true",
            max_steps=4,
            per_device_train_batch_size=4,
            learning_rate="1e-2",
        )
    )
    evaluation, by_condition = evaluate(
        EvaluateConfig(checkpoint=str(tmp_path / "run"), data=[str(data / "store")], answer="all", resamples=20),
        progress=False,
    )
    conventions = {"valence": "ccc", "arousal": "ccc", "dominance": "acc2_weak"}
    for name, (low, high) in RANGES.items():
        known = sum(p.task == name for p in by_condition["as is"])
        for condition in ("as is", "read-out"):
            row = evaluation.find(condition, name)
            assert row is not None
            assert (row.n, row.unparseable_rate) == (known, 0.0)
            assert conventions[name] in row.metrics
            assert {"mae", "corr"} <= set(row.baseline)
        assert all(low <= float(p.value) <= high for p in by_condition["read-out"] if p.task == name)
    assert sum(p.task == "dominance" for p in by_condition["as is"]) < 16
    answers = MerPipeline.from_pretrained(tmp_path / "run")(make_utterances("test", 1))
    assert [answer.task for answer in answers] == list(RANGES)
    for answer in answers:
        low, high = RANGES[answer.task]
        assert low <= float(answer.value) <= high
        assert sum(answer.probabilities.values()) == pytest.approx(1.0, abs=1e-3)
        assert (answer.head_value is not None) == (answer.task == "valence")  # the adapter's own head knows one
