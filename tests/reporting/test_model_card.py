"""What a checkpoint's model card says."""

import dataclasses
import getpass
import json
import shutil
from pathlib import Path

import pytest
from conftest import options
from huggingface_hub import ModelCard

from llm_mer.checkpoints.run_differences import without_folders
from llm_mer.checkpoints.run_manifest import RunManifest
from llm_mer.cli.main import main
from llm_mer.errors import UserError
from llm_mer.evaluation.rows import Evaluation
from llm_mer.reporting.model_card import model_card


@pytest.fixture(scope="module")
def evaluated(trained: Path, store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the trained checkpoint with an evaluation in it."""
    folder = Path(shutil.copytree(trained, tmp_path_factory.mktemp("card") / "mer-egmf"))
    assert main(["evaluate", *options(checkpoint=folder, data=store, resamples=50, conditions="shuffle:audio,vision")]) == 0
    return folder


def test_every_score_stands_beside_n_baseline_interval_and_unparseable_rate(evaluated: Path) -> None:
    text = model_card(evaluated)
    evaluation = Evaluation.load(evaluated / "evaluation")
    rows = [row for row in evaluation.rows if row.subset == "all"]
    assert len(rows) == 12  # two conditions, two tasks, en, zh and both
    for row in rows:
        metric, baseline = ("accuracy", "majority") if row.task == "emotion" else ("mae", "mean")
        low, high = row.intervals[metric]
        line = next(
            line
            for line in text.splitlines()
            if line.startswith(f"| {row.condition} | {row.task} | {row.language} | {row.n} |")
        )
        assert f"{metric} {row.metrics[metric]:.3f} [{low:.3f}, {high:.3f}]" in line
        assert f"{baseline} {row.baseline[metric]:.3f}" in line
        assert line.endswith(f"| {row.unparseable_rate:.3f} |")
    for warning in evaluation.warnings:
        assert warning in text


def test_the_metadata_are_the_hubs_own(evaluated: Path) -> None:
    card = ModelCard(model_card(evaluated, license="mit", repository="someone/mer"))
    assert card.data.language == ["en", "zh"]
    assert card.data.license == "mit"
    assert card.data.library_name == "llm_mer"
    assert card.data.pipeline_tag == "video-classification"
    assert {"emotion-recognition", "egmf", "lora"} <= set(card.data.tags)
    assert card.data.get("base_model") is None  # a local folder is none of the hub's
    row = Evaluation.load(evaluated / "evaluation").find(task="emotion", language="zh")
    assert row is not None
    (result,) = [
        r for r in card.data.eval_results if (r.task_name, r.dataset_config, r.metric_type) == ("emotion", "zh", "accuracy")
    ]
    assert result.metric_value == pytest.approx(row.metrics["accuracy"], abs=1e-6)
    assert result.dataset_split == "test"
    assert 'MerPipeline.from_pretrained("someone/mer")' in card.text


def test_training_data_languages_limits_and_licences_are_told(evaluated: Path) -> None:
    text = model_card(evaluated)
    description = json.loads((evaluated / "llm_mer.json").read_text())
    assert description["data"]["fingerprint"][:12] in text
    assert "in en and zh" in text
    assert "Weights: no licence was stated. The training data and the backbone have their own licences." in text
    assert "learning rate: 0.01" in text
    assert "## Limits" in text
    assert "eGeMAPS" not in text
    described = {**description, "data": {**description["data"], "features": {"audio": "egemaps", "vision": "hog_flow"}}}
    (evaluated / "llm_mer.json").write_text(json.dumps(described))
    try:
        assert "audEERING research licence (non-commercial)" in model_card(evaluated)
    finally:
        (evaluated / "llm_mer.json").write_text(json.dumps(description))


def test_a_card_names_no_folder_and_no_user_of_this_machine(evaluated: Path) -> None:
    text = model_card(evaluated)
    for own in (str(evaluated.parent), str(Path.home()), "/tmp", f"/{getpass.getuser()}/"):
        assert own not in text
    told = RunManifest.load(evaluated)
    assert any(str(evaluated.parents[1]) in word for word in told.command)  # so that there was something to leave out


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("/home/ann/data/mine", "mine"),
        ("meld:/home/ann/MELD.Raw", "meld:MELD.Raw"),
        ("--data=/home/ann/mine", "--data=mine"),
        ("--data=meld:/home/ann/mine", "--data=meld:mine"),
        ("~ann/mine", "mine"),
        (["runs/x", "/home/ann/x.yaml"], ["runs/x", "x.yaml"]),
        ({"audio": "/home/ann/wavlm", "audio_rate": 12.5}, {"audio": "wavlm", "audio_rate": 12.5}),
        ("Qwen/Qwen2.5-7B", "Qwen/Qwen2.5-7B"),
        ("apc=0.5", "apc=0.5"),
    ],
)
def test_what_is_given_away_keeps_the_last_part_of_a_path(value: object, expected: object) -> None:
    assert without_folders(value) == expected


def test_without_an_evaluation_the_card_says_so(trained: Path) -> None:
    assert "has not been evaluated with intervals" in model_card(trained)
    assert ModelCard(model_card(trained)).data.eval_results is None


def test_an_evaluation_of_another_checkpoint_is_refused(evaluated: Path, tmp_path: Path) -> None:
    evaluation = Evaluation.load(evaluated / "evaluation")
    other = {**evaluation.checkpoint, "run": {**evaluation.checkpoint["run"], "weights_sha256": "0" * 64}}
    dataclasses.replace(evaluation, checkpoint=other).save(tmp_path)
    with pytest.raises(UserError, match="the evaluation is of another checkpoint"):
        model_card(evaluated, [tmp_path])


def test_the_command_writes_the_card_into_the_checkpoint(evaluated: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["card", str(evaluated), "--license", "apache-2.0"]) == 0
    assert capsys.readouterr().out.strip() == str(evaluated / "README.md")
    assert (evaluated / "README.md").read_text() == model_card(evaluated, license="apache-2.0")
    (evaluated / "README.md").unlink()
