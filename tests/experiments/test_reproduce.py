"""A run is run again from its manifest: bit for bit where nothing changed, and what changed is told."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from conftest import adapter_weights, make_utterances, training_options

from llm_mer.checkpoints.run_manifest import MANIFEST, RunManifest
from llm_mer.cli.main import main
from llm_mer.cli.train import finetune
from llm_mer.data.store import write_store
from llm_mer.errors import UserError
from llm_mer.training.arguments import MerTrainingArguments
from llm_mer.training.reproduce import Agreement, ReproduceConfig, compare_runs, known_options, reproduce


@pytest.fixture(scope="module")
def finished(backbones: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a small store (``data``) and a short training on it with LoRA, dropout and evaluation (``run``)."""
    folder = tmp_path_factory.mktemp("finished")
    write_store([*make_utterances("train", 24), *make_utterances("valid", 12)], folder / "data")
    finetune(
        training_options(
            folder / "data",
            backbones["llama"],
            folder / "run",
            max_steps=3,
            eval_strategy="steps",
            eval_steps=3,
            dropout=0.1,
            lora_dropout=0.1,
            modality_dropout=0.2,
        )
    )
    return folder


@pytest.fixture
def place(finished: Path, tmp_path: Path) -> Path:
    """A copy of the run that a test may spoil, and of its data, which the manifest tells from where the run lies."""
    shutil.copytree(finished / "data", tmp_path / "data")
    return Path(shutil.copytree(finished / "run", tmp_path / "run"))


def test_a_run_is_reproduced_bit_for_bit_with_exit_code_0(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["reproduce", str(place)]) == 0
    printed = capsys.readouterr().out
    assert "all is as it was then" in printed
    assert "weights: equal bit for bit" in printed
    assert "agrees bit for bit" in printed
    one, two = adapter_weights(place), adapter_weights(Path(f"{place}-reproduced"))
    assert one.keys() == two.keys()
    assert all(bool((one[name] == two[name]).all()) for name in one)
    first, second = RunManifest.load(place), RunManifest.load(Path(f"{place}-reproduced"))
    assert first.metrics == second.metrics
    assert first.setup().settings() == second.setup().settings()


def test_a_reproduction_has_the_threads_of_the_run_and_leaves_the_process_its_own(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, during = torch.get_num_threads(), list[int]()
    manifest = json.loads((place / MANIFEST).read_text())
    manifest["hardware"]["threads"] = before + 1
    (place / MANIFEST).write_text(json.dumps(manifest))

    def stop(*_: object) -> None:
        during.append(torch.get_num_threads())
        raise UserError("stopped")

    monkeypatch.setattr("llm_mer.training.run.prepare_run", stop)
    with pytest.raises(UserError, match="stopped"):
        reproduce(ReproduceConfig(run=str(place)))
    assert during == [before + 1]
    assert torch.get_num_threads() == before


def test_a_recorded_metric_that_was_tampered_with_does_not_agree(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    manifest = RunManifest.load(place)
    recorded = manifest.metrics["eval_emotion_en_accuracy"]
    assert recorded is not None
    manifest.metrics["eval_emotion_en_accuracy"] = recorded + 0.125
    manifest.save(place)
    assert main(["reproduce", str(place), "--output", str(tmp_path / "again")]) == 1
    printed = capsys.readouterr().out
    assert "weights: equal bit for bit" in printed
    assert "does not agree: a metric differs by 0.125, more than 1e-06" in printed


def test_another_seed_in_the_manifest_gives_other_weights_and_says_so(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    manifest = RunManifest.load(place)
    manifest.options["training"]["seed"] = 8
    manifest.versions["torch"] = "0.1"
    manifest.save(place)
    assert main(["reproduce", str(place), "--output", str(tmp_path / "again")]) == 1
    printed = capsys.readouterr().out
    assert "torch: '0.1' then" in printed
    assert "weights: not equal; the largest difference of a value is" in printed


def test_data_that_changed_or_are_gone_are_one_error_before_training(
    place: Path, finished: Path, tmp_path: Path, no_backbone: None, capsys: pytest.CaptureFixture[str]
) -> None:
    write_store([*make_utterances("train", 24, 5), *make_utterances("valid", 12, 5)], tmp_path / "other")
    assert main(["reproduce", str(place), "--data", str(tmp_path / "other")]) == 2
    printed = capsys.readouterr().err.strip()
    assert printed.count("\n") == 0
    assert "the data have changed" in printed
    assert str(RunManifest.load(place).data["fingerprint"])[:12] in printed
    assert main(["reproduce", str(place), "--data", str(tmp_path / "nowhere")]) == 2
    printed = capsys.readouterr().err.strip()
    assert printed.count("\n") == 0
    assert str(tmp_path / "nowhere") in printed
    assert not Path(f"{place}-reproduced").exists()


def test_data_and_backbone_may_have_moved(
    place: Path, finished: Path, backbones: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    manifest = RunManifest.load(place)
    manifest.options["model"]["backbone"] = str(tmp_path / "gone")
    manifest.save(place)
    data = shutil.copytree(finished / "data", tmp_path / "moved")
    outcome = reproduce(ReproduceConfig(str(place), str(tmp_path / "again"), data=str(data)))
    assert outcome is not None
    assert outcome.exit_code == 0, str(outcome)
    assert "all is as it was then" in capsys.readouterr().out


def test_another_backbone_is_refused_before_training(place: Path, other_backbone: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"backbone: .* has fingerprint \w+, the run was trained on \w+"):
        reproduce(ReproduceConfig(str(place), str(tmp_path / "again"), backbone=str(other_backbone)))
    assert not (tmp_path / "again" / MANIFEST).exists()


def test_a_run_that_cannot_be_reproduced_is_refused_by_its_folder(place: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"no {MANIFEST}; name a folder"):
        reproduce(ReproduceConfig(str(tmp_path)))
    with pytest.raises(UserError, match="it is there already"):
        reproduce(ReproduceConfig(str(place), output=str(place)))
    manifest = RunManifest.load(place)
    dataclasses.replace(manifest, finished=None).save(place)
    with pytest.raises(UserError, match="the run was not finished"):
        reproduce(ReproduceConfig(str(place)))
    dataclasses.replace(manifest, metrics={}, weights_sha256=None).save(place)
    with pytest.raises(UserError, match="neither weights nor metrics"):
        reproduce(ReproduceConfig(str(place)))


def test_metrics_decide_within_the_tolerance_and_weights_alone_where_there_are_none(finished: Path) -> None:
    run = finished / "run"
    then = dataclasses.replace(RunManifest.load(run), metrics={"a": 0.5, "b": None})
    near = dataclasses.replace(then, metrics={"a": 0.501, "b": None}, weights_sha256="other")
    assert not compare_runs(then, near, run, run, 1e-6).agrees
    assert compare_runs(then, near, run, run, 1e-2).agrees
    lost = dataclasses.replace(then, metrics={"a": 0.5})
    assert compare_runs(then, lost, run, run, 1e-2).metrics["b"] == (None, None, None)
    assert not compare_runs(then, lost, run, run, 1e-2).agrees
    without = dataclasses.replace(
        then, metrics={}
    )  # as a comparison leaves it: the weights decide, whatever is measured now
    assert compare_runs(without, then, run, run, 1e-6).agrees
    assert not compare_runs(without, near, run, run, 1e-6).agrees
    assert Agreement(True, 0.0, {}, 1e-6).agrees
    assert not Agreement(False, 0.1, {}, 1e-6).agrees


def test_an_option_this_version_lacks_is_left_out_only_where_it_said_nothing(arguments: Callable[..., list[str]]) -> None:
    options = {"output_dir": "x", "gone_a": None, "gone_b": False}
    _, notes = known_options(MerTrainingArguments, options)
    assert "option gone_a: unknown to this version, left out" in notes
    assert "option seed: not in the manifest, its default now" in notes
    with pytest.raises(UserError, match=r"options \['gone_c'\] of the run are unknown"):
        known_options(MerTrainingArguments, {**options, "gone_c": 3})
